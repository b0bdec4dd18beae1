/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * scx_pvsched: a host scheduler that knows what its virtual machines do.
 *
 * - Every task gets CPU time in proportion to its weight: fair queues ordered
 *   by virtual time, one per last-level cache, which keep in step by taking
 *   work from the one that lags.
 * - A vCPU whose guest runs or waits to run something urgent, or for which an
 *   interrupt waits, goes ahead of all that, ordered by the guest's real-time
 *   priority. What it uses is charged like any other time, so it runs earlier
 *   and never more; how far ahead of its share it may get is a budget.
 * - The guest's words are read from its pinned page at every decision.
 *
 * The callbacks stand in the order of a task's life. hints.bpf.c holds the
 * other half: what KVM tells.
 */
#include <scx/common.bpf.h>
#include "placement.bpf.h"
#include "capacity.bpf.h"
#include "bandwidth.bpf.h"
#include "hotplug.bpf.h"
#include "preempt.bpf.h"

char _license[] SEC("license") = "GPL";

UEI_DEFINE(uei);

const volatile u32 cpu_llc[PV_MAX_CPUS];

static inline bool is_per_cpu_kthread(struct task_struct *p)
{
	return p->flags & PF_KTHREAD && p->nr_cpus_allowed == 1;
}

/*
 * The kernel's per-CPU threads work for everybody on that CPU, so they come first there until they
 * have used up a slice, also when somebody has interrupted them meanwhile. One that needs more is not
 * in a hurry and queues like others. Returns what is left of it.
 */
static inline u64 left_of_kthread(struct task_struct *p, struct pv_task *t, u64 enq_flags)
{
	u64 ran;

	if (!is_per_cpu_kthread(p))
		return 0;
	if (enq_flags & SCX_ENQ_WAKEUP)
		t->woke_exec = p->se.sum_exec_runtime;
	ran = p->se.sum_exec_runtime - t->woke_exec;
	return ran < slice_min_ns ? slice_min_ns - ran : 0;
}

static inline u32 llc_of_cpu(s32 cpu)
{
	u32 llc = 0;

	if (cpu >= 0 && cpu < PV_MAX_CPUS)
		llc = cpu_llc[cpu];
	return llc < PV_MAX_LLCS ? llc : 0;
}

s32 BPF_STRUCT_OPS(pvsched_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	struct pv_task *t = task_of(p);
	s32 cpu = t ? home_of(p, t) : -1;
	bool idle = false;

	/* It is to be held back, which is done when it is enqueued. */
	if (t && t->limit && group_throttles(t->limit, clock_ns()))
		return prev_cpu;
	if (cpu >= 0)
		idle = scx_bpf_test_and_clear_cpu_idle(cpu);
	else
		cpu = scx_bpf_select_cpu_dfl(p, prev_cpu, wake_flags, &idle);
	/*
	 * A task of the host's that wakes up on that CPU before it has turned to
	 * this one would keep it there. Where there are many of those, it is
	 * queued where every CPU can get it.
	 */
	if (idle && !partial) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns, 0);
		COUNT(direct);
	}
	return cpu;
}

static __always_inline void enqueue_boosted(struct task_struct *p, struct pv_task *t, s32 cpu,
					    s32 home, u32 verdict, u64 now, u64 enq_flags)
{
	u32 rank = VERDICT_RANK(verdict);
	s32 target;

	t->extra_turn = 1;
	WRITE_ONCE(t->state, PV_STATE_BOOST);
	scx_bpf_dsq_insert_vtime(p, boost_dsq(home, llc_of_cpu(cpu)), BOOST_SLICE_NS,
				 pv_boost_key(rank, now), enq_flags);
	COUNT(enqueued_boost);
	EVENT(QUEUED, p->pid, PV_QUEUE_AHEAD, verdict);
	if (kick_idle(p, home))
		return;
	target = cpu_to_take(p, cpu, home, rank, now);
	/* Who interrupts its turn comes first, and is not running yet. */
	if (target == cpu && !(enq_flags & SCX_ENQ_WAKEUP) && anybody_is_next(cpu))
		return;
	if (may_take(p, target, rank, now))
		take(p, target, p->pid, rank, now);
}

