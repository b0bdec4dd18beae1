/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The little of the kernel's types that the guest's programs read. Offsets and
 * sizes are relocated when a program is loaded (CO-RE), so this stands in for
 * a vmlinux.h of any kernel from 6.12 on.
 */
#ifndef PVSCHED_KERNEL_H
#define PVSCHED_KERNEL_H

/* Tells types.h and libbpf's headers that the kernel's types are there. */
#define __VMLINUX_H__

typedef unsigned char __u8;
typedef signed short __s16;
typedef unsigned short __u16;
typedef signed int __s32;
typedef unsigned int __u32;
typedef signed long long __s64;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef _Bool bool;
typedef __u64 size_t;

enum { false, true };

/* enum bpf_map_type in include/uapi/linux/bpf.h */
enum {
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct thread_info {
	__u32 cpu;
};

struct sched_class;

struct task_struct {
	struct thread_info thread_info;
	unsigned int __state;
	unsigned int flags;
	/* int or u8: unsigned here, so that libbpf can adjust the width */
	unsigned int on_cpu;
	unsigned int on_rq;
	int prio;
	int static_prio;
	int normal_prio;
	const struct sched_class *sched_class;
	unsigned int policy;
};

struct timerqueue_node {
	__s64 expires;
};

struct hrtimer_cpu_base {
	unsigned int cpu;
};

struct hrtimer_clock_base {
	struct hrtimer_cpu_base *cpu_base;
	__s64 offset;
};

struct hrtimer {
	/* Of another type in newer kernels, with the same member. */
	struct timerqueue_node node;
	const void *function;
	struct hrtimer_clock_base *base;
};

#pragma clang attribute pop

#define READ_ONCE(word)		(*(volatile typeof(word) *)&(word))
#define WRITE_ONCE(word, value)	(*(volatile typeof(word) *)&(word) = (value))

#endif /* PVSCHED_KERNEL_H */
