/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the BPF programs and the scheduler process share: the values of the
 * maps and the limits that size them.
 */
#ifndef PVSCHED_INTF_H
#define PVSCHED_INTF_H

#include "abi/page.h"
#include "histogram.h"

#ifndef __VMLINUX_H__
#include <stdbool.h>
typedef __u64 u64;
typedef __u32 u32;
typedef __s64 s64;
typedef __s32 s32;
#endif

#define PV_MAX_CPUS	1024
#define PV_MAX_LLCS	256
#define PV_MAX_PAGES	65536
#define PV_MAX_VMS	1024
#define PV_MAX_GROUPS	16384	/* cgroups with a weight of their own */
#define PV_GROUP_DEPTH	16	/* levels of them; what is deeper has no weight */

/* Where a hint came from; the index of pv_stats.hints. */
enum pv_hint_source {
	PV_HINT_TIMER	= 0,	/* the vCPU's local APIC timer expired */
	PV_HINT_IRQ	= 1,	/* an interrupt was accepted for the vCPU */
	PV_HINT_KICK	= 2,	/* KVM kicked the vCPU */
	PV_HINT_WAKE	= 3,	/* KVM woke the halted vCPU */
	PV_HINT_COUNT	= 4,
	PV_HINT_DUE	= 4,	/* in events only: its guest's urgent timer is about to expire */
};

/*
 * Latency histograms: bucket i counts latencies below 2^i microseconds that
 * are not in a lower bucket; the last one takes the rest.
 */
#define PV_HIST_BUCKETS	20

enum pv_stage {
	PV_STAGE_RUNNING = 0,	/* hint to the vCPU thread running */
	PV_STAGE_ENTERED = 1,	/* hint to the vCPU in guest mode */
	PV_STAGE_TAKEN	 = 2,	/* hint to the host seeing that the guest took it */
	PV_STAGE_LATE	 = 3,	/* guest's urgent timer due to its handling, as the guest says */
	PV_STAGE_TASK	 = 4,	/* the same, or the wake-up, to the urgent task running */
	PV_STAGE_COUNT	 = 5,
};

/* Counters, one set per CPU. The meaning of each is in src/scheduler/stats.rs. */
struct pv_stats {
	u64 direct;
	u64 enqueued_fair;
	u64 enqueued_boost;
	u64 enqueued_kthread;
	u64 hints[PV_HINT_COUNT];
	u64 hints_repeated;
	u64 hints_idle;
	u64 hints_due;
	u64 looks;
	u64 asked;
	u64 unstuck;
	u64 hints_ahead;
	u64 hints_spent;
	u64 posted;
	u64 dropped;
	u64 moved;
	u64 held;
	u64 resumed;
	u64 preempted;
	u64 boosts_task;
	u64 boosts_irq;
	u64 ended_exit;
	u64 ended_tick;
	u64 throttled_task;
	u64 throttled_irq;
	u64 guarded;
	u64 reweighed;
	u64 yields_to;
	u64 groups_missing;
	u64 held_back;
	u64 released;
	u64 stage[PV_STAGE_COUNT][PV_HIST_BUCKETS];
};

/* Where a task is; pv_task.state. */
enum pv_state {
	PV_STATE_ELSEWHERE	= 0,	/* sleeps, or on its way somewhere */
	PV_STATE_RUNNING	= 1,
	PV_STATE_FAIR		= 2,	/* waits in a fair queue */
	PV_STATE_BOOST		= 3,	/* waits in a boost queue */
};

/* One per task. */
struct pv_task {
	u64 vtime;		/* use of CPU in virtual time; see policy.h */
	/*
	 * ns of CPU as the kernel counts it, at most a tick old, and how much of
	 * it is charged. By a clock nobody would pay for what passes from one task
	 * to the next, and a vCPU of many short turns would gain by it (15 % of its
	 * share were seen).
	 */
	u64 exec;
	u64 charged;
	u64 dsq;		/* the fair queue that it waits in */
	u32 state;		/* enum pv_state */
	u32 clock;		/* that vtime and base_vtime go by; see clock.bpf.h */
	u32 group;		/* number of its cgroup; see groups.bpf.h */
	u32 limit;		/* the first of its cgroup and those above that has a quota, 0 none */
	u64 unspent;		/* ns that it was charged and its cgroups not yet */
	u64 part;		/* what cgroups leave of its weight, 0 not yet known */
	s64 wanting;		/* the weight that they count for it, 0 while it sleeps */
	u64 woke_exec;		/* of a thread of a CPU's own: the kernel's count as it woke up */

