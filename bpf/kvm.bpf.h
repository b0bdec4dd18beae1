/* SPDX-License-Identifier: GPL-2.0-only */
/* KVM's types and functions, as far as programs attach to them. */
#ifndef PVSCHED_KVM_BPF_H
#define PVSCHED_KVM_BPF_H

/* The few fields of KVM's types that are read; CO-RE finds them. */
struct kvm_lapic___pv;

struct kvm_vcpu_arch___pv {
	struct kvm_lapic___pv *apic;
	int mp_state;
} __attribute__((preserve_access_index));

struct preempt_notifier___pv {
} __attribute__((preserve_access_index));

struct kvm_vcpu___pv {
	struct preempt_notifier___pv preempt_notifier;
	struct pid *pid;
	struct kvm_vcpu_arch___pv arch;
} __attribute__((preserve_access_index));

struct kvm_timer___pv {
	struct hrtimer timer;
	bool hv_timer_in_use;
} __attribute__((preserve_access_index));

struct kvm_lapic___pv {
	struct kvm_timer___pv lapic_timer;
	struct kvm_vcpu___pv *vcpu;
} __attribute__((preserve_access_index));

/* The thread of a vCPU. */
static inline s32 vcpu_tid(struct kvm_vcpu___pv *vcpu)
{
	return BPF_CORE_READ(vcpu, pid, numbers[0].nr);
}

/* The vCPU whose local APIC's timer @timer emulates: what apic_timer_fn() is called with. */
static inline struct kvm_vcpu___pv *vcpu_of_timer(struct hrtimer *timer)
{
	struct kvm_lapic___pv *apic;

	apic = (void *)timer - bpf_core_field_offset(struct kvm_timer___pv, timer) -
	       bpf_core_field_offset(struct kvm_lapic___pv, lapic_timer);
	return BPF_CORE_READ(apic, vcpu);
}

/* The vCPU that @notifier tells of: what kvm_sched_out() is called with. */
static inline struct kvm_vcpu___pv *vcpu_of_notifier(void *notifier)
{
	return notifier - bpf_core_field_offset(struct kvm_vcpu___pv, preempt_notifier);
}

#endif /* PVSCHED_KVM_BPF_H */
