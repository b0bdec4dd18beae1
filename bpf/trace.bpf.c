/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Records what the running scheduler decides, and what of the kernel belongs to it:
 * what each CPU runs, and when vCPUs enter their guest. It only looks.
 *
 * The scheduler's events (events.bpf.h) are calls of a function of which each of its
 * programs has a copy, so there is a program here for each of those.
 */
#include <scx/common.bpf.h>
#include "intf.h"

char _license[] SEC("license") = "GPL";

/* Without the types, of which libbpf-cargo would make Rust code that does not compile. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} records SEC(".maps");

/* Records for which there was no room. */
u64 lost;

/* Whether the next entry of a vCPU into its guest is to be recorded: most are of no interest. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, u32);
} entries SEC(".maps");

static inline struct pv_record *begin(u32 what, s32 tid, u64 value, u64 more, u32 by)
{
	struct pv_record *r = bpf_ringbuf_reserve(&records, sizeof(*r), 0);

	if (!r) {
		__sync_fetch_and_add(&lost, 1);
		return NULL;
	}
	/* After the place is taken, so that they are nearly in the order of time. */
	r->at = bpf_ktime_get_ns();
	r->what = what;
	r->tid = tid;
	r->value = value;
	r->more = more;
	r->cpu = bpf_get_smp_processor_id();
	r->by = by;
	__builtin_memset(r->comm, 0, sizeof(r->comm));
	return r;
}

/* Its reader looks by itself now and then: to wake it would be an event of its own. */
static inline void end(struct pv_record *r)
{
	bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP);
}

static inline void want_entry(s32 tid)
{
	struct task_struct *p = bpf_task_from_pid(tid);
	u32 *wanted;

	if (!p)
		return;
	wanted = bpf_task_storage_get(&entries, p, 0, 0);
	if (wanted)
		WRITE_ONCE(*wanted, 1);
	bpf_task_release(p);
}

static inline int record(u32 by, u32 event, s32 tid, u64 value, u64 more)
{
	struct pv_record *r;

	if (event == PV_EVENT_HINT)
		want_entry(tid);
	r = begin(event, tid, value, more, by);
	if (r)
		end(r);
	return 0;
}

/* The scheduler process gives each its target, or leaves it out. */
#define ON_EVENT(n)								\
SEC("?fentry")									\
int BPF_PROG(on_event_##n, u32 event, s32 tid, u64 value, u64 more)		\
{										\
	return record(n, event, tid, value, more);				\
}

ON_EVENT(0)
ON_EVENT(1)
ON_EVENT(2)
ON_EVENT(3)
ON_EVENT(4)
ON_EVENT(5)
ON_EVENT(6)
ON_EVENT(7)
ON_EVENT(8)
ON_EVENT(9)
ON_EVENT(10)
ON_EVENT(11)
ON_EVENT(12)
ON_EVENT(13)
ON_EVENT(14)
ON_EVENT(15)

SEC("tp_btf/sched_switch")
int BPF_PROG(on_switch, bool preempt, struct task_struct *prev, struct task_struct *next,
	     unsigned int prev_state)
{
	u32 *wanted = bpf_task_storage_get(&entries, next, 0, 0);
	struct pv_record *r;

	if (wanted)
		WRITE_ONCE(*wanted, 1);
	r = begin(PV_RECORDED_SWITCH, next->pid, prev->pid, preempt || !prev_state, 0);
	if (!r)
		return 0;
	bpf_probe_read_kernel_str(r->comm, sizeof(r->comm), next->comm);
	end(r);
	return 0;
}

SEC("?tp_btf/kvm_entry")
int BPF_PROG(on_entry)
{
	struct task_struct *p = bpf_get_current_task_btf();
	struct pv_record *r;
	u32 *wanted, first = 1;

	wanted = bpf_task_storage_get(&entries, p, &first, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!wanted || !READ_ONCE(*wanted))
		return 0;
	WRITE_ONCE(*wanted, 0);
	r = begin(PV_RECORDED_ENTRY, p->pid, 0, 0, 0);
	if (r)
		end(r);
	return 0;
}