void BPF_STRUCT_OPS(pvsched_enqueue, struct task_struct *p, u64 enq_flags)
{
	s32 cpu = scx_bpf_task_cpu(p), home;
	struct pv_task *t = task_of(p);
	struct pv_cpu *c = cpu_of(cpu);
	u64 now = clock_ns(), dsq, slice, waiting, clock, credit, vtime, weight = 0;
	struct pv_llc *l;
	bool rested = false;
	u32 llc;

	/* A task without state is one whose exit has begun; it needs no policy. */
	if (!t || !c) {
		scx_bpf_dsq_insert(p, SCX_DSQ_GLOBAL, slice_min_ns, enq_flags);
		return;
	}

	wants_to_run(p, t);
	slice = left_of_kthread(p, t, enq_flags);
	if (slice) {
		COUNT(enqueued_kthread);
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL_ON | cpu, slice, enq_flags | SCX_ENQ_PREEMPT);
		return;
	}

	/* What keeps it on its CPU is short, and others may wait for that. */
	if (!is_migration_disabled(p) && hold_back(p, t, now, enq_flags)) {
		if (t->is_vcpu && !t->wants_since)
			show_state(t, page_of(p, t), PVSCHED_HOST_WAITING, cpu, now);
		if (t->is_vcpu)
			EVENT(QUEUED, p->pid, PV_QUEUE_HELD, 0);
		return;
	}

	home = home_of(p, t);
	if (enq_flags & SCX_ENQ_LAST && (home < 0 || home == cpu)) {
		/* Nobody else is there for this CPU, which is about to go idle and would not look. */
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, slice_ns, enq_flags);
		scx_bpf_kick_cpu(cpu, 0);
		return;
	}
	if (home >= 0) {
		cpu = home;
		c = cpu_of(cpu);
	}

	llc = llc_of_cpu(cpu);
	l = llc_of(llc);
	if (!c || !l)
		return;
	dsq = home >= 0 || is_pinned(p) ? CPU_DSQ(cpu) : FAIR_DSQ(llc);
	waiting = waiting_for(l, nr_queued(CPU_DSQ(cpu)), nr_queued(FAIR_DSQ(llc)));
	clock = go_by(t, clock_for(p, home, cpu, llc));
	credit = usual_charge(enq_flags & SCX_ENQ_WAKEUP ? slice_ns : PV_OWED_MAX_NS);
	if (enq_flags & SCX_ENQ_WAKEUP) {
		weight = weight_of(t, p->scx.weight, PV_GUEST_WEIGHT_DFL);
		rested = pv_is_rested(t->vtime, clock, slice_ns, weight);
	}
	t->vtime = pv_enter_vtime(t->vtime, clock, credit, usual_charge(pv_most_ahead(waiting)));

	if (t->is_vcpu) {
		struct pvsched_page *page = page_of(p, t);
		u32 verdict;

		if (!t->wants_since)
			show_state(t, page, PVSCHED_HOST_WAITING, scx_bpf_task_cpu(p), now);
		t->base_vtime = pv_enter_base(t->base_vtime, clock, credit);

		/*
		 * First the state, then the judgement. A hint does it the
		 * other way round: either it sees that this vCPU waits and
		 * posts it, or the judgement below sees the hint. The
		 * exchanges on both sides are full barriers.
		 */
		t->dsq = dsq;
		__sync_lock_test_and_set(&t->state, PV_STATE_FAIR);
		verdict = boost_judge(t, page, task_lead(p, t), now);
		if (VERDICT_RANK(verdict)) {
			enqueue_boosted(p, t, cpu, home, verdict, now, enq_flags);
			return;
		}
		t->extra_turn = t->refused;
		EVENT(QUEUED, p->pid, PV_QUEUE_FAIR, 0);
	}

	slice = is_batch(t) ? slice_ns : pv_slice(slice_ns, slice_min_ns, waiting);
	vtime = queue_vtime(p, t);
	scx_bpf_dsq_insert_vtime(p, dsq, slice, vtime, enq_flags);
	COUNT(enqueued_fair);

	if (kick_idle(p, home))
		return;
	if (enq_flags & SCX_ENQ_WAKEUP)
		interrupt_turn(p, t, c, cpu, vtime, weight, rested, now);
}

