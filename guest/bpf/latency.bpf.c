/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The guest's half of the protocol "latency", version 1: keeps the words of
 * each CPU's shared page current from the scheduler's and the interrupts'
 * tracepoints.
 *
 *  - what runs: current_task, when tasks are switched, and again when an
 *    interrupt comes, for a task that changed its priority while it ran
 *  - what waits and is more urgent: pending_task, from wake-ups and inherited
 *    priorities until tasks are switched, and from there on what lost the CPU
 *    to something less urgent
 *  - what the CPU is in: context, counts of nested hardirqs and softirqs, and
 *    whether it holds a lock: to switch tasks, where the kernel shows the end of
 *    that (6.18 does, 6.12 does not), or to set the hardware's timer. Nothing tells entry
 *    and exit of an NMI, so its count stays zero.
 *  - which interrupts have been taken: ack (see ticket.h)
 *  - what its timer interrupts are for: timer (see timers.h), where the kernel
 *    lets programs see that the hardware's timer is set
 *  - how long the latest urgent task waited: response
 *  - when the host asked for it: one notification as urgency drops, or as
 *    nothing but SCHED_IDLE work is left
 *
 * Who may write which word: current_task and pending_task are written with the
 * run queue of their CPU locked, or (current_task) by the CPU itself in an
 * interrupt, where it holds no run queue lock; timer with the CPU's timer
 * queue locked, or by the CPU with interrupts off; the others by their CPU
 * alone. No program loops over what a guest can make many of, locks, or leaves
 * the guest but for a notification, or to interrupt a CPU that waits for one of the
 * host's and has something urgent to do now.
 *
 * A softirq that a hardirq raised is part of that interrupt: it is what hands
 * a network packet to its reader. So the echo waits for the softirqs. They run
 * as soon as the hardirq ends, or bottom halves are enabled again, or they are
 * left to ksoftirqd, which is an ordinary task: as they are when they last for
 * longer than a tick, on a CPU that was taken away meanwhile. Until that sleeps, they
 * are not over. Where the kernel does not show it, the next task switch gives
 * the echo.
 *
 * A timer interrupt is not over before the hardware's timer is set anew, which
 * newer kernels leave to the very end: a vCPU that loses its CPU before would
 * sleep through its next timer. So the echo and the notification wait for that.
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "page.h"
#include "response.h"
#include "ticket.h"
#include "timers.h"
#include "urgency.h"

/* From include/linux/sched.h: the task stands for an idle CPU. */
#define PF_IDLE		0x00000002
#define TASK_RUNNING	0

#define HARDIRQ_ONE	(1ULL << PVSCHED_CONTEXT_HARDIRQ_SHIFT)
#define HARDIRQ_MASK	(PVSCHED_CONTEXT_FIELD_MASK << PVSCHED_CONTEXT_HARDIRQ_SHIFT)
#define SOFTIRQ_ONE	(1ULL << PVSCHED_CONTEXT_SOFTIRQ_SHIFT)
#define SOFTIRQ_MASK	(PVSCHED_CONTEXT_FIELD_MASK << PVSCHED_CONTEXT_SOFTIRQ_SHIFT)
#define LOCKED_SWITCH	(1ULL << PVSCHED_CONTEXT_LOCKED_SHIFT)
#define LOCKED_TIMER	(2ULL << PVSCHED_CONTEXT_LOCKED_SHIFT)
#define LOCKED_MASK	(PVSCHED_CONTEXT_FIELD_MASK << PVSCHED_CONTEXT_LOCKED_SHIFT)

/* Of the driver. */
extern __u8 *pvsched_page(int cpu, const size_t rdwr_buf_size) __ksym;
extern void pvsched_notify_host(void) __ksym;
extern void pvsched_kick_cpu(int cpu) __ksym;
/* Not in kernels without CONFIG_KALLSYMS_ALL; the stopper counts as RT 99 there. */
extern const void stop_sched_class __ksym __weak;
extern struct task_struct *const ksoftirqd __ksym __weak;
/* The end of a fair task's turn: armed by whichever task runs before it, and never urgent. */
extern const void hrtick __ksym __weak;

