// SPDX-License-Identifier: GPL-2.0-only
/*
 * What BPF programs can reach: three kfuncs, and behind them one pointer per CPU
 * and one to the doorbell.
 *
 * A program gets a page only while it is live: its CPU is online, the device
 * has the page, and a publisher has asked for it. Whoever takes a page away
 * clears the pointer, waits for a grace period, and then nobody but the host
 * touches the page. Programs that sleep hold pages for longer, so memory is
 * given back only after an RCU-tasks-trace grace period as well.
 */
#include <linux/bpf.h>
#include <linux/btf.h>
#include <linux/btf_ids.h>
#include <linux/cpumask.h>
#include <linux/kvm_para.h>
#include <linux/module.h>
#include <linux/percpu.h>
#include <linux/rcupdate.h>
#include <linux/smp.h>
#include <linux/virtio.h>

#include <trace/events/ipi.h>

#include "virtio_pvsched.h"

static DEFINE_PER_CPU(struct pvsched_page __rcu *, pvsched_live);
static DEFINE_PER_CPU(u64, pvsched_rung);
static struct virtqueue __rcu *pvsched_doorbell;

/**
 * pvsched_live_set() - let BPF programs have the page of a CPU
 * @cpu:  a possible CPU
 * @page: its page, which stays allocated until pvsched_live_clear() and a
 *        grace period
 */
void pvsched_live_set(unsigned int cpu, struct pvsched_page *page)
{
	rcu_assign_pointer(per_cpu(pvsched_live, cpu), page);
}

/**
 * pvsched_live_clear() - let no further BPF program have the page of a CPU
 * @cpu: a possible CPU
 */
void pvsched_live_clear(unsigned int cpu)
{
	RCU_INIT_POINTER(per_cpu(pvsched_live, cpu), NULL);
}

/**
 * pvsched_doorbell_set() - name the queue that rings the host
 * @vq: the queue, or NULL; a queue named before is no longer used after a
 *      grace period
 */
void pvsched_doorbell_set(struct virtqueue *vq)
{
	rcu_assign_pointer(pvsched_doorbell, vq);
}

/**
 * pvsched_doorbell_count() - how often the host was notified
 */
u64 pvsched_doorbell_count(void)
{
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(per_cpu(pvsched_rung, cpu));
	return sum;
}

__bpf_kfunc_start_defs();

/**
 * pvsched_page() - the shared page of a CPU
 * @cpu:           the CPU's number
 * @rdwr_buf_size: how many bytes of it the program wants, at most
 *                 sizeof(struct pvsched_page)
 *
 * Return: the page, or NULL while it is not live.
 */
__bpf_kfunc u8 *pvsched_page(int cpu, const size_t rdwr_buf_size)
{
	if ((unsigned int)cpu >= nr_cpu_ids || !cpu_possible(cpu))
		return NULL;
	if (rdwr_buf_size > sizeof(struct pvsched_page))
		return NULL;
	/* The calling program is the reader: it runs under RCU of one kind or the other. */
	return (u8 *)rcu_dereference_raw(per_cpu(pvsched_live, cpu));
}

/**
 * pvsched_notify_host() - make this vCPU leave guest mode once
 *
 * Callable from every context. Under KVM it is the hypercall that does nothing
 * but leave guest mode: a write to the doorbell does the same, but KVM has to
 * decode the instruction and to signal an eventfd. Notifying a queue that never
 * carries a buffer takes no lock and touches no ring.
 */
__bpf_kfunc void pvsched_notify_host(void)
{
	struct virtqueue *vq;

	rcu_read_lock();
	vq = rcu_dereference(pvsched_doorbell);
	if (vq) {
		if (kvm_para_available())
			kvm_hypercall0(KVM_HC_VAPIC_POLL_IRQ);
		else
			virtqueue_notify(vq);
		this_cpu_inc(pvsched_rung);
	}
	rcu_read_unlock();
}

/**
 * pvsched_kick_cpu() - interrupt another CPU as the scheduler does to have it reschedule
 * @cpu: its number; of one that is not online nothing happens
 *
 * Callable from every context. The hypervisor sees the interrupt before it is taken.
 */
__bpf_kfunc void pvsched_kick_cpu(int cpu)
{
	if ((unsigned int)cpu < nr_cpu_ids && cpu_online(cpu))
		smp_send_reschedule(cpu);
}

__bpf_kfunc_end_defs();

BTF_KFUNCS_START(pvsched_kfuncs)
BTF_ID_FLAGS(func, pvsched_page, KF_RET_NULL)
BTF_ID_FLAGS(func, pvsched_notify_host)
BTF_ID_FLAGS(func, pvsched_kick_cpu)
BTF_KFUNCS_END(pvsched_kfuncs)

static const struct btf_kfunc_id_set pvsched_kfunc_set = {
	.owner	= THIS_MODULE,
	.set	= &pvsched_kfuncs,
};

/**
 * pvsched_publish_init() - offer the kfuncs to tracing programs, and to schedulers
 *
 * The kernel forgets them by itself when the module goes, and a program that
 * uses them keeps the module.
 *
 * Return: 0 or a negative error.
 */
int pvsched_publish_init(void)
{
	int err = register_btf_kfunc_id_set(BPF_PROG_TYPE_TRACING, &pvsched_kfunc_set);

	return err ?: register_btf_kfunc_id_set(BPF_PROG_TYPE_STRUCT_OPS, &pvsched_kfunc_set);
}