/* The CPU has given nothing but boosted turns for too long. */
static inline bool guard_is_due(struct pv_cpu *c, u64 now)
{
	return c->boosted_since && now - c->boosted_since > guard_ns;
}

/*
 * The next fair turn: of the CPU's own queue and the cache domain's, the one
 * whose head is behind in vtime. Another cache domain is served first where
 * it lags by more than a slice; which one is looked at takes turns.
 */
static inline bool dispatch_fair(s32 cpu, u32 llc, struct pv_cpu *c, struct pv_llc *l)
{
	u32 i;

	if (nr_llcs > 1) {
		u32 other = c->next_llc;
		struct pv_llc *o;

		c->next_llc = other + 1 < nr_llcs ? other + 1 : 0;
		o = llc_of(other);
		if (o && other != llc &&
		    pv_before(READ_ONCE(o->clock) + usual_charge(slice_ns), READ_ONCE(l->clock)) &&
		    scx_bpf_dsq_move_to_local(FAIR_DSQ(other), 0))
			return true;
	}

	if (nr_queued(CPU_DSQ(cpu))) {
		u64 mine = first_vtime(CPU_DSQ(cpu), cpu), ours = first_vtime(FAIR_DSQ(llc), cpu);

		/* Only for others as far as was looked: perhaps nobody, so both take turns. */
		if (!ours)
			c->turn_of = !c->turn_of;
		if ((ours ? pv_before(mine, ours) : c->turn_of) &&
		    scx_bpf_dsq_move_to_local(CPU_DSQ(cpu), 0))
			return true;
	}
	if (scx_bpf_dsq_move_to_local(FAIR_DSQ(llc), 0) || scx_bpf_dsq_move_to_local(CPU_DSQ(cpu), 0))
		return true;
	if (nr_llcs <= 1)
		return false;

	/* About to go idle: worth a look at everybody's queues. */
	bpf_for(i, 0, nr_llcs) {
		if (i != llc && (scx_bpf_dsq_move_to_local(BOOST_DSQ(i), 0) ||
				 scx_bpf_dsq_move_to_local(FAIR_DSQ(i), 0)))
			return true;
	}
	return false;
}

/* Whether a task in a fair queue for @cpu, which has some, is behind @vtime, or as far, or may be. */
static inline bool has_claim(u64 dsq, s32 cpu, u64 vtime)
{
	u64 first = first_vtime(dsq, cpu);

	return !first || !pv_before(vtime, first);
}

/* A turn of @t begins: what cgroups leave of its weight from now on. */
static inline void take_part(struct pv_task *t)
{
	u64 part = group_part(t), clock;

	if (part == t->part)
		return;
	clock = clock_read(t->clock);
	t->vtime = pv_rescale(t->vtime, clock, t->part, part);
	if (t->is_vcpu)
		t->base_vtime = pv_rescale(t->base_vtime, clock, t->part, part);
	t->part = part;
}

/*
 * At the end of a turn: the task goes on if it is still further behind than all
 * who wait. It is in no queue yet, so it would lose to any of them, and two tasks
 * on a CPU would take turns whatever their weights.
 */
