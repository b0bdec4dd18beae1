#!/bin/busybox sh
# shellcheck shell=dash
# First process of a guest: the file systems, the settings that measuring needs, then the agent.
# The guest driver is left to whoever wants it: `guest-up` loads it.

/bin/busybox --install -s /bin
export PATH=/bin HOME=/root PVSCHED_LAB=guest

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for dir in /dev/shm /tmp /run; do
	mount -t tmpfs tmpfs "$dir"
done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
ifconfig lo 127.0.0.1 up

# The throttle for realtime tasks would show up in every latency measured.
echo -1 >/proc/sys/kernel/sched_rt_runtime_us

cd /root || exit
echo "lab: starting the agent" >/dev/kmsg
pvsched-lab agent &
wait $!
poweroff -f
