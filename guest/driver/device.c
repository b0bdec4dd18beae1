// SPDX-License-Identifier: GPL-2.0-only
/*
 * Virtio driver for paravirtual scheduling: one shared page per vCPU, through
 * which the guest says what it runs and the host says what it made of that.
 *
 * The driver negotiates the protocol (control.c), hands each online CPU's page
 * to the device and takes it back when the CPU, the device or the kernel goes.
 * It never looks at what is said: BPF programs write the words (publish.c), a
 * publisher in user space keeps them loaded (chardev.c).
 *
 * The host may write to a page from SET_PAGE until it has answered CLEAR_PAGE
 * or the device was reset, so no page is freed or given another use before.
 */
#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/cpu.h>
#include <linux/cpuhotplug.h>
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/overflow.h>
#include <linux/pm.h>
#include <linux/rcupdate.h>
#include <linux/rcupdate_trace.h>
#include <linux/reboot.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/topology.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <asm/processor.h>

#include "state.h"
#include "virtio_pvsched.h"

/* Buffers for events; the device keeps what does not fit. */
#define PVSCHED_EVENT_BUFFERS	16

static unsigned int device_id = 39;
module_param(device_id, uint, 0444);
MODULE_PARM_DESC(device_id, "virtio device id to bind to; none is assigned (default 39)");

/* There is one device per machine: a vCPU has one page. */
DEFINE_MUTEX(pvsched_lock);
static struct pvsched *pvsched_device;
static enum cpuhp_state pvsched_cpuhp;

static atomic64_t pvsched_change_count = ATOMIC64_INIT(1);
DECLARE_WAIT_QUEUE_HEAD(pvsched_waiters);

/**
 * pvsched_changes() - a number that differs after each change of the state
 */
u64 pvsched_changes(void)
{
	return atomic64_read(&pvsched_change_count);
}

static void pvsched_changed(void)
{
	atomic64_inc(&pvsched_change_count);
	wake_up_interruptible(&pvsched_waiters);
}

/* Guest words go back to "nothing said". No BPF program writes to the page. */
static void pvsched_page_silence(struct pvsched_page *page)
{
	WRITE_ONCE(page->current_task, 0);
	WRITE_ONCE(page->pending_task, 0);
	WRITE_ONCE(page->context, 0);
	WRITE_ONCE(page->ack, 0);
	WRITE_ONCE(page->timer, 0);
	WRITE_ONCE(page->response, 0);
}

static void pvsched_publish_cpu(struct pvsched *pv, unsigned int cpu)
{
	struct pvsched_page *page = pv->cpus[cpu].page;

	WRITE_ONCE(page->guest_state, PVSCHED_GUEST_PUBLISHING);
	pvsched_live_set(cpu, page);
}

/* The state first: from then on the host ignores words that no longer change. */
static void pvsched_retract_cpu(struct pvsched *pv, unsigned int cpu)
{
	WRITE_ONCE(pv->cpus[cpu].page->guest_state, 0);
	pvsched_live_clear(cpu);
}

static void pvsched_publish_start(struct pvsched *pv, const struct file *publisher)
{
	unsigned int cpu;

	lockdep_assert_held(&pvsched_lock);
	pv->publisher = publisher;
	for_each_possible_cpu(cpu) {
		if (pv->cpus[cpu].set)
			pvsched_publish_cpu(pv, cpu);
	}
	pvsched_changed();
}

/*
 * Programs of a publisher that was killed may still be running. They find no
 * page after the grace period, so the words stay cleared then. Where a CPU is
 * kept from its scheduler that takes long, so they are cleared before, too.
 */
void pvsched_publish_stop(struct pvsched *pv)
{
	unsigned int cpu;

	lockdep_assert_held(&pvsched_lock);
	if (!pv->publisher)
		return;
	pv->publisher = NULL;
	for_each_possible_cpu(cpu) {
		pvsched_retract_cpu(pv, cpu);
		pvsched_page_silence(pv->cpus[cpu].page);
	}
	synchronize_rcu();
	for_each_possible_cpu(cpu)
		pvsched_page_silence(pv->cpus[cpu].page);
	pvsched_changed();
}

