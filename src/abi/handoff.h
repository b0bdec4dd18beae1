/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The handoff protocol, spoken between a VMM (or a device beside it) and the
 * host scheduler over a Unix SOCK_SEQPACKET socket.
 *
 * One message per packet. Every message starts with struct
 * pvsched_handoff_header. Integers are little-endian. File descriptors travel
 * as one SCM_RIGHTS control message with the packet that names them; a packet
 * carries exactly the number of descriptors that its message asks for.
 *
 * The client speaks first, with HELLO. Every request is answered, in order,
 * by one WELCOME, OK or ERROR that repeats its seq. NOTICEs (seq 0) may come
 * in between. After an ERROR the state is what it was before the request; an
 * error marked "closes" below ends the connection.
 *
 * One connection is one VM: when it closes, from either side and for
 * whatever reason, nothing of the VM remains with the scheduler.
 */
#ifndef PVSCHED_HANDOFF_H
#define PVSCHED_HANDOFF_H

#include "device.h"

#define PVSCHED_HANDOFF_SOCKET	"/run/scx_pvsched/handoff.sock"
#define PVSCHED_HANDOFF_MAGIC	0x48535650U /* "PVSH" */
#define PVSCHED_HANDOFF_VERSION	1

#define PVSCHED_HANDOFF_NAME_LEN	64
#define PVSCHED_HANDOFF_TEXT_LEN	192
#define PVSCHED_HANDOFF_MAX_REGIONS	32
#define PVSCHED_HANDOFF_MAX_VCPUS	1024
/* No message of this version is larger, in bytes. */
#define PVSCHED_HANDOFF_MAX_MESSAGE	1024

enum pvsched_handoff_type {
	PVSCHED_HANDOFF_HELLO		= 1, /* client to scheduler */
	PVSCHED_HANDOFF_VM_REGISTER	= 2,
	PVSCHED_HANDOFF_VCPU_ATTACH	= 3,
	PVSCHED_HANDOFF_VCPU_DETACH	= 4,
	PVSCHED_HANDOFF_WELCOME		= 64, /* scheduler to client */
	PVSCHED_HANDOFF_OK		= 65,
	PVSCHED_HANDOFF_ERROR		= 66,
	PVSCHED_HANDOFF_NOTICE		= 67,
};

struct pvsched_handoff_header {
	__le32 magic;		/* PVSCHED_HANDOFF_MAGIC */
	__le16 type;		/* enum pvsched_handoff_type */
	__le16 rsvd;
	__le32 length;		/* of the whole message in bytes */
	__le32 seq;		/* chosen by the client, repeated in the answer;
				 * 0 in a NOTICE
				 */
};

/* First message. No descriptors. */
struct pvsched_handoff_hello {
	struct pvsched_handoff_header header;
	__le16 min_version;	/* of this protocol, >= 1 */
	__le16 max_version;
	__le32 rsvd;
};

struct pvsched_handoff_welcome {
	struct pvsched_handoff_header header;
	__le16 version;		/* the highest that both sides speak */
	__le16 protocol_count;
	__le32 max_vcpus;	/* most vCPUs of one VM */
	__le32 max_regions;	/* most memory regions of one VM */
	__le32 rsvd;
	struct pvsched_protocol protocols[PVSCHED_MAX_PROTOCOLS];
	/* only the first protocol_count entries are sent */
};

struct pvsched_handoff_region {
	__le64 gpa;		/* first guest physical address, page-aligned */
	__le64 size;		/* in bytes, page-aligned, not 0 */
	__le64 offset;		/* of the region in its file, page-aligned */
};

/*
 * Once per connection. One descriptor per region, in the order of the
 * regions: the shared file (memfd, hugetlbfs, /dev/shm) that backs it, open
 * for reading and writing.
 */
struct pvsched_handoff_vm_register {
	struct pvsched_handoff_header header;
	char name[PVSCHED_HANDOFF_NAME_LEN]; /* UTF-8, zero-padded, not empty */
	char protocol[PVSCHED_PROTOCOL_NAME_LEN];
	__le16 version;		/* of that protocol */
	__le16 region_count;	/* 1..PVSCHED_HANDOFF_MAX_REGIONS */
	__le32 rsvd;
	struct pvsched_handoff_region regions[PVSCHED_HANDOFF_MAX_REGIONS];
	/* only the first region_count entries are sent */
};

/* One descriptor: a pidfd of the vCPU's thread, opened with PIDFD_THREAD. */
struct pvsched_handoff_vcpu_attach {
	struct pvsched_handoff_header header;
	__le32 apic_id;
	__le32 rsvd;
	__le64 page_gpa;	/* of the vCPU's shared page, page-aligned */
};

