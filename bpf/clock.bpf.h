/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Virtual clocks: how far fair scheduling has got, in the virtual time that
 * tasks are charged in. A task whose vtime is ahead of its clock had more than
 * its share, one whose vtime is behind is owed some.
 *
 * A task that may run on every CPU goes by the clock of its cache domain, one
 * that is bound to some by that of the CPU where it was last. Where many are
 * bound to one CPU they get on slower than the host does. By a common clock they
 * would all be owed more with every turn: weights and budgets would mean nothing
 * among them.
 *
 * A fair turn moves its clocks on to where it begins. Nobody is the worse for a turn
 * that begins while nobody waits, so it is not charged; the clocks move on by its
 * length instead. Else they would jump ahead by what such a turn costs, a second
 * for a task of little weight, and leave behind what others are owed.
 */
#ifndef PVSCHED_CLOCK_BPF_H
#define PVSCHED_CLOCK_BPF_H

#include "state.bpf.h"

/* Names of clocks, for pv_task.clock; 0 is none. */
#define LLC_CLOCK(llc)	((llc) + 1)
#define CPU_CLOCK_BIT	0x10000
#define CPU_CLOCK(cpu)	(CPU_CLOCK_BIT | (u32)(cpu))

/*
 * Power of two by which cgroups divide the weights of tasks, on average; the scheduler process sets
 * it. Virtual time passes as much faster, and what is laid down in time is worth more of it. It is
 * in what is laid down and not in the weights, as tasks wait by what they were charged earlier: with
 * other units of it than those of today they would wait for seconds, or go before all others.
 * Each BPF object has one of its own, and only that of main.bpf.c is set: what goes by it is not for
 * the others to call.
 */
s32 weight_shift;

static inline u64 usual_charge(u64 time)
{
	return pv_usual_charge(time, READ_ONCE(weight_shift));
}

static inline bool is_pinned(struct task_struct *p)
{
	return p->nr_cpus_allowed == 1 || is_migration_disabled(p);
}

/* The clock of @p where it is on @cpu, of @llc; @home is the CPU that it has to run on, or -1. */
static inline u32 clock_for(struct task_struct *p, s32 home, s32 cpu, u32 llc)
{
	if (home >= 0 || is_pinned(p) || p->nr_cpus_allowed < nr_cpus)
		return CPU_CLOCK(cpu);
	return LLC_CLOCK(llc);
}

__noinline u64 clock_read(u32 clock)
{
	struct pv_cpu *c;
	struct pv_llc *l;

	if (clock & CPU_CLOCK_BIT) {
		c = cpu_of(clock & ~CPU_CLOCK_BIT);
		return c ? READ_ONCE(c->clock) : 0;
	}
	l = llc_of(clock - 1);
	return l ? READ_ONCE(l->clock) : 0;
}

/* From now on @t goes by @clock, and keeps what it is owed or ahead. Returns what that shows. */
__noinline u64 go_by(struct pv_task *t __arg_nonnull, u32 clock)
{
	u64 to = clock_read(clock), from, owed;

	if (t->clock != clock) {
		from = t->clock ? clock_read(t->clock) : to;
		owed = usual_charge(PV_OWED_MAX_NS);
		t->vtime = pv_translate(t->vtime, from, to, owed);
		t->base_vtime = pv_translate(t->base_vtime, from, to, owed);
		t->clock = clock;
	}
	return to;
}

static inline void clock_advance(struct pv_cpu *c, struct pv_llc *l, u64 to)
{
	if (pv_before(READ_ONCE(c->clock), to))
		WRITE_ONCE(c->clock, to);
	if (pv_before(READ_ONCE(l->clock), to))
		WRITE_ONCE(l->clock, to);
}

/*
 * @t gets the CPU while nobody else waits for it, and so nobody is owed time. The
 * moment to catch up with other cache domains, one at a time: the clock of one that
 * was idle stood still, and its tasks would be taken for neglected ones.
 */
static inline void alone_begin(struct pv_task *t, struct pv_cpu *c, struct pv_llc *l, u64 now)
{
	if (nr_llcs > 1) {
		struct pv_llc *other = llc_of(c->next_llc);

		c->next_llc = c->next_llc + 1 < nr_llcs ? c->next_llc + 1 : 0;
		if (other)
			clock_advance(c, l, READ_ONCE(other->clock));
	}
	clock_advance(c, l, READ_ONCE(l->clock));
	clock_advance(c, l, READ_ONCE(c->clock));
	c->alone_since = now;
	c->alone_clock = READ_ONCE(c->clock);
	t->vtime = pv_enter_base(t->vtime, c->alone_clock, 0);
	t->base_vtime = pv_enter_base(t->base_vtime, c->alone_clock, 0);
	c->alone_vtime = t->vtime;
	c->alone_base = t->base_vtime;
}

/* If the turn of @t on @c began so: it is over, or somebody waits. After @t was charged. */
static inline void alone_end(struct pv_task *t, struct pv_cpu *c, struct pv_llc *l, u64 now)
{
	u64 to;

	if (!c->alone_since)
		return;
	to = c->alone_clock + usual_charge(now > c->alone_since ? now - c->alone_since : 0);
	clock_advance(c, l, to);
	t->vtime = pv_refund(t->vtime, c->alone_vtime, READ_ONCE(c->clock));
	t->base_vtime = pv_refund(t->base_vtime, c->alone_base, READ_ONCE(c->clock));
	c->alone_since = 0;
}

#endif /* PVSCHED_CLOCK_BPF_H */