/*
 * The request in pv->exchange is abandoned, and its memory stays with the
 * device until that is reset. Pages stay, too.
 */
void pvsched_give_up(struct pvsched *pv)
{
	pv->broken = true;
	pv->usable = false;
	pvsched_publish_stop(pv);
	pvsched_changed();
}

/* A failure is no reason to keep the CPU from coming up: its vCPU gets no boost. */
static void pvsched_set_page(struct pvsched *pv, unsigned int cpu)
{
	struct pvsched_req_set_page *req = &pv->exchange->set_page;
	struct pvsched_cpu *pc = &pv->cpus[cpu];
	int status;

	lockdep_assert_held(&pvsched_lock);
	if (!pv->usable || pc->set)
		return;
	/* What the local APIC itself answers is what the hypervisor knows the vCPU by. */
	pc->apic_id = cpu_data(cpu).topo.apicid;
	pc->refused = 0;
	if (pv->set_count == pv->max_vcpus) {
		pc->error = PVSCHED_ERR_NO_VCPU;
		dev_warn_ratelimited(&pv->vdev->dev, "CPU %u: the device takes only %u vCPUs\n",
				     cpu, pv->max_vcpus);
		return;
	}
	memset(pc->page, 0, sizeof(*pc->page));
	pc->page->header = PVSCHED_PAGE_HEADER;
	pc->page->role = pc->role;

	req->apic_id = cpu_to_le32(pc->apic_id);
	req->rsvd = 0;
	req->gfn = cpu_to_le64(virt_to_phys(pc->page) / PVSCHED_PAGE_SIZE);
	status = pvsched_request(pv, PVSCHED_REQ_SET_PAGE, sizeof(*req));
	if (status < 0)
		return;
	pc->error = status;
	if (status != PVSCHED_OK) {
		dev_warn_ratelimited(&pv->vdev->dev, "CPU %u (APIC id %u): page refused, status %d\n",
				     cpu, pc->apic_id, status);
		return;
	}
	pc->set = true;
	pv->set_count++;
	if (pv->publisher)
		pvsched_publish_cpu(pv, cpu);
}

/* The CPU's words are silent and nobody in the guest writes any more. */
static void pvsched_clear_page(struct pvsched *pv, unsigned int cpu)
{
	struct pvsched_req_clear_page *req = &pv->exchange->clear_page;
	struct pvsched_cpu *pc = &pv->cpus[cpu];
	int status;

	lockdep_assert_held(&pvsched_lock);
	if (!pv->usable || !pc->set)
		return;
	req->apic_id = cpu_to_le32(pc->apic_id);
	req->rsvd = 0;
	status = pvsched_request(pv, PVSCHED_REQ_CLEAR_PAGE, sizeof(*req));
	if (status < 0)
		return;
	if (status != PVSCHED_OK && status != PVSCHED_ERR_NO_PAGE)
		dev_warn_ratelimited(&pv->vdev->dev, "CPU %u (APIC id %u): page kept, status %d\n",
				     cpu, pc->apic_id, status);
	pc->set = false;
	pv->set_count--;
}

static void pvsched_set_online_pages(struct pvsched *pv)
{
	unsigned int cpu;

	cpus_read_lock();
	mutex_lock(&pvsched_lock);
	for_each_online_cpu(cpu)
		pvsched_set_page(pv, cpu);
	mutex_unlock(&pvsched_lock);
	cpus_read_unlock();
}

static int pvsched_cpu_online(unsigned int cpu)
{
	mutex_lock(&pvsched_lock);
	if (pvsched_device)
		pvsched_set_page(pvsched_device, cpu);
	mutex_unlock(&pvsched_lock);
	return 0;
}

/*
 * The CPU goes on switching tasks for a while, so take its page from the BPF
 * programs before the words are cleared.
 */
