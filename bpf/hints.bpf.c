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
#include "interrupts.bpf.h"
#include "due.bpf.h"

char _license[] SEC("license") = "GPL";

/*
 * A guest whose work makes its vCPU light tells of most timers for other work.
 * Of those that it does not, ticks know: it gets one when it has waited this long.
 */
#define LOOK_NS		(100 * PV_NSEC_PER_MSEC)
/* How often its page is read meanwhile, as nothing tells of a task that one guest CPU gives another. */
#define ASK_NS		(10 * PV_NSEC_PER_MSEC)
/* From the end of a boost to that of the turn. */
#define LEAVE_NS	(PV_NSEC_PER_MSEC / 10)

/* Threads that have turned out to be vCPUs, for the process to give them their policy. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} newcomers SEC(".maps");

/* An interrupt worth @rank waits for @p, with the number @ticket. */
static inline void urge(struct task_struct *p, struct pv_task *t, struct pvsched_page *page,
			u64 ticket, u32 rank)
{
	u64 now = clock_ns();

	forget_due(t);
	rank = note_urgent(t, page, ticket, rank, now);
	call_ahead(p, t, rank, false, now);
}

/*
 * A vCPU of little weight still waits. Has its guest got more to do, or an
 * interrupt for which there was no budget? Does it hold a lock, or does another
 * vCPU wait as if it did? Should its ticks be looked at?
 */
static inline void ask(struct task_struct *p, struct pv_task *t, struct pvsched_page *page,
		       struct pv_due *due)
{
	u64 now = clock_ns(), next = now + ASK_NS;
	struct pv_vm *vm = vm_of(t);

	if (READ_ONCE(t->hint_at)) {
		call_ahead(p, t, READ_ONCE(t->hint_rank), false, now);
	} else if (READ_ONCE(page->context)) {
		call_ahead(p, t, PV_RANK_IRQ, true, now);
	} else if (vm && READ_ONCE(vm->stuck_at) >= due->asked_at) {
		WRITE_ONCE(t->given_until, now + PV_GRACE_NS);
		COUNT(unstuck);
		call_ahead(p, t, PV_RANK_IRQ, true, now);
	} else if (now >= due->look_at && has_untaken(t, page)) {
		COUNT(looks);
		urge(p, t, page, READ_ONCE(t->ticket), PV_RANK_IRQ);
	} else if (guest_weight(t, page) > READ_ONCE(t->guest_weight) &&
		   !__sync_lock_test_and_set(&t->posted, 1)) {
		COUNT(asked);
		tell_cpu(p, t, PV_RANK_IRQ, now);
	}
	if (now >= due->look_at)
		due->look_at = now + LOOK_NS;
	if (due->look_at < next)
		next = due->look_at;
	due->asked_at = now;
	bpf_timer_start(&due->timer, next - now, 0);
}

/* A timer of the host's for a vCPU that still waits, or still runs: see start_due(). */
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
	if (!t)
		goto release;
	page = page_of(p, t);
	if (t->attachment == *attachment && t->turns == due->turns && due->rank == PV_RANK_NONE) {
		if (READ_ONCE(t->state) == PV_STATE_RUNNING) {
			struct pv_cpu *c = cpu_of(scx_bpf_task_cpu(p));

			/* Nor does what is left of a fair turn go on. */
			if (c)
				WRITE_ONCE(c->give_way, 1);
			scx_bpf_kick_cpu(scx_bpf_task_cpu(p), SCX_KICK_PREEMPT);
		}
		goto release;
	}
	/* Should it have run since, the guest has seen to its timers. */
	if (page && t->attachment == *attachment && t->turns == due->turns &&
	    READ_ONCE(t->state) == PV_STATE_FAIR) {
		if (due->rank == PV_RANK_IRQ) {
			ask(p, t, page, due);
			goto release;
		}
		now = clock_ns();
		note_due(t, due, now);
		call_ahead(p, t, due->rank, false, now);
	}
release:
	bpf_task_release(p);
	return 0;
}

/*
 * The boosted turn of a vCPU is over. Its guest told so with the lock of a run
 * queue held as a rule: taken off now, it would let all those wait for its next
 * turn that want to wake a task on it.
 */
static inline void leave_soon(struct task_struct *p, struct pv_task *t)
{
	struct pv_due *due = due_of(t);

	if (due)
		start_due(p, t, due, PV_RANK_NONE, clock_ns() + LEAVE_NS);
	else
		scx_bpf_kick_cpu(scx_bpf_task_cpu(p), SCX_KICK_PREEMPT);
}

/* How long before a guest's timer for an urgent task @p, which loses @c, is put ahead. */
static inline u64 early_by(struct task_struct *p, struct pv_task *t, struct pv_cpu *c)
{
	struct pv_vm *vm = vm_of(t);

	return vm ? pv_early(READ_ONCE(c->enter_ns), task_lead(p, t), READ_ONCE(vm->task_budget_ns)) : 0;
}

