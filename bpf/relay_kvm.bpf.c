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
#include "due.bpf.h"

char _license[] SEC("license") = "GPL";

static inline void urge(struct task_struct *p, struct pv_task *t, struct pvsched_page *page,
			u64 ticket, u32 rank)
{
	u64 now = clock_ns(), since = READ_ONCE(t->hint_at);
	bool was_due = is_due(t, now);
	u32 before = was_due ? READ_ONCE(t->due_rank) : READ_ONCE(t->hint_rank);

	/* The one that is expected has come, unless this is less urgent. */
	if (!was_due || rank >= before)
		forget_due(t);
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
	note_entry(t);
	return 0;
}

/* The vCPU still waits, and a timer of its guest for an urgent task is about to expire. */
static int on_due(void *map, u64 *attachment, struct pv_due *due)
{
	struct pvsched_page *page;
	struct task_struct *p;
	struct pv_task *t;
	u64 now;

	p = bpf_task_from_pid(due->tid);
	if (!p)
		return 0;
	t = task_of(p);
	page = t ? page_of(p, t) : NULL;
	/* Should it have run since, the guest has seen to its timers. */
	if (page && t->attachment == *attachment && t->turns == due->turns &&
	    READ_ONCE(t->state) == PV_STATE_FAIR) {
		now = clock_ns();
		note_due(t, due, now);
		if (!READ_ONCE(t->called_at))
			WRITE_ONCE(t->called_at, now);
		tell_of_hint(p, t, now);
	}
	bpf_task_release(p);
	return 0;
}

/*
 * How long before a guest's timer for an urgent task a vCPU that loses @c is put ahead. At most twice
 * the time that it takes into the guest: that is long with an engine that has to be woken first, and
 * with more a vCPU with a task every 10 ms used more than its share.
 */
static inline u64 early_by(struct pv_task *t, struct pv_cpu *c)
{
	u64 enter = READ_ONCE(c->enter_ns), early;
	struct pv_vm *vm = vm_of(t);

	if (!vm)
		return 0;
	early = pv_early(enter, t->ahead, READ_ONCE(vm->task_budget_ns));
	return early < 2 * enter ? early : 2 * enter;
}

/*
 * A vCPU loses its CPU. Also where the engine comes between: its turn may be over then, and
 * KVM tells of that once. Should it go on instead, on_due() sees that.
 */
SEC("?fentry/kvm_sched_out")
int BPF_PROG(on_sched_out, void *notifier)
{
	struct pv_cpu *c = cpu_of(bpf_get_smp_processor_id());
	struct task_struct *p = bpf_get_current_task_btf();
	struct pvsched_page *page;
	struct pv_due *due;
	struct pv_task *t;
	u64 word, next;
	u32 rank;

	t = task_of(p);
	if (!t || !c || READ_ONCE(t->state) != PV_STATE_FAIR)
		return 0;
	page = page_of(p, t);
	if (!page || is_observed(t))
		return 0;
	word = READ_ONCE(page->timer);
	rank = capped(t, pv_timer_rank(word));
	next = rank ? next_timer(vcpu_of_notifier(notifier), word) : 0;
	due = next ? due_of(t) : NULL;
	if (!due)
		return 0;
	due->early = early_by(t, c);
	start_due(p, t, due, rank, next + pv_timer_delay(word) - due->early);
	return 0;
}

/*
 * Whether what the guest was told to tell of has come about. It tells so in the middle of a task
 * switch: for how long it may finish that is for the engine to say, unless it has said so.
 */
static inline bool has_calmed_down(struct pv_task *t, struct pvsched_page *page, u64 now)
{
	u64 current_task = READ_ONCE(page->current_task), pending_task = READ_ONCE(page->pending_task);

	count_response(t, page);
	if (t->applied & PVSCHED_APPLIED_NOTIFY && !pv_rank(current_task) && !pv_rank(pending_task) &&
	    (s64)(t->urgent_ticket - READ_ONCE(page->ack)) <= 0 && !is_due(t, now) &&
	    (!READ_ONCE(page->context) || t->hint_at || t->boost == PV_BOOST_TASK))
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
	u64 now;

	t = task_of(p);
	if (!t || t->posted ||
	    !(t->applied & (PVSCHED_APPLIED_NOTIFY | PVSCHED_APPLIED_NOTIFY_LIGHT)))
		return 0;
	now = clock_ns();
	page = page_of(p, t);
	if (!page || !has_calmed_down(t, page, now))
		return 0;
	/* Once for each time that the engine has told it something. */
	t->posted = 1;
	COUNT(ended_exit);
	tell_of_hint(p, t, now);
	return 0;
}