/* What a CPU remembers of its interrupts. */
struct cpu_state {
	__u64 earlier;	/* the ticket at the entry of the hardirq before the last */
	__u64 entered;	/* the ticket at the entry of the last hardirq */
	__u64 read;	/* the ticket as it was last read, there or at a task switch */
	__u64 softirqs;	/* bit per softirq that was raised and has not begun */
	__u64 rearming;	/* a timer interrupt came, and the hardware's timer is not set since */
	__u64 ready;	/* the ticket to echo when it is */
	__u64 tell;	/* the host is to be told then */
	__u64 due;	/* ns; when the urgent timer that is being handled was due, 0 none */
	__u64 wanted;	/* ns; since when the urgent task that waits should run, 0 none does */
	__u64 woken;	/* ns; when it was woken */
	__u64 unlocks;	/* this kernel shows when a switch is over */
	__u64 reasons;	/* to notify the host then: PVSCHED_APPLIED_NOTIFY* */
	__u64 defers;	/* this kernel sets the timer in __hrtimer_rearm_deferred() */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cpu_state);
} cpu_states SEC(".maps");

static __always_inline struct cpu_state *state_of(int cpu)
{
	__u32 key = 0;

	return bpf_map_lookup_percpu_elem(&cpu_states, &key, cpu);
}

static __always_inline struct cpu_state *this_state(void)
{
	__u32 key = 0;

	return bpf_map_lookup_elem(&cpu_states, &key);
}

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct pvsched_timers);
} cpu_timers SEC(".maps");

static __always_inline struct pvsched_timers *timers_of(int cpu)
{
	__u32 key = 0;

	return bpf_map_lookup_percpu_elem(&cpu_timers, &key, cpu);
}

static __always_inline struct pvsched_page *page_of(int cpu)
{
	return (struct pvsched_page *)pvsched_page(cpu, sizeof(struct pvsched_page));
}

static __always_inline struct pvsched_page *this_page(void)
{
	return page_of(bpf_get_smp_processor_id());
}

static __always_inline __u64 task_urgency(const struct task_struct *p, int prio)
{
	struct pvsched_task task = {
		.prio = prio,
		.static_prio = p->static_prio,
		.policy = p->policy,
		.idle_cpu = p->flags & PF_IDLE,
		.stop = &stop_sched_class && (const void *)p->sched_class == &stop_sched_class,
	};

	return pvsched_urgency(&task);
}

/*
 * The host asks for a notification and then looks at the words; the guest
 * writes a word and then looks whether it was asked. For one of them to see
 * the other, the word that drops urgency is written with a full barrier.
 */
static __always_inline void write_and_fence(__u64 *word, __u64 value)
{
	__sync_lock_test_and_set(word, value);
}

static __always_inline void notify_of(const struct pvsched_page *page, __u64 reasons)
{
	if (READ_ONCE(page->applied) & reasons)
		pvsched_notify_host();
}

static __always_inline void notify(const struct pvsched_page *page)
{
	notify_of(page, PVSCHED_APPLIED_NOTIFY);
}

/* Whether the words say that something urgent runs or waits. */
static __always_inline bool says_urgent(const struct pvsched_page *page)
{
	return pvsched_urgent(READ_ONCE(page->current_task)) ||
	       pvsched_urgent(READ_ONCE(page->pending_task));
}

/*
 * The urgency of the task that runs from now on, and what waits now: nothing
 * urgent. Returns whether the last urgent task has gone. The order of the
 * stores keeps a task that waited and now runs visible all the time.
 */
static __always_inline bool say_switch(struct pvsched_page *page, __u64 urgency, __u64 waits)
{
	if (says_urgent(page) && !pvsched_urgent(urgency)) {
		WRITE_ONCE(page->pending_task, waits);
		write_and_fence(&page->current_task, urgency);
		return true;
	}
	if (READ_ONCE(page->current_task) != urgency)
		WRITE_ONCE(page->current_task, urgency);
	if (READ_ONCE(page->pending_task) != waits)
		WRITE_ONCE(page->pending_task, waits);
	return false;
}

/*
 * What a task that lost the CPU still wants of it. A fair task does not sleep
 * when it makes room for one of SCHED_IDLE, whose turn it is now and then; a
 * real-time task makes room for others only when it may not run.
 */
static __always_inline __u64 left_waiting(const struct task_struct *prev, bool runnable,
					  __u64 urgency)
{
	__u64 waits = runnable ? task_urgency(prev, prev->prio) : 0;

	return pvsched_more_urgent(waits, urgency) && !pvsched_urgent(waits) ? waits : 0;
}

