/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What an engine in user space is told: whose turn it is where, and what is known
 * of vCPUs. It reads a ring, and maps no guest's memory: pages are read here, where
 * they are pinned, and their words go over as values.
 *
 * The engine sleeps until it is woken, which news does where something has to be
 * decided at once.
 */
#ifndef PVSCHED_RELAY_BPF_H
#define PVSCHED_RELAY_BPF_H

#include "capacity.bpf.h"

void bpf_preempt_disable(void) __ksym;
void bpf_preempt_enable(void) __ksym;

#define NEWS_BYTES	(1 << 21)
/* One vCPU alone wakes the engine no more often than this: whoever does so costs all others time. */
#define WAKE_NS		(PV_NSEC_PER_MSEC / 2)

/* Real-time priorities are below, as in include/linux/sched/prio.h. */
#define MAX_RT_PRIO	100

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, NEWS_BYTES);
} news SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct pv_engine_stats);
} engine_stats SEC(".maps");

static inline bool is_per_cpu_kthread(struct task_struct *p)
{
	return p->flags & PF_KTHREAD && p->nr_cpus_allowed == 1;
}

/* The backend hands it over, unlike what comes before all others. */
static inline bool is_handed_over(struct task_struct *p)
{
	return p->pid && p->prio >= MAX_RT_PRIO && !is_per_cpu_kthread(p);
}

static inline void count_lost(void)
{
	u32 zero = 0;
	struct pv_engine_stats *s = bpf_map_lookup_elem(&engine_stats, &zero);

	if (s)
		__sync_fetch_and_add(&s->lost, 1);
}

/* News that nobody waits for wakes the engine only while there is still room for more. */
static inline u64 wakes(bool now)
{
	if (now || bpf_ringbuf_query(&news, BPF_RB_AVAIL_DATA) > NEWS_BYTES / 2)
		return BPF_RB_FORCE_WAKEUP;
	return BPF_RB_NO_WAKEUP;
}

/* There is something to decide. */
static inline void wake_engine(void)
{
	void *nothing = bpf_ringbuf_reserve(&news, sizeof(u64), 0);

	if (nothing)
		bpf_ringbuf_discard(nothing, BPF_RB_FORCE_WAKEUP);
	else
		count_lost();
}

/* Whether the interrupt that @t was last hinted for is none any more. */
static inline bool hint_is_over(struct pv_task *t, struct pvsched_page *page, u64 now)
{
	if (page)
		return (s64)(t->urgent_ticket - READ_ONCE(page->ack)) <= 0 && !is_due(t, now);
	/* Nobody tells when it was taken. */
	return t->entered && now - t->entered_at >= irq_boost_ns;
}

/* What is known of the vCPU @p; @page is NULL when its guest says nothing. */
static inline void describe(struct pv_news_vcpu *n, struct task_struct *p, struct pv_task *t,
			    struct pvsched_page *page, u64 now)
{
	u64 hint_at = READ_ONCE(t->hint_at);
	struct pv_vm *vm = vm_of(t);

	__builtin_memset(n, 0, sizeof(*n));
	n->at = now;
	n->what = PV_NEWS_VCPU;
	n->tid = p->pid;
	n->tgid = p->tgid;
	n->vm = t->vm;
	if (page) {
		n->publishes = 1;
		n->critical = READ_ONCE(page->context) != 0;
		n->current_task = READ_ONCE(page->current_task);
		n->pending_task = READ_ONCE(page->pending_task);
	}
	n->hint_at = hint_at && !hint_is_over(t, page, now) ? hint_at : 0;
	n->hint_rank = is_due(t, now) ? READ_ONCE(t->due_rank) : READ_ONCE(t->hint_rank);
	n->role = t->role;
	if (vm) {
		n->observe = READ_ONCE(vm->observe);
		n->task_budget_ns = READ_ONCE(vm->task_budget_ns);
		n->irq_budget_ns = READ_ONCE(vm->irq_budget_ns);
		n->rank_max = READ_ONCE(vm->rank_max);
		n->weight_min = READ_ONCE(vm->weight_min);
		n->weight_max = READ_ONCE(vm->weight_max);
	}
}

static inline void tell_of_vcpu(struct task_struct *p, struct pv_task *t, u64 now, bool hint,
				bool wake)
{
	struct pvsched_page *page = page_of(p, t);
	struct pv_news_vcpu *n;
	s32 home;

	if (page) {
		u64 current_task = READ_ONCE(page->current_task);
		u64 pending_task = READ_ONCE(page->pending_task);

		count_response(t, page);
		t->urgency = pv_rank(pending_task) > pv_rank(current_task) ? pending_task : current_task;
	}
	if (t->hint_at && hint_is_over(t, page, now))
		hint_taken(t, now);
	t->guest_weight = guest_weight(t, page);
	home = home_of(p, t);

	/*
	 * Nothing behind a record is read before that is complete. The engine must not
	 * come in between, as it would wait for whom it has interrupted.
	 */
	bpf_preempt_disable();
	n = bpf_ringbuf_reserve(&news, sizeof(*n), 0);
	if (!n) {
		bpf_preempt_enable();
		count_lost();
		return;
	}
	describe(n, p, t, page, now);
	n->home = home;
	n->hint = hint;
	bpf_ringbuf_submit(n, wakes(wake));
	bpf_preempt_enable();
}

/* The same where the guest, or whoever sends it interrupts, says when. */
static inline void tell_of_hint(struct task_struct *p, struct pv_task *t, u64 now)
{
	bool wake = now - READ_ONCE(t->woke_engine_at) >= WAKE_NS;

	if (wake)
		WRITE_ONCE(t->woke_engine_at, now);
	tell_of_vcpu(p, t, now, true, wake);
}

#endif /* PVSCHED_RELAY_BPF_H */
