#!/bin/busybox sh
# /init of the initramfs: this machine's / read-only over virtio-9p, a tmpfs on top.
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
for f in /m/*; do $B insmod "$f" || echo "insmod $f failed"; done
for w in $($B cat /proc/cmdline); do case $w in lab.dir=*) D=${w#*=};; esac; done
$B mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=524288 root /ro || $B poweroff -f
$B mount -t tmpfs -o size=60% tmpfs /rw
$B mkdir /rw/u /rw/w
$B mount -t overlay -o lowerdir=/ro,upperdir=/rw/u,workdir=/rw/w overlay /new || $B poweroff -f
for d in proc sys dev; do $B mount -o move /$d /new/$d; done
exec $B switch_root /new /bin/sh "$D/guest.sh"
