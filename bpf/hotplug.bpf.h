/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * CPUs that go away.
 *
 * From the moment at which a CPU is no longer active, sched_ext does not ask for
 * tasks for it any more; it says so only after a grace period of RCU. A task that
 * may run nowhere else, and was interrupted while it held up grace periods, then
 * waits for the CPU in its queue, and the CPU's end waits for the task, until RCU
 * reports a stall. So this scheduler ends before that moment, and is started again
 * when the CPU has gone.
 */
#ifndef PVSCHED_HOTPLUG_BPF_H
#define PVSCHED_HOTPLUG_BPF_H

/* A tracepoint: to detach from a function takes a grace period of RCU tasks. */
SEC("tp_btf/cpuhp_enter")
int BPF_PROG(on_cpu_leaving, unsigned int cpu, int target, int step)
{
	/* Of what makes up a CPU's end, the step in which it stops to be active. */
	if (step != bpf_core_enum_value(enum cpuhp_state, CPUHP_AP_ACTIVE) || target >= step)
		return 0;
	scx_bpf_exit(SCX_ECODE_ACT_RESTART | SCX_ECODE_RSN_HOTPLUG, "CPU %u is about to go", cpu);
	return 0;
}

#endif /* PVSCHED_HOTPLUG_BPF_H */