__noinline int goes_on(struct task_struct *prev __arg_trusted, struct pv_task *t __arg_nonnull,
		       s32 cpu, u64 now)
{
	u32 llc = llc_of_cpu(cpu);
	struct pv_cpu *c = cpu_of(cpu);
	struct pv_llc *l = llc_of(llc);
	struct pvsched_page *page;
	u64 slice, waiting;
	u32 own, shared;

	if (!c || !l || READ_ONCE(c->give_way))
		return false;
	own = nr_queued(CPU_DSQ(cpu));
	shared = nr_queued(FAIR_DSQ(llc));
	if (!own && !shared && !nr_boosted(llc) && !nr_boosted_here(cpu))
		return false;
	page = charge(prev, t, now);
	alone_end(t, c, l, now);
	/* One that goes on and on is never enqueued, but may be owed no more than others. */
	waiting = waiting_for(l, own, shared);
	t->vtime = pv_enter_vtime(t->vtime, clock_read(t->clock), usual_charge(PV_OWED_MAX_NS),
				  usual_charge(pv_most_ahead(waiting)));
	if ((own && has_claim(CPU_DSQ(cpu), cpu, t->vtime)) ||
	    (shared && has_claim(FAIR_DSQ(llc), cpu, t->vtime)))
		return false;
	clock_advance(c, l, t->vtime);
	take_part(t);
	t->extra_turn = 0;
	turn_begin(c, t, prev->scx.weight, now);
	slice = is_batch(t) ? slice_ns : pv_slice(slice_ns, slice_min_ns, waiting);
	end_on_time(t, !page, cpu, slice, now);
	c->turn_end = now + slice;
	c->boosted_since = 0;
	scx_bpf_task_set_slice(prev, slice);
	return true;
}

/*
 * The running vCPU keeps the CPU while it is boosted and nobody more urgent
 * waits. Also one in its fair turn, at the end of which an interrupt has just
 * come in or an urgent task runs: taken off now it would wait a whole round
 * with it.
 */
__noinline int keep_boosted(struct task_struct *prev __arg_trusted,
			    struct pv_task *t __arg_nonnull, s32 cpu, u64 now)
{
	u32 llc = llc_of_cpu(cpu), verdict;
	struct pv_cpu *c = cpu_of(cpu);
	struct pv_llc *l = llc_of(llc);
	struct pvsched_page *page;

	if (!c || !l)
		return false;
	page = charge(prev, t, now);
	alone_end(t, c, l, now);
	verdict = boost_judge(t, page, task_lead(prev, t), now);
	if (!VERDICT_RANK(verdict) || first_rank(llc, cpu) > VERDICT_RANK(verdict))
		return false;
	if (c->turn_end && now >= c->turn_end) {
		t->extra_turn = 1;
		c->turn_end = 0;
		c->boosted_since = now;
	}
	if (!anybody_queues(cpu, llc))
		alone_begin(t, c, l, now);
	boost_set(t, page, c, verdict, anybody_waits(cpu, llc));
	scx_bpf_task_set_slice(prev, BOOST_SLICE_NS);
	COUNT(held);
	return true;
}

/* Whether the exclusion group of @p, which runs on @cpu, has another CPU for it. */
static inline bool is_away(struct task_struct *p, struct pv_task *t, s32 cpu)
{
	s32 home = home_of(p, t);

	return home >= 0 && home != cpu;
}

/* Whether the cgroups of @p, which runs, have nothing left that it might use. */
__noinline int is_used_up(struct task_struct *p __arg_trusted, struct pv_task *t __arg_nonnull,
			  u64 now)
{
	charge(p, t, now);
	spend(t);
	return group_throttles(t->limit, now) != 0;
}

/* The posts of this CPU; four at a time, the rest at its next dispatch. */
static inline void take_posts(struct pv_cpu *c, s32 cpu, u32 llc)
{
	u32 i;

	bpf_for(i, 0, 4) {
		u32 tail = READ_ONCE(c->post_tail);
		u32 head = c->post_head;
		s32 whom;

		if (head == tail)
			break;
		if (tail - head > PV_POSTS)
			head = tail - PV_POSTS;
		whom = __sync_lock_test_and_set(&c->posts[head & (PV_POSTS - 1)], 0);
		/*
		 * Its writer took the number and has yet to write. It kicks
		 * this CPU when it has.
		 */
		if (!whom)
			break;
		c->post_head = head + 1;
		if (whom > 0)
			move_ahead(whom, cpu, llc);
		else
			group_release(-whom);
	}
}

