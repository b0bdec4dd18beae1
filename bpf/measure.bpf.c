/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How long interrupts for vCPUs wait until the vCPU is in guest mode, whoever
 * schedules the host. It changes nothing and needs nothing of the other objects,
 * so that the kernel's scheduler and this project's are measured by the same
 * means. Only the oldest interrupt of each kind that waits counts.
 */
#include <scx/common.bpf.h>
#include "intf.h"
#include "kvm.bpf.h"

char _license[] SEC("license") = "GPL";

/* One per vCPU. */
struct pv_waiting {
	u64 since[PV_WAITED_COUNT];	/* ns, 0 none waits */
	u32 timer_known;		/* its timer's expiry was seen, the delivery not yet */
	u32 rsvd;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct pv_waiting);
} waiting SEC(".maps");

/* Without the types, of which libbpf-cargo would make Rust code that does not compile. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(u32));
	__uint(value_size, sizeof(struct pv_waits));
} waits SEC(".maps");

static inline void accepted(struct kvm_vcpu___pv *vcpu, bool timer)
{
	struct task_struct *p = bpf_task_from_pid(vcpu_tid(vcpu));
	struct pv_waiting *w;
	u64 *since;

	if (!p)
		return;
	w = bpf_task_storage_get(&waiting, p, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!w)
		goto release;
	since = &w->since[PV_WAITED_IRQ];
	if (timer) {
		WRITE_ONCE(w->timer_known, 1);
		since = &w->since[PV_WAITED_TIMER];
	} else if (p == bpf_get_current_task_btf() && __sync_lock_test_and_set(&w->timer_known, 0)) {
		/* The vCPU's own thread delivers the timer's interrupt. */
		goto release;
	}
	__sync_val_compare_and_swap(since, 0, bpf_ktime_get_ns());
release:
	bpf_task_release(p);
}

SEC("?fentry/apic_timer_fn")
int BPF_PROG(on_timer, struct hrtimer *timer)
{
	accepted(vcpu_of_timer(timer), true);
	return 0;
}

SEC("fexit/__apic_accept_irq")
int BPF_PROG(on_irq, struct kvm_lapic___pv *apic)
{
	accepted(BPF_CORE_READ(apic, vcpu), false);
	return 0;
}

SEC("tp_btf/kvm_entry")
int BPF_PROG(on_entry)
{
	struct pv_waiting *w = bpf_task_storage_get(&waiting, bpf_get_current_task_btf(), 0, 0);
	u32 zero = 0, i, bucket;
	struct pv_waits *counts;
	u64 since, now, us;

	if (!w || (!READ_ONCE(w->since[PV_WAITED_TIMER]) && !READ_ONCE(w->since[PV_WAITED_IRQ])))
		return 0;
	counts = bpf_map_lookup_elem(&waits, &zero);
	if (!counts)
		return 0;
	now = bpf_ktime_get_ns();
	for (i = 0; i < PV_WAITED_COUNT; i++) {
		since = __sync_lock_test_and_set(&w->since[i], 0);
		if (!since)
			continue;
		us = now > since ? (now - since) / 1000 : 0;
		bucket = pv_fine_bucket(us);
		if (bucket < PV_FINE_BUCKETS)
			counts->buckets[i][bucket]++;
		if (us > counts->longest[i])
			counts->longest[i] = us;
	}
	return 0;
}
