/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a guest's administrator declared a vCPU to be for, and the CPU that an
 * exclusion group leaves it.
 *
 * A vCPU with a home waits in that CPU's own queues and nowhere else, as a
 * pinned task does, so that no two of a group meet on a CPU. The scheduler
 * process gives the homes. Until it has done so, and where the thread's
 * affinity has changed since, the vCPU goes where any other would.
 */
#ifndef PVSCHED_ROLES_BPF_H
#define PVSCHED_ROLES_BPF_H

#include "state.bpf.h"

static inline bool has_role(struct pv_task *t, u32 role)
{
	return (READ_ONCE(t->role) & PVSCHED_ROLE_MASK) == role;
}

static inline bool has_group(struct pv_task *t)
{
	return READ_ONCE(t->role) >> PVSCHED_ROLE_GROUP_SHIFT & PVSCHED_ROLE_GROUP_MASK;
}

/* home_of() of a vCPU that has a group. */
__noinline s32 home_in_group(struct task_struct *p __arg_trusted)
{
	struct pv_home *home;
	s32 cpu;

	/* Where it cannot leave its CPU now it has no other. */
	if (is_migration_disabled(p))
		return -1;
	home = bpf_task_storage_get(&homes, p, 0, 0);
	if (!home)
		return -1;
	cpu = READ_ONCE(home->cpu);
	if (cpu < 0 || cpu >= nr_cpu_ids || !bpf_cpumask_test_cpu(cpu, p->cpus_ptr))
		return -1;
	return cpu;
}

/* The CPU that @p has to run on for its group's sake, or -1. */
static inline s32 home_of(struct task_struct *p, struct pv_task *t)
{
	return has_group(t) ? home_in_group(p) : -1;
}

#endif /* PVSCHED_ROLES_BPF_H */
