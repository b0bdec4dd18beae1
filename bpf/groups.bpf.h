/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What cgroups make of a task's weight: cpu.weight of its own, and of each above.
 *
 * The tasks of a cgroup share what is the cgroup's, and cgroups what is their
 * parent's, by their weights; who has nothing to run leaves his part to the others. So
 * of the weight that a task has by its nice value it keeps, for each cgroup from its
 * own up to below the root, the cgroup's weight divided by the sum of the weights in
 * it that want to run. That is looked up as its turn begins, and a turn is short.
 *
 * A cgroup is known by a number, which its tasks keep. The sum in it is changed as its
 * tasks begin and cease to want a CPU, and that of its parent only as the first one
 * begins or the last one ceases.
 */
#ifndef PVSCHED_GROUPS_BPF_H
#define PVSCHED_GROUPS_BPF_H

#include "state.bpf.h"

struct pv_group {
	struct bpf_spin_lock lock;
	u32 parent;
	u32 cpu_weight;	/* cpu.weight */
	u32 cpu_idle;	/* cpu.idle */
	s64 weight;	/* what comes of both; see pv_weight() */
	s64 wanting;	/* weights of the tasks and cgroups in it that want to run, in all */
	s64 counted;	/* what of its own weight its parent counts */

	/* cpu.max; see bandwidth.bpf.h. */
	u64 quota;	/* ns of CPU in each period, 0 no limit */
	u64 period;	/* ns */
	u64 burst;	/* ns of earlier periods that may be used in one */
	s64 left;	/* ns of CPU of this period; what was used beyond is owed to the next */
	u64 renewed;	/* ns; when this period began */
	u64 held;	/* ns; when a task was held back last */
	u64 released;	/* ns; when such were let go last */
	u32 armed;	/* the timer is set */
	u32 ready;	/* the timer has its function */
	struct bpf_timer timer;
};

/* By number. 0 is the root: its tasks share the host with the cgroups in it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PV_MAX_GROUPS);
	__type(key, u32);
	__type(value, struct pv_group);
} groups SEC(".maps");

/* Numbers that no cgroup has; the scheduler process fills it. */
struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__uint(max_entries, PV_MAX_GROUPS);
	__type(value, u32);
} free_groups SEC(".maps");

struct pv_group_number {
	u32 number;
	u32 own;	/* not that of a cgroup above, for want of numbers */
};

struct {
	__uint(type, BPF_MAP_TYPE_CGRP_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct pv_group_number);
} group_numbers SEC(".maps");

/*
 * Weights that want to run: of all tasks, and of those in the root. Per CPU, as all
 * CPUs would else write to one word; only the sum over CPUs means anything.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct pv_wanting);
} wanting SEC(".maps");

/* Weights of the cgroups in the root that want to run. */
s64 root_groups;

static inline struct pv_group *group_at(u32 group)
{
	return bpf_map_lookup_elem(&groups, &group);
}

/* The weights in @group that want to run become @by more; 0 is the root. */
__noinline int group_add(u32 group, s64 by)
{
	u32 i;

	/* And once more for the root. */
	for (i = 0; i <= PV_GROUP_DEPTH; i++) {
		struct pv_group *g;
		s64 counts, before;

		if (!group) {
			__sync_fetch_and_add(&root_groups, by);
			break;
		}
		g = group_at(group);
		if (!g)
			break;
		before = __sync_fetch_and_add(&g->wanting, by);
		if ((before > 0) == (before + by > 0))
			break;
		/* Others may be here for the same reason: whoever is last sees the sum as it is. */
		bpf_spin_lock(&g->lock);
		counts = READ_ONCE(g->wanting) > 0 ? g->weight : 0;
		by = counts - g->counted;
		g->counted = counts;
		group = g->parent;
		bpf_spin_unlock(&g->lock);
		if (!by)
			break;
	}
	return 0;
}

/* The weight of a task without cgroups, as they count it. */
static inline s64 own_weight(struct task_struct *p)
{
	return pv_weight(p->scx.weight, PV_GUEST_WEIGHT_DFL);
}

/* From now on @p wants to run with @weight, or not any more (0). */
__noinline int group_count(struct pv_task *t __arg_nonnull, s64 weight)
{
	s64 by = weight - t->wanting;
	struct pv_wanting *w;
	u32 zero = 0;

	if (!by)
		return 0;
	t->wanting = weight;
	w = bpf_map_lookup_elem(&wanting, &zero);
	if (w) {
		w->all += by;
		if (!t->group)
			w->root += by;
	}
	if (t->group)
		group_add(t->group, by);
	return 0;
}

