/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The shared page: one 4 KiB page per vCPU, through which a guest says what
 * it runs and the host says what it made of that.
 *
 * - Every word is a naturally aligned little-endian 64-bit integer that is
 *   read and written whole, so that no reader sees half a value.
 * - Every word has one writer side. Words of the guest and words of the host
 *   lie in cache lines of their own (64 bytes).
 * - Unknown bits and the rest of the page are zero: a reader ignores bits it
 *   does not know, a writer leaves them zero.
 * - A word that was never written is zero, and zero always means "nothing
 *   said".
 *
 * The host reads guest words as requests of an untrusted party: any 64-bit
 * value is acceptable input and none can do more than a busy guest can.
 */
#ifndef PVSCHED_PAGE_H
#define PVSCHED_PAGE_H

#include "types.h"

#define PVSCHED_PAGE_SIZE	4096
/* The header word: "PVSP" in the low half, the layout's version above it. */
#define PVSCHED_PAGE_MAGIC	0x50535650ULL
#define PVSCHED_PAGE_LAYOUT	1ULL
#define PVSCHED_PAGE_HEADER	(PVSCHED_PAGE_LAYOUT << 32 | PVSCHED_PAGE_MAGIC)

/*
 * Scheduling class of a guest task. The order is the order of urgency, so
 * that two urgency words compare as numbers once the nice byte is shifted
 * out: its numbers run the other way, and nice gives shares, no precedence.
 */
enum pvsched_class {
	PVSCHED_CLASS_NONE	= 0,	/* nothing said */
	PVSCHED_CLASS_IDLE_CPU	= 1,	/* the idle task: the CPU has no work */
	PVSCHED_CLASS_IDLE	= 2,	/* SCHED_IDLE */
	PVSCHED_CLASS_BATCH	= 3,	/* SCHED_BATCH */
	PVSCHED_CLASS_NORMAL	= 4,	/* SCHED_NORMAL, SCHED_EXT */
	PVSCHED_CLASS_RT	= 5,	/* SCHED_FIFO, SCHED_RR */
	PVSCHED_CLASS_DEADLINE	= 6,	/* SCHED_DEADLINE, stop class */
};

/*
 * An urgency word (pvsched_page.current_task and .pending_task):
 *
 *   bits  0..7   nice + 20, 0..39; 20 for classes that have no nice value
 *   bits  8..15  real-time priority 1..99 for PVSCHED_CLASS_RT, else 0
 *   bits 16..23  enum pvsched_class
 *   others       zero
 */
#define PVSCHED_URGENCY_NICE_SHIFT	0
#define PVSCHED_URGENCY_PRIO_SHIFT	8
#define PVSCHED_URGENCY_CLASS_SHIFT	16
#define PVSCHED_URGENCY_FIELD_MASK	0xffULL
#define PVSCHED_NICE_OFFSET		20
#define PVSCHED_URGENCY(class, prio, nice)                                   \
	((unsigned long long)(class) << PVSCHED_URGENCY_CLASS_SHIFT |        \
	 (unsigned long long)(prio) << PVSCHED_URGENCY_PRIO_SHIFT |          \
	 (unsigned long long)((nice) + PVSCHED_NICE_OFFSET)                  \
		 << PVSCHED_URGENCY_NICE_SHIFT)

/* pvsched_page.guest_state */
#define PVSCHED_GUEST_PUBLISHING	(1ULL << 0) /* a publisher keeps the words current */

/* What a guest's administrator says a vCPU is for. */
enum pvsched_role {
	PVSCHED_ROLE_NONE	= 0,	/* nothing said */
	PVSCHED_ROLE_LATENCY	= 1,	/* latency-critical work */
	PVSCHED_ROLE_INTERRUPT	= 2,	/* handles interrupts that others wait for */
	PVSCHED_ROLE_BATCH	= 3,	/* throughput only, nobody waits for it */
};

/*
 * pvsched_page.role, valid whether or not a publisher runs. vCPUs of one
 * exclusion group are kept on different physical CPUs for as long as the host
 * allows them as many. The host decides whether the groups of several VMs are
 * one name space.
 *
 *   bits  0..7   enum pvsched_role; an unknown one says nothing
 *   bits  8..23  exclusion group 1..65535; 0 for none
 *   others       zero
 */
#define PVSCHED_ROLE_MASK		0xffULL
#define PVSCHED_ROLE_GROUP_SHIFT	8
#define PVSCHED_ROLE_GROUP_MASK		0xffffULL

