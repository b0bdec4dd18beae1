/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How long an urgent task waited, as the page tells it. Plain arithmetic: also
 * compiled natively, for tests.
 */
#ifndef PVSCHED_RESPONSE_H
#define PVSCHED_RESPONSE_H

#include "page.h"

static inline __u64 pvsched_response_us(__u64 from, __u64 to)
{
	__u64 us = to > from ? (to - from) / 1000 : 0;

	return us < PVSCHED_RESPONSE_US_MAX ? us : PVSCHED_RESPONSE_US_MAX;
}

/*
 * The word for the page.
 * @before: the word as it was
 * @wanted: when the task's timer was due, else when it was woken; ns
 * @woken:  when it was woken
 * @now:    when it runs
 */
static inline __u64 pvsched_response(__u64 before, __u64 wanted, __u64 woken, __u64 now)
{
	__u64 count = (before >> PVSCHED_RESPONSE_COUNT_SHIFT) + 1;

	return count << PVSCHED_RESPONSE_COUNT_SHIFT |
	       pvsched_response_us(wanted, woken) << PVSCHED_RESPONSE_LATE_SHIFT |
	       pvsched_response_us(wanted, now);
}

#endif /* PVSCHED_RESPONSE_H */