static int pvsched_cpu_offline(unsigned int cpu)
{
	struct pvsched *pv;

	mutex_lock(&pvsched_lock);
	pv = pvsched_device;
	if (pv && pv->cpus[cpu].set) {
		if (pv->publisher) {
			pvsched_retract_cpu(pv, cpu);
			synchronize_rcu();
			pvsched_page_silence(pv->cpus[cpu].page);
		}
		pvsched_clear_page(pv, cpu);
	}
	mutex_unlock(&pvsched_lock);
	return 0;
}

static void pvsched_event_done(struct virtqueue *vq)
{
	struct pvsched *pv = vq->vdev->priv;

	if (READ_ONCE(pv->events_open))
		schedule_work(&pv->event_work);
}

static void pvsched_event_supply(struct pvsched *pv, struct pvsched_event *event)
{
	struct scatterlist sg;

	sg_init_one(&sg, event, sizeof(*event));
	/* Cannot fail: there are never more buffers than the queue had room for. */
	virtqueue_add_inbuf(pv->vqs[PVSCHED_QUEUE_EVENT], &sg, 1, event, GFP_KERNEL);
}

static void pvsched_vcpu_refused(struct pvsched *pv, u32 apic_id, u32 code)
{
	unsigned int cpu;

	WRITE_ONCE(pv->refusal_count, pv->refusal_count + 1);
	for_each_possible_cpu(cpu) {
		if (READ_ONCE(pv->cpus[cpu].apic_id) == apic_id && READ_ONCE(pv->cpus[cpu].set))
			WRITE_ONCE(pv->cpus[cpu].refused, code);
	}
	dev_warn_ratelimited(&pv->vdev->dev, "host scheduler refused the vCPU with APIC id %u, code %u\n",
			     apic_id, code);
}

static void pvsched_event(struct pvsched *pv, const struct pvsched_event *event)
{
	unsigned int cpu;

	WRITE_ONCE(pv->event_count, pv->event_count + 1);
	switch (le32_to_cpu(event->type)) {
	case PVSCHED_EVENT_HOST_ATTACHED:
		WRITE_ONCE(pv->attached, true);
		for_each_possible_cpu(cpu)
			WRITE_ONCE(pv->cpus[cpu].refused, 0);
		dev_info_ratelimited(&pv->vdev->dev, "host scheduler attached\n");
		break;
	case PVSCHED_EVENT_HOST_DETACHED:
		WRITE_ONCE(pv->attached, false);
		dev_info_ratelimited(&pv->vdev->dev, "host scheduler detached\n");
		break;
	case PVSCHED_EVENT_VCPU_REFUSED:
		pvsched_vcpu_refused(pv, le32_to_cpu(event->apic_id), le32_to_cpu(event->code));
		break;
	default:
		/* A newer device may say more than we know. */
		break;
	}
	pvsched_changed();
}

static void pvsched_event_work(struct work_struct *work)
{
	struct pvsched *pv = container_of(work, struct pvsched, event_work);
	struct virtqueue *vq = pv->vqs[PVSCHED_QUEUE_EVENT];
	struct pvsched_event *event;
	unsigned int written;

	while (READ_ONCE(pv->events_open)) {
		event = virtqueue_get_buf(vq, &written);
		if (!event)
			break;
		if (written >= sizeof(*event))
			pvsched_event(pv, event);
		pvsched_event_supply(pv, event);
		virtqueue_kick(vq);
	}
}

/* Queues, events, negotiation. The device was reset and its features are settled. */
static int pvsched_start(struct pvsched *pv)
{
	struct virtqueue_info infos[PVSCHED_QUEUE_COUNT] = {
		[PVSCHED_QUEUE_CONTROL]	 = { "control", pvsched_control_done },
		[PVSCHED_QUEUE_EVENT]	 = { "event", pvsched_event_done },
		[PVSCHED_QUEUE_DOORBELL] = { "doorbell", NULL },
	};
	unsigned int i, room;
	int err;

	err = virtio_find_vqs(pv->vdev, PVSCHED_QUEUE_COUNT, pv->vqs, infos, NULL);
	if (err)
		return err;
	virtio_device_ready(pv->vdev);

	WRITE_ONCE(pv->attached, false);
	room = min_t(unsigned int, PVSCHED_EVENT_BUFFERS,
		     virtqueue_get_vring_size(pv->vqs[PVSCHED_QUEUE_EVENT]));
	for (i = 0; i < room; i++)
		pvsched_event_supply(pv, &pv->events[i]);
	WRITE_ONCE(pv->events_open, true);
	virtqueue_kick(pv->vqs[PVSCHED_QUEUE_EVENT]);

	mutex_lock(&pvsched_lock);
	err = pvsched_negotiate(pv);
	mutex_unlock(&pvsched_lock);
	if (!err)
		pvsched_doorbell_set(pv->vqs[PVSCHED_QUEUE_DOORBELL]);
	return err;
}

