/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * When a vCPU is ahead of its fair turn, why, and what ends it.
 *
 * A boost is never a state that somebody must remember to end: every decision
 * works it out anew from what the guest's page says now, from the hints that
 * were not yet taken, and from the two budgets.
 *
 *	boost_judge()	what the vCPU is entitled to now
 *	boost_set()	puts that in force for the vCPU that runs, and tells the guest
 *	task_charge()	charges run time to vtime and to the budgets, at the weight
 *			that the guest's work has
 */
#ifndef PVSCHED_BOOST_BPF_H
#define PVSCHED_BOOST_BPF_H

#include "observe.bpf.h"
#include "events.bpf.h"
#include "roles.bpf.h"
#include "clock.bpf.h"

/*
 * An interrupt of which nothing is known is expected to wake somebody urgent
 * if one of so many before it did: a device's interrupts come between those
 * with which the guest's CPUs signal each other.
 */
#define PV_PROMISE	16

/* The page of a vCPU, or NULL when it has none or its guest publishes nothing. */
static inline struct pvsched_page *page_of(struct task_struct *p, struct pv_task *t)
{
	struct pvsched_page *page;
	struct pv_page *v;

	if (!t->is_vcpu)
		return NULL;
	v = bpf_task_storage_get(&pages, p, 0, 0);
	if (!v) {
		t->attachment = 0;
		t->would_be = PV_BOOST_NONE;
		t->vm = 0;
		t->role = 0;
		return NULL;
	}
	page = v->page;
	if (!page)
		return NULL;
	if (t->attachment != v->attachment) {
		/*
		 * The guest may have acknowledged tickets of an earlier
		 * scheduler. Count on from there, or it would seem to have
		 * taken interrupts that it did not.
		 */
		t->ticket = READ_ONCE(page->ack);
		t->urgent_ticket = t->ticket;
		t->response = READ_ONCE(page->response);
		t->hint_at = 0;
		t->due_until = 0;
		t->due_turn = 0;
		t->called_at = 0;
		t->given_until = 0;
		t->would_be = PV_BOOST_NONE;
		t->vm = v->vm;
		t->attachment = v->attachment;
	}
	t->role = is_observed(t) ? 0 : READ_ONCE(page->role);
	if (!(READ_ONCE(page->guest_state) & PVSCHED_GUEST_PUBLISHING))
		return NULL;
	/* Keeps clang from turning the branch into arithmetic on a pointer. */
	barrier_var(page);
	return page;
}

/* Counts how long the guest says that its latest urgent task had to wait. */
static inline void count_response(struct pv_task *t, struct pvsched_page *page)
{
	u64 response = READ_ONCE(page->response);

	if (response == t->response)
		return;
	t->response = response;
	/* It has run. Should its timer have expired behind a tick's, nothing else told of that. */
	WRITE_ONCE(t->due_until, 0);
	WRITE_ONCE(t->due_turn, 0);
	count_stage(PV_STAGE_LATE, 0,
		    (response >> PVSCHED_RESPONSE_LATE_SHIFT & PVSCHED_RESPONSE_US_MAX) * 1000);
	count_stage(PV_STAGE_TASK, 0, (response & PVSCHED_RESPONSE_US_MAX) * 1000);
}

/* A rank of what the guest runs, as far as its VM may have it. */
static inline u32 capped(struct pv_task *t, u32 rank)
{
	struct pv_vm *vm = vm_of(t);

	return vm ? pv_cap_rank(rank, READ_ONCE(vm->rank_max)) : rank;
}

/* The interrupt behind the pending hint was taken by the guest. */
static inline void hint_taken(struct pv_task *t, u64 now)
{
	u64 since = t->hint_at;

	if (since && t->entered) {
		count_stage(PV_STAGE_TAKEN, since, now);
		if (t->hint_rank == PV_RANK_IRQ && t->promise)
			t->promise--;
	}
	t->hint_at = 0;
	t->started = 0;
	t->entered = 0;
}

/*
 * Where nothing urgent ever comes of a vCPU's interrupts, it is put ahead for
 * them only while it is hardly ahead of its share: by the budget of interrupts,
 * and by what a fair turn makes of it, which lasts until a tick and so up to two
 * slices. And not at all if nobody tells when its guest has taken them, as it then
 * keeps the CPU for longer than it takes. A guest may say better what a vCPU is for.
 */
static inline bool is_worth_a_boost(struct pv_task *t, u32 rank, s64 lead, bool publishes)
{
	struct pv_vm *vm;

	if (rank > PV_RANK_IRQ || has_role(t, PVSCHED_ROLE_INTERRUPT))
		return true;
	if (has_role(t, PVSCHED_ROLE_BATCH))
		return false;
	if (t->promise || lead <= 0)
		return true;
	vm = publishes ? vm_of(t) : NULL;
	return vm && (u64)lead <= READ_ONCE(vm->irq_budget_ns) + 2 * slice_ns;
}

