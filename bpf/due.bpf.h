/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Timers of a guest that its vCPU cannot see to, because it waits for a CPU. KVM has
 * the next one only: those behind it are armed when the guest runs. Where one of
 * them is urgent, a timer of the host's stands in for it, and expires somewhat
 * earlier. Each object that includes this says with on_due() what it does then.
 */
#ifndef PVSCHED_DUE_BPF_H
#define PVSCHED_DUE_BPF_H

#include "boost.bpf.h"
#include "kvm.bpf.h"

/* A timer of the host's for a vCPU: see start_due(). */
static int on_due(void *map, u64 *attachment, struct pv_due *due);

/* The timer of the vCPU; NULL when nobody has handed it over. */
static inline struct pv_due *due_of(struct pv_task *t)
{
	u64 attachment = t->attachment;

	return bpf_map_lookup_elem(&dues, &attachment);
}

/*
 * Sets the host's timer for a vCPU that has to wait, to @at:
 *
 * - before a timer of its guest for an urgent task, of @rank: it is put ahead
 *   then, to be in guest mode when that expires
 * - with PV_RANK_IRQ, when a guest of little weight is asked for the first time
 *
 * And for one that runs, with PV_RANK_NONE, to when it is to leave.
 */
static inline void start_due(struct task_struct *p, struct pv_task *t, struct pv_due *due,
			     u32 rank, u64 at)
{
	u64 now = clock_ns();

	due->tid = BPF_CORE_READ(p, pid);
	due->rank = rank;
	due->turns = t->turns;
	if (!due->ready) {
		bpf_timer_init(&due->timer, &dues, CLOCK_MONOTONIC);
		bpf_timer_set_callback(&due->timer, on_due);
		due->ready = 1;
	}
	bpf_timer_start(&due->timer, at > now ? at - now : 0, 0);
}

/* When the guest's next timer interrupt comes, ns of CLOCK_MONOTONIC; 0 where not known. */
static inline u64 next_timer(struct kvm_vcpu___pv *vcpu, u64 word)
{
	struct kvm_lapic___pv *apic;

	if (!(word & PVSCHED_TIMER_KNOWN))
		return 0;
	apic = BPF_CORE_READ(vcpu, arch.apic);
	/* Intel's VMX preemption timer: when it would expire is not to be seen here. */
	if (BPF_CORE_READ(apic, lapic_timer.hv_timer_in_use))
		return 0;
	return BPF_CORE_READ(apic, lapic_timer.timer.node.expires);
}

/* The guest's timer that @due stands in for is about to expire: the vCPU waits for it from now on. */
static inline void note_due(struct pv_task *t, struct pv_due *due, u64 now)
{
	COUNT(hints_due);
	WRITE_ONCE(t->due_rank, due->rank);
	WRITE_ONCE(t->due_until, now + due->early + PV_GRACE_NS);
	WRITE_ONCE(t->due_turn, due->turns + 1);
	__sync_val_compare_and_swap(&t->hint_at, 0, now);
	EVENT(HINT, due->tid, PV_HINT_DUE, due->rank);
}

/* An interrupt has come, and nothing is to be expected any more. */
static inline void forget_due(struct pv_task *t)
{
	WRITE_ONCE(t->due_until, 0);
	WRITE_ONCE(t->due_turn, 0);
}

/* The vCPU enters its guest. */
static inline void note_entry(struct pv_task *t)
{
	struct pv_cpu *c;
	u64 now, took;

	if (t->hint_at && !t->entered) {
		now = clock_ns();
		t->entered_at = now;
		t->entered = 1;
		count_stage(PV_STAGE_ENTERED, t->hint_at, now);
	}
	if (t->called_at) {
		now = clock_ns();
		c = cpu_of(bpf_get_smp_processor_id());
		took = now > t->called_at ? now - t->called_at : 0;
		t->called_at = 0;
		/* Where it had to wait for others as urgent, to be earlier would not have helped. */
		if (c && took < PV_EARLY_MAX_NS)
			c->enter_ns = pv_average(c->enter_ns, took);
	}
}

#endif /* PVSCHED_DUE_BPF_H */
