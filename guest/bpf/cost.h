/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What it costs to run a task that mostly sleeps on a CPU, by what the host says of
 * that. Plain arithmetic: also compiled natively, for tests.
 */
#ifndef PVSCHED_COST_H
#define PVSCHED_COST_H

#include "page.h"

/* The host says nothing of that CPU. */
#define PVSCHED_COST_UNKNOWN	(~0ULL)
/* What it is worth not to interrupt another task, or one that mostly sleeps too; in us. */
#define PVSCHED_COST_BUSY	200
#define PVSCHED_COST_BRIEF	2000
/* A wait that was seen so long ago counts half as much, and again after as long; ns. */
#define PVSCHED_COST_HALF_LIFE	1000000000ULL

/* What runs on the CPU now, if anything. */
enum pvsched_runs {
	PVSCHED_RUNS_NOTHING	= 0,
	PVSCHED_RUNS_BUSY	= 1,
	PVSCHED_RUNS_BRIEF	= 2,	/* a task that mostly sleeps */
};

/*
 * In us: how soon the task would run there, and what that costs others.
 * @placement, @capacity: words of the page
 * @age:  ns since when the host has not changed them
 * @runs: enum pvsched_runs
 */
static inline __u64 pvsched_cost(__u64 placement, __u64 capacity, __u64 age, __u32 runs)
{
	__u64 wait = capacity >> PVSCHED_CAPACITY_WAIT_SHIFT;
	__u64 halvings = age / PVSCHED_COST_HALF_LIFE;

	wait = halvings < 32 ? wait >> halvings : 0;
	switch (placement & PVSCHED_PLACEMENT_STATE_MASK) {
	case PVSCHED_HOST_RUNNING:
		/*
		 * It has a CPU now. But where the task sleeps next, there its timer is, which
		 * expires unseen while that has none: most wake-ups are seen by a CPU that runs.
		 */
		wait /= 4;
		break;
	case PVSCHED_HOST_WAITING:
	case PVSCHED_HOST_SLEEPING:
		break;
	default:
		return PVSCHED_COST_UNKNOWN;
	}
	if (runs == PVSCHED_RUNS_NOTHING)
		return wait;
	return wait + (runs == PVSCHED_RUNS_BRIEF ? PVSCHED_COST_BRIEF : PVSCHED_COST_BUSY);
}

#endif /* PVSCHED_COST_H */