void BPF_STRUCT_OPS(pvsched_dispatch, s32 cpu, struct task_struct *prev)
{
	struct pv_task *t = prev && prev->scx.flags & SCX_TASK_QUEUED ? task_of(prev) : NULL;
	u64 now = clock_ns();
	u32 llc = llc_of_cpu(cpu);
	struct pv_cpu *c = cpu_of(cpu);
	struct pv_llc *l = llc_of(llc);
	bool may_stay;

	if (!c || !l)
		return;
	may_stay = t && !is_away(prev, t, cpu) && !(t->limit && is_used_up(prev, t, now));
	take_posts(c, cpu, llc);

	/*
	 * However many vCPUs are urgent, each CPU gives a fair turn now and
	 * then, so that nothing on the host ever stops. That turn is not
	 * interrupted.
	 */
	if (may_stay && now < c->guarded_until) {
		scx_bpf_task_set_slice(prev, c->guarded_until - now);
		return;
	}
	if (guard_is_due(c, now) && (nr_queued(FAIR_DSQ(llc)) || nr_queued(CPU_DSQ(cpu)))) {
		WRITE_ONCE(c->guarded_until, now + slice_min_ns);
		if (dispatch_fair(cpu, llc, c, l)) {
			COUNT(guarded);
			EVENT(GUARD, 0, cpu, 0);
			return;
		}
	}

	if (may_stay && t->is_vcpu && keep_boosted(prev, t, cpu, now))
		return;
	if (dispatch_boosted(cpu, llc))
		return;
	/* Interrupted for a vCPU that another CPU took meanwhile: the turn goes on. */
	if (may_stay && now + slice_min_ns / 2 < c->turn_end && !READ_ONCE(c->give_way)) {
		scx_bpf_task_set_slice(prev, c->turn_end - now);
		COUNT(resumed);
		return;
	}
	if (may_stay && goes_on(prev, t, cpu, now))
		return;
	if (dispatch_fair(cpu, llc, c, l))
		return;
	if (may_stay) {
		/* Nobody else wants the CPU: a new turn begins. */
		charge(prev, t, now);
		alone_end(t, c, l, now);
		t->extra_turn = 0;
		take_part(t);
		alone_begin(t, c, l, now);
		turn_begin(c, t, prev->scx.weight, now);
		c->turn_end = now + slice_ns;
		c->boosted_since = 0;
		scx_bpf_task_set_slice(prev, slice_ns);
	} else {
		c->boosted_since = 0;
	}
}

void BPF_STRUCT_OPS(pvsched_running, struct task_struct *p)
{
	s32 cpu = scx_bpf_task_cpu(p);
	u32 llc = llc_of_cpu(cpu);
	u64 now = clock_ns();
	struct pv_task *t = task_of(p);
	struct pv_cpu *c = cpu_of(cpu);
	struct pv_llc *l = llc_of(llc);
	struct pvsched_page *page = NULL;
	bool queued, waits;
	u64 clock, chosen;

	if (!t || !c || !l)
		return;

	queued = anybody_queues(cpu, llc);
	/* What the kernel itself has put first here matters to boosts only. */
	waits = queued || ((t->is_vcpu || t->extra_turn) && anybody_is_next(cpu));
	clock = go_by(t, clock_for(p, home_of(p, t), cpu, llc));
	chosen = t->vtime;
	wants_to_run(p, t);
	take_part(t);
	if (t->is_vcpu) {
		irq_settle(t, now);
		page = page_of(p, t);
		reweigh(t, guest_weight(t, page));
	}
	c->alone_since = 0;
	c->give_way = 0;
	WRITE_ONCE(c->taken, 0);
	turn_begin(c, t, p->scx.weight, now);
	WRITE_ONCE(c->vcpu, t->is_vcpu ? p->pid : 0);
	WRITE_ONCE(c->process, p->tgid);
	WRITE_ONCE(t->state, PV_STATE_RUNNING);
	if (is_per_cpu_kthread(p) && p->scx.slice <= slice_min_ns)
		WRITE_ONCE(c->rank, RANK_KERNEL);

	/* An extra turn that nobody waits for is a fair one. */
	if (t->extra_turn && waits) {
		/* One that was refused has its turn as the queue has got there; it may be ahead now. */
		if (t->refused)
			clock_advance(c, l, not_beyond_first(queue_vtime(p, t), cpu, llc));
		c->turn_end = 0;
		if (!c->boosted_since || t->refused)
			c->boosted_since = now;
	} else {
		u64 slice = p->scx.slice;

		/* Who comes during it waits for no longer than for another fair one. */
		if (t->extra_turn && slice > slice_ns) {
			slice = slice_ns;
			scx_bpf_task_set_slice(p, slice);
		}
		if (queued)
			end_on_time(t, !page, cpu, slice, now);
		t->extra_turn = 0;
		c->turn_end = now + slice;
		c->boosted_since = 0;
		/* Only fair turns move the clocks on; a boosted vCPU is ahead of them. */
		if (queued) {
			t->vtime = pv_enter_base(t->vtime, clock, usual_charge(PV_OWED_MAX_NS));
			/* Not by what a lesser weight, which it may just have got, makes of its lead. */
			if (pv_before(t->vtime, chosen))
				chosen = t->vtime;
			/* As a rule it is the first, and to look costs the queue's lock on older kernels. */
			if (pv_before(clock + usual_charge(slice_min_ns), chosen))
				chosen = not_beyond_first(chosen, cpu, llc);
			clock_advance(c, l, chosen);
		} else {
			alone_begin(t, c, l, now);
		}
	}

	if (t->is_vcpu) {
		u32 verdict;

		show_state(t, page, PVSCHED_HOST_RUNNING, cpu, now);
		WRITE_ONCE(t->posted, 0);
		begin_turn(t, now);
		if (t->hint_at && !t->started) {
			t->started = 1;
			count_stage(PV_STAGE_RUNNING, t->hint_at, now);
		}
		verdict = boost_judge(t, page, task_lead(p, t), now);
		/* Its fair turn came first. */
		if (!VERDICT_RANK(verdict))
			WRITE_ONCE(t->called_at, 0);
		boost_set(t, page, c, verdict, waits);
	}
}

