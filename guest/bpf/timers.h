/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which timer of a CPU is the next one for an urgent task, or for any task that
 * is not SCHED_IDLE. Plain arithmetic: also compiled natively, for tests.
 *
 * A timer is as urgent as the task that arms it: the one that goes to sleep on
 * it, or that sets a timer whose signal or descriptor it waits for. One that
 * re-arms itself in its interrupt stays as urgent as it was. Of each CPU's
 * timers a few are remembered, urgent ones first; should there be more, the
 * host learns of the others when the guest gets to them.
 */
#ifndef PVSCHED_TIMERS_H
#define PVSCHED_TIMERS_H

#include "page.h"
#include "urgency.h"

#define PVSCHED_TIMER_SLOT_BITS	3
#define PVSCHED_TIMER_SLOTS	(1 << PVSCHED_TIMER_SLOT_BITS)
/* KTIME_MAX: the kernel's word for never. */
#define PVSCHED_TIMER_NEVER	0x7fffffffffffffffLL
/* A timer so long overdue was lost: nobody saw it expire or be cancelled. */
#define PVSCHED_TIMER_LOST_NS	1000000000LL

struct pvsched_timer {
	__u64 timer;	/* a number of its own; 0 none */
	__s64 expires;	/* ns of the guest's monotonic clock, or NEVER */
	__u64 urgency;
};

/* What is known of one CPU's timers. All zero to begin with. */
struct pvsched_timers {
	struct pvsched_timer slots[PVSCHED_TIMER_SLOTS];
	__s64 programmed;	/* ns; when the next timer interrupt comes */
};

static inline _Bool pvsched_timer_armed(const struct pvsched_timer *slot)
{
	return slot->timer && slot->expires != PVSCHED_TIMER_NEVER;
}

/* So long overdue at @now (ns of the guest's monotonic clock) that it is not there any more. */
static inline _Bool pvsched_timer_lost(const struct pvsched_timer *slot, __s64 now)
{
	return slot->expires < now && (__u64)now - (__u64)slot->expires > PVSCHED_TIMER_LOST_NS;
}

/*
 * Each timer has two slots to be in, by its number, which comes from its
 * address. Timers of sleeping tasks lie on kernel stacks and differ in their
 * high bits only; 2^64 divided by the golden ratio mixes those into the top
 * bits (Knuth, The Art of Computer Programming, volume 3, section 6.4).
 */
static inline unsigned int pvsched_timer_slot(__u64 timer)
{
	return timer * 0x9e3779b97f4a7c15ULL >> (64 - PVSCHED_TIMER_SLOT_BITS);
}

/* The slot that a timer is in, or NULL. */
static inline struct pvsched_timer *pvsched_timer_find(struct pvsched_timers *timers, __u64 timer)
{
	unsigned int first = pvsched_timer_slot(timer);

	if (timers->slots[first & (PVSCHED_TIMER_SLOTS - 1)].timer == timer)
		return &timers->slots[first & (PVSCHED_TIMER_SLOTS - 1)];
	first ^= 1;
	if (timers->slots[first & (PVSCHED_TIMER_SLOTS - 1)].timer == timer)
		return &timers->slots[first & (PVSCHED_TIMER_SLOTS - 1)];
	return 0;
}

/* Whether the timer of a task can matter to a host at all. */
static inline _Bool pvsched_timer_counts(__u64 urgency)
{
	return urgency >> PVSCHED_URGENCY_CLASS_SHIFT > PVSCHED_CLASS_IDLE;
}

/* Whether a timer comes before another as one to know of. */
static inline _Bool pvsched_timer_before(__s64 expires, __u64 urgency, __s64 other_expires,
					 __u64 other_urgency)
{
	if (pvsched_urgent(urgency) != pvsched_urgent(other_urgency))
		return pvsched_urgent(urgency);
	return expires < other_expires;
}

