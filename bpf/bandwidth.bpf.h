/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cpu.max: how much CPU time the tasks of a cgroup, and of those below it, may use
 * in each period. No boost gets around it.
 *
 * What they run is taken from what is left of the period, also beyond that, as a turn
 * ends at a tick; the next periods have so much less. A task that wants to run when
 * nothing is left waits in a queue of that cgroup's. A timer at the period's end posts
 * the cgroup to a CPU, and that one, when it dispatches, lets the tasks go where they
 * belong. The timer goes on while tasks were held back lately, so that one which is
 * being queued just then is let go with the next period.
 */
#ifndef PVSCHED_BANDWIDTH_BPF_H
#define PVSCHED_BANDWIDTH_BPF_H

#include "groups.bpf.h"
#include "placement.bpf.h"

#define HELD_DSQ(group)	(0x50000ULL + (group))

/* How many tasks a CPU lets go at a time; the rest at its next dispatch. */
#define PV_RELEASES	32

/* A new period may have begun. */
static inline void group_renew(struct pv_group *g, u64 now)
{
	u64 periods;
	s64 left;

	if (now < READ_ONCE(g->renewed) + READ_ONCE(g->period))
		return;
	bpf_spin_lock(&g->lock);
	if (g->quota && now >= g->renewed + g->period) {
		periods = (now - g->renewed) / g->period;
		/* Other CPUs go on spending. */
		left = READ_ONCE(g->left);
		__sync_fetch_and_add(&g->left, pv_renew(left, g->quota, g->burst, periods) - left);
		g->renewed += periods * g->period;
	}
	bpf_spin_unlock(&g->lock);
}

/* The limited cgroup, of @group and those above, that has nothing left now; 0 none. */
__noinline u32 group_throttles(u32 group, u64 now)
{
	u32 i;

	bpf_for(i, 0, PV_GROUP_DEPTH) {
		struct pv_group *g = group ? group_at(group) : NULL;

		if (!g)
			break;
		if (READ_ONCE(g->quota)) {
			group_renew(g, now);
			if (READ_ONCE(g->left) <= 0)
				return group;
		}
		group = g->parent;
	}
	return 0;
}

__noinline int group_spend(u32 group, u64 ran)
{
	u32 i;

	bpf_for(i, 0, PV_GROUP_DEPTH) {
		struct pv_group *g = group ? group_at(group) : NULL;

		if (!g)
			break;
		if (READ_ONCE(g->quota))
			__sync_fetch_and_sub(&g->left, ran);
		group = g->parent;
	}
	return 0;
}

/* What @t has been charged goes off what its cgroups may use. */
static inline void spend(struct pv_task *t)
{
	u64 ran = t->unspent;

	t->unspent = 0;
	if (t->limit && ran)
		group_spend(t->limit, ran);
}

static inline void ask_release(u32 group)
{
	s32 cpu = bpf_get_smp_processor_id();
	struct pv_cpu *c = cpu_of(cpu);

	if (!c)
		return;
	post(c, -(s32)group);
	scx_bpf_kick_cpu(cpu, SCX_KICK_PREEMPT);
}

/* Sets the timer to the period's end, if it is not set. */
static inline void arm(struct pv_group *g, u64 now)
{
	u64 period = READ_ONCE(g->period), end = READ_ONCE(g->renewed) + period;

	if (!__sync_lock_test_and_set(&g->armed, 1))
		bpf_timer_start(&g->timer, end > now ? end - now : period, 0);
}

static int on_period(void *map, u32 *group, struct pv_group *g)
{
	u64 now = clock_ns();
	bool waits;

	group_renew(g, now);
	/* Whoever is held back from here on sees to it that the timer is set. */
	__sync_lock_test_and_set(&g->armed, 0);
	waits = scx_bpf_dsq_nr_queued(HELD_DSQ(*group)) > 0;
	if (waits && (!READ_ONCE(g->quota) || READ_ONCE(g->left) > 0 ||
		      now > READ_ONCE(g->released) + PV_STARVATION_NS))
		ask_release(*group);
	if (waits || now < READ_ONCE(g->held) + 2 * READ_ONCE(g->period))
		arm(g, now);
	return 0;
}