	/* The rest is for vCPUs only. */
	u64 base_vtime;		/* vtime as if its guest never lowered its weight: for budgets */
	u32 is_vcpu;		/* KVM entered a guest on this thread */
	u64 attachment;		/* which handover the page belongs to, 0 none */
	u64 ticket;		/* of the latest hint, as the page shows it */
	u64 urgent_ticket;	/* of the latest hint that is worth a boost */
	u64 hint_at;		/* ns of the oldest such hint not yet taken, 0 none */
	u64 response;		/* pvsched_page.response as last counted */
	u64 due_until;		/* ns; a guest timer is about to expire: boosted until then */
	u64 given_until;	/* ns; a vCPU that spins gave its turn for it: boosted until then */
	u64 turns;		/* how often it was given a CPU */
	u64 due_turn;		/* number of the turn that it was put ahead for a timer to get */
	u64 ahead;		/* ns; the same as pv_order.ahead, of an engine in user space */
	u64 called_at;		/* ns; a CPU was told to put it ahead, and it is not in guest mode, 0 none */
	u32 due_rank;		/* what that timer is worth */
	u32 hint_rank;		/* what the hint is worth */
	u32 timer_known;	/* its timer's expiry was seen, the delivery not yet */
	u32 posted;		/* told to a CPU that has not looked yet */
	u32 started;		/* it ran since that hint */
	u32 entered;		/* in guest mode since that hint */
	u64 entered_at;		/* ns of that entry */
	u32 boost;		/* enum pv_boost in force while it runs */
	u32 rank;		/* in force while it runs */
	u32 extra_turn;		/* it runs ahead of its fair turn */
	u32 awaits_timer;	/* boosted for a timer of its guest that has not yet expired */
	u32 promise;		/* interrupts until none is expected to be urgent */
	u32 task_spent;		/* budget of lead is spent */
	u32 refused;		/* it is urgent, and not ahead for that reason alone */
	u32 irq_spent;		/* budget of interrupt boosts is spent */
	u32 vm;			/* the number of its VM, 0 while nobody has handed it over */
	u32 guest_weight;	/* what its guest makes of its weight, 0 nothing yet */
	u32 guest_class;	/* enum pvsched_class, of the most urgent that runs or waits */
	u32 role;		/* pvsched_page.role, 0 without a page */
	u64 irq_debt;		/* ns */
	u64 irq_debt_at;	/* ns; repaid up to here */

	/* What the host has for it; see capacity.bpf.h. */
	u64 wants_since;	/* ns; since when it wants a CPU and has none, 0 it does not */
	u64 waited;		/* ns of that, in all */
	u64 wait;		/* ns of that before each turn, of late */
	u64 ran_shown;		/* ran, as it was when last looked at */
	u64 ran_lately;		/* ns, fading */
	u64 waited_lately;	/* ns, fading as fast */

	/* For --monitor. */
	u64 urgency;		/* the higher of the page's urgency words, as last read */
	u64 applied;		/* as last written to the page */
	u64 boosts_task;
	u64 boosts_irq;
	u64 throttles;
	u64 ran;		/* ns */
	u64 ran_boosted;	/* ns of those */

	/* Of a VM that is only observed; see observe.bpf.h. */
	u64 would_task;		/* boosts that it would have had for urgent tasks */
	u64 would_irq;		/* and for interrupts */
	u32 would_be;		/* enum pv_boost that it would have now */
	s32 tid;		/* for events: of a vCPU, 0 before it is one */

	u64 woke_engine_at;	/* ns; relay.bpf.h: an engine in user space was woken for it */
};

/*
 * What a VM may have: one per VM, by number. Number 0 holds the defaults, which
 * are also for vCPUs that nobody handed over. The scheduler process writes them,
 * while it runs too; each word is read by itself.
 */
struct pv_vm {
	u64 task_budget_ns;	/* how far a boost may carry a vCPU ahead of its share */
	u64 irq_budget_ns;	/* for how long interrupts alone may boost it */
	u32 rank_max;		/* highest rank that its tasks may have; see policy.h */
	u32 weight_min;		/* what its tasks' nice values may make of a vCPU's */
	u32 weight_max;		/* weight, in the kernel's units: 1024 leaves it alone */
	u32 observe;		/* nothing that its guest says, and no hint, has an effect */
	u32 hide_placement;	/* its guest is not told where it runs, nor who waits there */
	u32 rsvd;
	u64 stuck_at;		/* ns; when one of its vCPUs waited for a lock, as it seems */
};