/* No descriptors. After the answer the page is not touched again. */
struct pvsched_handoff_vcpu_detach {
	struct pvsched_handoff_header header;
	__le32 apic_id;
	__le32 rsvd;
};

/* The request was carried out. */
struct pvsched_handoff_ok {
	struct pvsched_handoff_header header;
};

enum pvsched_handoff_error {
	PVSCHED_HANDOFF_ERR_MALFORMED	 = 1, /* magic, length, reserved; closes */
	PVSCHED_HANDOFF_ERR_UNKNOWN_TYPE = 2,
	PVSCHED_HANDOFF_ERR_VERSION	 = 3, /* none in common; closes */
	PVSCHED_HANDOFF_ERR_ORDER	 = 4, /* HELLO, VM_REGISTER, the rest */
	PVSCHED_HANDOFF_ERR_FDS		 = 5, /* too few or too many descriptors */
	PVSCHED_HANDOFF_ERR_NAME	 = 6, /* empty, not UTF-8, control characters */
	PVSCHED_HANDOFF_ERR_PROTOCOL	 = 7, /* not offered */
	PVSCHED_HANDOFF_ERR_REGION	 = 8, /* alignment, size, overlap, or the
					       * file is too short, not shareable
					       * or not open for writing
					       */
	PVSCHED_HANDOFF_ERR_GPA		 = 9, /* not page-aligned, or in no region */
	PVSCHED_HANDOFF_ERR_PAGE_IN_USE	 = 10, /* by another vCPU of the VM */
	PVSCHED_HANDOFF_ERR_APIC_ID	 = 11, /* attached already, or (detach) not */
	PVSCHED_HANDOFF_ERR_TOO_MANY	 = 12, /* vCPUs of this VM, or VMs */
	PVSCHED_HANDOFF_ERR_NOT_A_THREAD = 13, /* the descriptor is no pidfd of a
						* live thread
						*/
	PVSCHED_HANDOFF_ERR_PERMISSION	 = 14, /* peer is neither root nor the
						* user of the thread's process
						*/
	PVSCHED_HANDOFF_ERR_NOT_A_VCPU	 = 15, /* KVM knows no vCPU of that thread */
	PVSCHED_HANDOFF_ERR_THREAD_IN_USE = 16, /* attached already */
	PVSCHED_HANDOFF_ERR_PIN		 = 17, /* the kernel refused to pin the page */
	PVSCHED_HANDOFF_ERR_INTERNAL	 = 18, /* the scheduler's own fault */
	PVSCHED_HANDOFF_ERR_NOT_ALLOWED	 = 19, /* the protocol is offered, but the
						* host's configuration does not
						* allow it to this VM
						*/
};

struct pvsched_handoff_error_reply {
	struct pvsched_handoff_header header;
	__le32 code;		/* enum pvsched_handoff_error */
	__le32 rsvd;
	char text[PVSCHED_HANDOFF_TEXT_LEN]; /* UTF-8, zero-padded: what was
					      * wrong, for a person
					      */
};

enum pvsched_handoff_notice_kind {
	/* The vCPU's thread has exited; it counts as detached. */
	PVSCHED_HANDOFF_NOTICE_VCPU_GONE	= 1,
	/* The scheduler stops; the connection closes next. */
	PVSCHED_HANDOFF_NOTICE_STOPPING		= 2,
};

struct pvsched_handoff_notice {
	struct pvsched_handoff_header header;
	__le32 kind;		/* enum pvsched_handoff_notice_kind */
	__le32 apic_id;		/* VCPU_GONE, else 0 */
};

PVSCHED_SIZE(struct pvsched_handoff_header, 16);
PVSCHED_SIZE(struct pvsched_handoff_hello, 24);
PVSCHED_OFFSET(struct pvsched_handoff_welcome, protocols, 32);
PVSCHED_SIZE(struct pvsched_handoff_region, 24);
PVSCHED_OFFSET(struct pvsched_handoff_vm_register, regions, 104);
PVSCHED_SIZE(struct pvsched_handoff_vm_register, 872);
PVSCHED_SIZE(struct pvsched_handoff_vcpu_attach, 32);
PVSCHED_SIZE(struct pvsched_handoff_vcpu_detach, 24);
PVSCHED_SIZE(struct pvsched_handoff_ok, 16);
PVSCHED_SIZE(struct pvsched_handoff_error_reply, 216);
PVSCHED_SIZE(struct pvsched_handoff_notice, 24);
PVSCHED_ASSERT(sizeof(struct pvsched_handoff_vm_register) <=
	       PVSCHED_HANDOFF_MAX_MESSAGE, "messages fit the limit");

#endif /* PVSCHED_HANDOFF_H */