void BPF_STRUCT_OPS(pvsched_tick, struct task_struct *p)
{
	struct pv_task *t = task_of(p);
	struct pvsched_page *page;
	bool waiting, idle;
	u32 llc, verdict;
	struct pv_cpu *c;
	struct pv_llc *l;
	u64 now;
	s32 cpu;

	if (!t || (!t->is_vcpu && !t->limit))
		return;
	cpu = scx_bpf_task_cpu(p);
	llc = llc_of_cpu(cpu);
	c = cpu_of(cpu);
	l = llc_of(llc);
	if (!c || !l)
		return;
	now = clock_ns();
	if (t->limit && is_used_up(p, t, now))
		scx_bpf_task_set_slice(p, 0);
	if (!t->is_vcpu)
		return;
	page = charge(p, t, now);
	waiting = anybody_waits(cpu, llc);
	if (waiting)
		alone_end(t, c, l, now);
	show_vtime(c, t, p->scx.weight, now);
	verdict = boost_judge(t, page, task_lead(p, t), now);
	if (!VERDICT_RANK(verdict) && t->rank)
		COUNT(ended_tick);
	boost_set(t, page, c, verdict, waiting);
	/*
	 * A boosted turn is over when the boost is, a fair one at its end also
	 * where a boost prolonged the slice, or when the guest's CPU only polls
	 * for work. dispatch() decides who is next.
	 */
	idle = waiting && t->guest_class == PVSCHED_CLASS_IDLE_CPU;
	if ((!VERDICT_RANK(verdict) && (t->extra_turn || idle || now >= c->turn_end)) ||
	    guard_is_due(c, now) || is_away(p, t, cpu))
		scx_bpf_task_set_slice(p, 0);
}

/*
 * sched_yield(), and KVM's directed yield: a vCPU spins, or waits for an answer
 * of one that does not run, and gives its turn for it. So it is put ahead
 * whatever its share, for a moment, within the budgets.
 */
bool BPF_STRUCT_OPS(pvsched_yield, struct task_struct *from, struct task_struct *to)
{
	struct pv_cpu *c = cpu_of(scx_bpf_task_cpu(from));
	u64 now = clock_ns();
	struct pv_task *t;

	/* It does not go on, however far behind the others it is. */
	if (c)
		WRITE_ONCE(c->give_way, 1);
	scx_bpf_task_set_slice(from, 0);
	if (!to)
		return false;
	t = task_of(to);
	if (!t || !t->is_vcpu || READ_ONCE(t->state) != PV_STATE_FAIR)
		return false;
	WRITE_ONCE(t->given_until, now + PV_GRACE_NS);
	COUNT(yields_to);
	EVENT(YIELD, t->tid, from->pid, 0);
	call_ahead(to, t, PV_RANK_IRQ, true, now);
	return true;
}

