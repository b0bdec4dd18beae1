/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernel's half of an engine in user space, beside a generic backend that
 * hands tasks over: who runs, what vCPUs' guests say (relay.bpf.h), and orders
 * that the backend has no word for. relay_kvm.bpf.c holds what KVM tells.
 */
#include <scx/common.bpf.h>
#include "relay.bpf.h"

char _license[] SEC("license") = "GPL";

/* The thread that decides. */
const volatile s32 engine_tid;

/* In task_struct.__state, as in include/linux/sched.h. */
#define TASK_DEAD	0x80

struct pv_turn {
	u32 preempt;	/* the next task that is scheduled in user space has to leave again */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct pv_turn);
} turns SEC(".maps");

/* Tasks wait in the engine's queue. */
u32 anybody_waits_there;

/* Whether @p still wants to run. The field has another size on each kernel. */
static inline bool is_on_rq(struct task_struct *p)
{
	u32 on_rq = 0;

	bpf_core_read(&on_rq, bpf_core_field_size(p->on_rq), &p->on_rq);
	return on_rq;
}

/* The vCPU @p has lost the CPU, or given it up. */
static inline void vcpu_stops(struct task_struct *p, struct pv_task *t, struct task_struct *next,
			      bool sleeps, s32 cpu, u64 now)
{
	u64 ran = p->se.sum_exec_runtime - t->exec;

	t->exec = p->se.sum_exec_runtime;
	t->ran += ran;
	if (t->boost)
		t->ran_boosted += ran;
	WRITE_ONCE(t->state, sleeps ? PV_STATE_ELSEWHERE : PV_STATE_FAIR);
	/*
	 * What it has not taken is not told again, and its next turn may be far away. Where it is
	 * the engine that comes between it is awake.
	 */
	tell_of_vcpu(p, t, now, false, !sleeps && t->hint_at && next->pid != engine_tid);
	show_state(t, page_of(p, t), sleeps ? PVSCHED_HOST_SLEEPING : PVSCHED_HOST_WAITING, cpu, now);
}

static inline void vcpu_starts(struct task_struct *p, struct pv_task *t, s32 cpu, u64 now)
{
	t->exec = p->se.sum_exec_runtime;
	begin_turn(t, now);
	/* Its fair turn came first. */
	if (!t->boost)
		WRITE_ONCE(t->called_at, 0);
	WRITE_ONCE(t->state, PV_STATE_RUNNING);
	if (t->hint_at && !t->started) {
		t->started = 1;
		count_stage(PV_STAGE_RUNNING, t->hint_at, now);
	}
	show_state(t, page_of(p, t), PVSCHED_HOST_RUNNING, cpu, now);
}

SEC("tp_btf/sched_switch")
int BPF_PROG(on_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	bool ours = is_handed_over(prev), nexts = is_handed_over(next), idle = !next->pid;
	s32 cpu = bpf_get_smp_processor_id();
	struct pv_news_switch *n;
	u64 now = clock_ns();
	struct pv_turn *turn;
	struct pv_task *t;
	bool sleeps = !is_on_rq(prev), wake;
	u32 zero = 0;

	if (ours) {
		t = task_of(prev);
		if (t && t->is_vcpu)
			vcpu_stops(prev, t, next, sleeps, cpu, now);
	}
	if (nexts) {
		t = task_of(next);
		if (t && t->is_vcpu)
			vcpu_starts(next, t, cpu, now);
		turn = bpf_map_lookup_elem(&turns, &zero);
		if (turn && turn->preempt) {
			turn->preempt = 0;
			scx_bpf_kick_cpu(cpu, SCX_KICK_PREEMPT);
		}
	}
	/* A real-time task or a per-CPU thread comes between; the turn may go on after it. */
	if (!nexts && !idle && !(ours && sleeps))
		return 0;
	/* Whoever still wants to run waits for the engine, and so may others. */
	wake = idle && prev->pid != engine_tid &&
	       ((ours && !sleeps) || !ours || READ_ONCE(anybody_waits_there));
	n = bpf_ringbuf_reserve(&news, sizeof(*n), 0);
	if (!n) {
		count_lost();
		return 0;
	}
	n->at = now;
	n->what = PV_NEWS_SWITCH;
	n->cpu = cpu;
	n->prev = ours ? prev->pid : 0;
	n->next = nexts ? next->pid : 0;
	n->prev_exec = prev->se.sum_exec_runtime;
	n->next_exec = next->se.sum_exec_runtime;
	n->end = sleeps ? PV_END_SLEEPS : PV_END_RUNNABLE;
	if (sleeps && prev->__state & TASK_DEAD)
		n->end = PV_END_DEAD;
	n->idle = idle;
	bpf_ringbuf_submit(n, wakes(wake));
	return 0;
}

