/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The state of the one device, which device.c and control.c share.
 */
#ifndef PVSCHED_STATE_H
#define PVSCHED_STATE_H

#include <linux/completion.h>
#include <linux/mutex.h>
#include <linux/types.h>
#include <linux/workqueue.h>

#include "pvsched_uapi.h"

struct file;
struct virtio_device;
struct virtqueue;

/* One request and its answer, in memory that the device may touch late. */
struct pvsched_exchange {
	union {
		struct pvsched_req_header	header;
		struct pvsched_req_negotiate	negotiate;
		struct pvsched_req_set_page	set_page;
		struct pvsched_req_clear_page	clear_page;
	};
	struct pvsched_reply			reply;
};

struct pvsched_cpu {
	struct pvsched_page	*page;
	u32			apic_id;
	u32			error;		/* enum pvsched_status of SET_PAGE */
	u32			refused;	/* enum pvsched_handoff_error */
	u64			role;		/* as declared; the page holds a copy */
	bool			set;		/* the device has the page */
};

struct pvsched {
	struct virtio_device	*vdev;
	struct virtqueue	*vqs[PVSCHED_QUEUE_COUNT];
	u32			max_vcpus;
	u32			max_protocols;

	/* All of the following under pvsched_lock, but for what says otherwise. */
	bool			usable;		/* negotiated, running, answering */
	bool			broken;
	u32			error;		/* enum pvsched_status of NEGOTIATE */
	char			protocol[PVSCHED_PROTOCOL_NAME_LEN];
	u16			version;
	u32			set_count;
	const struct file	*publisher;

	struct pvsched_exchange	*exchange;
	struct completion	answered;

	/* Written by the work item alone. */
	struct work_struct	event_work;
	struct pvsched_event	*events;	/* PVSCHED_EVENT_BUFFERS of them */
	bool			events_open;
	bool			attached;
	u64			event_count;
	u64			refusal_count;

	struct pvsched_cpu	cpus[];		/* nr_cpu_ids of them */
};

extern struct mutex pvsched_lock;

/* device.c */

void pvsched_publish_stop(struct pvsched *pv);
void pvsched_give_up(struct pvsched *pv);

/* control.c; pvsched_lock is held but for the first two. */

int pvsched_control_init(void);
void pvsched_control_done(struct virtqueue *vq);
int pvsched_request(struct pvsched *pv, enum pvsched_req_type type, size_t length);
int pvsched_negotiate(struct pvsched *pv);

#endif /* PVSCHED_STATE_H */