void BPF_STRUCT_OPS(pvsched_stopping, struct task_struct *p, bool runnable)
{
	s32 cpu = scx_bpf_task_cpu(p);
	struct pv_task *t = task_of(p);
	struct pv_cpu *c = cpu_of(cpu);
	struct pv_llc *l = llc_of(llc_of_cpu(cpu));
	struct pvsched_page *page;
	u64 now = clock_ns();

	if (!t || !c || !l)
		return;
	if (runnable) {
		page = charge(p, t, now);
	} else {
		page = page_of(p, t);
		/* What a CPU that halts will do when it is woken, its guest cannot say. */
		t->exec = p->se.sum_exec_runtime;
		task_charge(t, NULL, p->scx.weight, now);
	}
	alone_end(t, c, l, now);
	spend(t);
	if (!runnable) {
		group_count(t, 0);
		/*
		 * The kernel takes a task that runs off the run queue and puts it back at once when
		 * its affinity, policy or the like changes, also when a BPF program in which it lost
		 * the CPU lets it migrate again. Its turn goes on then, and is as urgent as it was:
		 * only one that sleeps is in another state than TASK_RUNNING, 0.
		 */
		if (p->__state)
			t->extra_turn = 0;
	}
	if (t->is_vcpu)
		show_state(t, page, runnable ? PVSCHED_HOST_WAITING : PVSCHED_HOST_SLEEPING, cpu, now);
	c->rank = 0;
	t->boost = PV_BOOST_NONE;
	t->rank = PV_RANK_NONE;
	WRITE_ONCE(t->state, PV_STATE_ELSEWHERE);
}

/*
 * A task of a higher scheduling class has the CPU, for as long as it likes. The
 * one that it interrupted need not wait for that, as others may go on with it.
 */
void BPF_STRUCT_OPS(pvsched_cpu_release, s32 cpu, struct scx_cpu_release_args *args)
{
	struct pv_cpu *c = cpu_of(cpu);

	if (c)
		WRITE_ONCE(c->taken, 1);
	COUNT(released);
	scx_bpf_reenqueue_local();
}

void BPF_STRUCT_OPS(pvsched_enable, struct task_struct *p)
{
	struct pv_task *t = task_of(p);
	s32 cpu = scx_bpf_task_cpu(p);

	if (!t)
		return;
	t->clock = clock_for(p, -1, cpu, llc_of_cpu(cpu));
	t->vtime = clock_read(t->clock);
	/* From here on all is charged, also what the kernel counts between two turns. */
	t->exec = p->se.sum_exec_runtime;
	t->charged = t->exec;
}

/* The kernel's own scheduler has it from here on. */
void BPF_STRUCT_OPS(pvsched_disable, struct task_struct *p)
{
	struct pv_task *t = task_of(p);

	if (!t)
		return;
	group_count(t, 0);
	WRITE_ONCE(t->state, PV_STATE_ELSEWHERE);
	t->wants_since = 0;
}

s32 BPF_STRUCT_OPS(pvsched_init_task, struct task_struct *p, struct scx_init_task_args *args)
{
	struct pv_task *t = bpf_task_storage_get(&tasks, p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!t)
		return -ENOMEM;
	if (bpf_core_field_exists(args->cgroup))
		t->group = group_number(args->cgroup);
	return 0;
}

void BPF_STRUCT_OPS(pvsched_exit_task, struct task_struct *p, struct scx_exit_task_args *args)
{
	struct pv_task *t = task_of(p);

	if (t)
		group_count(t, 0);
}

void BPF_STRUCT_OPS(pvsched_set_weight, struct task_struct *p, u32 weight)
{
	struct pv_task *t = task_of(p);

	if (t && t->wanting)
		group_count(t, own_weight(p));
}

