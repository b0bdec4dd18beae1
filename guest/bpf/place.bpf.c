/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A small scheduler for a guest, which knows where its CPUs stand on the host.
 *
 * A guest that wakes a task puts it on the CPU where it ran last, or on one that is
 * idle. Whether that CPU gets to run is the host's decision, and the guest finds out
 * when the task is late. The host's scheduler tells in each CPU's page whether it has a
 * physical CPU now, and how long it waited for one of late. So a task that mostly
 * sleeps goes where it will run soonest. All others share the CPUs by weight, from one
 * queue ordered by virtual time, and take idle ones as they are: no work is kept from a
 * CPU, which gives most of it to those that the host lets run most.
 */
#include <scx/common.bpf.h>
#include "cost.h"

char _license[] SEC("license") = "GPL";

UEI_DEFINE(uei);

/* By the driver; it may be one that does not offer it to schedulers. */
extern u8 *pvsched_page(int cpu, const size_t rdwr_buf_size) __ksym;

const volatile u32 nr_cpus = 1;

#define NSEC_PER_USEC	1000ULL
#define NSEC_PER_MSEC	(1000 * NSEC_PER_USEC)

#define SHARED_DSQ	0

/* A turn. */
#define SLICE_NS	(4 * NSEC_PER_MSEC)
/* A task that runs for no longer than this between two sleeps is one that mostly sleeps. */
#define BRIEF_NS	NSEC_PER_MSEC
/* How many CPUs are looked at for one wake-up, beside the last one. */
#define LOOKS		16
/* What it is worth to stay where the caches are warm; in us. */
#define WORTH_WARM	50

struct task_ctx {
	u64 vtime;		/* ns of CPU at the weight of nice 0 */
	u64 charged;		/* of sum_exec_runtime */
	u64 burst;		/* ns that it ran since it slept */
	u64 bursts;		/* the average of that */
	u32 placed;		/* it was put where it runs soonest, ahead of others */
	u32 rsvd;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct task_ctx);
} tasks SEC(".maps");

struct cpu_ctx {
	u64 since;		/* pvsched_page.since as last seen */
	u64 seen_at;		/* ns; when it had changed */
	u32 runs_brief;		/* what runs there mostly sleeps */
} __attribute__((aligned(64)));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1024);
	__type(key, u32);
	__type(value, struct cpu_ctx);
} cpus SEC(".maps");

/* What `pvsched-guest place --verbose` shows. */
enum count {
	COUNT_PLACED	= 0,
	COUNT_MOVED	= 1,
	COUNTS,
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTS);
	__type(key, u32);
	__type(value, u64);
} counts SEC(".maps");

static u64 vtime_now;

static inline void count(u32 which)
{
	u64 *value = bpf_map_lookup_elem(&counts, &which);

	if (value)
		(*value)++;
}

static inline struct task_ctx *ctx_of(struct task_struct *p)
{
	return bpf_task_storage_get(&tasks, p, 0, 0);
}

static inline struct cpu_ctx *cpu_ctx_of(s32 cpu)
{
	u32 key = cpu;

	return bpf_map_lookup_elem(&cpus, &key);
}

static inline bool is_brief(struct task_ctx *t)
{
	return t->bursts <= BRIEF_NS;
}

/* Where it stands beside others; who slept saves up a turn at most. */
static inline u64 entered_vtime(struct task_ctx *t)
{
	u64 least = READ_ONCE(vtime_now) - SLICE_NS;

	if (time_before(t->vtime, least))
		t->vtime = least;
	return t->vtime;
}

/* It mostly sleeps, and has had no more than its share. */
static inline bool may_go_first(struct task_ctx *t)
{
	return is_brief(t) && !time_before(READ_ONCE(vtime_now), entered_vtime(t));
}

/* pvsched_cost() of @cpu. Verified for itself, not in each turn of a loop. */
__noinline u64 cost_of(s32 cpu, bool idle, u64 now)
{
	struct cpu_ctx *c = cpu_ctx_of(cpu);
	u32 runs = PVSCHED_RUNS_NOTHING;
	struct pvsched_page *page;
	u64 since;

	page = (struct pvsched_page *)pvsched_page(cpu, sizeof(*page));
	if (!page || !c)
		return PVSCHED_COST_UNKNOWN;
	since = READ_ONCE(page->since);
	if (c->since != since) {
		c->since = since;
		c->seen_at = now;
	}
	if (!idle)
		runs = READ_ONCE(c->runs_brief) ? PVSCHED_RUNS_BRIEF : PVSCHED_RUNS_BUSY;
	return pvsched_cost(READ_ONCE(page->placement), READ_ONCE(page->capacity),
			    now > c->seen_at ? now - c->seen_at : 0, runs);
}

/* The CPU where @p, which mostly sleeps, will run soonest; -1 where the host does not tell. */
static inline s32 soonest(struct task_struct *p, s32 prev)
{
	const struct cpumask *idle = scx_bpf_get_idle_cpumask();
	u64 now = bpf_ktime_get_ns(), least = PVSCHED_COST_UNKNOWN, cost;
	s32 best = -1, cpu = prev;
	u32 i;

	bpf_for(i, 0, LOOKS + 1) {
		if (i >= nr_cpus)
			break;
		if (bpf_cpumask_test_cpu(cpu, p->cpus_ptr)) {
			cost = cost_of(cpu, bpf_cpumask_test_cpu(cpu, idle), now);
			if (cost != PVSCHED_COST_UNKNOWN && cpu != prev)
				cost += WORTH_WARM;
			if (cost < least) {
				least = cost;
				best = cpu;
			}
		}
		cpu++;
		if (cpu >= nr_cpus)
			cpu = 0;
	}
	scx_bpf_put_idle_cpumask(idle);
	return best;
}

