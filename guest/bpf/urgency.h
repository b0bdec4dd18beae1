/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * From what the kernel knows of a task to an urgency word, and which of two
 * words is more urgent. Plain arithmetic: also compiled natively, for tests.
 */
#ifndef PVSCHED_URGENCY_H
#define PVSCHED_URGENCY_H

#include "page.h"

/* Scheduling policies, from include/uapi/linux/sched.h. */
#define PVSCHED_POLICY_BATCH	3
#define PVSCHED_POLICY_IDLE	5

/*
 * Kernel priorities (task_struct.prio), from include/linux/sched/prio.h and
 * include/linux/sched/deadline.h: below 0 is SCHED_DEADLINE, 0..98 are the
 * real-time priorities 99..1, 100..139 the nice values -20..19.
 */
#define PVSCHED_MAX_DL_PRIO	0
#define PVSCHED_MAX_RT_PRIO	100
#define PVSCHED_DEFAULT_PRIO	120

/* What the word is made of; all of it as in task_struct. */
struct pvsched_task {
	int prio;		/* effective: with what it inherited */
	int static_prio;	/* 120 + nice, inherited or not */
	unsigned int policy;
	_Bool idle_cpu;		/* the idle task, or one that plays it */
	_Bool stop;		/* of the stop class, which preempts all others */
};

static inline int pvsched_clamp(int value, int low, int high)
{
	return value < low ? low : value > high ? high : value;
}

/*
 * The class comes from the effective priority first: a normal task that
 * inherited a real-time priority is as urgent as its waiter.
 */
static inline __u64 pvsched_urgency(const struct pvsched_task *task)
{
	int nice, rt_prio;

	if (task->idle_cpu)
		return PVSCHED_URGENCY(PVSCHED_CLASS_IDLE_CPU, 0, 0);
	if (task->stop || task->prio < PVSCHED_MAX_DL_PRIO)
		return PVSCHED_URGENCY(PVSCHED_CLASS_DEADLINE, 0, 0);
	if (task->prio < PVSCHED_MAX_RT_PRIO) {
		rt_prio = pvsched_clamp(PVSCHED_MAX_RT_PRIO - 1 - task->prio, 1, 99);
		return PVSCHED_URGENCY(PVSCHED_CLASS_RT, rt_prio, 0);
	}
	if (task->policy == PVSCHED_POLICY_IDLE)
		return PVSCHED_URGENCY(PVSCHED_CLASS_IDLE, 0, 0);
	nice = pvsched_clamp(task->static_prio - PVSCHED_DEFAULT_PRIO, -20, 19);
	if (task->policy == PVSCHED_POLICY_BATCH)
		return PVSCHED_URGENCY(PVSCHED_CLASS_BATCH, 0, nice);
	return PVSCHED_URGENCY(PVSCHED_CLASS_NORMAL, 0, nice);
}

/*
 * Whether a comes before b on a CPU. Nice values give shares and no precedence,
 * and their numbers run the other way, so they do not count.
 */
static inline _Bool pvsched_more_urgent(__u64 a, __u64 b)
{
	return a >> PVSCHED_URGENCY_PRIO_SHIFT > b >> PVSCHED_URGENCY_PRIO_SHIFT;
}

/* Urgent is what the host boosts a vCPU for: real-time and above. */
static inline _Bool pvsched_urgent(__u64 word)
{
	return word >> PVSCHED_URGENCY_CLASS_SHIFT >= PVSCHED_CLASS_RT;
}

/* Work of SCHED_IDLE, which is worth next to nothing to the host. */
static inline _Bool pvsched_idle_work(__u64 word)
{
	return word >> PVSCHED_URGENCY_CLASS_SHIFT == PVSCHED_CLASS_IDLE;
}

#endif /* PVSCHED_URGENCY_H */