/*
 * The CPU of a vCPU that has an exclusion group. The scheduler process gives
 * it, from what it reads in pv_task.role (src/scheduler/placement.rs).
 */
struct pv_home {
	s32 cpu;		/* -1 none */
	u32 rsvd;
};

/* One per CPU. */
#define PV_POSTS	32	/* power of two */

struct pv_cpu {
	u32 llc;
	u32 rank;		/* of the vCPU that runs boosted, or RANK_KERNEL, else 0 */
	u64 turn_at;		/* ns; when the turn that runs began */
	u64 turn_end;		/* ns; end of the fair turn that runs, 0 none */
	u64 guarded_until;	/* ns; until then no boost interrupts its fair turn */
	u32 give_way;		/* a task with a better claim than the one that runs waits */
	u32 next_llc;
	u64 boosted_since;	/* ns; since when it gives boosted turns only, 0 not */
	u64 vtime;		/* of the task that runs, at vtime_at */
	u64 vtime_at;		/* ns */
	u64 enter_ns;		/* from when it is told to put a vCPU ahead to guest mode, of late */
	u64 weight;		/* of the task that runs; see policy.h */
	u64 clock;		/* how far fair turns have got here, in virtual time */
	u64 alone_since;	/* ns; its turn began then, with nobody waiting; 0 not so */
	u64 alone_clock;	/* clock, and vtime and base_vtime of the task, at that moment */
	u64 alone_vtime;
	u64 alone_base;
	u32 taken;		/* the CPU runs a task of a higher scheduling class */
	u32 turn_of;		/* whose turn it is where the queues do not tell */
	s32 vcpu;		/* thread id of the vCPU that runs, 0 if none does */
	s32 process;		/* process id of what runs */
	u32 boosts_used;	/* a vCPU has waited in its own boost queue */
	u32 rsvd;
	u32 post_tail;		/* posts: next to write; any CPU */
	u32 post_head;		/* next to read; this CPU only */
	s32 posts[PV_POSTS];	/* thread ids of vCPUs, minus numbers of cgroups, 0 empty */
} __attribute__((aligned(64)));

/* Weights of tasks that want to run, as one CPU has seen them come and go. */
struct pv_wanting {
	s64 all;
	s64 root;		/* of those in the root cgroup */
};

/* One per last-level cache. */
struct pv_llc {
	u64 clock;		/* how far fair turns have got, in virtual time */
	u32 cpus;		/* online CPUs in it */
	u32 boosts_used;	/* a vCPU has waited in its boost queue */
} __attribute__((aligned(64)));

/*
 * What the scheduler tells of its decisions; see events.bpf.h. Of each: whom it is
 * about, a thread id, and the two values. A judgement is VERDICT() of boost.bpf.h.
 */
enum pv_event {
	PV_EVENT_HINT	 = 1,	/* vCPU; enum pv_hint_source; rank that it is worth */
	PV_EVENT_REFUSED = 2,	/* vCPU; enum pv_refusal; rank */
	PV_EVENT_QUEUED	 = 3,	/* vCPU; enum pv_queue; judgement */
	PV_EVENT_BOOST	 = 4,	/* vCPU; judgement now in force; whether a budget is spent */
	PV_EVENT_SPENT	 = 5,	/* vCPU; enum pv_boost whose budget is spent */
	PV_EVENT_PREEMPT = 6,	/* any task; CPU that is asked to reschedule for it; rank */
	PV_EVENT_YIELD	 = 7,	/* vCPU; thread that gives its turn for it */
	PV_EVENT_GUARD	 = 8,	/* nobody; CPU that gives a fair turn although boosted vCPUs wait */
};

/* Why a hint does not put a waiting vCPU ahead. */
enum pv_refusal {
	PV_REFUSED_AHEAD = 1,	/* it is too far ahead of its share for mere interrupts */
	PV_REFUSED_SPENT = 2,	/* its budget is spent */
};

/* Where a vCPU waits from now on. */
enum pv_queue {
	PV_QUEUE_FAIR	= 0,
	PV_QUEUE_AHEAD	= 1,	/* in a boost queue */
	PV_QUEUE_HELD	= 2,	/* for the next period of its cgroup's cpu.max */
};