/* The same task still runs, perhaps with another urgency. Returns the same. */
static __always_inline bool say_current(struct pvsched_page *page, __u64 urgency)
{
	__u64 before = READ_ONCE(page->current_task);

	if (before == urgency)
		return false;
	if (pvsched_urgent(before) && !pvsched_urgent(urgency)) {
		write_and_fence(&page->current_task, urgency);
		return !says_urgent(page);
	}
	WRITE_ONCE(page->current_task, urgency);
	return false;
}

/* Whether that is more urgent than what the words say so far. */
static __always_inline bool is_news(const struct pvsched_page *page, __u64 urgency)
{
	return pvsched_more_urgent(urgency, READ_ONCE(page->current_task)) &&
	       pvsched_more_urgent(urgency, READ_ONCE(page->pending_task));
}

static __always_inline void say_pending(struct pvsched_page *page, __u64 urgency)
{
	if (is_news(page, urgency))
		WRITE_ONCE(page->pending_task, urgency);
}

/*
 * The same for an urgent task that was woken for @cpu. Where that has no CPU of the host's, the
 * host has looked into the page already and has to be told. The kernel's own interrupt does not do
 * that: it is sent before the word is written, and not at all if that CPU has been told to
 * reschedule before, by a tick for example, as it will as soon as it runs. The host writes the
 * state and then looks at the word, so that one of both sees the other.
 */
static __always_inline void call_cpu(struct pvsched_page *page, int cpu, __u64 urgency)
{
	if (!is_news(page, urgency))
		return;
	write_and_fence(&page->pending_task, urgency);
	if (cpu != bpf_get_smp_processor_id() &&
	    (READ_ONCE(page->placement) & PVSCHED_PLACEMENT_STATE_MASK) == PVSCHED_HOST_WAITING)
		pvsched_kick_cpu(cpu);
}

/*
 * Echoes a ticket. Returns whether the host has reason to look: all of its
 * interrupts were taken and nothing urgent came of them.
 */
static __always_inline bool say_ack(struct pvsched_page *page, __u64 ticket)
{
	if (READ_ONCE(page->ack) == ticket)
		return false;
	write_and_fence(&page->ack, ticket);
	return READ_ONCE(page->ticket) == ticket && !says_urgent(page);
}

/*
 * Everything up to @ticket was taken; @tell: and urgency has dropped. Returns
 * whether the host is to be told.
 */
static __always_inline bool has_settled(struct pvsched_page *page, struct cpu_state *state,
					__u64 ticket, bool tell)
{
	if (state->rearming) {
		state->ready = ticket;
		state->tell |= tell;
		return false;
	}
	return say_ack(page, ticket) || tell;
}

/* has_settled(), and the host is told. */
static __always_inline void settle(struct pvsched_page *page, struct cpu_state *state,
				   __u64 ticket, bool tell)
{
	if (has_settled(page, state, ticket, tell))
		notify(page);
}

/*
 * Tasks are switched with interrupts off, and interrupts were on since the
 * last switch and since the last interrupt. So what was read until now can be
 * echoed, also for interrupts that no tracepoint shows; what is read now
 * cannot yet. And the CPU is in no interrupt: counts that went wrong when the
 * programs were attached in the middle of one are put right.
 */
static __always_inline void say_response(struct pvsched_page *page, struct cpu_state *state,
					 __u64 urgency)
{
	if (pvsched_urgent(urgency))
		WRITE_ONCE(page->response,
			   pvsched_response(READ_ONCE(page->response), state->wanted, state->woken,
					    bpf_ktime_get_ns()));
	state->wanted = 0;
}

