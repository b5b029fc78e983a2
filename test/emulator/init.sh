#!/bin/busybox sh
# The first program of an emulated machine, from its initramfs: finds the root disk that `fruit.root=DEV` on the kernel's
# command line names, lays a writable layer over it and goes on with /sbin/init there.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
/bin/busybox mkdir -p /proc /sys /dev /lower /upper /root
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules); do modprobe "$module" || echo "no module $module"; done
root=$(sed 's/.*fruit\.root=\([^ ]*\).*/\1/' /proc/cmdline)
tries=0
until [ -b "$root" ]; do
  tries=$((tries + 1))
  [ $tries -lt 600 ] || { echo "init: no disk $root"; exec sh; }
  usleep 100000
done
mount -t squashfs -o ro "$root" /lower || exec sh
mount -t tmpfs upper /upper
mkdir /upper/files /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work root /root || exec sh
mkdir -p /root/proc /root/sys /root/dev /root/tmp /root/run /root/bin
for folder in proc sys dev; do mount --move /$folder /root/$folder; done
exec switch_root /root /sbin/init