/* It was put ahead for a timer of its guest, and has not run since. */
static inline bool next_turn_is_due(struct pv_task *t)
{
	return READ_ONCE(t->due_turn) == t->turns + 1;
}

/*
 * A timer of the guest is about to expire, or did, and the vCPU has not had the
 * time to take its interrupt. It has that from when it runs: on a busy host it
 * may get there late.
 */
static inline bool is_due(struct pv_task *t, u64 now)
{
	return now < READ_ONCE(t->due_until) || next_turn_is_due(t);
}

/* The vCPU is given a CPU. */
static inline void begin_turn(struct pv_task *t, u64 now)
{
	if (next_turn_is_due(t) && READ_ONCE(t->due_until) < now + PV_GRACE_NS)
		WRITE_ONCE(t->due_until, now + PV_GRACE_NS);
	t->turns++;
}

/* The debt of interrupt boosts at @now; it grows in extra turns only. */
static inline u64 irq_debt(struct pv_task *t, u64 now)
{
	u64 elapsed = now > t->irq_debt_at ? now - t->irq_debt_at : 0;

	if (t->boost == PV_BOOST_IRQ && t->extra_turn && t->state == PV_STATE_RUNNING)
		return pv_debt_add(t->irq_debt, elapsed);
	return pv_debt_repay(t->irq_debt, elapsed);
}

/* Brings the debt up to date; before anything that it depends on changes. */
static inline void irq_settle(struct pv_task *t, u64 now)
{
	t->irq_debt = irq_debt(t, now);
	t->irq_debt_at = now;
}

static inline bool task_is_spent(struct pv_task *t, s64 lead)
{
	struct pv_vm *vm = vm_of(t);
	u64 budget;

	if (!vm)
		return false;
	budget = READ_ONCE(vm->task_budget_ns);
	return pv_spent(t->task_spent, lead > 0 ? lead : 0, budget, pv_resume(budget, slice_ns));
}

static inline bool irq_is_spent(struct pv_task *t, u64 now)
{
	struct pv_vm *vm = vm_of(t);
	u64 budget;

	if (!vm)
		return false;
	budget = READ_ONCE(vm->irq_budget_ns);
	return pv_spent(t->irq_spent, irq_debt(t, now), budget, budget / 2);
}

/* A judgement in one number, as functions that are verified apart return no more. */
#define VERDICT(boost, rank)	((boost) << 16 | (rank))
#define VERDICT_RANK(verdict)	((u32)(verdict) & 0xffff)
#define VERDICT_BOOST(verdict)	((u32)(verdict) >> 16)

/*
 * What the vCPU is entitled to: VERDICT(enum pv_boost, rank). @page is NULL
 * when the guest says nothing; @lead is how far the vCPU is ahead of its fair
 * share, in ns.
 */
__noinline u32 boost_judge(struct pv_task *t __arg_nonnull, struct pvsched_page *page, s64 lead,
			   u64 now)
{
	u32 rank = PV_RANK_NONE, boost = PV_BOOST_NONE;
	bool was_spent = t->task_spent || t->irq_spent, critical = false, due = is_due(t, now);

	t->awaits_timer = 0;
	t->refused = 0;
	if (page) {
		u64 current_task = READ_ONCE(page->current_task);
		u64 pending_task = READ_ONCE(page->pending_task);
		s64 untaken = t->urgent_ticket - READ_ONCE(page->ack);
		u32 pending = pv_rank(pending_task);

		count_response(t, page);
		rank = pv_rank(current_task);
		t->urgency = current_task;
		if (pending > rank) {
			rank = pending;
			t->urgency = pending_task;
		}
		rank = capped(t, rank);
		if (rank) {
			boost = PV_BOOST_TASK;
			if (t->hint_at && t->hint_rank == PV_RANK_IRQ)
				t->promise = PV_PROMISE;
			/* What an interrupt waits for may be more urgent than what runs. */
			if (untaken > 0 && t->hint_rank > rank)
				rank = t->hint_rank;
		} else if (untaken > 0) {
			boost = PV_BOOST_IRQ;
		} else if (due) {
			boost = PV_BOOST_IRQ;
			t->awaits_timer = 1;
		} else if (READ_ONCE(page->context)) {
			critical = true;
		}
		if (t->hint_at && untaken <= 0 && !due)
			hint_taken(t, now);
	} else if (t->hint_at) {
		/* Nobody tells when the interrupt was taken: it gets a fixed time in the guest. */
		if (t->entered && now - t->entered_at >= irq_boost_ns)
			hint_taken(t, now);
		else
			boost = PV_BOOST_IRQ;
	}
	if (boost == PV_BOOST_IRQ) {
		rank = due ? t->due_rank : t->hint_rank;
		if (!is_worth_a_boost(t, rank, lead, page)) {
			boost = PV_BOOST_NONE;
			rank = PV_RANK_NONE;
		}
	}
	/*
	 * In the middle of an interrupt it may hold a lock for which another
	 * vCPU spins, the urgent one that displaces it perhaps. Or one does
	 * spin, and has said so.
	 */
	if (!boost && (critical || now < READ_ONCE(t->given_until))) {
		boost = PV_BOOST_IRQ;
		rank = PV_RANK_IRQ;
	}
	if (is_observed(t)) {
		count_would_be(t, boost);
		t->task_spent = 0;
		t->irq_spent = 0;
		return VERDICT(PV_BOOST_NONE, PV_RANK_NONE);
	}

	t->task_spent = task_is_spent(t, lead);
	t->irq_spent = irq_is_spent(t, now);
	if (!rank || (!t->task_spent && (boost != PV_BOOST_IRQ || !t->irq_spent)))
		return VERDICT(boost, rank);
	if (!was_spent) {
		t->throttles++;
		if (t->task_spent)
			COUNT(throttled_task);
		else
			COUNT(throttled_irq);
		EVENT(SPENT, t->tid, t->task_spent ? PV_BOOST_TASK : PV_BOOST_IRQ, 0);
	}
	t->refused = boost != PV_BOOST_IRQ || !t->irq_spent;
	return VERDICT(PV_BOOST_NONE, PV_RANK_NONE);
}

