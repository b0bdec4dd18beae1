/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Whether a task that wakes up and is not boosted ends the turn of the one that runs; the
 * rule is pv_ends_in() of policy.h.
 *
 * A turn that may not be interrupted yet is interrupted a little later, by a reminder. By one also
 * end turns that are not to last until the next tick.
 */
#ifndef PVSCHED_PREEMPT_BPF_H
#define PVSCHED_PREEMPT_BPF_H

#include "placement.bpf.h"

static inline void interrupt_now(struct pv_cpu *c, s32 cpu, s32 tid)
{
	WRITE_ONCE(c->give_way, 1);
	scx_bpf_kick_cpu(cpu, SCX_KICK_PREEMPT);
	COUNT(preempted);
	EVENT(PREEMPT, tid, cpu, PV_RANK_NONE);
}

/* Whether a vCPU waits ahead of what @cpu runs, or @cpu has to look whether one does. */
static inline bool anybody_is_ahead(struct pv_cpu *c, u32 cpu)
{
	return READ_ONCE(c->post_head) != READ_ONCE(c->post_tail) || nr_boosted(llc_here(c)) ||
	       nr_boosted_here(cpu);
}

/*
 * The turn may be interrupted now, for somebody who woke up or waits ahead, or is over, which
 * dispatch() sees to. If another has begun, whoever waited for the end of this one has been considered.
 */
static int on_reminder(void *map, u32 *cpu, struct pv_reminder *r)
{
	struct pv_cpu *c = cpu_of(*cpu);

	if (!c || READ_ONCE(c->turn_at) != READ_ONCE(r->turn) || READ_ONCE(c->taken))
		return 0;
	if (READ_ONCE(c->rank))
		return 0;
	if (clock_ns() >= READ_ONCE(c->turn_end) || anybody_is_ahead(c, *cpu))
		scx_bpf_kick_cpu(*cpu, SCX_KICK_PREEMPT);
	else
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
	remind(cpu, turn, left, now);
}

/*
 * The fair turn of @t, whose guest does not publish if @silent, has begun on @cpu at @now, and
 * others wait.
 *
 * Nothing tells what waits for a vCPU of such a guest: its tasks, urgent or not, wait as it does. It
 * would wait for longer if its turns went on until a tick: it has its share in shorter ones, and
 * an interrupt finds it owed time.
 */
static inline void end_on_time(struct pv_task *t, bool silent, u32 cpu, u64 slice, u64 now)
{
	if (t->is_vcpu && silent)
		remind(cpu, now, slice, now);
}

#endif /* PVSCHED_PREEMPT_BPF_H */
