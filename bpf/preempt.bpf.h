/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Whether a task that wakes up and is not boosted ends the turn of the one that runs; the
 * rule is pv_ends_in() of policy.h.
 *
 * A turn that may not be interrupted yet is interrupted a little later by a timer. Without it
 * the waking task would wait for the next tick, which is four milliseconds away on many kernels.
 */
#ifndef PVSCHED_PREEMPT_BPF_H
#define PVSCHED_PREEMPT_BPF_H

#include "placement.bpf.h"

/* When a CPU's turn may be interrupted, somebody who waits for that reminds it. */
struct pv_reminder {
	struct bpf_timer timer;
	u64 turn;	/* pv_cpu.turn_at of that turn */
	u32 armed;
	u32 rsvd;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PV_MAX_CPUS);
	__type(key, u32);
	__type(value, struct pv_reminder);
} reminders SEC(".maps");

static inline void interrupt_now(struct pv_cpu *c, s32 cpu, s32 tid)
{
	WRITE_ONCE(c->give_way, 1);
	scx_bpf_kick_cpu(cpu, SCX_KICK_PREEMPT);
	COUNT(preempted);
	EVENT(PREEMPT, tid, cpu, PV_RANK_NONE);
}

/* The turn is long enough now. If it is over, whoever waits for its end has been considered. */
static int on_reminder(void *map, u32 *cpu, struct pv_reminder *r)
{
	struct pv_cpu *c = cpu_of(*cpu);
	u64 turn = READ_ONCE(r->turn);

	__sync_lock_test_and_set(&r->armed, 0);
	if (c && READ_ONCE(c->turn_at) == turn && !READ_ONCE(c->rank) && !READ_ONCE(c->taken))
		interrupt_now(c, *cpu, 0);
	return 0;
}

static inline s32 init_reminder(u32 cpu)
{
	struct pv_reminder *r = bpf_map_lookup_elem(&reminders, &cpu);

	if (!r)
		return -EINVAL;
	return bpf_timer_init(&r->timer, &reminders, CLOCK_MONOTONIC) ?:
	       bpf_timer_set_callback(&r->timer, on_reminder);
}

/* A vCPU with SCHED_BATCH work, or for nothing else: it wants long turns rather than early ones. */
static inline bool is_batch(struct pv_task *t)
{
	return t->is_vcpu &&
	       (t->guest_class == PVSCHED_CLASS_BATCH || has_role(t, PVSCHED_ROLE_BATCH));
}

/*
 * @t, of @weight, has woken up and waits at @vtime for a turn on @cpu, where somebody runs. A
 * latency-critical vCPU has the turn ended for any better claim and at once, one for batch work
 * never.
 */
static __always_inline void interrupt_turn(struct task_struct *p, struct pv_task *t, struct pv_cpu *c,
				  s32 cpu, u64 vtime, u64 weight, bool rested, u64 now)
{
	u64 at = READ_ONCE(c->vtime_at), turn = READ_ONCE(c->turn_at), ran, current, margin, left;
	struct pv_reminder *r;

	if (is_batch(t) || READ_ONCE(c->rank) || READ_ONCE(c->taken))
		return;
	ran = now > turn ? now - turn : 0;
	current = READ_ONCE(c->vtime) + pv_charge(now > at ? now - at : 0, READ_ONCE(c->weight));
	margin = has_role(t, PVSCHED_ROLE_LATENCY) ? 0 : pv_charge(slice_ns / 2, weight);
	left = pv_ends_in(vtime, current, margin, ran, slice_min_ns, rested);
	if (!left) {
		interrupt_now(c, cpu, p->pid);
		return;
	}
	if (left == PV_NOT_EARLY)
		return;
	r = bpf_map_lookup_elem(&reminders, &cpu);
	if (r && !__sync_lock_test_and_set(&r->armed, 1)) {
		WRITE_ONCE(r->turn, turn);
		bpf_timer_start(&r->timer, left, 0);
	}
}

#endif /* PVSCHED_PREEMPT_BPF_H */
