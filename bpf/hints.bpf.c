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

static inline u32 llc_here(struct pv_cpu *c)
{
	u32 llc = c->llc;

	return llc < PV_MAX_LLCS ? llc : 0;
}

/* A new number for the page, so that the guest can say which interrupts it has taken. */
static inline void new_ticket(struct task_struct *p, struct pv_task *t)
{
	struct pvsched_page *page = page_of(p, t);
	u64 ticket;

	if (!page)
		return;
	ticket = __sync_fetch_and_add(&t->ticket, 1) + 1;
	WRITE_ONCE(page->ticket, ticket);
	/* Two hints at once may store in the wrong order; the last one sees to it. */
	if (READ_ONCE(t->ticket) != ticket)
		WRITE_ONCE(page->ticket, READ_ONCE(t->ticket));
}

static inline void hint(struct kvm_vcpu___pv *vcpu, u32 source)
{
	s32 tid = BPF_CORE_READ(vcpu, pid, numbers[0].nr);
	s32 here = bpf_get_smp_processor_id(), target;
	u64 now = scx_bpf_now();
	struct task_struct *p;
	struct pv_task *t;
	struct pv_cpu *c;
	struct pv_llc *l;
	u32 rank;

	p = bpf_task_from_pid(tid);
	if (!p)
		return;
	t = task_of(p);
	if (!t || !t->is_vcpu)
		goto release;
	count_word(offsetof(struct pv_stats, hints) / sizeof(u64) + source);

	new_ticket(p, t);
	__sync_val_compare_and_swap(&t->hint_at, 0, now);
	/* Running or waking up, it is judged soon; boosted already, it is ahead. */
	if (READ_ONCE(t->state) != PV_STATE_FAIR)
		goto release;
	/* One post is enough until a CPU has looked at it. */
	if (__sync_lock_test_and_set(&t->posted, 1))
		goto release;

	c = cpu_of(scx_bpf_task_cpu(p));
	l = c ? llc_of(llc_here(c)) : NULL;
	if (!l || task_is_spent(t, task_lead(p, t, l)) || irq_is_spent(t, now)) {
		WRITE_ONCE(t->posted, 0);
		goto release;
	}
	rank = expected_rank(t);
	target = cpu_to_take(p, here, rank, now);
	c = cpu_of(target);
	if (!c) {
		WRITE_ONCE(t->posted, 0);
		goto release;
	}
	post(c, tid);
	scx_bpf_kick_cpu(target, SCX_KICK_PREEMPT);
	COUNT(preempted);
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
	struct kvm_lapic___pv *apic;

	apic = (void *)timer - bpf_core_field_offset(struct kvm_timer___pv, timer) -
	       bpf_core_field_offset(struct kvm_lapic___pv, lapic_timer);
	hint(BPF_CORE_READ(apic, vcpu), PV_HINT_TIMER);
	return 0;
}

/* Any other interrupt: of a device, or from another vCPU. */
SEC("?fentry/__apic_accept_irq")
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