/*
 * pvsched_page.context: what the guest CPU is in. Counts of nested entries,
 * so that an interrupt within a softirq reads as both.
 */
#define PVSCHED_CONTEXT_HARDIRQ_SHIFT	0
#define PVSCHED_CONTEXT_SOFTIRQ_SHIFT	8
#define PVSCHED_CONTEXT_NMI_SHIFT	16
#define PVSCHED_CONTEXT_LOCKED_SHIFT	24	/* a bit for each lock that others need soon */
#define PVSCHED_CONTEXT_FIELD_MASK	0xffULL

/*
 * pvsched_page.timer: what the timer interrupts of the guest CPU are for.
 * Most are ticks, which need no haste. The host sees each one expire and
 * cannot tell them apart; nor can it see a timer behind the next one, which
 * the guest arms when it has taken that.
 *
 *   bits  0..31  microseconds from the next timer interrupt to the first one
 *                for an urgent task, or where there is none, for one that is
 *                not SCHED_IDLE; 0 when the next interrupt is for it
 *   bits 32..47  class and real-time priority of that task: an urgency word
 *                without its nice byte; 0 when there is no such timer
 *   bit  48      the guest keeps this word; without it nothing is said
 *   others       zero
 */
#define PVSCHED_TIMER_DELAY_MASK	0xffffffffULL
#define PVSCHED_TIMER_URGENCY_SHIFT	32
#define PVSCHED_TIMER_URGENCY_MASK	0xffffULL
#define PVSCHED_TIMER_KNOWN		(1ULL << 48)

/*
 * pvsched_page.response: how long the latest urgent task that was woken on this
 * CPU had to wait. Counted from when its timer was due, or from the wake-up
 * where it was none of this CPU's timers that woke it.
 *
 *   bits  0..23  microseconds until it ran
 *   bits 24..47  microseconds of those until its timer was handled
 *   bits 48..63  number of such tasks so far; wraps around
 */
#define PVSCHED_RESPONSE_LATE_SHIFT	24
#define PVSCHED_RESPONSE_COUNT_SHIFT	48
#define PVSCHED_RESPONSE_US_MAX		0xffffffULL

/* pvsched_page.applied, bits 0..7: what the host does with this vCPU */
enum pvsched_applied {
	PVSCHED_APPLIED_NONE		= 0, /* no host scheduler reads this page */
	PVSCHED_APPLIED_BASELINE	= 1, /* its fair share, no boost */
	PVSCHED_APPLIED_BOOST_TASK	= 2, /* ahead for an urgent guest task */
	PVSCHED_APPLIED_BOOST_IRQ	= 3, /* ahead for an interrupt not yet taken */
	PVSCHED_APPLIED_THROTTLED	= 4, /* wants a boost, its budget is spent */
	PVSCHED_APPLIED_OBSERVED	= 5, /* protocol "observe": read and counted only */
};
#define PVSCHED_APPLIED_MASK		0xffULL
/*
 * The host wants to be told at once when urgency drops: when the last
 * urgent task leaves the CPU, or an interrupt has been taken (ack == ticket)
 * and woke nobody urgent. The guest tells by leaving guest mode once.
 */
#define PVSCHED_APPLIED_NOTIFY		(1ULL << 8)
/*
 * The same for when the guest CPU goes over from heavier work to SCHED_IDLE
 * work, and nothing heavier waits for it.
 */
#define PVSCHED_APPLIED_NOTIFY_LIGHT	(1ULL << 9)

/* pvsched_page.placement, bits 0..7: what the vCPU does on the host */
enum pvsched_host_state {
	PVSCHED_HOST_UNKNOWN	= 0,
	PVSCHED_HOST_RUNNING	= 1, /* it has a CPU */
	PVSCHED_HOST_WAITING	= 2, /* it wants one, others have it: woken or preempted */
	PVSCHED_HOST_SLEEPING	= 3, /* it wants none: the guest CPU has halted */
};

/*
 * pvsched_page.placement: that, and where
 *
 *   bits  0..7   enum pvsched_host_state
 *   bits 16..31  number of the physical CPU that it runs on or ran on last
 *   bits 32..47  number of the last-level cache that this CPU shares
 *   others       zero
 *
 * Both numbers are all ones where the host does not tell them.
 */
#define PVSCHED_PLACEMENT_STATE_MASK	0xffULL
#define PVSCHED_PLACEMENT_CPU_SHIFT	16
#define PVSCHED_PLACEMENT_CACHE_SHIFT	32
#define PVSCHED_PLACEMENT_FIELD_MASK	0xffffULL
#define PVSCHED_PLACEMENT_UNTOLD	(PVSCHED_PLACEMENT_FIELD_MASK << PVSCHED_PLACEMENT_CPU_SHIFT | \
					 PVSCHED_PLACEMENT_FIELD_MASK << PVSCHED_PLACEMENT_CACHE_SHIFT)

