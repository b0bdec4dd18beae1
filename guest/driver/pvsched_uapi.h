/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * /dev/pvsched: how user space in the guest sees the driver, and becomes the
 * publisher of the shared pages.
 *
 * The node exists while the module is loaded, with or without a device. Only
 * its owner (root, mode 0600) can open it, any number of times. poll()
 * reports POLLIN when the answer to PVSCHED_IOC_INFO may have changed since
 * this descriptor last asked.
 */
#ifndef PVSCHED_UAPI_H
#define PVSCHED_UAPI_H

#include "page.h"
#include "device.h"
#include <linux/ioctl.h>

/* pvsched_info.flags */
#define PVSCHED_INFO_DEVICE	(1U << 0) /* a device is bound */
#define PVSCHED_INFO_NEGOTIATED	(1U << 1) /* protocol and version are valid */
#define PVSCHED_INFO_ATTACHED	(1U << 2) /* a host scheduler has the pages */
#define PVSCHED_INFO_PUBLISHER	(1U << 3) /* somebody publishes */
#define PVSCHED_INFO_MINE	(1U << 4) /* this descriptor is the publisher */
#define PVSCHED_INFO_BROKEN	(1U << 5) /* the device stopped answering; rebind
					   * the driver once it is repaired
					   */

struct pvsched_info {
	__u32 flags;		/* PVSCHED_INFO_* */
	__u32 cpu_count;	/* every CPU number is below this one */
	__u8 protocol[PVSCHED_PROTOCOL_NAME_LEN]; /* zero-padded */
	__u32 version;		/* of the protocol */
	__u32 error;		/* enum pvsched_status of a failed NEGOTIATE */
	__u64 events;		/* events received from the device */
	__u64 refusals;		/* VCPU_REFUSED events among them */
	__u64 doorbells;	/* notifications of the host since the module was loaded */
};

enum pvsched_cpu_state {
	PVSCHED_CPU_ABSENT	= 0, /* not a possible CPU, or no device */
	PVSCHED_CPU_OFFLINE	= 1,
	PVSCHED_CPU_UNSET	= 2, /* online, but its page is not with the host;
				      * error: enum pvsched_status, if it said
				      */
	PVSCHED_CPU_SET		= 3, /* the device has its page */
	PVSCHED_CPU_REFUSED	= 4, /* the device has its page, the scheduler
				      * does not want the vCPU; error: enum
				      * pvsched_handoff_error
				      */
};

struct pvsched_cpu_info {
	__u32 cpu;		/* in: which one; the rest is out */
	__u32 state;		/* enum pvsched_cpu_state */
	__u32 apic_id;		/* of PVSCHED_CPU_SET and PVSCHED_CPU_REFUSED */
	__u32 error;
	struct pvsched_page page; /* word by word, no snapshot of one instant */
};

struct pvsched_cpu_role {
	__u32 cpu;
	__u32 rsvd;		/* 0 */
	__u64 role;		/* as pvsched_page.role */
};

enum pvsched_ioc_nr {
	PVSCHED_IOC_NR_INFO	= 0,
	PVSCHED_IOC_NR_CPU	= 1,
	PVSCHED_IOC_NR_PUBLISH	= 2,
	PVSCHED_IOC_NR_ROLE	= 3,
};

#define PVSCHED_IOC_TYPE	0xBC
#define PVSCHED_IOC_INFO	_IOR(PVSCHED_IOC_TYPE, PVSCHED_IOC_NR_INFO, struct pvsched_info)
/* EINVAL: cpu is not below cpu_count */
#define PVSCHED_IOC_CPU		_IOWR(PVSCHED_IOC_TYPE, PVSCHED_IOC_NR_CPU, struct pvsched_cpu_info)
/*
 * Makes the descriptor, which must be open for writing, the publisher until
 * this process closes it (or a duplicate) or until the device goes: BPF programs get the pages, and
 * the host is told that they are kept current. EBUSY: there is another
 * publisher. ENODEV: no device, or nothing negotiated.
 */
#define PVSCHED_IOC_PUBLISH	_IO(PVSCHED_IOC_TYPE, PVSCHED_IOC_NR_PUBLISH)
/*
 * Declares what a CPU is for, and its exclusion group. The descriptor must be
 * open for writing; what it declared outlives it, and the CPU's going offline,
 * until the device or the module goes. PVSCHED_IOC_CPU reads it back, in the
 * page. EINVAL: the machine can have no such CPU, there is no such role, or an
 * unknown bit is set. ENODEV: no device.
 */
#define PVSCHED_IOC_ROLE	_IOW(PVSCHED_IOC_TYPE, PVSCHED_IOC_NR_ROLE, struct pvsched_cpu_role)

PVSCHED_SIZE(struct pvsched_info, 56);
PVSCHED_SIZE(struct pvsched_cpu_info, 272);
PVSCHED_SIZE(struct pvsched_cpu_role, 16);

#endif /* PVSCHED_UAPI_H */