/* The weight of a task with sched_ext's @weight, of which its guest makes @guest. */
static inline u64 weight_of(struct pv_task *t, u32 weight, u32 guest)
{
	return pv_weight_in(pv_weight(weight, guest), t->part);
}

/* How far a vCPU is ahead of its fair share at its thread's weight, in ns of CPU. */
static inline s64 task_lead(struct task_struct *p, struct pv_task *t)
{
	return pv_lead(t->base_vtime, clock_read(t->clock),
		       weight_of(t, p->scx.weight, PV_GUEST_WEIGHT_DFL));
}

/*
 * Where @t waits in a fair queue. One that was refused a boost may have it as soon as it is so
 * little ahead of its share as pv_resume() says, and nobody looks at it before its turn: so that
 * comes when the queue has got there.
 */
static inline u64 queue_vtime(struct task_struct *p, struct pv_task *t)
{
	struct pv_vm *vm = t->is_vcpu && t->refused ? vm_of(t) : NULL;
	u64 vtime;

	if (!vm)
		return t->vtime;
	vtime = t->base_vtime - pv_charge(pv_resume(READ_ONCE(vm->task_budget_ns), slice_ns),
					  weight_of(t, p->scx.weight, PV_GUEST_WEIGHT_DFL));
	return pv_before(vtime, t->vtime) ? vtime : t->vtime;
}

/*
 * What the guest's work makes of the vCPU's weight now. While an interrupt
 * waits, what the guest said is out of date; a guest CPU that halts has
 * nothing to say about what will run when it is woken.
 */
static inline u32 guest_weight(struct pv_task *t, struct pvsched_page *page)
{
	struct pv_vm *vm = vm_of(t);
	u64 urgency, pending;
	u32 weight;

	t->guest_class = PVSCHED_CLASS_NONE;
	if (!page || !vm || READ_ONCE(vm->observe))
		return PV_GUEST_WEIGHT_DFL;
	urgency = READ_ONCE(page->current_task);
	pending = READ_ONCE(page->pending_task);
	if (pv_class(pending) > pv_class(urgency))
		urgency = pending;
	t->guest_class = pv_class(urgency);
	weight = pv_guest_weight(urgency);
	if (weight < PV_GUEST_WEIGHT_DFL && (s64)(t->urgent_ticket - READ_ONCE(page->ack)) > 0)
		weight = PV_GUEST_WEIGHT_DFL;
	return pv_clamp(weight, READ_ONCE(vm->weight_min), READ_ONCE(vm->weight_max));
}

/* Makes @weight that of the vCPU: when its turn begins, and while it runs when it is charged. */
static inline void reweigh(struct pv_task *t, u32 weight)
{
	u32 before = t->guest_weight ?: PV_GUEST_WEIGHT_DFL;

	t->guest_weight = weight;
	if (weight == before)
		return;
	t->vtime = pv_reweigh(t->vtime, clock_read(t->clock), before, weight);
	COUNT(reweighed);
}

/*
 * Charges the time since the last charge. All of it counts as use of the
 * task's share, boosted or not. The guest may have changed its mind meanwhile:
 * the heavier of both weights counts, as it may have worked until just now and
 * only then become idle.
 */
