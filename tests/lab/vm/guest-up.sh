#!/bin/sh
# Loads the guest driver, if this guest was given one for its kernel.
set -e
driver=/lib/virtio_pvsched.ko
if [ ! -e "$driver" ]; then
	echo "no driver for kernel $(uname -r) here: run scripts/lab module first" >&2
	exit 1
fi
exec insmod "$driver" "$@"
