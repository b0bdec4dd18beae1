/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which ticket may be acknowledged. Plain arithmetic: also compiled natively,
 * for tests.
 *
 * The host counts `ticket` up with each interrupt that it gives the vCPU, and
 * keeps the vCPU ahead until the guest echoes the number in `ack`. An echo
 * that comes too early costs the guest its boost while an interrupt is still
 * pending, and nothing brings it back: a timer that has fired is not armed
 * again. An echo that comes late costs the host a little time. So a ticket is
 * acknowledged only when its interrupt has been taken for sure:
 *
 *  - The ticket is read when an interrupt is entered, before anything is done
 *    about it. Interrupts that were pending then are taken as soon as the CPU
 *    has interrupts enabled again, before any code that is not an interrupt.
 *  - So where interrupts were enabled in between (a softirq ends, tasks are
 *    switched), all that was read can be acknowledged.
 *  - When a hardirq ends, interrupts have been off all the time. If the host
 *    gave one ticket since the last echo, it was this interrupt's. If it gave
 *    several, others are still pending, or were merged into this one: then
 *    this interrupt stands for one of them, and what had been read when an
 *    earlier interrupt was entered is acknowledged, too, so that merged
 *    interrupts hold up the echo until the next one and no longer.
 */
#ifndef PVSCHED_TICKET_H
#define PVSCHED_TICKET_H

#include "page.h"

/*
 * The echo at the end of a hardirq.
 * @acked:   what is acknowledged so far
 * @earlier: the ticket at the entry of the hardirq before this one
 * @entered: the ticket at the entry of this one
 *
 * Tickets are compared by their difference. One that is behind what was
 * acknowledged comes from a host that started over.
 */
static inline __u64 pvsched_hardirq_ack(__u64 acked, __u64 earlier, __u64 entered)
{
	if ((__s64)(entered - acked) <= 1)
		return entered;
	if ((__s64)(earlier - acked) > 0 && (__s64)(entered - earlier) >= 0)
		return earlier;
	return acked + 1;
}

#endif /* PVSCHED_TICKET_H */