/* What trace.bpf.c records: the events above, and two of the kernel's own. */
enum pv_recorded {
	PV_RECORDED_SWITCH	= 100,	/* task that begins; that ends; whether that is runnable */
	PV_RECORDED_ENTRY	= 101,	/* vCPU; first entry since it got the CPU, or a hint */
};

struct pv_record {
	u64 at;			/* ns of CLOCK_MONOTONIC */
	u32 what;		/* enum pv_event or pv_recorded */
	s32 tid;
	u64 value;
	u64 more;
	s32 cpu;		/* where it was recorded */
	u32 by;			/* which program of trace.bpf.c, each for one of the scheduler's */
	char comm[16];		/* of the task that begins */
};

/* What measure.bpf.c counts, one set per CPU: waits in microseconds, in buckets of histogram.h. */
enum pv_waited_for {
	PV_WAITED_TIMER	= 0,	/* from the expiry of the local APIC timer to guest mode */
	PV_WAITED_IRQ	= 1,	/* from the acceptance of any other interrupt */
	PV_WAITED_COUNT	= 2,
};

struct pv_waits {
	u64 buckets[PV_WAITED_COUNT][PV_FINE_BUCKETS];
	u64 longest[PV_WAITED_COUNT];	/* us */
};

/*
 * News for an engine in user space, from relay.bpf.h. Words of a guest come as values: nothing
 * that a guest can write is mapped there.
 */
enum pv_news {
	PV_NEWS_SWITCH	= 1,	/* struct pv_news_switch */
	PV_NEWS_VCPU	= 2,	/* struct pv_news_vcpu */
};

/* How the turn of a task ends; pv_news_switch.end. */
enum pv_news_end {
	PV_END_RUNNABLE	= 0,	/* it would go on */
	PV_END_SLEEPS	= 1,
	PV_END_DEAD	= 2,
};

/* A CPU has gone over from one task to another. */
struct pv_news_switch {
	u64 at;			/* ns of CLOCK_MONOTONIC */
	u32 what;		/* PV_NEWS_SWITCH */
	s32 cpu;
	s32 prev;		/* thread ids; 0 where it is none that is scheduled in user space */
	s32 next;
	u64 prev_exec;		/* ns of CPU that each has had so far */
	u64 next_exec;
	u32 end;		/* enum pv_news_end, of prev */
	u32 idle;		/* the CPU goes idle */
};

/* What is known of a vCPU has changed. */
struct pv_news_vcpu {
	u64 at;
	u32 what;		/* PV_NEWS_VCPU */
	s32 tid;
	u32 tgid;
	u32 vm;			/* number of its VM, 0 while nobody has handed it over */
	u32 publishes;		/* the next three say something */
	u32 critical;
	u64 current_task;	/* of the page */
	u64 pending_task;
	u64 hint_at;		/* ns; since when an interrupt waits, 0 none does */
	u32 hint_rank;		/* what that is worth */
	u32 role;		/* of the page */
	s32 home;		/* the CPU that its group leaves it, -1 any */
	u32 observe;		/* as in struct pv_vm, as the rest */
	u64 task_budget_ns;
	u64 irq_budget_ns;
	u32 rank_max;
	u32 weight_min;
	u32 weight_max;
	u32 hint;		/* to be decided upon; else it goes with other news */
};

/* What an engine in user space wants done: the argument of the program `order`. */
enum pv_kick {
	PV_KICK_NONE	= 0,
	PV_KICK_LOOK	= 1,	/* the CPU looks for what to run, if it has nothing */
	PV_KICK_PREEMPT	= 2,	/* it ends the turn that it gives */
};

struct pv_order {
	s32 tid;		/* a vCPU that is told something, 0 none */
	s32 cpu;		/* that is kicked */
	u32 kick;		/* enum pv_kick */
	u32 boost;		/* enum pv_boost in force for the vCPU */
	u64 applied;		/* for its page */
	u64 ahead;		/* ns; how far the vCPU is ahead of its share, 0 if it is owed time */
};

/* What an engine in user space counts, for the statistics. */
struct pv_engine_stats {
	u64 enqueued_fair;
	u64 enqueued_boost;
	u64 preempted;
	u64 bounced;		/* dispatched to a CPU that the affinity no longer allowed */
	u64 congested;		/* tasks that were not asked about, as there were too many at once */
	u64 lost;		/* news for which there was no room */
};

#endif /* PVSCHED_INTF_H */
