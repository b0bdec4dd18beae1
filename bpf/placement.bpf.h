/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which CPU.
 *
 * An idle CPU is always the answer where there is one: sched_ext's own search
 * prefers the previous CPU, then idle cores of its cache domain. What is left
 * is a boosted vCPU for which no CPU is idle: it takes the CPU from whoever
 * has a lesser claim, where that costs least. A vCPU that has a home goes
 * there, idle or not.
 */
#ifndef PVSCHED_PLACEMENT_BPF_H
#define PVSCHED_PLACEMENT_BPF_H

#include "queues.bpf.h"
#include "reminders.bpf.h"

/* Of a CPU whose own kernel thread has its first slice: nobody interrupts that, as it is soon over. */
#define RANK_KERNEL	(PV_RANK_MAX + 1)

/* Whether @cpu runs something that a vCPU of @rank may interrupt. */
static inline bool may_take(struct task_struct *p, s32 cpu, u32 rank, u64 now)
{
	struct pv_cpu *c = cpu_of(cpu);

	return c && !READ_ONCE(c->taken) && bpf_cpumask_test_cpu(cpu, p->cpus_ptr) &&
	       READ_ONCE(c->rank) < rank &&
	       now >= READ_ONCE(c->guarded_until);
}

/* Whether @cpu runs a vCPU that is in the middle of an interrupt, as its guest says. */
__noinline int is_critical(s32 cpu)
{
	struct pv_cpu *c = cpu_of(cpu);
	struct pvsched_page *page;
	struct task_struct *p;
	struct pv_task *t;
	int critical = 0;
	s32 tid = c ? READ_ONCE(c->vcpu) : 0;

	if (!tid)
		return 0;
	p = bpf_task_from_pid(tid);
	if (!p)
		return 0;
	t = task_of(p);
	if (t) {
		page = page_of(p, t);
		if (page && !is_observed(t))
			critical = READ_ONCE(page->context) != 0;
	}
	bpf_task_release(p);
	return critical;
}

/* Whether @cpu runs another thread of the VMM of @p: one that works for its guest, or a vCPU. */
static inline bool works_for(struct task_struct *p, s32 cpu)
{
	struct pv_cpu *c = cpu_of(cpu);

	return c && READ_ONCE(c->process) == BPF_CORE_READ(p, tgid);
}

/* Whether @p is better off if it interrupts another CPU than @cpu. */
static inline bool is_spared(struct task_struct *p, s32 cpu)
{
	return works_for(p, cpu) || is_critical(cpu);
}

/* Of how many CPUs that come to hand one is taken where neither the first nor the last does. */
#define PV_TRIES	2

/*
 * The CPU that a boosted @p should interrupt: @here, where its interrupt came
 * in and a reschedule is one step away; else the CPU that it ran on last and
 * whose caches it knows; else any other.
 *
 * Only if there is no other, one that runs a vCPU in the middle of an interrupt:
 * @p might soon spin for a lock that it holds. Or one that runs a thread of its
 * own VMM: that has just brought the interrupt, or is about to take what the
 * guest sent, and once interrupted it waits behind the host's tasks. Or one that
 * runs another vCPU of its VM: that has sent the interrupt, with the lock of the
 * run queue held as a rule for which @p will spin.
 *
 * When all run something at least as urgent the answer is its last
 * CPU, and the queue decides when it is its turn.
 */
static inline s32 cpu_to_take(struct task_struct *p, s32 here, s32 home, u32 rank, u64 now)
{
	s32 last = scx_bpf_task_cpu(p), spared = -1;
	s32 other;
	u32 i;

	if (home >= 0)
		return home;
	if (may_take(p, here, rank, now)) {
		if (!is_spared(p, here))
			return here;
		spared = here;
	}
	if (last != here && may_take(p, last, rank, now)) {
		if (!is_spared(p, last))
			return last;
		spared = last;
	}
	/* The kernel names another one each time. */
	bpf_for(i, 0, PV_TRIES) {
		other = scx_bpf_pick_any_cpu(p->cpus_ptr, 0);
		if (other >= 0 && other != here && other != last && may_take(p, other, rank, now) &&
		    !is_spared(p, other))
			return other;
	}
	return spared >= 0 ? spared : last;
}

/* What a vCPU has for finishing what it does when it interrupts another that then takes its CPU. */
#define PV_SENT_NS	(PV_NSEC_PER_MSEC / 10)