__noinline int task_charge(struct pv_task *t __arg_nonnull, struct pvsched_page *page,
			   u32 weight, u64 now)
{
	u64 ran = t->exec - t->charged;
	u32 before, after, heavier;

	t->charged = t->exec;
	t->unspent += ran;
	if (!t->is_vcpu) {
		t->vtime += pv_charge(ran, weight_of(t, weight, PV_GUEST_WEIGHT_DFL));
		return 0;
	}

	before = t->guest_weight ?: PV_GUEST_WEIGHT_DFL;
	after = guest_weight(t, page);
	heavier = before > after ? before : after;
	t->vtime += pv_charge(ran, weight_of(t, weight, heavier));
	reweigh(t, after);
	t->base_vtime += pv_charge(ran, weight_of(t, weight, heavier > PV_GUEST_WEIGHT_DFL ?
						  heavier : PV_GUEST_WEIGHT_DFL));
	t->base_vtime = pv_owed_base(t->base_vtime, t->vtime, after);
	t->ran += ran;
	if (t->boost)
		t->ran_boosted += ran;
	irq_settle(t, now);
	return 0;
}

/* task_charge() for the task that runs; returns its page. */
static inline struct pvsched_page *charge(struct task_struct *p, struct pv_task *t, u64 now)
{
	struct pvsched_page *page = page_of(p, t);

	t->exec = p->se.sum_exec_runtime;
	task_charge(t, page, p->scx.weight, now);
	return page;
}

/* Whether what its guest runs makes the vCPU lighter than its thread is. */
static inline bool is_light(struct pv_task *t)
{
	u32 weight = READ_ONCE(t->guest_weight);

	return weight && weight < PV_GUEST_WEIGHT_DFL;
}

/* What others compare themselves with: the vtime of the task that runs on @c. */
static inline void show_vtime(struct pv_cpu *c, struct pv_task *t, u32 weight, u64 now)
{
	c->vtime = t->vtime;
	c->vtime_at = now;
	c->weight = weight_of(t, weight, t->guest_weight ?: PV_GUEST_WEIGHT_DFL);
}

/* A turn of @t begins on @c; what it is worth is to be said with boost_set(). */
static inline void turn_begin(struct pv_cpu *c, struct pv_task *t, u32 weight, u64 now)
{
	c->rank = PV_RANK_NONE;
	WRITE_ONCE(c->turn_at, now);
	show_vtime(c, t, weight, now);
}

/* Tells the guest what is done with its vCPU, if it is not what it was told last. */
static inline void tell(struct pv_task *t, struct pvsched_page *page, u64 applied)
{
	t->applied = applied;
	if (!page)
		return;
	if (READ_ONCE(page->applied) != applied)
		WRITE_ONCE(page->applied, applied);
	WRITE_ONCE(page->boosts, t->boosts_task + t->boosts_irq);
	WRITE_ONCE(page->throttles, t->throttles);
}

/*
 * Puts a judgement in force for the vCPU that runs (or is about to) on @c.
 * @waiting: somebody wants the CPU back as soon as urgency drops.
 */
__noinline int boost_set(struct pv_task *t __arg_nonnull, struct pvsched_page *page,
			 struct pv_cpu *c __arg_nonnull, u32 verdict, bool waiting)
{
	u32 boost = VERDICT_BOOST(verdict), rank = VERDICT_RANK(verdict);
	u64 applied = PVSCHED_APPLIED_BASELINE;

	if (boost && boost != t->boost) {
		if (boost == PV_BOOST_TASK) {
			t->boosts_task++;
			COUNT(boosts_task);
		} else {
			t->boosts_irq++;
			COUNT(boosts_irq);
		}
	}
	if (boost != t->boost || rank != t->rank)
		EVENT(BOOST, t->tid, verdict, t->task_spent || t->irq_spent);
	t->boost = boost;
	t->rank = rank;
	c->rank = rank;

	if (boost == PV_BOOST_TASK)
		applied = PVSCHED_APPLIED_BOOST_TASK;
	else if (boost == PV_BOOST_IRQ)
		applied = PVSCHED_APPLIED_BOOST_IRQ;
	else if (t->task_spent || t->irq_spent)
		applied = PVSCHED_APPLIED_THROTTLED;
	else if (is_observed(t))
		applied = PVSCHED_APPLIED_OBSERVED;
	/*
	 * Only a turn that somebody else waits for is worth an exit of the
	 * guest: without it a boost costs nobody anything. And one for a timer
	 * goes on until that expires, which is an exit, whatever else is taken
	 * before.
	 */
	if (boost && waiting && t->extra_turn && !t->awaits_timer)
		applied |= PVSCHED_APPLIED_NOTIFY;
	if (waiting && !is_light(t) && !is_observed(t))
		applied |= PVSCHED_APPLIED_NOTIFY_LIGHT;
	tell(t, page, applied);
	return 0;
}

#endif /* PVSCHED_BOOST_BPF_H */
