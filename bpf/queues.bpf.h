/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The queues that tasks wait in, and who is next.
 *
 * Per last-level cache there is a fair queue, ordered by vtime, and a boost
 * queue, ordered by pv_boost_key(). Per CPU there is one of each for those
 * that may run nowhere else: pinned tasks in the fair one, vCPUs whose
 * exclusion group leaves them this CPU in both. A task leaves its fair queue
 * for a boost queue without being enqueued anew: a hint posts its thread id to
 * a CPU, and that CPU moves it when it dispatches, which is the only place
 * where sched_ext lets a waiting task move.
 */
#ifndef PVSCHED_QUEUES_BPF_H
#define PVSCHED_QUEUES_BPF_H

#include "boost.bpf.h"

#define FAIR_DSQ(llc)	(0x10000ULL + (llc))
#define BOOST_DSQ(llc)	(0x20000ULL + (llc))
#define CPU_DSQ(cpu)	(0x30000ULL + (u32)(cpu))
#define CPU_BOOST_DSQ(cpu) (0x40000ULL + (u32)(cpu))

/*
 * Where a boosted vCPU waits that has this home, or none (-1) and is served by @llc. Whoever asks is
 * about to put one there: from now on it is looked into.
 */
static inline u64 boost_dsq(s32 home, u32 llc)
{
	struct pv_cpu *c;
	struct pv_llc *l;

	if (home >= 0) {
		c = cpu_of(home);
		if (c && !READ_ONCE(c->boosts_used))
			WRITE_ONCE(c->boosts_used, 1);
		return CPU_BOOST_DSQ(home);
	}
	l = llc_of(llc);
	if (l && !READ_ONCE(l->boosts_used))
		WRITE_ONCE(l->boosts_used, 1);
	return BOOST_DSQ(llc);
}

/* The kernel looks each queue up in a hash table: worth it where somebody may wait. */
static inline u32 nr_queued(u64 dsq)
{
	s32 nr = scx_bpf_dsq_nr_queued(dsq);

	return nr > 0 ? nr : 0;
}

/* How many boosted vCPUs wait for any CPU of @llc. */
static inline u32 nr_boosted(u32 llc)
{
	struct pv_llc *l = llc_of(llc);

	return l && READ_ONCE(l->boosts_used) ? nr_queued(BOOST_DSQ(llc)) : 0;
}

/* How many boosted vCPUs have @cpu for their home and wait for it. */
static inline u32 nr_boosted_here(s32 cpu)
{
	struct pv_cpu *c = cpu_of(cpu);

	return c && READ_ONCE(c->boosts_used) ? nr_queued(CPU_BOOST_DSQ(cpu)) : 0;
}

/* A boosted turn is judged again at every tick; this bounds it should ticks stop. */
#define BOOST_SLICE_NS	(20 * PV_NSEC_PER_MSEC)

/*
 * Tasks that wait for a CPU of @l: its @own, that wait for no other, and its part of the cache
 * domain's, @shared.
 */
static inline u64 waiting_for(struct pv_llc *l, u32 own, u32 shared)
{
	return own + shared / (l->cpus ?: 1);
}

/* Whether a task waits that goes by a clock. The kernel's per-CPU threads, when woken, do not. */
__noinline int anybody_queues(s32 cpu, u32 llc)
{
	return nr_queued(FAIR_DSQ(llc)) || nr_queued(CPU_DSQ(cpu)) || nr_boosted(llc) ||
	       nr_boosted_here(cpu);
}

/* Whether the kernel has a task for @cpu already. */
static inline bool anybody_is_next(s32 cpu)
{
	return nr_queued(SCX_DSQ_LOCAL_ON | cpu) > 0;
}

static inline bool anybody_waits(s32 cpu, u32 llc)
{
	return anybody_queues(cpu, llc) || anybody_is_next(cpu);
}

/* How many of a fair queue are looked at for one that may run on a CPU. */
#define PV_LOOKS	8

/*
 * The vtime of the first in a fair queue that may run on @cpu, to a nanosecond
 * and never 0; 0 if there is none as far as was looked.
 */
__noinline u64 first_vtime(u64 dsq, s32 cpu)
{
	struct task_struct *p;
	u64 vtime = 0;
	u32 looks = 0;

	p = __COMPAT_scx_bpf_dsq_peek(dsq);
	if (!p)
		return 0;
	if (bpf_cpumask_test_cpu(cpu, p->cpus_ptr))
		return p->scx.dsq_vtime | 1;
	bpf_for_each(scx_dsq, p, dsq, 0) {
		if (bpf_cpumask_test_cpu(cpu, p->cpus_ptr)) {
			vtime = p->scx.dsq_vtime | 1;
			break;
		}
		if (++looks >= PV_LOOKS)
			break;
	}
	return vtime;
}

/*
 * @vtime, or that of the first who waits for @cpu if it is earlier: a turn may
 * begin out of order, of a task whose migration is disabled or after
 * sched_yield(), and that is not how far the others have got.
 */