/* If its cgroups have nothing left, @p waits for the next period. */
static inline bool hold_back(struct task_struct *p, struct pv_task *t, u64 now, u64 enq_flags)
{
	struct pv_group *g;
	u32 group;

	if (!t->limit)
		return false;
	group = group_throttles(t->limit, now);
	g = group ? group_at(group) : NULL;
	if (!g)
		return false;
	WRITE_ONCE(g->held, now);
	arm(g, now);
	t->extra_turn = 0;
	scx_bpf_dsq_insert(p, HELD_DSQ(group), slice_min_ns, enq_flags);
	COUNT(held_back);
	return true;
}

/* A period of @group has begun: its tasks may wait for CPUs again. */
__noinline int group_release(u32 group)
{
	struct pv_group *g = group_at(group);
	struct bpf_iter_scx_dsq it;
	struct task_struct *p;
	u64 now = clock_ns();
	u32 n = 0;

	if (!g)
		return 0;
	WRITE_ONCE(g->released, now);
	if (!bpf_iter_scx_dsq_new(&it, HELD_DSQ(group), 0)) {
		while (n < PV_RELEASES && (p = bpf_iter_scx_dsq_next(&it))) {
			struct pv_task *t = task_of(p);
			s32 at = scx_bpf_task_cpu(p), home;
			struct pv_cpu *c;
			u64 dsq, clock;
			u32 llc;

			n++;
			if (!t)
				continue;
			home = home_of(p, t);
			if (home >= 0)
				at = home;
			c = cpu_of(at);
			if (!c)
				continue;
			llc = llc_here(c);
			dsq = home >= 0 || is_pinned(p) ? CPU_DSQ(at) : FAIR_DSQ(llc);
			/* It waited for its quota, which is nothing that it is owed. */
			clock = go_by(t, clock_for(p, home, at, llc));
			t->vtime = pv_enter_base(t->vtime, clock, usual_charge(slice_ns));
			t->dsq = dsq;
			scx_bpf_dsq_move_set_slice(&it, slice_min_ns);
			scx_bpf_dsq_move_set_vtime(&it, t->vtime);
			/* Before it can run, as that is its next state. */
			__sync_val_compare_and_swap(&t->state, PV_STATE_ELSEWHERE, PV_STATE_FAIR);
			if (scx_bpf_dsq_move_vtime(&it, p, dsq, 0))
				kick_idle(p, home);
			else
				__sync_val_compare_and_swap(&t->state, PV_STATE_FAIR,
							    PV_STATE_ELSEWHERE);
		}
	}
	bpf_iter_scx_dsq_destroy(&it);
	if (scx_bpf_dsq_nr_queued(HELD_DSQ(group)) > 0)
		ask_release(group);
	return 0;
}

/* cpu.max, in us; no limit if @quota is more than any host has. */
static inline void group_limit(u32 group, u64 period, u64 quota, u64 burst)
{
	struct pv_group *g = group ? group_at(group) : NULL;
	u64 now = clock_ns();

	if (!g)
		return;
	if (!g->ready) {
		bpf_timer_init(&g->timer, &groups, CLOCK_MONOTONIC);
		bpf_timer_set_callback(&g->timer, on_period);
		g->ready = 1;
	}
	bpf_spin_lock(&g->lock);
	if (!period || quota / period >= PV_MAX_CPUS) {
		/* The timer still needs a period, for those who are being held back just now. */
		g->quota = 0;
	} else {
		g->quota = quota * 1000;
		g->period = period * 1000;
		g->burst = burst * 1000;
		g->left = g->quota;
		g->renewed = now;
		g->released = now;
	}
	bpf_spin_unlock(&g->lock);
	if (scx_bpf_dsq_nr_queued(HELD_DSQ(group)) > 0)
		ask_release(group);
}

#endif /* PVSCHED_BANDWIDTH_BPF_H */