/*
 * Interrupts what runs on @target for @p, of the thread @tid, which is worth @rank and waits
 * ahead of it. Another vCPU of its VM has a moment. For a thread of its VMM it waits until that sleeps or
 * its turn is over, unless something urgent waits in the guest.
 */
static inline void take(struct task_struct *p, s32 target, s32 tid, u32 rank, u64 now)
{
	struct pv_cpu *c = cpu_of(target);

	if (!c)
		return;
	if (works_for(p, target)) {
		if (READ_ONCE(c->vcpu) && !READ_ONCE(c->rank)) {
			remind(target, READ_ONCE(c->turn_at), PV_SENT_NS, now);
			return;
		}
		if (!READ_ONCE(c->vcpu) && rank <= PV_RANK_IRQ)
			return;
	}
	scx_bpf_kick_cpu(target, SCX_KICK_PREEMPT);
	COUNT(preempted);
	EVENT(PREEMPT, tid, target, rank);
}

static inline u32 llc_here(struct pv_cpu *c)
{
	u32 llc = c->llc;

	return llc < PV_MAX_LLCS ? llc : 0;
}

/* Tells a CPU to look at @p, which waits in a fair queue and has become worth @rank. */
static inline void tell_cpu(struct task_struct *p, struct pv_task *t, u32 rank, u64 now)
{
	s32 target = cpu_to_take(p, bpf_get_smp_processor_id(), home_of(p, t), rank, now);
	struct pv_cpu *c = cpu_of(target);

	if (!c) {
		WRITE_ONCE(t->posted, 0);
		return;
	}
	post(c, BPF_CORE_READ(p, pid));
	/* It looks when that turn is over. */
	if (READ_ONCE(c->rank) != RANK_KERNEL)
		take(p, target, t->tid, rank, now);
}

/*
 * Something worth @rank waits for @p. If that waits in a fair queue itself, a
 * CPU is told to move it ahead. @given: another vCPU gives its turn for it.
 */
static inline void call_ahead(struct task_struct *p, struct pv_task *t, u32 rank, bool given,
			      u64 now)
{
	struct pv_cpu *c;
	s32 home;
	s64 lead;

	/* Running or waking up, it is judged soon; boosted already, it is ahead. */
	if (READ_ONCE(t->state) != PV_STATE_FAIR || is_observed(t))
		return;
	/* One post is enough until a CPU has looked at it. */
	if (__sync_lock_test_and_set(&t->posted, 1))
		return;

	lead = task_lead(p, t);
	if (!given && !is_worth_a_boost(t, rank, lead, page_of(p, t))) {
		COUNT(hints_ahead);
		EVENT(REFUSED, t->tid, PV_REFUSED_AHEAD, rank);
		goto stay;
	}
	if (task_is_spent(t, lead) || irq_is_spent(t, now)) {
		COUNT(hints_spent);
		EVENT(REFUSED, t->tid, PV_REFUSED_SPENT, rank);
		if (t->extra_turn || irq_is_spent(t, now))
			goto stay;
		/* It may have its turn before it has repaid all, and there is time until then. */
		home = home_of(p, t);
		c = cpu_of(home >= 0 ? home : scx_bpf_task_cpu(p));
		if (!c)
			goto stay;
		post(c, BPF_CORE_READ(p, pid));
		return;
	}
	WRITE_ONCE(t->called_at, now);
	tell_cpu(p, t, rank, now);
	return;
stay:
	WRITE_ONCE(t->posted, 0);
}

/*
 * Wakes the CPU to which a vCPU that is enqueued is bound, if it is idle. A
 * vCPU that comes from elsewhere is queued without that CPU's lock, so the CPU
 * may be about to go idle and have looked already: it looks again either way.
 */
static inline bool kick_home(struct task_struct *p, s32 home)
{
	bool idle = scx_bpf_test_and_clear_cpu_idle(home);

	if (idle || scx_bpf_task_cpu(p) != home)
		scx_bpf_kick_cpu(home, 0);
	return idle;
}

/*
 * Wakes an idle CPU that may run @p, so that no queued task meets an idle CPU:
 * its @home if it has one, else (-1) any.
 */
static inline bool kick_idle(struct task_struct *p, s32 home)
{
	s32 cpu;

	if (home >= 0)
		return kick_home(p, home);
	cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);
	if (cpu < 0)
		return false;
	scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
	return true;
}

#endif /* PVSCHED_PLACEMENT_BPF_H */
