#!/bin/busybox sh
# shellcheck shell=dash
# First process of the host VM: puts the root together and hands over to host-main.sh in it.
# The root is shared read-only by every run; what this one writes goes to memory.
set -e
/bin/busybox --install -s /bin
export PATH=/bin

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

# Told to the kernel's log, its time stamps show what a slow boot waits for.
stage() {
	echo "lab: $1" >/dev/kmsg
}

stage "loading modules"
# Trying the KVM of the other maker costs a second.
if grep -q -w svm /proc/cpuinfo; then other=kvm_intel; else other=kvm_amd; fi
while read -r module; do
	[ "$module" != "$other" ] || continue
	insmod "/modules/$module.ko" || echo "lab: module $module not loaded"
done </modules/order

stage "mounting the root"
# The machine does not change these folders under a run, so their contents may be cached.
nine() {
	mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$3" "$1" "$2"
}
mkdir -p /lower /upper /root
nine root /lower ro,cache=loose
mount -t tmpfs -o mode=755 upper /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /root

nine kernels /root/lab/kernels ro,cache=loose
nine run /root/lab/run ro,cache=loose
nine src /root/src/scx_pvsched ro,cache=loose
nine bin /root/usr/local/bin ro,cache=loose
# Reports must reach the machine even if this VM is ended by force.
nine out /root/out rw,cache=mmap

stage "entering the root"
for dir in proc sys dev; do
	mount --move "/$dir" "/root/$dir"
done
exec switch_root /root /bin/sh /lab/run/host-main.sh
