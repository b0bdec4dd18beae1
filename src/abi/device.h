/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The virtio device as the guest sees it: configuration space, the messages
 * of the control queue, and the events.
 *
 * No virtio device id is assigned to this device. A driver therefore checks
 * the magic and the version in configuration space before it trusts the
 * device, whatever id it was found under. All integers are little-endian.
 *
 * Queue 0, control: the driver sends one request per descriptor chain, a
 * device-readable struct pvsched_req_* followed by a device-writable struct
 * pvsched_reply. A request is answered before the next one is looked at.
 * Queue 1, event: the driver supplies buffers of sizeof(struct
 * pvsched_event), the device fills one per event.
 * Queue 2, doorbell: never carries a buffer. A notification of this queue
 * makes the vCPU leave guest mode, so that the host looks at the page (see
 * PVSCHED_APPLIED_NOTIFY). Nobody on the host waits for it, and whatever else
 * leaves guest mode does as well.
 *
 * Feature bits: none but the transport's. A driver ignores any other that is
 * offered, and a device refuses one that it did not offer. Whatever changes how
 * the device is used is a new version in configuration space, a new request, or
 * a new version of a protocol.
 *
 * What is not known, by its kind:
 * - version in configuration space: the driver leaves the device alone
 * - bytes of configuration space behind what is defined here: ignored
 * - request type: PVSCHED_ERR_UNKNOWN_REQUEST, and nothing has changed
 * - reserved field that is not zero: PVSCHED_ERR_MALFORMED in a request,
 *   ignored in a reply or an event
 * - protocol name or version: passed over; PVSCHED_ERR_NO_PROTOCOL where that
 *   leaves none
 * - event type, status: a status counts as a failure, an event is ignored
 */
#ifndef PVSCHED_DEVICE_H
#define PVSCHED_DEVICE_H

#include "types.h"

#define PVSCHED_DEVICE_MAGIC	0x44535650U /* "PVSD" */
#define PVSCHED_DEVICE_VERSION	1

enum pvsched_queue {
	PVSCHED_QUEUE_CONTROL	= 0,
	PVSCHED_QUEUE_EVENT	= 1,
	PVSCHED_QUEUE_DOORBELL	= 2,
	PVSCHED_QUEUE_COUNT	= 3,
};

/* Configuration space, read-only for the driver. */
struct pvsched_config {
	__le32 magic;		/* PVSCHED_DEVICE_MAGIC */
	__le16 version;		/* PVSCHED_DEVICE_VERSION */
	__le16 max_protocols;	/* most entries in one NEGOTIATE */
	__le32 max_vcpus;	/* most pages that the device accepts */
	__le32 page_size;	/* PVSCHED_PAGE_SIZE: the unit of a GFN */
};

#define PVSCHED_PROTOCOL_NAME_LEN	16
#define PVSCHED_MAX_PROTOCOLS		8

/*
 * A protocol is the layout of the page, what may be said through it and what
 * the host does for it, under one name. Versions of one name are ordered; a
 * side that speaks version n of a name need not speak n - 1. Two sides use the
 * highest version that both speak.
 */
struct pvsched_protocol {
	char name[PVSCHED_PROTOCOL_NAME_LEN]; /* ASCII, zero-padded, not
					       * necessarily terminated
					       */
	__le16 min_version;	/* >= 1 */
	__le16 max_version;	/* >= min_version */
	__le32 rsvd;
};

#define PVSCHED_PROTOCOL_LATENCY	"latency"
#define PVSCHED_PROTOCOL_LATENCY_VERSION 1
/*
 * The page and the words of "latency". The host reads and counts, and does
 * nothing else about it: the vCPU gets what it would get if it said nothing
 * and no interrupt ever waited for it. For trying it out.
 */
#define PVSCHED_PROTOCOL_OBSERVE	"observe"
#define PVSCHED_PROTOCOL_OBSERVE_VERSION 1

enum pvsched_req_type {
	PVSCHED_REQ_NEGOTIATE	= 1,
	PVSCHED_REQ_SET_PAGE	= 2,
	PVSCHED_REQ_CLEAR_PAGE	= 3,
};

struct pvsched_req_header {
	__le16 type;		/* enum pvsched_req_type */
	__le16 rsvd;
	__le32 length;		/* of the whole request in bytes */
};

