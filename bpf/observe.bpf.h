/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * VMs of the protocol "observe": their vCPUs are judged like others, and what
 * comes of it is counted instead of done. Whatever acts on a guest's words or
 * on a hint for its vCPU asks is_observed() first.
 */
#ifndef PVSCHED_OBSERVE_BPF_H
#define PVSCHED_OBSERVE_BPF_H

#include "state.bpf.h"

static inline bool is_observed(struct pv_task *t)
{
	struct pv_vm *vm = vm_of(t);

	return vm && READ_ONCE(vm->observe);
}

/*
 * Counts a boost that would begin now. Budgets do not count: a vCPU that is
 * never boosted spends none.
 */
static inline void count_would_be(struct pv_task *t, u32 boost)
{
	if (boost != t->would_be) {
		if (boost == PV_BOOST_TASK)
			t->would_task++;
		else if (boost == PV_BOOST_IRQ)
			t->would_irq++;
	}
	t->would_be = boost;
}

#endif /* PVSCHED_OBSERVE_BPF_H */
