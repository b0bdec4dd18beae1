// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/pvsched: status for everybody who may open it, and the right to publish
 * for one at a time. See pvsched_uapi.h.
 *
 * Publishing ends when the publisher closes the descriptor. The kernel closes
 * it for a publisher that was killed, too, so no urgent word outlives its writer.
 */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/wait.h>

#include "virtio_pvsched.h"

struct pvsched_file {
	u64 seen;		/* pvsched_changes() when INFO was last asked */
	fl_owner_t publisher;	/* the open files of the process that asked to publish */
};

static int pvsched_open(struct inode *inode, struct file *file)
{
	struct pvsched_file *pf;

	pf = kzalloc(sizeof(*pf), GFP_KERNEL);
	if (!pf)
		return -ENOMEM;
	/* Whoever has not asked yet has not seen the present state. */
	pf->seen = pvsched_changes() - 1;
	file->private_data = pf;
	return nonseekable_open(inode, file);
}

/*
 * release() is put off until the process has closed all of its files, in an
 * order of the kernel's liking. Of a publisher that was killed the programs
 * would go one by one before it, and count entries without exits meanwhile.
 * flush() comes with the close itself.
 */
static int pvsched_flush(struct file *file, fl_owner_t id)
{
	struct pvsched_file *pf = file->private_data;

	if (id == pf->publisher)
		pvsched_publisher_release(file);
	return 0;
}

static int pvsched_release(struct inode *inode, struct file *file)
{
	pvsched_publisher_release(file);
	kfree(file->private_data);
	return 0;
}

static __poll_t pvsched_poll(struct file *file, poll_table *wait)
{
	struct pvsched_file *pf = file->private_data;

	poll_wait(file, &pvsched_waiters, wait);
	return READ_ONCE(pf->seen) == pvsched_changes() ? 0 : EPOLLIN | EPOLLRDNORM;
}

static long pvsched_ioctl_info(struct file *file, void __user *arg)
{
	struct pvsched_file *pf = file->private_data;
	struct pvsched_info info;
	u64 changes;

	/* Before the answer is made: what changes meanwhile is news again. */
	changes = pvsched_changes();
	pvsched_get_info(file, &info);
	if (copy_to_user(arg, &info, sizeof(info)))
		return -EFAULT;
	WRITE_ONCE(pf->seen, changes);
	return 0;
}

static long pvsched_ioctl_cpu(void __user *arg)
{
	struct pvsched_cpu_info info;
	int ret;

	if (copy_from_user(&info, arg, sizeof(info)))
		return -EFAULT;
	ret = pvsched_get_cpu(&info);
	if (ret)
		return ret;
	return copy_to_user(arg, &info, sizeof(info)) ? -EFAULT : 0;
}

static long pvsched_ioctl_publish(struct file *file)
{
	struct pvsched_file *pf = file->private_data;
	int ret;

	if (!(file->f_mode & FMODE_WRITE))
		return -EPERM;
	ret = pvsched_publisher_claim(file);
	if (!ret)
		WRITE_ONCE(pf->publisher, current->files);
	return ret;
}

static long pvsched_ioctl_role(struct file *file, void __user *arg)
{
	struct pvsched_cpu_role role;

	if (!(file->f_mode & FMODE_WRITE))
		return -EPERM;
	if (copy_from_user(&role, arg, sizeof(role)))
		return -EFAULT;
	return pvsched_set_role(&role);
}

static long pvsched_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	switch (cmd) {
	case PVSCHED_IOC_INFO:
		return pvsched_ioctl_info(file, (void __user *)arg);
	case PVSCHED_IOC_CPU:
		return pvsched_ioctl_cpu((void __user *)arg);
	case PVSCHED_IOC_PUBLISH:
		return pvsched_ioctl_publish(file);
	case PVSCHED_IOC_ROLE:
		return pvsched_ioctl_role(file, (void __user *)arg);
	default:
		return -ENOTTY;
	}
}

static const struct file_operations pvsched_fops = {
	.owner		= THIS_MODULE,
	.open		= pvsched_open,
	.flush		= pvsched_flush,
	.release	= pvsched_release,
	.poll		= pvsched_poll,
	.unlocked_ioctl	= pvsched_ioctl,
	.compat_ioctl	= compat_ptr_ioctl,
};

static struct miscdevice pvsched_misc = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= "pvsched",
	.fops	= &pvsched_fops,
	.mode	= 0600,
};

/**
 * pvsched_chardev_init() - make /dev/pvsched appear
 *
 * Return: 0 or a negative error.
 */
int pvsched_chardev_init(void)
{
	return misc_register(&pvsched_misc);
}

/**
 * pvsched_chardev_exit() - take /dev/pvsched away; nobody has it open
 */
void pvsched_chardev_exit(void)
{
	misc_deregister(&pvsched_misc);
}
