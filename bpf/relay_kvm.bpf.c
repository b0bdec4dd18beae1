/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What KVM tells an engine in user space: which threads are vCPUs, that an
 * interrupt waits for one, and that the reason for a boost is gone.
 *
 * An object of its own, because it can only be loaded while the kvm module is; it
 * shares the maps of relay.bpf.c.
 */
#include <scx/common.bpf.h>
#include "relay.bpf.h"
#include "interrupts.bpf.h"

char _license[] SEC("license") = "GPL";

static inline void urge(struct task_struct *p, struct pv_task *t, struct pvsched_page *page,
			u64 ticket, u32 rank)
{
	u64 now = clock_ns(), since = READ_ONCE(t->hint_at);
	u32 before = READ_ONCE(t->hint_rank);

	rank = note_urgent(t, page, ticket, rank, now);
	/* What runs is judged when its turn ends; one that sleeps is about to be woken. */
	if (READ_ONCE(t->state) == PV_STATE_FAIR && (!since || rank > before))
		tell_of_hint(p, t, now);
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
		t->exec = p->se.sum_exec_runtime;
		t->tid = p->pid;
		t->is_vcpu = 1;
		tell_of_vcpu(p, t, clock_ns(), false, false);
	}
	if (t->hint_at && !t->entered) {
		now = clock_ns();
		t->entered_at = now;
		t->entered = 1;
		count_stage(PV_STAGE_ENTERED, t->hint_at, now);
	}
	return 0;
}

/* Whether what the guest was told to tell of has come about. */
static inline bool has_calmed_down(struct pv_task *t, struct pvsched_page *page)
{
	u64 current_task = READ_ONCE(page->current_task), pending_task = READ_ONCE(page->pending_task);

	if (t->applied & PVSCHED_APPLIED_NOTIFY && !pv_rank(current_task) && !pv_rank(pending_task) &&
	    (s64)(t->urgent_ticket - READ_ONCE(page->ack)) <= 0 && !READ_ONCE(page->context))
		return true;
	return t->applied & PVSCHED_APPLIED_NOTIFY_LIGHT && !pending_task &&
	       pv_class(current_task) == PVSCHED_CLASS_IDLE;
}

SEC("tp_btf/kvm_exit")
int BPF_PROG(on_exit)
{
	struct task_struct *p = bpf_get_current_task_btf();
	struct pvsched_page *page;
	struct pv_task *t;

	t = task_of(p);
	if (!t || t->posted ||
	    !(t->applied & (PVSCHED_APPLIED_NOTIFY | PVSCHED_APPLIED_NOTIFY_LIGHT)))
		return 0;
	page = page_of(p, t);
	if (!page || !has_calmed_down(t, page))
		return 0;
	/* Once for each time that the engine has told it something. */
	t->posted = 1;
	COUNT(ended_exit);
	tell_of_hint(p, t, clock_ns());
	return 0;
}