s32 BPF_STRUCT_OPS_SLEEPABLE(pvsched_cgroup_init, struct cgroup *cgrp,
			     struct scx_cgroup_init_args *args)
{
	s32 err = group_new(cgrp, args->weight,
			    bpf_core_field_exists(args->sched_idle) && args->sched_idle);
	u32 group = group_own_number(cgrp);

	if (err || !group)
		return err;
	if (bpf_core_field_exists(args->bw_quota_us))
		group_limit(group, args->bw_period_us, args->bw_quota_us, args->bw_burst_us);
	return scx_bpf_create_dsq(HELD_DSQ(group), -1);
}

void BPF_STRUCT_OPS(pvsched_cgroup_set_bandwidth, struct cgroup *cgrp, u64 period_us, u64 quota_us,
		    u64 burst_us)
{
	group_limit(group_own_number(cgrp), period_us, quota_us, burst_us);
}

void BPF_STRUCT_OPS(pvsched_cgroup_exit, struct cgroup *cgrp)
{
	u32 group = group_own_number(cgrp);

	if (group)
		scx_bpf_destroy_dsq(HELD_DSQ(group));
	group_end(cgrp);
}

void BPF_STRUCT_OPS(pvsched_cgroup_move, struct task_struct *p, struct cgroup *from,
		    struct cgroup *to)
{
	struct pv_task *t = task_of(p);
	s64 wanting;

	if (!t)
		return;
	wanting = t->wanting;
	group_count(t, 0);
	t->group = group_number(to);
	group_count(t, wanting);
	take_part(t);
}

void BPF_STRUCT_OPS(pvsched_cgroup_set_weight, struct cgroup *cgrp, u32 weight)
{
	group_reweigh(group_own_number(cgrp), true, weight, false, false);
}

void BPF_STRUCT_OPS(pvsched_cgroup_set_idle, struct cgroup *cgrp, bool idle)
{
	group_reweigh(group_own_number(cgrp), false, 0, true, idle);
}

s32 BPF_STRUCT_OPS_SLEEPABLE(pvsched_init)
{
	u32 i;
	s32 err;

	bpf_for(i, 0, nr_llcs) {
		err = scx_bpf_create_dsq(FAIR_DSQ(i), -1) ?: scx_bpf_create_dsq(BOOST_DSQ(i), -1);
		if (err)
			return err;
	}
	bpf_for(i, 0, nr_cpu_ids) {
		err = scx_bpf_create_dsq(CPU_DSQ(i), -1) ?:
		      scx_bpf_create_dsq(CPU_BOOST_DSQ(i), -1) ?: init_reminder(i);
		if (err)
			return err;
	}
	return 0;
}

void BPF_STRUCT_OPS(pvsched_exit, struct scx_exit_info *ei)
{
	UEI_RECORD(uei, ei);
}

SCX_OPS_DEFINE(pvsched_ops,
	       .select_cpu	= (void *)pvsched_select_cpu,
	       .enqueue		= (void *)pvsched_enqueue,
	       .dispatch	= (void *)pvsched_dispatch,
	       .running		= (void *)pvsched_running,
	       .tick		= (void *)pvsched_tick,
	       .yield		= (void *)pvsched_yield,
	       .stopping	= (void *)pvsched_stopping,
	       .cpu_release	= (void *)pvsched_cpu_release,
	       .enable		= (void *)pvsched_enable,
	       .disable		= (void *)pvsched_disable,
	       .init_task	= (void *)pvsched_init_task,
	       .exit_task	= (void *)pvsched_exit_task,
	       .set_weight	= (void *)pvsched_set_weight,
	       .cgroup_init	= (void *)pvsched_cgroup_init,
	       .cgroup_exit	= (void *)pvsched_cgroup_exit,
	       .cgroup_move	= (void *)pvsched_cgroup_move,
	       .cgroup_set_weight = (void *)pvsched_cgroup_set_weight,
	       .cgroup_set_idle	= (void *)pvsched_cgroup_set_idle,
	       .cgroup_set_bandwidth = (void *)pvsched_cgroup_set_bandwidth,
	       .init		= (void *)pvsched_init,
	       .exit		= (void *)pvsched_exit,
	       .name		= "pvsched");