s32 BPF_STRUCT_OPS(place_select_cpu, struct task_struct *p, s32 prev_cpu, u64 wake_flags)
{
	struct task_ctx *t = ctx_of(p);
	struct cpu_ctx *c;
	bool idle = false;
	s32 cpu;

	if (t)
		t->placed = 0;
	if (t && may_go_first(t)) {
		cpu = soonest(p, prev_cpu);
		c = cpu_ctx_of(cpu);
		if (cpu >= 0 && c) {
			u64 flags = READ_ONCE(c->runs_brief) ? 0 : SCX_ENQ_PREEMPT;

			scx_bpf_test_and_clear_cpu_idle(cpu);
			scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL_ON | cpu, SLICE_NS, flags);
			t->placed = 1;
			count(COUNT_PLACED);
			if (cpu != prev_cpu)
				count(COUNT_MOVED);
			return cpu;
		}
	}
	cpu = scx_bpf_select_cpu_dfl(p, prev_cpu, wake_flags, &idle);
	if (idle)
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, SLICE_NS, 0);
	return cpu;
}

void BPF_STRUCT_OPS(place_enqueue, struct task_struct *p, u64 enq_flags)
{
	struct task_ctx *t = ctx_of(p);
	s32 cpu;

	/* The kernel's per-CPU threads work for everybody on that CPU. */
	if (!t || (p->flags & PF_KTHREAD && p->nr_cpus_allowed == 1)) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, SLICE_NS, enq_flags);
		return;
	}
	t->placed = 0;
	scx_bpf_dsq_insert_vtime(p, SHARED_DSQ, SLICE_NS, entered_vtime(t), enq_flags);
	cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);
	if (cpu >= 0)
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
}

static inline void charge(struct task_struct *p, struct task_ctx *t)
{
	u64 exec = p->se.sum_exec_runtime, ran = exec - t->charged;

	t->charged = exec;
	t->burst += ran;
	t->vtime += ran * 100 / (p->scx.weight ?: 1);
}

/* A task whose turn it was begins it, or another one. One that went first does not count. */
static inline void advance(struct task_ctx *t)
{
	if (!t->placed && time_before(READ_ONCE(vtime_now), t->vtime))
		WRITE_ONCE(vtime_now, t->vtime);
}

void BPF_STRUCT_OPS(place_dispatch, s32 cpu, struct task_struct *prev)
{
	struct task_ctx *t;

	if (scx_bpf_dsq_move_to_local(SHARED_DSQ, 0))
		return;
	if (!prev || !(prev->scx.flags & SCX_TASK_QUEUED))
		return;
	/* It goes on alone, and time with it, or those that sleep would soon be ahead of it. */
	t = ctx_of(prev);
	if (t) {
		charge(prev, t);
		t->placed = 0;
		advance(t);
	}
	scx_bpf_task_set_slice(prev, SLICE_NS);
}

void BPF_STRUCT_OPS(place_running, struct task_struct *p)
{
	struct cpu_ctx *c = cpu_ctx_of(scx_bpf_task_cpu(p));
	struct task_ctx *t = ctx_of(p);

	if (!t)
		return;
	if (c)
		WRITE_ONCE(c->runs_brief, is_brief(t));
	advance(t);
}

void BPF_STRUCT_OPS(place_stopping, struct task_struct *p, bool runnable)
{
	struct task_ctx *t = ctx_of(p);
	u64 burst;

	if (!t)
		return;
	charge(p, t);
	/*
	 * One in which the CPU lost its physical one seems long: on the very CPU that the task
	 * should leave. A few of them must not make it one that does not sleep.
	 */
	burst = t->burst < 2 * BRIEF_NS ? t->burst : 2 * BRIEF_NS;
	if (!runnable) {
		t->bursts = t->bursts - t->bursts / 8 + burst / 8;
		t->burst = 0;
	} else if (burst > t->bursts) {
		/* It does not sleep any more: no need to wait until it does to know. */
		t->bursts = burst;
	}
}

void BPF_STRUCT_OPS(place_enable, struct task_struct *p)
{
	struct task_ctx *t = ctx_of(p);

	if (!t)
		return;
	t->vtime = READ_ONCE(vtime_now);
	t->charged = p->se.sum_exec_runtime;
}

s32 BPF_STRUCT_OPS(place_init_task, struct task_struct *p, struct scx_init_task_args *args)
{
	struct task_ctx *t;

	t = bpf_task_storage_get(&tasks, p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!t)
		return -ENOMEM;
	/* Nothing is known of it: a few short turns show what it is. */
	t->bursts = 2 * BRIEF_NS;
	return 0;
}

s32 BPF_STRUCT_OPS_SLEEPABLE(place_init)
{
	return scx_bpf_create_dsq(SHARED_DSQ, -1);
}

void BPF_STRUCT_OPS(place_exit, struct scx_exit_info *ei)
{
	UEI_RECORD(uei, ei);
}

SCX_OPS_DEFINE(place_ops,
	       .select_cpu	= (void *)place_select_cpu,
	       .enqueue		= (void *)place_enqueue,
	       .dispatch	= (void *)place_dispatch,
	       .running		= (void *)place_running,
	       .stopping	= (void *)place_stopping,
	       .enable		= (void *)place_enable,
	       .init_task	= (void *)place_init_task,
	       .init		= (void *)place_init,
	       .exit		= (void *)place_exit,
	       .name		= "pvsched_place");
