/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tunables and maps, as both BPF objects (main.bpf.c and hints.bpf.c) see
 * them. The scheduler process gives the second object the maps of the first.
 *
 * No lock guards a struct pv_task. Its plain fields are written where the run
 * queue lock of the task's CPU is held (scheduling callbacks) or by the task
 * itself (KVM entry and exit). A hint may come on any CPU at any time; what it
 * writes is atomic, and each reader copes with either order.
 */
#ifndef PVSCHED_STATE_BPF_H
#define PVSCHED_STATE_BPF_H

#include "intf.h"
#include "policy.h"
#include "histogram.h"

#ifndef __uptr
#define __uptr __attribute__((btf_type_tag("uptr")))
#endif

/* Tunables; the meanings are those of the command line (src/scheduler/options.rs). */
const volatile u64 slice_ns = 4000000;
const volatile u64 slice_min_ns = 1000000;
const volatile u64 irq_boost_ns = 1000000;
const volatile u64 guard_ns = 100000000;
/* Only tasks whose policy is SCHED_EXT are scheduled; all others come before them. */
const volatile u32 partial;

/* How long a vCPU is kept ahead for what is about to come: a timer, the release of a lock. */
#define PV_GRACE_NS	PV_NSEC_PER_MSEC

/*
 * The clock of all times here: CLOCK_MONOTONIC, as KVM's timers have it. Not
 * scx_bpf_now(), which outside of a scheduling callback may be late by a tick: a
 * task that another CPU queues here leaves the run queue's clock marked as valid
 * until this CPU schedules (seen on 6.18: up to 4 ms).
 */
static inline u64 clock_ns(void)
{
	return bpf_ktime_get_ns();
}

const volatile u32 nr_llcs = 1;
const volatile u32 nr_cpu_ids = 1;
const volatile u32 nr_cpus = 1;

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct pv_task);
} tasks SEC(".maps");

/*
 * The pinned page of a handed-over vCPU. Apart from `tasks` because a map with
 * a __uptr can only be filled from user space.
 */
struct pv_page {
	struct pvsched_page __uptr *page;
	u64 attachment;		/* not 0, new for each handover */
	u32 vm;			/* number of the VM */
	u32 rsvd;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct pv_page);
} pages SEC(".maps");

/* Apart from `tasks` because only user space writes it. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct pv_home);
} homes SEC(".maps");

/*
 * A timer of the host's: for a vCPU that waits it stands in for one of its
 * guest, or reminds to look into its page; a vCPU that runs it tells to leave. The
 * scheduler process makes an entry for each handover; the key is
 * pv_page.attachment.
 */
struct pv_due {
	struct bpf_timer timer;
	u64 turns;		/* pv_task.turns when it was armed */
	u64 early;		/* ns that it expires before the guest's */
	u64 asked_at;		/* ns; when such a guest was asked last */
	u64 look_at;		/* ns; when a guest of little weight gets its ticks */
	s32 tid;
	u32 rank;		/* of the task that the guest's timer is for */
	u32 ready;		/* the timer has its function */
	u32 rsvd;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PV_MAX_PAGES);
	__type(key, u64);
	__type(value, struct pv_due);
} dues SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PV_MAX_VMS);
	__type(key, u32);
	__type(value, struct pv_vm);
} vms SEC(".maps");

/* clang emits the struct behind a __uptr only as a declaration unless it is used. */
struct pvsched_page page_type_for_btf;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PV_MAX_CPUS);
	__type(key, u32);
	__type(value, struct pv_cpu);
} cpus SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PV_MAX_LLCS);
	__type(key, u32);
	__type(value, struct pv_llc);
} llcs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct pv_stats);
} stats SEC(".maps");

static inline struct pv_task *task_of(struct task_struct *p)
{
	return bpf_task_storage_get(&tasks, p, 0, 0);
}

static inline struct pv_cpu *cpu_of(s32 cpu)
{
	u32 key = cpu;

	return bpf_map_lookup_elem(&cpus, &key);
}

static inline struct pv_vm *vm_of(struct pv_task *t)
{
	u32 key = READ_ONCE(t->vm);

	return bpf_map_lookup_elem(&vms, &key);
}

static inline struct pv_llc *llc_of(u32 llc)
{
	return bpf_map_lookup_elem(&llcs, &llc);
}

/*
 * Functions that are not static are verified once and for themselves, not anew
 * for each path that leads to a call. Without that the number of paths through
 * dispatch() multiplies until loading takes seconds.
 */
__noinline int count_word(u32 word)
{
	u32 zero = 0;
	u64 *words = bpf_map_lookup_elem(&stats, &zero);

	if (words && word < sizeof(struct pv_stats) / sizeof(u64))
		words[word]++;
	return 0;
}

#define COUNT(counter)	count_word(offsetof(struct pv_stats, counter) / sizeof(u64))

__noinline int count_stage(u32 stage, u64 since, u64 now)
{
	u64 us = now > since ? (now - since) / 1000 : 0;
	u32 bucket = us >> PV_HIST_BUCKETS ? PV_HIST_BUCKETS - 1 : pv_bits(us);

	if (bucket >= PV_HIST_BUCKETS)
		bucket = PV_HIST_BUCKETS - 1;
	if (stage < PV_STAGE_COUNT)
		count_word(offsetof(struct pv_stats, stage) / sizeof(u64) +
			   stage * PV_HIST_BUCKETS + bucket);
	return 0;
}

#endif /* PVSCHED_STATE_BPF_H */