/* Remembers a timer, if there is room or it comes before one that is there. */
static inline void pvsched_timer_keep(struct pvsched_timers *timers, __u64 timer, __s64 expires,
				      __u64 urgency, __s64 now)
{
	unsigned int first = pvsched_timer_slot(timer);
	struct pvsched_timer *slot = &timers->slots[first & (PVSCHED_TIMER_SLOTS - 1)];
	struct pvsched_timer *other = &timers->slots[(first ^ 1) & (PVSCHED_TIMER_SLOTS - 1)];

	if (pvsched_timer_lost(slot, now))
		slot->timer = 0;
	if (pvsched_timer_lost(other, now))
		other->timer = 0;
	if (pvsched_timer_armed(slot) &&
	    (!pvsched_timer_armed(other) ||
	     pvsched_timer_before(slot->expires, slot->urgency, other->expires, other->urgency)))
		slot = other;
	if (pvsched_timer_armed(slot) &&
	    !pvsched_timer_before(expires, urgency, slot->expires, slot->urgency))
		return;
	slot->timer = timer;
	slot->expires = expires;
	slot->urgency = urgency;
}

/*
 * A timer was armed.
 * @urgency: of the task that did it
 * @by_task: a task did it for itself, no interrupt and not the scheduler
 * @now: ns of the guest's monotonic clock
 */
static inline void pvsched_timer_started(struct pvsched_timers *timers, __u64 timer, __s64 expires,
					 __u64 urgency, _Bool by_task, __s64 now)
{
	struct pvsched_timer *slot = pvsched_timer_find(timers, timer);

	if (slot) {
		slot->expires = expires;
		if (!by_task)
			return;
		slot->urgency = urgency;
		if (!pvsched_timer_counts(urgency))
			slot->timer = 0;
	} else if (by_task && pvsched_timer_counts(urgency)) {
		pvsched_timer_keep(timers, timer, expires, urgency, now);
	}
}

/* A timer expired or was cancelled. Returns whether that changes anything. */
static inline _Bool pvsched_timer_stopped(struct pvsched_timers *timers, __u64 timer)
{
	struct pvsched_timer *slot = pvsched_timer_find(timers, timer);

	if (!slot || !pvsched_timer_armed(slot))
		return 0;
	slot->expires = PVSCHED_TIMER_NEVER;
	return 1;
}

/* The hardware was told to interrupt at @expires. */
static inline void pvsched_timer_programmed(struct pvsched_timers *timers, __s64 expires)
{
	timers->programmed = expires;
}

/* The word for the page. Two timers at the same time count as the first one. */
static inline __u64 pvsched_timer_word(const struct pvsched_timers *timers)
{
	__s64 programmed = timers->programmed, first = PVSCHED_TIMER_NEVER;
	__u64 urgency = 0, delay = 0;
	unsigned int i;

	for (i = 0; i < PVSCHED_TIMER_SLOTS; i++) {
		const struct pvsched_timer *slot = &timers->slots[i];

		if (!pvsched_timer_armed(slot) ||
		    (urgency && !pvsched_timer_before(slot->expires, slot->urgency, first, urgency)))
			continue;
		if (pvsched_timer_lost(slot, programmed))
			continue;
		first = slot->expires;
		urgency = slot->urgency;
	}
	if (!urgency)
		return PVSCHED_TIMER_KNOWN;
	if (first > programmed)
		delay = ((__u64)first - (__u64)programmed) / 1000;
	if (delay > PVSCHED_TIMER_DELAY_MASK)
		delay = PVSCHED_TIMER_DELAY_MASK;
	urgency = urgency >> PVSCHED_URGENCY_PRIO_SHIFT & PVSCHED_TIMER_URGENCY_MASK;
	return PVSCHED_TIMER_KNOWN | urgency << PVSCHED_TIMER_URGENCY_SHIFT | delay;
}

#endif /* PVSCHED_TIMERS_H */