/* After this the device touches no memory of ours. */
static void pvsched_stop(struct pvsched *pv)
{
	unsigned int cpu;

	pvsched_doorbell_set(NULL);
	synchronize_rcu();
	WRITE_ONCE(pv->events_open, false);
	cancel_work_sync(&pv->event_work);
	virtio_reset_device(pv->vdev);
	/* An interrupt may have come before the reset. */
	cancel_work_sync(&pv->event_work);
	pv->vdev->config->del_vqs(pv->vdev);
	mutex_lock(&pvsched_lock);
	for_each_possible_cpu(cpu)
		pv->cpus[cpu].set = false;
	pv->set_count = 0;
	mutex_unlock(&pvsched_lock);
}

/*
 * Takes all pages back while the device still answers, so that the host drops
 * them in its own time and not by surprise. The publisher stays: what comes
 * next may be a pause only.
 */
static void pvsched_quiesce(struct pvsched *pv)
{
	unsigned int cpu;

	lockdep_assert_held(&pvsched_lock);
	for_each_possible_cpu(cpu)
		pvsched_retract_cpu(pv, cpu);
	synchronize_rcu();
	for_each_possible_cpu(cpu) {
		pvsched_page_silence(pv->cpus[cpu].page);
		pvsched_clear_page(pv, cpu);
	}
	pv->usable = false;
}

/**
 * pvsched_get_info() - describe device and driver
 * @file: who asks
 * @info: the answer
 */
void pvsched_get_info(const struct file *file, struct pvsched_info *info)
{
	const struct pvsched *pv;

	memset(info, 0, sizeof(*info));
	info->cpu_count = nr_cpu_ids;
	info->doorbells = pvsched_doorbell_count();
	mutex_lock(&pvsched_lock);
	pv = pvsched_device;
	if (pv) {
		info->flags |= PVSCHED_INFO_DEVICE;
		if (pv->usable)
			info->flags |= PVSCHED_INFO_NEGOTIATED;
		if (pv->usable && READ_ONCE(pv->attached))
			info->flags |= PVSCHED_INFO_ATTACHED;
		if (pv->publisher)
			info->flags |= PVSCHED_INFO_PUBLISHER;
		if (pv->publisher == file)
			info->flags |= PVSCHED_INFO_MINE;
		if (pv->broken)
			info->flags |= PVSCHED_INFO_BROKEN;
		memcpy(info->protocol, pv->protocol, sizeof(info->protocol));
		info->version = pv->version;
		info->error = pv->error;
		info->events = READ_ONCE(pv->event_count);
		info->refusals = READ_ONCE(pv->refusal_count);
	}
	mutex_unlock(&pvsched_lock);
}

static void pvsched_copy_page(struct pvsched_page *to, const struct pvsched_page *from)
{
	const u64 *source = (const u64 *)from;
	u64 *target = (u64 *)to;
	unsigned int i;

	for (i = 0; i < sizeof(*to) / sizeof(*target); i++)
		target[i] = READ_ONCE(source[i]);
}

/**
 * pvsched_get_cpu() - describe one CPU and its page
 * @info: in: cpu; out: the rest
 *
 * Return: 0, or -EINVAL for a CPU that this machine can never have.
 */
