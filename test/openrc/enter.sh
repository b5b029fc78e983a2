#!/bin/sh
# Mounts a slot's root as image/rootfs/initramfs/init does, and becomes its init. In namespaces of its own, or it does nothing:
#   unshare --mount --pid --uts --ipc --net --fork test/openrc/enter.sh SQUASHFS FOLDER
# FOLDER is an empty one to mount on. The disk's partitions are in memory here, devices are files, the kernel's log is one too.
set -eu
[ $$ = 1 ] || { echo "enter.sh: not the first process of a namespace" >&2; exit 1; }
squashfs=$1
root=$2
mount -t squashfs -o ro,loop "$squashfs" "$root"
mount -t tmpfs -o mode=755,nosuid,nodev run "$root/run"
mount -t tmpfs -o mode=755 data "$root/data"
mkdir -p "$root/run/fruit" "$root/run/before"
overlay() { # NAME FOLDER
  mkdir -p "$2/upper" "$2/work"
  mount -t overlay -o "lowerdir=$root/$1,upperdir=$2/upper,workdir=$2/work" "$1" "$root/$1"
}
overlay etc "$root/data/overlay/etc"
overlay var "$root/run/overlay/var"
mount -t tmpfs -o mode=1777,nosuid,nodev tmp "$root/tmp"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 dev "$root/dev"
for device in "null 3" "zero 5" "full 7" "random 8" "urandom 9"; do mknod -m 666 "$root/dev/${device% *}" c 1 "${device#* }"; done
touch "$root/dev/watchdog" "$root/dev/kmsg"

cd "$root"
pivot_root . run/before
# From here on nothing of this machine can be reached
exec env -i PATH=/sbin:/usr/sbin:/bin:/usr/bin chroot . /bin/sh -c 'umount -l /run/before && rmdir /run/before && exec /sbin/init' </dev/null