/* KVM_MP_STATE_HALTED, from include/uapi/linux/kvm.h */
#define MP_STATE_HALTED	3

/*
 * A vCPU goes to sleep. If it halts, and its guest does not say that this CPU is
 * idle, it waits for a lock that another one holds, perhaps one that has no CPU.
 */
static inline void note_sleep(struct task_struct *p, struct pv_task *t, struct kvm_vcpu___pv *vcpu)
{
	struct pvsched_page *page = page_of(p, t);
	struct pv_vm *vm = vm_of(t);

	if (page && vm && pv_class(READ_ONCE(page->current_task)) > PVSCHED_CLASS_IDLE_CPU &&
	    BPF_CORE_READ(vcpu, arch.mp_state) == MP_STATE_HALTED)
		WRITE_ONCE(vm->stuck_at, clock_ns());
}

/*
 * A vCPU loses its CPU. Its guest's timers cannot be armed until it runs
 * again but for the next one, which KVM has: where a later one is urgent, or
 * might be for more than what the guest runs now, a timer of the host's stands
 * in for it.
 */
SEC("?fentry/kvm_sched_out")
int BPF_PROG(on_sched_out)
{
	struct task_struct *p = bpf_get_current_task_btf();
	struct kvm_vcpu___pv *vcpu;
	struct pvsched_page *page;
	struct pv_task *t;
	struct pv_cpu *c = cpu_of(bpf_get_smp_processor_id());
	u64 word, next, now;
	struct pv_due *due;
	u32 rank;

	t = task_of(p);
	if (!t)
		return 0;
	vcpu = vcpu_of_notifier((void *)ctx[0]);
	if (READ_ONCE(t->state) == PV_STATE_ELSEWHERE)
		note_sleep(p, t, vcpu);
	if (READ_ONCE(t->state) != PV_STATE_FAIR)
		return 0;
	page = page_of(p, t);
	if (!page || is_observed(t))
		return 0;
	word = READ_ONCE(page->timer);
	rank = capped(t, pv_timer_rank(word));
	if (!c || (!rank && !is_light(t)))
		return 0;
	next = next_timer(vcpu, word);
	if (!next)
		return 0;
	due = due_of(t);
	if (!due)
		return 0;
	if (rank) {
		due->early = early_by(p, t, c);
		start_due(p, t, due, rank, next + pv_timer_delay(word) - due->early);
		return 0;
	}
	now = clock_ns();
	due->look_at = now + LOOK_NS;
	if (pv_timer_class(word) > t->guest_class)
		due->look_at = next + pv_timer_delay(word);
	else if (next > due->look_at)
		due->look_at = next;
	due->asked_at = now;
	now += ASK_NS;
	start_due(p, t, due, PV_RANK_IRQ, due->look_at < now ? due->look_at : now);
	return 0;
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
		s32 tid = p->pid;

		/* Should there be no room for the news, it is one from its next entry on. */
		if (partial && bpf_ringbuf_output(&newcomers, &tid, sizeof(tid), 0))
			return 0;
		t->state = PV_STATE_RUNNING;
		t->base_vtime = t->vtime;
		t->tid = p->pid;
		t->is_vcpu = 1;
	}
	note_entry(t);
	return 0;
}

/* Whether the guest of a vCPU that was told to say so has nothing left but SCHED_IDLE work. */
static inline bool has_become_light(struct task_struct *p, struct pv_task *t)
{
	struct pvsched_page *page;

	if (!(t->applied & PVSCHED_APPLIED_NOTIFY_LIGHT))
		return false;
	page = page_of(p, t);
	return page && pv_class(READ_ONCE(page->current_task)) == PVSCHED_CLASS_IDLE &&
	       !READ_ONCE(page->pending_task);
}

SEC("tp_btf/kvm_exit")
int BPF_PROG(on_exit)
{
	struct task_struct *p = bpf_get_current_task_btf();
	s32 cpu = bpf_get_smp_processor_id();
	struct pvsched_page *page;
	struct pv_task *t;
	struct pv_cpu *c;
	bool waiting;
	u32 verdict;
	u64 now;

	t = task_of(p);
	if (!t || (!t->rank && !t->would_be && !has_become_light(p, t)))
		return 0;
	c = cpu_of(cpu);
	if (!c)
		return 0;
	now = clock_ns();
	page = charge(p, t, now);
	verdict = boost_judge(t, page, task_lead(p, t), now);
	if (!t->rank && !VERDICT_RANK(verdict) && !is_light(t))
		return 0;
	waiting = anybody_waits(cpu, llc_here(c));
	boost_set(t, page, c, verdict, waiting);
	if (!VERDICT_RANK(verdict)) {
		COUNT(ended_exit);
		if ((t->extra_turn || is_light(t)) && waiting)
			leave_soon(p, t);
	}
	return 0;
}