int pvsched_get_cpu(struct pvsched_cpu_info *info)
{
	unsigned int cpu = info->cpu;
	const struct pvsched_cpu *pc;

	if (cpu >= nr_cpu_ids)
		return -EINVAL;
	memset(info, 0, sizeof(*info));
	info->cpu = cpu;
	mutex_lock(&pvsched_lock);
	if (!pvsched_device || !cpu_possible(cpu))
		goto unlock;

	pc = &pvsched_device->cpus[cpu];
	info->apic_id = pc->apic_id;
	pvsched_copy_page(&info->page, pc->page);
	if (!cpu_online(cpu)) {
		info->state = PVSCHED_CPU_OFFLINE;
	} else if (!pc->set) {
		info->state = PVSCHED_CPU_UNSET;
		info->error = pc->error;
	} else if (READ_ONCE(pc->refused)) {
		info->state = PVSCHED_CPU_REFUSED;
		info->error = READ_ONCE(pc->refused);
	} else {
		info->state = PVSCHED_CPU_SET;
	}
unlock:
	mutex_unlock(&pvsched_lock);
	return 0;
}

/**
 * pvsched_set_role() - declare what a CPU is for
 * @role: which CPU, and the word for its page
 *
 * Return: 0; -EINVAL for a CPU that this machine can never have and for a word
 * that means nothing; -ENODEV without a device.
 */
int pvsched_set_role(const struct pvsched_cpu_role *role)
{
	struct pvsched_cpu *pc;
	int ret = 0;

	if (role->cpu >= nr_cpu_ids || !cpu_possible(role->cpu) || role->rsvd)
		return -EINVAL;
	if (role->role & ~(PVSCHED_ROLE_MASK | PVSCHED_ROLE_GROUP_MASK << PVSCHED_ROLE_GROUP_SHIFT))
		return -EINVAL;
	if ((role->role & PVSCHED_ROLE_MASK) > PVSCHED_ROLE_BATCH)
		return -EINVAL;

	mutex_lock(&pvsched_lock);
	if (pvsched_device) {
		pc = &pvsched_device->cpus[role->cpu];
		pc->role = role->role;
		WRITE_ONCE(pc->page->role, pc->role);
	} else {
		ret = -ENODEV;
	}
	mutex_unlock(&pvsched_lock);
	return ret;
}

/**
 * pvsched_publisher_claim() - give BPF programs the pages on behalf of a file
 * @file: who asks
 *
 * Return: 0, also if it is the publisher already; -ENODEV without a device to
 * publish to; -EBUSY if somebody else publishes.
 */
int pvsched_publisher_claim(const struct file *file)
{
	int ret = 0;

	mutex_lock(&pvsched_lock);
	if (!pvsched_device || !pvsched_device->usable)
		ret = -ENODEV;
	else if (!pvsched_device->publisher)
		pvsched_publish_start(pvsched_device, file);
	else if (pvsched_device->publisher != file)
		ret = -EBUSY;
	mutex_unlock(&pvsched_lock);
	return ret;
}

/**
 * pvsched_publisher_release() - take the pages from BPF programs again
 * @file: who goes; nothing happens if it is not the publisher
 */
void pvsched_publisher_release(const struct file *file)
{
	mutex_lock(&pvsched_lock);
	if (pvsched_device && pvsched_device->publisher == file)
		pvsched_publish_stop(pvsched_device);
	mutex_unlock(&pvsched_lock);
}

/*
 * The id that the device was found under may be assigned to another kind of
 * device, so nothing is written to it, and nothing behind the magic is read,
 * before the magic has been seen.
 */
