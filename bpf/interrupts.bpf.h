/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The functions of KVM that show an interrupt before the guest can say anything,
 * as programs. Each object that includes this says with urge() what it does about
 * one that is worth a boost.
 */
#ifndef PVSCHED_INTERRUPTS_BPF_H
#define PVSCHED_INTERRUPTS_BPF_H

#include "boost.bpf.h"
#include "kvm.bpf.h"

/* A timer of the guest this soon after another counts as the same. */
#define SOON_NS		(PV_NSEC_PER_MSEC / 10)

/* An interrupt worth @rank waits for @p, with the number @ticket. */
static inline void urge(struct task_struct *p, struct pv_task *t, struct pvsched_page *page,
			u64 ticket, u32 rank);

/* Interrupts of the vCPU that its guest has not yet taken. */
static inline bool has_untaken(struct pv_task *t, struct pvsched_page *page)
{
	if (page)
		return (s64)(READ_ONCE(t->ticket) - READ_ONCE(page->ack)) > 0;
	return READ_ONCE(t->hint_at);
}

/* A new number for the page, so that the guest can say which interrupts it has taken. */
static inline u64 new_ticket(struct pv_task *t, struct pvsched_page *page)
{
	u64 ticket = __sync_fetch_and_add(&t->ticket, 1) + 1;

	if (!page)
		return ticket;
	WRITE_ONCE(page->ticket, ticket);
	/* Two hints at once may store in the wrong order; the last one sees to it. */
	if (READ_ONCE(t->ticket) != ticket)
		WRITE_ONCE(page->ticket, READ_ONCE(t->ticket));
	return ticket;
}

/*
 * Keeps the most urgent interrupt that the guest has not taken, and when the first
 * came in. Returns what that is worth.
 */
static inline u32 note_urgent(struct pv_task *t, struct pvsched_page *page, u64 ticket, u32 rank,
			      u64 now)
{
	u64 urgent = READ_ONCE(t->urgent_ticket);

	if (page && (s64)(urgent - READ_ONCE(page->ack)) > 0 && READ_ONCE(t->hint_rank) > rank)
		rank = READ_ONCE(t->hint_rank);
	WRITE_ONCE(t->hint_rank, rank);
	WRITE_ONCE(t->urgent_ticket, ticket);
	/* A full barrier, before the state is read: see enqueue(). */
	__sync_val_compare_and_swap(&t->hint_at, 0, now);
	return rank;
}

static inline void hint(struct kvm_vcpu___pv *vcpu, u32 source)
{
	s32 tid = vcpu_tid(vcpu);
	struct pvsched_page *page;
	u64 ticket, timer = 0;
	struct task_struct *p;
	struct pv_task *t;
	bool own;
	u32 rank, pending;

	p = bpf_task_from_pid(tid);
	if (!p)
		return;
	t = task_of(p);
	if (!t || !t->is_vcpu)
		goto release;
	count_word(offsetof(struct pv_stats, hints) / sizeof(u64) + source);

	/*
	 * KVM shows one interrupt more than once: a timer's when it expires
	 * and when the vCPU's own thread delivers it, that of a halted vCPU
	 * again when it is woken. A timer that has expired when the guest sets
	 * it is shown by the delivery only.
	 */
	page = page_of(p, t);
	own = source == PV_HINT_IRQ && p == bpf_get_current_task_btf();
	if (source == PV_HINT_TIMER)
		WRITE_ONCE(t->timer_known, 1);
	if ((own && __sync_lock_test_and_set(&t->timer_known, 0)) ||
	    (source == PV_HINT_WAKE && has_untaken(t, page))) {
		COUNT(hints_repeated);
		goto release;
	}

	if (page && (own || source == PV_HINT_TIMER))
		timer = READ_ONCE(page->timer);
	ticket = new_ticket(t, page);
	if (timer & PVSCHED_TIMER_KNOWN) {
		rank = pv_timer_delay(timer) <= SOON_NS ? pv_timer_rank(timer) : PV_RANK_NONE;
		rank = capped(t, rank);
		/* It may have been another interrupt. */
		if (!rank && (own || (is_light(t) && pv_timer_delay(timer) <= SOON_NS &&
				      pv_timer_class(timer) > t->guest_class)))
			rank = PV_RANK_IRQ;
	} else {
		rank = PV_RANK_IRQ;
	}
	/* Another of the guest's CPUs has woken somebody urgent on this one. */
	if (rank == PV_RANK_IRQ && page && !own) {
		pending = capped(t, pv_rank(READ_ONCE(page->pending_task)));
		if (pending > rank)
			rank = pending;
	}
	EVENT(HINT, tid, source, rank);
	if (rank)
		urge(p, t, page, ticket, rank);
	else
		COUNT(hints_idle);
release:
	bpf_task_release(p);
}

/*
 * The timer that emulates the local APIC's runs in the host's hard interrupt,
 * on the CPU where the vCPU ran last. The interrupt itself is accepted only
 * when the vCPU's thread runs again, so this is the earliest that can be known.
 */
SEC("?fentry/apic_timer_fn")
int BPF_PROG(on_timer, struct hrtimer *timer)
{
	hint(vcpu_of_timer(timer), PV_HINT_TIMER);
	return 0;
}

/*
 * Any other interrupt: of a device, or from another vCPU. At the end of the
 * function, when the interrupt is visible to the guest: a guest that saw the
 * new ticket earlier would acknowledge it with an interrupt before this one.
 */
SEC("?fexit/__apic_accept_irq")
int BPF_PROG(on_irq, struct kvm_lapic___pv *apic)
{
	hint(BPF_CORE_READ(apic, vcpu), PV_HINT_IRQ);
	return 0;
}

/* Kicks have many reasons; used only where a better source is missing. */
SEC("?fentry/kvm_vcpu_kick")
int BPF_PROG(on_kick, struct kvm_vcpu___pv *vcpu)
{
	hint(vcpu, PV_HINT_KICK);
	return 0;
}

SEC("?fentry/__kvm_vcpu_kick")
int BPF_PROG(on_kick_inner, struct kvm_vcpu___pv *vcpu)
{
	hint(vcpu, PV_HINT_KICK);
	return 0;
}

SEC("?fentry/kvm_vcpu_wake_up")
int BPF_PROG(on_wake, struct kvm_vcpu___pv *vcpu)
{
	hint(vcpu, PV_HINT_WAKE);
	return 0;
}

#endif /* PVSCHED_INTERRUPTS_BPF_H */
