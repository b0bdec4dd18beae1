#!/bin/sh
# Brings up the network that tests/lab/src/network.rs has the other end of.
set -e
while read -r module; do
	insmod "/modules/$module.ko"
done </modules/order
ifconfig eth0 10.9.0.2 netmask 255.255.255.0 up
# Nobody there answers questions for it.
arp -s 10.9.0.1 52:54:00:00:00:01
