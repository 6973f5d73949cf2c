#!/bin/sh
# What libxl runs for a back end that it has made or takes away, in place of Xen's scripts for disks and interfaces, which
# want bash. Linux has to be told which device a disk is, and does not look at what an interface sends that is down.
case $1 in
add) xenstore-write "$XENBUS_PATH/physical-device" "$(stat -c %t:%T "$(xenstore-read "$XENBUS_PATH/params")")" ;;
online) ip link set "$vif" up ;;
*) exit 0 ;;
esac && xenstore-write "$XENBUS_PATH/hotplug-status" connected
