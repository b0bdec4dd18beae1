/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the files of virtio_pvsched know of each other.
 *
 * device.c   the virtio device: queues, events, pages, CPU hotplug
 * control.c  requests to it, and the negotiation; with device.c it shares state.h
 * publish.c  what BPF programs can reach: the live pages and the doorbell
 * chardev.c  /dev/pvsched
 *
 * Lock order: cpus_read_lock(), pvsched_lock. Requests to the device wait for
 * its answer with pvsched_lock held.
 */
#ifndef VIRTIO_PVSCHED_H
#define VIRTIO_PVSCHED_H

#include <linux/types.h>

#include "pvsched_uapi.h"

struct file;
struct virtqueue;
struct wait_queue_head;

/* publish.c */

void pvsched_live_set(unsigned int cpu, struct pvsched_page *page);
void pvsched_live_clear(unsigned int cpu);
void pvsched_doorbell_set(struct virtqueue *vq);
u64 pvsched_doorbell_count(void);
int pvsched_publish_init(void);

/* device.c, all of it for chardev.c */

extern struct wait_queue_head pvsched_waiters;

u64 pvsched_changes(void);
void pvsched_get_info(const struct file *file, struct pvsched_info *info);
int pvsched_get_cpu(struct pvsched_cpu_info *info);
int pvsched_set_role(const struct pvsched_cpu_role *role);
int pvsched_publisher_claim(const struct file *file);
void pvsched_publisher_release(const struct file *file);

/* chardev.c */

int pvsched_chardev_init(void);
void pvsched_chardev_exit(void);

#endif /* VIRTIO_PVSCHED_H */