/*
 * @p wants a CPU, or has got one. Called where it is queued, and where its turn begins as one that
 * is put on an idle CPU at once is not queued. runnable() and quiescent() would know, too, but the
 * kernel calls both also each time that a task goes from one CPU's run queue to another's.
 */
static inline void wants_to_run(struct task_struct *p, struct pv_task *t)
{
	if (!t->wanting)
		group_count(t, own_weight(p));
}

/*
 * What cgroups leave of the weight of @t, in units of PV_PART_ONE. Also looks up
 * whether they limit what it may use.
 */
__noinline u64 group_part(struct pv_task *t __arg_nonnull)
{
	u64 part = PV_PART_ONE;
	u32 group = t->group, limit = 0, i;

	for (i = 0; i < PV_GROUP_DEPTH; i++) {
		struct pv_group *g;

		if (!group)
			break;
		g = group_at(group);
		if (!g)
			break;
		part = pv_part_of(part, READ_ONCE(g->weight), READ_ONCE(g->wanting));
		if (!limit && READ_ONCE(g->quota))
			limit = group;
		group = g->parent;
	}
	t->limit = limit;
	return part;
}

static inline u32 group_number(struct cgroup *cgrp)
{
	struct pv_group_number *n = bpf_cgrp_storage_get(&group_numbers, cgrp, 0, 0);

	return n ? n->number : 0;
}

/* The number of a cgroup that has one of its own, else 0. */
static inline u32 group_own_number(struct cgroup *cgrp)
{
	struct pv_group_number *n = bpf_cgrp_storage_get(&group_numbers, cgrp, 0, 0);

	return n && n->own ? n->number : 0;
}

/* The weight of the cgroup with a number of its own is another one from now on. */
static inline void group_reweigh(u32 group, bool has_weight, u32 cpu_weight, bool has_idle,
				 bool cpu_idle)
{
	struct pv_group *g = group ? group_at(group) : NULL;
	s64 counts, by;
	u32 parent;

	if (!g)
		return;
	bpf_spin_lock(&g->lock);
	if (has_weight)
		g->cpu_weight = cpu_weight;
	if (has_idle)
		g->cpu_idle = cpu_idle;
	/* cpu.idle makes a cgroup as light as SCHED_IDLE makes a task. */
	g->weight = g->cpu_idle ? 100 * PV_GUEST_WEIGHT_IDLE : g->cpu_weight * PV_GUEST_WEIGHT_DFL;
	counts = READ_ONCE(g->wanting) > 0 ? g->weight : 0;
	by = counts - g->counted;
	g->counted = counts;
	parent = g->parent;
	bpf_spin_unlock(&g->lock);
	if (by)
		group_add(parent, by);
}

static inline s32 group_new(struct cgroup *cgrp, u32 weight, bool idle)
{
	struct pv_group_number *n;
	struct pv_group *g;
	struct cgroup *up;
	u32 parent = 0;

	if (!cgrp->level)
		return 0;
	up = bpf_cgroup_ancestor(cgrp, cgrp->level - 1);
	if (up) {
		parent = group_number(up);
		bpf_cgroup_release(up);
	}
	n = bpf_cgrp_storage_get(&group_numbers, cgrp, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	/*
	 * One that is being removed is shown to a scheduler that starts, and can keep
	 * nothing. It has no tasks any more. Those of one for which there is no memory
	 * count as the root's.
	 */
	if (!n) {
		COUNT(groups_missing);
		return 0;
	}
	/* So that from each cgroup the way up to the root is short enough to be gone. */
	n->own = cgrp->level <= PV_GROUP_DEPTH && !bpf_map_pop_elem(&free_groups, &n->number);
	if (!n->own) {
		n->number = parent;
		COUNT(groups_missing);
		return 0;
	}
	g = group_at(n->number);
	if (!g)
		return -ENOMEM;
	g->parent = parent;
	g->wanting = 0;
	g->counted = 0;
	g->quota = 0;
	g->period = 0;
	group_reweigh(n->number, true, weight, true, idle);
	return 0;
}

static inline void group_end(struct cgroup *cgrp)
{
	u32 number = group_own_number(cgrp);

	if (number)
		bpf_map_push_elem(&free_groups, &number, 0);
}

#endif /* PVSCHED_GROUPS_BPF_H */
