/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the scheduler decides, for whoever wants to watch: each decision calls one
 * empty function. To trace them is to attach to that function (trace.bpf.c), in each
 * program that has it. So there is nothing to switch on, to share or to leave on: while
 * nobody watches an event costs the call, and a tracer that dies is gone.
 */
#ifndef PVSCHED_EVENTS_BPF_H
#define PVSCHED_EVENTS_BPF_H

#include "intf.h"

/*
 * The number in the name changes with the arguments and their meaning (enum pv_event),
 * so that nobody misreads a scheduler of another age. The name stands in
 * src/scheduler/trace/programs.rs, too.
 */
__noinline int pvsched_event_1(u32 event, s32 tid, u64 value, u64 more)
{
	/* Or clang would see that nothing comes of the call. */
	asm volatile("" : : "r"(event), "r"(tid), "r"(value), "r"(more));
	return 0;
}

#define EVENT(event, tid, value, more)	pvsched_event_1(PV_EVENT_##event, tid, value, more)

#endif /* PVSCHED_EVENTS_BPF_H */