static int pvsched_check_config(struct virtio_device *vdev, u32 *max_vcpus, u32 *max_protocols)
{
	struct pvsched_config config;
	u32 magic;

	if (!vdev->config->get || !virtio_has_feature(vdev, VIRTIO_F_VERSION_1)) {
		dev_info(&vdev->dev, "not a pvsched device: legacy, or no configuration\n");
		return -ENODEV;
	}
	virtio_cread_le(vdev, struct pvsched_config, magic, &magic);
	if (magic != PVSCHED_DEVICE_MAGIC) {
		dev_info(&vdev->dev, "not a pvsched device: magic is %#x\n", magic);
		return -ENODEV;
	}
	virtio_cread_bytes(vdev, 0, &config, sizeof(config));
	if (le16_to_cpu(config.version) != PVSCHED_DEVICE_VERSION) {
		dev_err(&vdev->dev, "device speaks version %u, this driver version %u\n",
			le16_to_cpu(config.version), PVSCHED_DEVICE_VERSION);
		return -ENODEV;
	}
	if (le32_to_cpu(config.page_size) != PVSCHED_PAGE_SIZE || PAGE_SIZE != PVSCHED_PAGE_SIZE) {
		dev_err(&vdev->dev, "device counts in pages of %u bytes, need %u\n",
			le32_to_cpu(config.page_size), PVSCHED_PAGE_SIZE);
		return -ENODEV;
	}
	if (!config.max_protocols || !config.max_vcpus) {
		dev_err(&vdev->dev, "device takes no protocol or no vCPU\n");
		return -ENODEV;
	}
	*max_vcpus = le32_to_cpu(config.max_vcpus);
	*max_protocols = le16_to_cpu(config.max_protocols);
	return 0;
}

static void pvsched_free(struct pvsched *pv)
{
	unsigned int cpu;

	for_each_possible_cpu(cpu)
		free_page((unsigned long)pv->cpus[cpu].page);
	kfree(pv->events);
	kfree(pv->exchange);
	kvfree(pv);
}

static struct pvsched *pvsched_alloc(struct virtio_device *vdev)
{
	struct pvsched *pv;
	struct page *page;
	unsigned int cpu;

	pv = kvzalloc(struct_size(pv, cpus, nr_cpu_ids), GFP_KERNEL);
	if (!pv)
		return NULL;
	pv->vdev = vdev;
	init_completion(&pv->answered);
	INIT_WORK(&pv->event_work, pvsched_event_work);
	pv->exchange = kzalloc(sizeof(*pv->exchange), GFP_KERNEL);
	pv->events = kcalloc(PVSCHED_EVENT_BUFFERS, sizeof(*pv->events), GFP_KERNEL);
	if (!pv->exchange || !pv->events)
		goto free;
	for_each_possible_cpu(cpu) {
		page = alloc_pages_node(cpu_to_node(cpu), GFP_KERNEL | __GFP_ZERO, 0);
		if (!page)
			goto free;
		pv->cpus[cpu].page = page_address(page);
	}
	return pv;

free:
	pvsched_free(pv);
	return NULL;
}

static int pvsched_probe(struct virtio_device *vdev)
{
	u32 max_vcpus, max_protocols;
	struct pvsched *pv;
	int err;

	err = pvsched_check_config(vdev, &max_vcpus, &max_protocols);
	if (err)
		return err;
	pv = pvsched_alloc(vdev);
	if (!pv)
		return -ENOMEM;
	pv->max_vcpus = max_vcpus;
	pv->max_protocols = max_protocols;
	vdev->priv = pv;

	mutex_lock(&pvsched_lock);
	if (pvsched_device)
		err = -EBUSY;
	else
		pvsched_device = pv;
	mutex_unlock(&pvsched_lock);
	if (err) {
		dev_err(&vdev->dev, "a second pvsched device is of no use\n");
		goto free;
	}

	err = pvsched_start(pv);
	if (err)
		goto stop;
	pvsched_set_online_pages(pv);
	pvsched_changed();
	dev_info(&vdev->dev, "protocol %.16s version %u, %u pages\n",
		 pv->protocol, pv->version, pv->set_count);
	return 0;

stop:
	mutex_lock(&pvsched_lock);
	pvsched_device = NULL;
	mutex_unlock(&pvsched_lock);
	pvsched_stop(pv);
free:
	pvsched_free(pv);
	return err;
}

