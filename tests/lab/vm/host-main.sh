#!/bin/sh
# The host VM's own userland: the file systems a scheduler and its tests expect, then the agent.
# Stays as process 1, because a shell that waits also reaps orphans.

# One failed mount must not hide what the rest would tell.
echo "lab: mounting file systems" >/dev/kmsg
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
for dir in /dev/shm /tmp /run; do
	mount -t tmpfs -o mode=1777 tmpfs "$dir"
done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
ip link set lo up

release=$(uname -r)
hostname pvsched-host
mkdir -p /usr/lib/modules /boot
mount --bind "/lab/kernels/$release/modules" /usr/lib/modules
# libbpf looks for the configuration here to give programs their kconfig values.
ln -sf "/lab/kernels/$release/config" "/boot/config-$release"

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/lab/run
export HOME=/root LC_ALL=C.UTF-8 PVSCHED_LAB=host
cd /src/scx_pvsched || cd /
echo "lab: starting the agent" >/dev/kmsg
# Guests take their boot limit from it.
cut -d. -f1 /proc/uptime >/run/pvsched-lab-boot-seconds

if [ -n "$LAB_SHELL" ]; then
	stty rows "${LAB_ROWS:-24}" cols "${LAB_COLUMNS:-80}" </dev/hvc0
	TERM=${LAB_TERM:-linux} setsid -w sh -c 'exec bash -i <>/dev/hvc0 >&0 2>&1'
else
	/lab/run/pvsched-lab agent --heartbeat 2 &
	wait $!
fi
sync
busybox poweroff -f