__noinline u64 not_beyond_first(u64 vtime, s32 cpu, u32 llc)
{
	u64 ours = first_vtime(FAIR_DSQ(llc), cpu);
	u64 mine = nr_queued(CPU_DSQ(cpu)) ? first_vtime(CPU_DSQ(cpu), cpu) : 0;

	if (ours && pv_before(ours, vtime))
		vtime = ours;
	return mine && pv_before(mine, vtime) ? mine : vtime;
}

/*
 * Asks @c to move a waiting vCPU ahead (its thread id), or to let the tasks of a
 * cgroup go (minus its number). Any context, any CPU. When 32 others are asked for
 * before @c looks, the oldest is forgotten: it waits its fair turn, or one more
 * period.
 */
static inline void post(struct pv_cpu *c, s32 whom)
{
	u32 slot = __sync_fetch_and_add(&c->post_tail, 1) & (PV_POSTS - 1);

	if (__sync_lock_test_and_set(&c->posts[slot], whom))
		COUNT(dropped);
	else
		COUNT(posted);
}

/*
 * Moves one posted vCPU from its fair queue to a boost queue that @cpu, in
 * @llc, looks at; or to where it belongs in the fair queue, if its budget is
 * spent, or its guest has got more to do than what it is weighed by.
 */
__noinline int move_ahead(s32 tid, s32 cpu, u32 llc)
{
	struct bpf_iter_scx_dsq it;
	u64 now = clock_ns();
	struct task_struct *p;
	struct pvsched_page *page;
	struct pv_task *t;
	u32 verdict, rank, weight;
	u64 dsq, key;
	s32 home;

	p = bpf_task_from_pid(tid);
	if (!p)
		return 0;
	t = task_of(p);
	if (!t)
		goto release;
	WRITE_ONCE(t->posted, 0);
	if (READ_ONCE(t->state) != PV_STATE_FAIR)
		goto release;
	/* Given another home since it was posted: nobody would wake that CPU. */
	home = home_of(p, t);
	if (home >= 0 && home != cpu)
		goto release;
	page = page_of(p, t);
	verdict = boost_judge(t, page, task_lead(p, t), now);
	rank = VERDICT_RANK(verdict);
	if (rank) {
		dsq = boost_dsq(home, llc);
		key = pv_boost_key(rank, now);
		t->extra_turn = 1;
	} else if (t->refused) {
		dsq = t->dsq;
		key = queue_vtime(p, t);
		t->extra_turn = 1;
	} else {
		weight = guest_weight(t, page);
		if (weight <= t->guest_weight)
			goto release;
		/* Its vtime itself follows when its turn begins, on whichever CPU that is. */
		dsq = t->dsq;
		key = pv_reweigh(t->vtime, clock_read(t->clock), t->guest_weight, weight);
	}

	if (!bpf_iter_scx_dsq_new(&it, t->dsq, 0)) {
		if (rank)
			scx_bpf_dsq_move_set_slice(&it, BOOST_SLICE_NS);
		scx_bpf_dsq_move_set_vtime(&it, key);
		if (scx_bpf_dsq_move_vtime(&it, p, dsq, 0)) {
			if (rank) {
				WRITE_ONCE(t->state, PV_STATE_BOOST);
				EVENT(QUEUED, tid, PV_QUEUE_AHEAD, verdict);
			}
			COUNT(moved);
		}
	}
	bpf_iter_scx_dsq_destroy(&it);
release:
	bpf_task_release(p);
	return 0;
}

/* The rank of the first in a boost queue, if it may run on @cpu. */
static inline u32 rank_of_first(u64 dsq, s32 cpu)
{
	struct task_struct *p;

	p = __COMPAT_scx_bpf_dsq_peek(dsq);
	if (!p || !bpf_cpumask_test_cpu(cpu, p->cpus_ptr))
		return PV_RANK_NONE;
	return pv_key_rank(p->scx.dsq_vtime);
}

/* The rank of the most urgent that waits for @cpu, in @llc. */
__noinline u32 first_rank(u32 llc, s32 cpu)
{
	u32 ours = nr_boosted(llc) ? rank_of_first(BOOST_DSQ(llc), cpu) : PV_RANK_NONE;
	u32 mine = nr_boosted_here(cpu) ? rank_of_first(CPU_BOOST_DSQ(cpu), cpu) : PV_RANK_NONE;

	return mine > ours ? mine : ours;
}

/* The next boosted turn: of the CPU's own queue and the cache domain's, the more urgent. */
static inline bool dispatch_boosted(s32 cpu, u32 llc)
{
	bool ours = nr_boosted(llc), mine = nr_boosted_here(cpu);

	if (mine && (!ours || rank_of_first(CPU_BOOST_DSQ(cpu), cpu) >=
			      rank_of_first(BOOST_DSQ(llc), cpu)) &&
	    scx_bpf_dsq_move_to_local(CPU_BOOST_DSQ(cpu), 0))
		return true;
	return (ours && scx_bpf_dsq_move_to_local(BOOST_DSQ(llc), 0)) ||
	       (mine && scx_bpf_dsq_move_to_local(CPU_BOOST_DSQ(cpu), 0));
}

#endif /* PVSCHED_QUEUES_BPF_H */
