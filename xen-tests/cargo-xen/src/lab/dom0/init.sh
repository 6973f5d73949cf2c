#!/bin/sh
# The first program of dom0: mounts what the tools expect, starts them as the suite's own scripts
# would, and hands over to the agent. $DOMU_XENSTORED comes from the kernel's command line.

export PATH=/usr/lib/xen-$DOMU_XEN/bin:/usr/sbin:/usr/bin
stage() { echo "dom0: $*"; }
give_up() {
    stage "$*"
    poweroff -f
}

# Before /proc is there, the shell finds its own applets only as files.
/usr/bin/busybox --install -s /usr/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts pts /dev/pts
mount -t tmpfs -o size=90% run /run
mkdir -p /run/xen /run/xenstored /run/lock /run/guests /var/lib/xenstored /var/log/xen/console
[ -e /var/lock ] || ln -s /run/lock /var/lock
# An emulated machine has little entropy, and whoever asks for a UUID (xl does) waits for three
# seconds each time until there is some: reading from here makes the kernel gather it.
head -c 1 /dev/random > /dev/null &
while read -r module; do
    insmod "/modules/$module.ko" || stage "insmod $module failed"
done < /modules/order
mount -t xenfs xenfs /proc/xen
echo 0 > /proc/sys/kernel/printk
ip link set lo up 2> /dev/null

stage "starting xenstored ($DOMU_XENSTORED)"
case $DOMU_XENSTORED in
ocaml) oxenstored --pid-file /run/xenstored.pid ;;
*) xenstored --pid-file=/run/xenstored.pid ;;
esac || give_up "xenstored failed ($?)"
tries=0
until xenstore-exists /tool 2> /dev/null || xenstore-ls / > /dev/null 2>&1; do
    tries=$((tries + 1))
    [ $tries -gt 300 ] && give_up "xenstored does not answer"
    sleep 0.1
done
xen-init-dom0 || give_up "xen-init-dom0 failed ($?)"
xenconsoled --log=all --log-dir=/var/log/xen/console --pid-file=/run/xenconsoled.pid ||
    give_up "xenconsoled failed ($?)"
stage "ready"
exec sh /agent.sh