static void pvsched_remove(struct virtio_device *vdev)
{
	struct pvsched *pv = vdev->priv;

	mutex_lock(&pvsched_lock);
	pvsched_quiesce(pv);
	pvsched_device = NULL;
	mutex_unlock(&pvsched_lock);
	pvsched_changed();

	pvsched_stop(pv);
	/* Sleeping programs may still hold a page. Not under pvsched_lock: see pvsched_live_*. */
	synchronize_rcu_tasks_trace();
	pvsched_free(pv);
}

static int pvsched_freeze(struct virtio_device *vdev)
{
	struct pvsched *pv = vdev->priv;

	mutex_lock(&pvsched_lock);
	pvsched_quiesce(pv);
	mutex_unlock(&pvsched_lock);
	pvsched_stop(pv);
	return 0;
}

static int pvsched_restore(struct virtio_device *vdev)
{
	struct pvsched *pv = vdev->priv;
	int err;

	pv->broken = false;
	err = pvsched_start(pv);
	if (err)
		pvsched_stop(pv);
	mutex_lock(&pvsched_lock);
	/* The machine may have woken up beside another host: the publisher has to know. */
	if (!pv->usable)
		pvsched_publish_stop(pv);
	mutex_unlock(&pvsched_lock);
	pvsched_set_online_pages(pv);
	pvsched_changed();
	return err;
}

/*
 * Whatever runs in this memory next must not find the host writing to it. A
 * kernel that is left by kexec does not remove its devices.
 */
static int pvsched_reboot(struct notifier_block *nb, unsigned long action, void *data)
{
	struct pvsched *pv;

	mutex_lock(&pvsched_lock);
	pv = pvsched_device;
	if (pv) {
		pvsched_quiesce(pv);
		pvsched_doorbell_set(NULL);
		synchronize_rcu();
		virtio_reset_device(pv->vdev);
		pv->broken = true;
	}
	mutex_unlock(&pvsched_lock);
	return NOTIFY_DONE;
}

static struct notifier_block pvsched_reboot_notifier = {
	.notifier_call	= pvsched_reboot,
};

/* The first entry's device becomes the module parameter. */
static struct virtio_device_id pvsched_id_table[] = {
	{ 39, VIRTIO_DEV_ANY_ID },
	{ 0 },
};
MODULE_DEVICE_TABLE(virtio, pvsched_id_table);

static struct virtio_driver pvsched_driver = {
	.driver.name	= KBUILD_MODNAME,
	.id_table	= pvsched_id_table,
	.probe		= pvsched_probe,
	.remove		= pvsched_remove,
	.freeze		= pm_sleep_ptr(pvsched_freeze),
	.restore	= pm_sleep_ptr(pvsched_restore),
};

static int __init pvsched_init(void)
{
	int err;

	err = pvsched_control_init();
	if (err)
		return err;
	pvsched_id_table[0].device = device_id;
	err = pvsched_publish_init();
	if (err)
		return err;
	err = cpuhp_setup_state_nocalls(CPUHP_AP_ONLINE_DYN, "virtio/pvsched:online",
					pvsched_cpu_online, pvsched_cpu_offline);
	if (err < 0)
		return err;
	pvsched_cpuhp = err;
	err = register_reboot_notifier(&pvsched_reboot_notifier);
	if (err)
		goto remove_cpuhp;
	err = pvsched_chardev_init();
	if (err)
		goto unregister_notifier;
	err = register_virtio_driver(&pvsched_driver);
	if (err)
		goto exit_chardev;
	return 0;

exit_chardev:
	pvsched_chardev_exit();
unregister_notifier:
	unregister_reboot_notifier(&pvsched_reboot_notifier);
remove_cpuhp:
	cpuhp_remove_state_nocalls(pvsched_cpuhp);
	return err;
}

static void __exit pvsched_exit(void)
{
	unregister_virtio_driver(&pvsched_driver);
	pvsched_chardev_exit();
	unregister_reboot_notifier(&pvsched_reboot_notifier);
	cpuhp_remove_state_nocalls(pvsched_cpuhp);
}

module_init(pvsched_init);
module_exit(pvsched_exit);

MODULE_DESCRIPTION("Virtio driver for paravirtual scheduling");
MODULE_LICENSE("GPL");