static inline void wakes_up(struct task_struct *p)
{
	s32 cpu = scx_bpf_task_cpu(p);
	u64 now = clock_ns();
	struct pv_task *t;

	/* The kernel's per-CPU threads work for everybody on that CPU. The backend has it in its queue. */
	if (is_per_cpu_kthread(p)) {
		COUNT(enqueued_kthread);
		scx_bpf_kick_cpu(cpu, SCX_KICK_PREEMPT);
		return;
	}
	if (!is_handed_over(p))
		return;
	t = task_of(p);
	if (t && t->is_vcpu) {
		WRITE_ONCE(t->state, PV_STATE_FAIR);
		show_state(t, page_of(p, t), PVSCHED_HOST_WAITING, cpu, now);
		tell_of_vcpu(p, t, now, false, true);
	} else {
		wake_engine();
	}
}

SEC("tp_btf/sched_wakeup")
int BPF_PROG(on_wakeup, struct task_struct *p)
{
	wakes_up(p);
	return 0;
}

SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(on_wakeup_new, struct task_struct *p)
{
	wakes_up(p);
	return 0;
}

static inline void kick(s32 cpu, u32 how)
{
	struct pv_turn *turn;
	u32 zero = 0;

	if (how == PV_KICK_LOOK) {
		scx_bpf_kick_cpu(cpu, 0);
		return;
	}
	if (cpu != bpf_get_smp_processor_id()) {
		scx_bpf_kick_cpu(cpu, SCX_KICK_PREEMPT);
		return;
	}
	/*
	 * The engine itself has interrupted that turn, which goes on when it sleeps.
	 * A kick now would meet the engine, of a higher scheduling class, and be lost.
	 */
	turn = bpf_map_lookup_elem(&turns, &zero);
	if (turn)
		turn->preempt = 1;
}

/* Carries out a struct pv_order. */
SEC("syscall")
int order(struct pv_order *o)
{
	struct task_struct *p;
	struct pv_task *t;

	if (o->tid) {
		p = bpf_task_from_pid(o->tid);
		if (p) {
			bpf_rcu_read_lock();
			t = task_of(p);
			if (t && t->is_vcpu) {
				if (o->boost && o->boost != t->boost) {
					if (o->boost == PV_BOOST_TASK) {
						t->boosts_task++;
						COUNT(boosts_task);
					} else {
						t->boosts_irq++;
						COUNT(boosts_irq);
					}
				}
				if ((o->applied & PVSCHED_APPLIED_MASK) == PVSCHED_APPLIED_THROTTLED &&
				    (t->applied & PVSCHED_APPLIED_MASK) != PVSCHED_APPLIED_THROTTLED)
					t->throttles++;
				t->boost = o->boost;
				t->ahead = o->ahead;
				WRITE_ONCE(t->posted, 0);
				tell(t, page_of(p, t), o->applied);
			}
			bpf_rcu_read_unlock();
			bpf_task_release(p);
		}
	}
	if (o->kick && o->cpu >= 0 && o->cpu < nr_cpu_ids)
		kick(o->cpu, o->kick);
	return 0;
}

/*
 * What is known by now of the vCPU whose thread id is in *@n, which is what else is
 * told when it loses a CPU, but for its home. It may run meanwhile, so nothing is changed.
 */
SEC("syscall")
int look(struct pv_news_vcpu *n)
{
	struct task_struct *p;
	struct pv_task *t;

	p = bpf_task_from_pid(n->tid);
	n->what = 0;
	if (!p)
		return 0;
	bpf_rcu_read_lock();
	t = task_of(p);
	if (t && t->is_vcpu) {
		describe(n, p, t, page_of(p, t), clock_ns());
		n->home = -1;
	}
	bpf_rcu_read_unlock();
	bpf_task_release(p);
	return 0;
}

/* How many tasks wait in the engine's queue. */
SEC("syscall")
int set_waiting(struct pv_order *o)
{
	WRITE_ONCE(anybody_waits_there, o->kick);
	return 0;
}
