/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What KVM tells the scheduler, before the guest can say anything:
 *
 * - which threads are vCPUs: every thread that enters a guest
 * - that an interrupt waits for a vCPU: the start of a boost
 * - that a vCPU is in guest mode, or has just left it: the end of a boost, if
 *   the guest's page says so
 *
 * An object of its own, because it can only be loaded while the kvm module
 * is; it shares the maps of main.bpf.c. Nothing here loops, allocates or
 * takes a lock.
 */
#include <scx/common.bpf.h>
#include "placement.bpf.h"

char _license[] SEC("license") = "GPL";

/* The few fields of KVM's types that are read; CO-RE finds them. */
struct kvm_vcpu___pv {
	struct pid *pid;
} __attribute__((preserve_access_index));

struct kvm_timer___pv {
	struct hrtimer timer;
} __attribute__((preserve_access_index));

struct kvm_lapic___pv {
	struct kvm_timer___pv lapic_timer;
	struct kvm_vcpu___pv *vcpu;
} __attribute__((preserve_access_index));

/* A timer of the guest this soon after another is not worth one of the host's. */
#define SOON_NS		(PV_NSEC_PER_MSEC / 10)

static inline u32 llc_here(struct pv_cpu *c)
{
	u32 llc = c->llc;

	return llc < PV_MAX_LLCS ? llc : 0;
}

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
 * An interrupt worth @rank waits for @p since the ticket @ticket: if the vCPU
 * waits in a fair queue, a CPU is told to move it ahead.
 */
static inline void call_ahead(struct task_struct *p, struct pv_task *t, struct pvsched_page *page,
			      u64 ticket, u32 rank)
{
	s32 here = bpf_get_smp_processor_id(), target;
	u64 now = scx_bpf_now(), urgent = READ_ONCE(t->urgent_ticket);
	struct pv_cpu *c;
	struct pv_llc *l;
	s64 lead;

	if (page && (s64)(urgent - READ_ONCE(page->ack)) > 0 && READ_ONCE(t->hint_rank) > rank)
		rank = READ_ONCE(t->hint_rank);
	WRITE_ONCE(t->hint_rank, rank);
	WRITE_ONCE(t->urgent_ticket, ticket);
	/* A full barrier, before the state is read: see enqueue(). */
	__sync_val_compare_and_swap(&t->hint_at, 0, now);

	/* Running or waking up, it is judged soon; boosted already, it is ahead. */
	if (READ_ONCE(t->state) != PV_STATE_FAIR)
		return;
	/* One post is enough until a CPU has looked at it. */
	if (__sync_lock_test_and_set(&t->posted, 1))
		return;

	c = cpu_of(scx_bpf_task_cpu(p));
	l = c ? llc_of(llc_here(c)) : NULL;
	lead = l ? task_lead(p, t, l) : 0;
	if (!l || !is_worth_a_boost(rank, lead) || task_is_spent(t, lead) || irq_is_spent(t, now)) {
		WRITE_ONCE(t->posted, 0);
		return;
	}
	target = cpu_to_take(p, here, rank, now);
	c = cpu_of(target);
	if (!c) {
		WRITE_ONCE(t->posted, 0);
		return;
	}
	post(c, BPF_CORE_READ(p, pid));
	scx_bpf_kick_cpu(target, SCX_KICK_PREEMPT);
	COUNT(preempted);
}

/* The time has come of a timer that the guest has not been able to arm. */
static int on_due(void *map, u64 *attachment, struct pv_due *due)
{
	struct pvsched_page *page;
	struct task_struct *p;
	struct pv_task *t;
	u64 ticket;

	p = bpf_task_from_pid(due->tid);
	if (!p)
		return 0;
	t = task_of(p);
	if (!t)
		goto release;
	page = page_of(p, t);
	ticket = due->ticket;
	/* Once it took the interrupt before, the guest has armed the timer itself. */
	if (page && t->attachment == *attachment && (s64)(ticket - READ_ONCE(page->ack)) > 0) {
		COUNT(hints_due);
		call_ahead(p, t, page, ticket, due->rank);
	}
release:
	bpf_task_release(p);
	return 0;
}

static inline void arm_due(struct task_struct *p, struct pv_task *t, u64 ticket, u32 rank,
			   u64 delay)
{
	u64 attachment = t->attachment;
	struct pv_due *due;

	due = bpf_map_lookup_elem(&dues, &attachment);
	if (!due)
		return;
	due->tid = BPF_CORE_READ(p, pid);
	due->rank = rank;
	WRITE_ONCE(due->ticket, ticket);
	if (!due->ready) {
		/* Two hints may both come here: the second finds it done. */
		bpf_timer_init(&due->timer, &dues, CLOCK_MONOTONIC);
		bpf_timer_set_callback(&due->timer, on_due);
		due->ready = 1;
	}
	bpf_timer_start(&due->timer, delay, 0);
}