/*
 * Names what the driver can speak, in any order. The device has an order of
 * its own, as the VM's operator wants it, and takes the first of its protocols
 * that the driver names, too. Allowed again later: it then drops all pages and
 * starts afresh.
 */
struct pvsched_req_negotiate {
	struct pvsched_req_header header;
	__le32 count;		/* 1..PVSCHED_MAX_PROTOCOLS */
	__le32 rsvd;
	struct pvsched_protocol protocols[PVSCHED_MAX_PROTOCOLS];
	/* only the first count entries are sent */
};

/*
 * Names the page of one vCPU. The page must be RAM, and it stays the page of
 * that vCPU until CLEAR_PAGE, a new NEGOTIATE or a reset of the device.
 */
struct pvsched_req_set_page {
	struct pvsched_req_header header;
	__le32 apic_id;		/* the vCPU's local APIC id */
	__le32 rsvd;
	__le64 gfn;		/* guest physical address / PVSCHED_PAGE_SIZE */
};

/* After the reply the host does not touch the page again. */
struct pvsched_req_clear_page {
	struct pvsched_req_header header;
	__le32 apic_id;
	__le32 rsvd;
};

enum pvsched_status {
	PVSCHED_OK			= 0,
	PVSCHED_ERR_MALFORMED		= 1, /* length, count or reserved field */
	PVSCHED_ERR_UNKNOWN_REQUEST	= 2,
	PVSCHED_ERR_NO_PROTOCOL		= 3, /* none in common with the host */
	PVSCHED_ERR_NOT_NEGOTIATED	= 4,
	PVSCHED_ERR_NO_VCPU		= 5, /* no vCPU has that APIC id */
	PVSCHED_ERR_BAD_PAGE		= 6, /* the GFN is not RAM */
	PVSCHED_ERR_PAGE_IN_USE		= 7, /* it is another vCPU's page, or
					      * the vCPU has a page already
					      */
	PVSCHED_ERR_NO_PAGE		= 8, /* CLEAR_PAGE without a page */
	PVSCHED_ERR_HOST		= 9, /* the device failed; see its log */
};

struct pvsched_reply {
	__le32 status;		/* enum pvsched_status */
	__le16 version;		/* NEGOTIATE: the version agreed on, else 0 */
	__le16 rsvd;
	char protocol[PVSCHED_PROTOCOL_NAME_LEN]; /* NEGOTIATE, else zero */
	/*
	 * With PVSCHED_ERR_NO_PROTOCOL these two are what the device would
	 * have liked best, for the driver's log; zero if there is nothing.
	 */
};

enum pvsched_event_type {
	/* A host scheduler took over the pages that were set. */
	PVSCHED_EVENT_HOST_ATTACHED	= 1,
	/* It is gone; the device re-hands over by itself when one is back. */
	PVSCHED_EVENT_HOST_DETACHED	= 2,
	/*
	 * The scheduler refused the vCPU, or its whole VM; it gets no boost.
	 * PVSCHED_HANDOFF_ERR_PROTOCOL: the scheduler came after NEGOTIATE,
	 * and does not speak what was agreed on. NEGOTIATE again.
	 */
	PVSCHED_EVENT_VCPU_REFUSED	= 3,
};

struct pvsched_event {
	__le32 type;		/* enum pvsched_event_type */
	__le32 apic_id;		/* VCPU_REFUSED, else 0 */
	__le32 code;		/* VCPU_REFUSED: enum pvsched_handoff_error */
	__le32 rsvd;
};

PVSCHED_SIZE(struct pvsched_config, 16);
PVSCHED_SIZE(struct pvsched_protocol, 24);
PVSCHED_SIZE(struct pvsched_req_header, 8);
PVSCHED_OFFSET(struct pvsched_req_negotiate, protocols, 16);
PVSCHED_SIZE(struct pvsched_req_negotiate, 208);
PVSCHED_SIZE(struct pvsched_req_set_page, 24);
PVSCHED_SIZE(struct pvsched_req_clear_page, 16);
PVSCHED_SIZE(struct pvsched_reply, 24);
PVSCHED_SIZE(struct pvsched_event, 16);

#endif /* PVSCHED_DEVICE_H */