/*
 * pvsched_page.capacity: what the host has for the vCPU, as of when it last got,
 * wanted or gave up a CPU
 *
 *   bits  0..15  0..1024: of the host's fastest CPU, the part that it got of
 *                late of what it wanted
 *   bits 16..31  16ths of tasks that wait for its physical CPU: those that wait for
 *                no other, and its part of those that may run on any beside it
 *   bits 32..63  microseconds from wanting a CPU to having one, of late
 */
#define PVSCHED_CAPACITY_FULL		1024ULL
#define PVSCHED_CAPACITY_LOAD_SHIFT	16
#define PVSCHED_CAPACITY_LOAD_ONE	16ULL
#define PVSCHED_CAPACITY_WAIT_SHIFT	32
#define PVSCHED_CAPACITY_FIELD_MASK	0xffffULL

struct pvsched_page {
	/* Cache line 0. Writer: the guest's driver, seldom. */
	__u64 header;		/* PVSCHED_PAGE_HEADER */
	__u64 guest_state;	/* PVSCHED_GUEST_* */
	__u64 role;		/* PVSCHED_ROLE_* */
	__u64 rsvd0[5];

	/* Cache line 1. Writer: the guest, from its scheduler's hot path. */
	__u64 current_task;	/* urgency of the task on the CPU */
	__u64 pending_task;	/* most urgent woken task that waits for this
				 * CPU and is more urgent than the current
				 * one; 0 when there is none
				 */
	__u64 context;		/* PVSCHED_CONTEXT_* */
	__u64 ack;		/* last ticket whose interrupt has been taken */
	__u64 timer;		/* PVSCHED_TIMER_* */
	__u64 response;		/* PVSCHED_RESPONSE_* */
	__u64 rsvd1[2];

	/* Cache line 2. Writer: the host's scheduler. */
	__u64 applied;		/* enum pvsched_applied and flags */
	__u64 ticket;		/* number of the latest interrupt hint; counts
				 * up from 1, and is never reused while the
				 * page is attached
				 */
	__u64 boosts;		/* boosts given since the page was attached */
	__u64 throttles;	/* times that a boost was refused or cut short
				 * because the budget was spent
				 */
	__u64 rsvd2[4];

	/* Cache line 3. Writer: the host's scheduler, when the vCPU gets, wants or gives up a CPU. */
	__u64 placement;	/* PVSCHED_PLACEMENT_* */
	__u64 since;		/* ns of the host's own clock since when it is in that
				 * state; compares with the same word of other
				 * pages, and with no clock of the guest
				 */
	__u64 capacity;		/* PVSCHED_CAPACITY_* */
	__u64 ran;		/* ns of CPU that the host's scheduler counted */
	__u64 waited;		/* ns that it wanted a CPU and had none */
	__u64 rsvd3[3];
};

PVSCHED_OFFSET(struct pvsched_page, header, 0);
PVSCHED_OFFSET(struct pvsched_page, guest_state, 8);
PVSCHED_OFFSET(struct pvsched_page, role, 16);
PVSCHED_OFFSET(struct pvsched_page, current_task, 64);
PVSCHED_OFFSET(struct pvsched_page, pending_task, 72);
PVSCHED_OFFSET(struct pvsched_page, context, 80);
PVSCHED_OFFSET(struct pvsched_page, ack, 88);
PVSCHED_OFFSET(struct pvsched_page, timer, 96);
PVSCHED_OFFSET(struct pvsched_page, response, 104);
PVSCHED_OFFSET(struct pvsched_page, applied, 128);
PVSCHED_OFFSET(struct pvsched_page, ticket, 136);
PVSCHED_OFFSET(struct pvsched_page, boosts, 144);
PVSCHED_OFFSET(struct pvsched_page, throttles, 152);
PVSCHED_OFFSET(struct pvsched_page, placement, 192);
PVSCHED_OFFSET(struct pvsched_page, since, 200);
PVSCHED_OFFSET(struct pvsched_page, capacity, 208);
PVSCHED_OFFSET(struct pvsched_page, ran, 216);
PVSCHED_OFFSET(struct pvsched_page, waited, 224);
PVSCHED_SIZE(struct pvsched_page, 256);

#endif /* PVSCHED_PAGE_H */