/* @late: ns since the interrupt was due */
static inline void hint(struct kvm_vcpu___pv *vcpu, u32 source, u64 late)
{
	s32 tid = BPF_CORE_READ(vcpu, pid, numbers[0].nr);
	struct pvsched_page *page;
	u64 ticket, delay = 0, timer = 0;
	struct task_struct *p;
	struct pv_task *t;
	bool own;
	u32 rank;

	p = bpf_task_from_pid(tid);
	if (!p)
		return;
	t = task_of(p);
	if (!t || !t->is_vcpu)
		goto release;
	count_word(offsetof(struct pv_stats, hints) / sizeof(u64) + source);

	/*
	 * KVM shows one interrupt more than once: a timer's, which expired
	 * earlier, when the vCPU's own thread delivers it; that of a halted
	 * vCPU again when it is woken.
	 */
	page = page_of(p, t);
	own = p == bpf_get_current_task_btf();
	if ((own || source == PV_HINT_WAKE) && has_untaken(t, page)) {
		COUNT(hints_repeated);
		goto release;
	}

	if (page && (own || source == PV_HINT_TIMER))
		timer = READ_ONCE(page->timer);
	ticket = new_ticket(t, page);
	if (timer & PVSCHED_TIMER_KNOWN) {
		rank = pv_timer_rank(timer);
		delay = pv_timer_delay(timer);
		delay = delay > late ? delay - late : 0;
	} else {
		rank = expected_rank(t);
	}
	if (!rank)
		COUNT(hints_idle);
	else if (delay > SOON_NS)
		arm_due(p, t, ticket, rank, delay);
	else
		call_ahead(p, t, page, ticket, rank);
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
	u64 due = BPF_CORE_READ(timer, node.expires), now = bpf_ktime_get_ns();
	struct kvm_lapic___pv *apic;

	apic = (void *)timer - bpf_core_field_offset(struct kvm_timer___pv, timer) -
	       bpf_core_field_offset(struct kvm_lapic___pv, lapic_timer);
	hint(BPF_CORE_READ(apic, vcpu), PV_HINT_TIMER, now > due ? now - due : 0);
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
	hint(BPF_CORE_READ(apic, vcpu), PV_HINT_IRQ, 0);
	return 0;
}

/* Kicks have many reasons; used only where a better source is missing. */
SEC("?fentry/kvm_vcpu_kick")
int BPF_PROG(on_kick, struct kvm_vcpu___pv *vcpu)
{
	hint(vcpu, PV_HINT_KICK, 0);
	return 0;
}

SEC("?fentry/__kvm_vcpu_kick")
int BPF_PROG(on_kick_inner, struct kvm_vcpu___pv *vcpu)
{
	hint(vcpu, PV_HINT_KICK, 0);
	return 0;
}

SEC("?fentry/kvm_vcpu_wake_up")
int BPF_PROG(on_wake, struct kvm_vcpu___pv *vcpu)
{
	hint(vcpu, PV_HINT_WAKE, 0);
	return 0;
}

SEC("tp_btf/kvm_entry")
int BPF_PROG(on_entry)
{
	struct task_struct *p = bpf_get_current_task_btf();
	struct pv_task *t;
	u64 now;

	t = bpf_task_storage_get(&tasks, p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!t)
		return 0;
	if (!t->is_vcpu) {
		t->state = PV_STATE_RUNNING;
		t->is_vcpu = 1;
	}
	if (t->hint_at && !t->entered) {
		now = scx_bpf_now();
		t->entered_at = now;
		t->entered = 1;
		count_stage(PV_STAGE_ENTERED, t->hint_at, now);
	}
	return 0;
}

SEC("tp_btf/kvm_exit")
int BPF_PROG(on_exit)
{
	struct task_struct *p = bpf_get_current_task_btf();
	s32 cpu = bpf_get_smp_processor_id();
	struct pvsched_page *page;
	struct pv_task *t;
	struct pv_cpu *c;
	struct pv_llc *l;
	bool waiting;
	u32 verdict;
	u64 now;

	t = task_of(p);
	if (!t || !t->rank)
		return 0;
	c = cpu_of(cpu);
	l = c ? llc_of(llc_here(c)) : NULL;
	if (!l)
		return 0;
	now = scx_bpf_now();
	task_charge(t, p->scx.weight, now);
	page = page_of(p, t);
	verdict = boost_judge(t, page, task_lead(p, t, l), now);
	waiting = anybody_waits(cpu, llc_here(c));
	boost_set(t, page, c, verdict, waiting);
	if (!VERDICT_RANK(verdict)) {
		COUNT(ended_exit);
		if (t->extra_turn && waiting)
			scx_bpf_kick_cpu(cpu, SCX_KICK_PREEMPT);
	}
	return 0;
}
