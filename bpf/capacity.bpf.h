/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the host has for a vCPU, written into its page: where it is, what it does
 * there, and how much of what it wants it gets. A guest can place its tasks by it.
 *
 * Written when the vCPU itself gets, wants or gives up a CPU, and at no other time:
 * vCPUs that sleep cost nothing, however many there are.
 */
#ifndef PVSCHED_CAPACITY_BPF_H
#define PVSCHED_CAPACITY_BPF_H

#include "queues.bpf.h"

/* Tasks that wait for @cpu, in PVSCHED_CAPACITY_LOAD_ONE. Those put ahead do so only for a moment. */
static inline u64 load_of(s32 cpu, u32 llc)
{
	struct pv_llc *l = llc_of(llc);

	return l ? pv_load(nr_queued(CPU_DSQ(cpu)), nr_queued(FAIR_DSQ(llc)), l->cpus) : 0;
}

/* The vCPU on @cpu is in @state from now on; @page is NULL when its guest says nothing. */
__noinline int show_state(struct pv_task *t __arg_nonnull, struct pvsched_page *page, u32 state,
			  s32 cpu, u64 now)
{
	u64 waited = 0, ran = t->ran - t->ran_shown, total, load = 0;
	u64 placement = state | PVSCHED_PLACEMENT_UNTOLD;
	struct pv_cpu *c = cpu_of(cpu);
	struct pv_vm *vm = vm_of(t);
	u32 llc;

	if (state == PVSCHED_HOST_WAITING) {
		if (!t->wants_since)
			t->wants_since = now;
	} else {
		if (t->wants_since && now > t->wants_since)
			waited = now - t->wants_since;
		t->wants_since = 0;
		t->waited += waited;
	}
	if (state == PVSCHED_HOST_RUNNING)
		t->wait = pv_average(t->wait, waited);
	t->ran_shown = t->ran;
	t->ran_lately += ran;
	t->waited_lately += waited;
	total = t->ran_lately + t->waited_lately;
	t->ran_lately = pv_fade(t->ran_lately, total);
	t->waited_lately = pv_fade(t->waited_lately, total);
	if (!page || !c)
		return 0;
	if (vm && !READ_ONCE(vm->hide_placement)) {
		llc = c->llc < PV_MAX_LLCS ? c->llc : 0;
		placement = state | (u64)(u16)cpu << PVSCHED_PLACEMENT_CPU_SHIFT |
			    (u64)llc << PVSCHED_PLACEMENT_CACHE_SHIFT;
		load = load_of(cpu, llc);
	}
	WRITE_ONCE(page->placement, placement);
	WRITE_ONCE(page->since, now);
	WRITE_ONCE(page->capacity,
		   pv_capacity_word(pv_capacity(t->ran_lately, t->waited_lately,
						scx_bpf_cpuperf_cap(cpu)),
				    load, t->wait));
	WRITE_ONCE(page->ran, t->ran);
	WRITE_ONCE(page->waited, t->waited);
	return 0;
}

#endif /* PVSCHED_CAPACITY_BPF_H */