/* Whether this CPU's ksoftirqd has work to do, and runs or waits for its turn. */
static __always_inline bool softirqs_are_left(void)
{
	struct task_struct *const *slot;
	struct task_struct *thread;

	if (!&ksoftirqd)
		return false;
	slot = bpf_this_cpu_ptr(&ksoftirqd);
	thread = bpf_core_cast(*slot, struct task_struct);
	return thread && READ_ONCE(thread->__state) == TASK_RUNNING;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(on_switch, bool preempt, struct task_struct *prev, struct task_struct *next,
	     unsigned int prev_state)
{
	struct pvsched_page *page = this_page();
	struct cpu_state *state = this_state();
	__u64 before, urgency, waits, context, ticket, reasons = 0;
	bool tell;

	if (!page || !state)
		return 0;
	context = state->unlocks ? LOCKED_SWITCH : 0;
	if (READ_ONCE(page->context) != context)
		WRITE_ONCE(page->context, context);
	urgency = task_urgency(next, next->prio);
	waits = left_waiting(prev, preempt || !prev_state, urgency);
	before = READ_ONCE(page->current_task);
	tell = say_switch(page, urgency, waits);
	if (!waits && pvsched_idle_work(urgency) && !pvsched_idle_work(before))
		reasons |= PVSCHED_APPLIED_NOTIFY_LIGHT;
	if (state->wanted)
		say_response(page, state, urgency);
	state->due = 0;
	ticket = state->read;
	if (state->softirqs) {
		if (softirqs_are_left())
			ticket = READ_ONCE(page->ack);
		else
			/* One whose entry nobody saw would stay. */
			state->softirqs = 0;
	}
	if (has_settled(page, state, ticket, tell))
		reasons |= PVSCHED_APPLIED_NOTIFY;
	state->read = READ_ONCE(page->ticket);
	if (state->unlocks)
		state->reasons = reasons;
	else if (reasons)
		notify_of(page, reasons);
	return 0;
}

/* From here on the lock of the run queue is taken. */
SEC("?tp_btf/sched_entry_tp")
int BPF_PROG(on_switching)
{
	struct pvsched_page *page = this_page();

	if (page)
		WRITE_ONCE(page->context, READ_ONCE(page->context) | LOCKED_SWITCH);
	return 0;
}

/*
 * The switch is over: the lock of the run queue is released, which others need
 * to wake a task here, and what the last task left behind is cleared up. Only
 * now may the host take the CPU away.
 */
SEC("?tp_btf/sched_exit_tp")
int BPF_PROG(on_switched)
{
	struct pvsched_page *page = this_page();
	struct cpu_state *state = this_state();
	__u64 context, reasons;

	if (!page || !state)
		return 0;
	state->unlocks = 1;
	context = READ_ONCE(page->context);
	if (!(context & LOCKED_SWITCH))
		return 0;
	write_and_fence(&page->context, context & ~LOCKED_SWITCH);
	reasons = state->reasons;
	state->reasons = 0;
	if (!says_urgent(page) && READ_ONCE(page->ack) == READ_ONCE(page->ticket))
		reasons |= PVSCHED_APPLIED_NOTIFY;
	if (reasons)
		notify_of(page, reasons);
	return 0;
}

static __always_inline int woken(struct task_struct *p)
{
	int cpu = p->thread_info.cpu;
	struct pvsched_page *page = page_of(cpu);
	struct cpu_state *state;
	__u64 urgency;

	if (!page)
		return 0;
	urgency = task_urgency(p, p->prio);
	if (!pvsched_urgent(urgency)) {
		say_pending(page, urgency);
		return 0;
	}
	call_cpu(page, cpu, urgency);
	state = state_of(cpu);
	if (state && !state->wanted) {
		state->woken = bpf_ktime_get_ns();
		state->wanted = state->due ? state->due : state->woken;
	}
	return 0;
}

SEC("tp_btf/sched_wakeup")
int BPF_PROG(on_wakeup, struct task_struct *p)
{
	return woken(p);
}

SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(on_wakeup_new, struct task_struct *p)
{
	return woken(p);
}

/*
 * A task inherits the priority of pi_task, or returns to its own. This comes
 * before p->prio changes, with p's run queue locked.
 */
SEC("?tp_btf/sched_pi_setprio")
int BPF_PROG(on_pi_setprio, struct task_struct *p, struct task_struct *pi_task)
{
	int prio = p->normal_prio;
	struct pvsched_page *page;
	__u64 urgency;

	if (pi_task && pi_task->prio < prio)
		prio = pi_task->prio;
	page = page_of(p->thread_info.cpu);
	if (!page)
		return 0;
	urgency = task_urgency(p, prio);
	if (p->on_cpu) {
		if (say_current(page, urgency))
			notify(page);
	} else if (p->on_rq) {
		say_pending(page, urgency);
	}
	return 0;
}

/* Stands still while the programs are loaded. */
static __u64 anchor;

/*
 * A number for a timer: programs may not compute with the address itself, but
 * with the distance of two.
 */
static __always_inline __u64 number_of(const struct hrtimer *timer)
{
	__u64 number = (const char *)timer - (const char *)&anchor;

	/* Keeps clang from computing with the address after all. */
	barrier_var(number);
	return number;
}

static __always_inline void say_timer(struct pvsched_page *page, struct pvsched_timers *timers)
{
	__u64 word = pvsched_timer_word(timers);

	if (READ_ONCE(page->timer) != word)
		WRITE_ONCE(page->timer, word);
}

/*
 * The only one to write the first word: without it the others know too little.
 * Before the hardware is told, which leaves the guest: a host that takes the
 * CPU away there has the word already.
 */
SEC("?fentry/tick_program_event")
int BPF_PROG(on_timer_programmed, __s64 expires)
{
	int cpu = bpf_get_smp_processor_id();
	struct pvsched_timers *timers = timers_of(cpu);
	struct pvsched_page *page = page_of(cpu);

	if (!page || !timers)
		return 0;
	pvsched_timer_programmed(timers, expires);
	say_timer(page, timers);
	/* That exit is where the host is most likely to take the CPU. */
	WRITE_ONCE(page->context, READ_ONCE(page->context) | LOCKED_TIMER);
	return 0;
}

static __always_inline int timer_set(struct pvsched_page *page, struct cpu_state *state)
{
	if (READ_ONCE(page->context) & LOCKED_TIMER)
		WRITE_ONCE(page->context, READ_ONCE(page->context) & ~LOCKED_TIMER);
	if (!state->rearming)
		return 0;
	state->rearming = 0;
	settle(page, state, state->ready, state->tell);
	return 0;
}

SEC("?fexit/tick_program_event")
int BPF_PROG(on_timer_set)
{
	struct pvsched_page *page = this_page();
	struct cpu_state *state = this_state();

	if (!page || !state)
		return 0;
	if (state->rearming && state->defers)
		return 0;
	return timer_set(page, state);
}

/* The same at the end of a timer interrupt where newer kernels defer it: the lock is released. */
SEC("?fexit/__hrtimer_rearm_deferred")
int BPF_PROG(on_rearmed)
{
	struct pvsched_page *page = this_page();
	struct cpu_state *state = this_state();

	if (!page || !state)
		return 0;
	state->defers = 1;
	return timer_set(page, state);
}

SEC("tp_btf/hrtimer_start")
int BPF_PROG(on_timer_started, struct hrtimer *timer)
{
	int cpu = timer->base->cpu_base->cpu;
	struct pvsched_page *here = this_page(), *page = page_of(cpu);
	struct pvsched_timers *timers = timers_of(cpu);
	struct task_struct *current = bpf_get_current_task_btf();
	bool by_task;

	if (!here || !page || !timers || (&hrtick && timer->function == &hrtick))
		return 0;
	/*
	 * Also one that sets the hardware's timer is a task. One that switches is the
	 * scheduler, whose own timers are not the task's.
	 */
	by_task = !(READ_ONCE(here->context) & ~LOCKED_TIMER);
	pvsched_timer_started(timers, number_of(timer), timer->node.expires - timer->base->offset,
			      task_urgency(current, current->prio), by_task, bpf_ktime_get_ns());
	if (READ_ONCE(page->timer))
		say_timer(page, timers);
	return 0;
}

static __always_inline int timer_stopped(struct hrtimer *timer)
{
	int cpu = timer->base->cpu_base->cpu;
	struct pvsched_timers *timers = timers_of(cpu);
	struct pvsched_page *page = page_of(cpu);

	if (page && timers && pvsched_timer_stopped(timers, number_of(timer)) &&
	    READ_ONCE(page->timer))
		say_timer(page, timers);
	return 0;
}

SEC("tp_btf/hrtimer_cancel")
int BPF_PROG(on_timer_cancelled, struct hrtimer *timer)
{
	return timer_stopped(timer);
}

SEC("tp_btf/hrtimer_expire_entry")
int BPF_PROG(on_timer_expired, struct hrtimer *timer)
{
	int cpu = timer->base->cpu_base->cpu;
	struct pvsched_timers *timers = timers_of(cpu);
	struct cpu_state *state = state_of(cpu);
	struct pvsched_timer *slot;

	if (!timers || !state)
		return 0;
	slot = pvsched_timer_find(timers, number_of(timer));
	if (slot && pvsched_timer_armed(slot))
		state->due = slot->expires;
	return timer_stopped(timer);
}

static __always_inline int hardirq_entry(void)
{
	struct pvsched_page *page = this_page();
	struct cpu_state *state = this_state();
	struct task_struct *current;
	__u64 context;

	if (!page || !state)
		return 0;
	/*
	 * Those locks are held with interrupts off. What says otherwise is left
	 * of a switch to a new task, whose end no tracepoint shows.
	 */
	context = READ_ONCE(page->context) & ~LOCKED_MASK;
	WRITE_ONCE(page->context, context + HARDIRQ_ONE);
	if (context & HARDIRQ_MASK)
		return 0;
	state->earlier = state->entered;
	state->entered = READ_ONCE(page->ticket);
	state->read = state->entered;

	/* Also the first word of a CPU that has not switched tasks since the programs came. */
	current = bpf_get_current_task_btf();
	if (say_current(page, task_urgency(current, current->prio)))
		notify(page);
	return 0;
}

static __always_inline int hardirq_exit(void)
{
	struct pvsched_page *page = this_page();
	struct cpu_state *state = this_state();
	__u64 context, ticket;

	if (!page || !state)
		return 0;
	context = READ_ONCE(page->context);
	if (!(context & HARDIRQ_MASK))
		return 0;
	context -= HARDIRQ_ONE;
	WRITE_ONCE(page->context, context);
	if (context & HARDIRQ_MASK || state->softirqs)
		return 0;
	ticket = pvsched_hardirq_ack(READ_ONCE(page->ack), state->earlier, state->entered);
	settle(page, state, ticket, false);
	return 0;
}

SEC("tp_btf/softirq_raise")
int BPF_PROG(on_softirq_raise, unsigned int vec)
{
	struct cpu_state *state = this_state();

	if (state)
		state->softirqs |= 1ULL << (vec & 63);
	return 0;
}

/*
 * An interrupt may come between the load and the store of context or of the
 * softirqs, but it leaves them as it found them, or adds a softirq that this
 * one could then lose: so the bit is cleared atomically.
 */
SEC("tp_btf/softirq_entry")
int BPF_PROG(on_softirq_entry, unsigned int vec)
{
	struct pvsched_page *page = this_page();
	struct cpu_state *state = this_state();

	if (state)
		__sync_fetch_and_and(&state->softirqs, ~(1ULL << (vec & 63)));
	if (page)
		WRITE_ONCE(page->context, READ_ONCE(page->context) + SOFTIRQ_ONE);
	return 0;
}

SEC("tp_btf/softirq_exit")
int BPF_PROG(on_softirq_exit, unsigned int vec)
{
	struct pvsched_page *page = this_page();
	struct cpu_state *state = this_state();
	__u64 context;

	if (!page || !state)
		return 0;
	context = READ_ONCE(page->context);
	if (!(context & SOFTIRQ_MASK))
		return 0;
	WRITE_ONCE(page->context, context - SOFTIRQ_ONE);
	if (state->softirqs)
		return 0;
	settle(page, state, state->read, false);
	return 0;
}

/*
 * Device interrupts go through irq_handler_*, the local APIC's own vectors have
 * a tracepoint pair each. A vector without one (KVM's asynchronous page fault)
 * is echoed at the next interrupt or task switch. Where two devices share a
 * line, the handlers are shown one after the other and the first one's end is
 * taken for the interrupt's; message-signalled interrupts are not shared.
 */
#define HARDIRQ(name)                                                                            \
	SEC("?tp_btf/" #name "_entry") int name##_entry(void *ctx) { return hardirq_entry(); }   \
	SEC("?tp_btf/" #name "_exit") int name##_exit(void *ctx) { return hardirq_exit(); }

SEC("?tp_btf/local_timer_entry")
int BPF_PROG(on_timer_entry)
{
	struct pvsched_page *page = this_page();
	struct cpu_state *state = this_state();

	if (page && state && READ_ONCE(page->timer)) {
		/* It has come without our seeing that it was set: no reason to hold the echo for ever. */
		if (state->rearming) {
			state->rearming = 0;
			settle(page, state, state->ready, state->tell);
		}
		state->rearming = 1;
		state->ready = READ_ONCE(page->ack);
		state->tell = 0;
	}
	return hardirq_entry();
}

SEC("?tp_btf/local_timer_exit")
int BPF_PROG(on_timer_exit)
{
	return hardirq_exit();
}

HARDIRQ(irq_handler)
HARDIRQ(reschedule)
HARDIRQ(call_function)
HARDIRQ(call_function_single)
HARDIRQ(irq_work)
HARDIRQ(x86_platform_ipi)
HARDIRQ(error_apic)
HARDIRQ(spurious_apic)
HARDIRQ(threshold_apic)
HARDIRQ(deferred_error_apic)
HARDIRQ(thermal_apic)

char _license[] SEC("license") = "GPL";
