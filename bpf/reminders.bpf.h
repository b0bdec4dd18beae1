/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A timer for each CPU, that ends the turn that runs there. Without it that is left to the next
 * tick, which is four milliseconds away on many kernels.
 *
 * What it does is on_reminder() of preempt.bpf.h.
 */
#ifndef PVSCHED_REMINDERS_BPF_H
#define PVSCHED_REMINDERS_BPF_H

#include "state.bpf.h"

struct pv_reminder {
	struct bpf_timer timer;
	u64 turn;	/* pv_cpu.turn_at of the turn that it is about */
	u64 at;		/* ns; when it expires */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PV_MAX_CPUS);
	__type(key, u32);
	__type(value, struct pv_reminder);
} reminders SEC(".maps");

/*
 * Sets the timer of @cpu to @in ns from @now, for the turn that began at @turn, unless it is
 * set to earlier already. Should two CPUs do that at once one may be lost: the next tick sees
 * to it.
 */
static inline void remind(u32 cpu, u64 turn, u64 in, u64 now)
{
	struct pv_reminder *r = bpf_map_lookup_elem(&reminders, &cpu);

	if (!r || (READ_ONCE(r->turn) == turn && pv_before(now, READ_ONCE(r->at)) &&
		   pv_before(READ_ONCE(r->at), now + in)))
		return;
	WRITE_ONCE(r->turn, turn);
	WRITE_ONCE(r->at, now + in);
	bpf_timer_start(&r->timer, in, 0);
}

#endif /* PVSCHED_REMINDERS_BPF_H */
