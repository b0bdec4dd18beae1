/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The fixed-width types that the shared headers use, for each of the three
 * worlds that include them: BPF programs (vmlinux.h came first), the kernel
 * module, and user space (bindgen).
 */
#ifndef PVSCHED_TYPES_H
#define PVSCHED_TYPES_H

#if !defined(__VMLINUX_H__)
#include <linux/types.h>
#endif

#ifdef __KERNEL__
#include <linux/build_bug.h>
#include <linux/stddef.h>
#define PVSCHED_ASSERT(cond, text) static_assert(cond, text)
#else
#define PVSCHED_ASSERT(cond, text) _Static_assert(cond, text)
#endif

#define PVSCHED_OFFSET(type, field, offset)                             \
	PVSCHED_ASSERT(__builtin_offsetof(type, field) == (offset),     \
		       #type "." #field " must be at offset " #offset)
#define PVSCHED_SIZE(type, size)                                        \
	PVSCHED_ASSERT(sizeof(type) == (size),                          \
		       #type " must be " #size " bytes")

#endif /* PVSCHED_TYPES_H */
