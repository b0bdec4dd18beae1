// SPDX-License-Identifier: GPL-2.0-only
/*
 * The control queue: one request at a time, and the negotiation, which is the
 * first of them.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/completion.h>
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/scatterlist.h>
#include <linux/string.h>
#include <linux/virtio.h>

#include "state.h"

/*
 * How long the device may take to answer a request. A device that needs longer
 * is taken for dead; a host under heavy load needs tens of milliseconds.
 */
#define PVSCHED_ANSWER_TIMEOUT	(10 * HZ)
/* How often to look whether the device was unplugged while it owes an answer. */
#define PVSCHED_ANSWER_POLL	(HZ / 4)

static char *protocol;
module_param(protocol, charp, 0444);
MODULE_PARM_DESC(protocol, "the only protocol to offer: latency or observe (default: both)");

/* What publishers can speak. To the driver they are all the same: pages with words. */
static const struct {
	const char	*name;
	u16		version;
} pvsched_protocols[] = {
	{ PVSCHED_PROTOCOL_LATENCY, PVSCHED_PROTOCOL_LATENCY_VERSION },
	{ PVSCHED_PROTOCOL_OBSERVE, PVSCHED_PROTOCOL_OBSERVE_VERSION },
};
static_assert(ARRAY_SIZE(pvsched_protocols) <= PVSCHED_MAX_PROTOCOLS);

void pvsched_control_done(struct virtqueue *vq)
{
	struct pvsched *pv = vq->vdev->priv;

	complete(&pv->answered);
}

/*
 * Sends the request in pv->exchange, of which type and body are filled in.
 * Returns the answer's enum pvsched_status or a negative error.
 */
int pvsched_request(struct pvsched *pv, enum pvsched_req_type type, size_t length)
{
	struct virtqueue *vq = pv->vqs[PVSCHED_QUEUE_CONTROL];
	struct pvsched_exchange *exchange = pv->exchange;
	unsigned long deadline = jiffies + PVSCHED_ANSWER_TIMEOUT;
	struct scatterlist request, reply;
	struct scatterlist *sgs[] = { &request, &reply };
	unsigned int written;
	int err;

	lockdep_assert_held(&pvsched_lock);
	if (pv->broken)
		return -EIO;

	exchange->header.type = cpu_to_le16(type);
	exchange->header.rsvd = 0;
	exchange->header.length = cpu_to_le32(length);
	memset(&exchange->reply, 0, sizeof(exchange->reply));
	sg_init_one(&request, exchange, length);
	sg_init_one(&reply, &exchange->reply, sizeof(exchange->reply));
	reinit_completion(&pv->answered);
	err = virtqueue_add_sgs(vq, sgs, 1, 1, exchange, GFP_KERNEL);
	if (err)
		goto broken;
	virtqueue_kick(vq);

	while (!virtqueue_get_buf(vq, &written)) {
		if (virtqueue_is_broken(vq)) {
			err = -EIO;
			goto broken;
		}
		if (time_after(jiffies, deadline)) {
			err = -ETIMEDOUT;
			goto broken;
		}
		wait_for_completion_timeout(&pv->answered, PVSCHED_ANSWER_POLL);
	}
	if (written < sizeof(exchange->reply)) {
		err = -EPROTO;
		goto broken;
	}
	return le32_to_cpu(exchange->reply.status);

broken:
	dev_err(&pv->vdev->dev, "request %d failed (%d): device given up until rebound\n",
		type, err);
	pvsched_give_up(pv);
	return err;
}

static bool pvsched_may_offer(unsigned int i)
{
	return !protocol || !strcmp(protocol, pvsched_protocols[i].name);
}

/* Fills in what we offer; returns how many protocols that is. */
static unsigned int pvsched_offer(struct pvsched *pv, struct pvsched_req_negotiate *req)
{
	unsigned int i, count = 0;

	memset(req, 0, sizeof(*req));
	for (i = 0; i < ARRAY_SIZE(pvsched_protocols) && count < pv->max_protocols; i++) {
		const char *name = pvsched_protocols[i].name;
		__le16 version = cpu_to_le16(pvsched_protocols[i].version);

		if (!pvsched_may_offer(i))
			continue;
		memcpy(req->protocols[count].name, name, strlen(name));
		req->protocols[count].min_version = version;
		req->protocols[count].max_version = version;
		count++;
	}
	req->count = cpu_to_le32(count);
	return count;
}

static bool pvsched_offered(const struct pvsched_req_negotiate *req,
			    const struct pvsched_reply *reply)
{
	unsigned int i;

	for (i = 0; i < le32_to_cpu(req->count); i++) {
		if (!memcmp(reply->protocol, req->protocols[i].name, sizeof(reply->protocol)))
			return reply->version == req->protocols[i].max_version;
	}
	return false;
}

/* The reply says what the device would have liked best; an older one says nothing. */
static void pvsched_no_protocol(struct pvsched *pv, unsigned int count)
{
	const struct pvsched_req_negotiate *req = &pv->exchange->negotiate;
	const struct pvsched_reply *reply = &pv->exchange->reply;
	unsigned int i;

	dev_warn(&pv->vdev->dev, "no protocol in common: the device wants %*pE version %u\n",
		 (int)strnlen(reply->protocol, sizeof(reply->protocol)), reply->protocol,
		 le16_to_cpu(reply->version));
	for (i = 0; i < count; i++)
		dev_warn(&pv->vdev->dev, "this driver speaks %.*s version %u\n",
			 (int)sizeof(req->protocols[i].name), req->protocols[i].name,
			 le16_to_cpu(req->protocols[i].max_version));
}

/* Returns 0, also if the device speaks none of our protocols: pv->error says so. */
int pvsched_negotiate(struct pvsched *pv)
{
	struct pvsched_req_negotiate *req = &pv->exchange->negotiate;
	const struct pvsched_reply *reply = &pv->exchange->reply;
	unsigned int count = pvsched_offer(pv, req);
	int status;

	status = pvsched_request(pv, PVSCHED_REQ_NEGOTIATE,
				 offsetof(struct pvsched_req_negotiate, protocols) +
				 count * sizeof(req->protocols[0]));
	if (status < 0)
		return status;
	pv->error = status;
	if (status == PVSCHED_ERR_NO_PROTOCOL) {
		pvsched_no_protocol(pv, count);
		return 0;
	}
	if (status != PVSCHED_OK) {
		dev_warn(&pv->vdev->dev, "no protocol negotiated (status %d)\n", status);
		return 0;
	}
	if (!pvsched_offered(req, reply)) {
		dev_err(&pv->vdev->dev, "device chose a protocol that was not offered\n");
		return -EPROTO;
	}
	/* After suspend it may be another one, for which the publisher has to load its program. */
	if (memcmp(pv->protocol, reply->protocol, sizeof(pv->protocol)) ||
	    pv->version != le16_to_cpu(reply->version))
		pvsched_publish_stop(pv);
	memcpy(pv->protocol, reply->protocol, sizeof(pv->protocol));
	pv->version = le16_to_cpu(reply->version);
	pv->usable = true;
	return 0;
}

/**
 * pvsched_control_init() - check the module's parameters
 *
 * Return: 0 or a negative error
 */
int __init pvsched_control_init(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(pvsched_protocols); i++) {
		if (pvsched_may_offer(i))
			return 0;
	}
	pr_err("protocol=%s: this driver does not speak that\n", protocol);
	return -EINVAL;
}
