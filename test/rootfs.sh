#!/usr/bin/env bash
# A root for the emulated Pi 3, as `bun run image -- --rootfs TAR` takes it: Debian's static busybox, its kernel with the modules
# that machine needs, its U-Boot, the musl runtime, e2fsck and resize2fs. What differs from Alpine's root is here and in
# test/rootfs/: no OpenRC (busybox's init starts the same programs), a shell for the test on the serial line.
#
#   test/rootfs.sh OUT.tar      needs what emulator/fetch.sh and musl.sh aarch64 have fetched
set -euo pipefail
out=${1:?the tar file to make}
here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/fruit
arm=$cache/emulator/arm64
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,lib,boot,etc,root,var/log,var/run,usr/lib/u-boot/rpi_3,usr/lib/linux-image/broadcom}

cp "$arm/busybox" "$root/bin/"
for name in $(qemu-aarch64-static "$arm/busybox" --list); do
  case $name in busybox) ;; init | modprobe | reboot | poweroff | halt | ip) ln -s /bin/busybox "$root/sbin/$name" ;; *) ln -s busybox "$root/bin/$name" ;; esac
done
cp "$arm/vmlinuz" "$root/boot/vmlinuz"
cp "$arm/u-boot.bin" "$root/usr/lib/u-boot/rpi_3/"
cp "$arm/bcm2837-rpi-3-b.dtb" "$root/usr/lib/linux-image/broadcom/"
cp "$cache"/musl-aarch64/lib/* "$root/lib/"

# These modules, and what they need
wanted="sdhci-iproc bcm2835 ext4 crc32c_generic squashfs overlay loop softdog bcm2835_wdt vfat nls_cp437 nls_ascii nls_utf8 phy-generic dwc2 cdc_ether ftdi_sio"
version=$(ls "$arm/modules")
from=$arm/modules/$version
to=$root/lib/modules/$version
mkdir -p "$to"
for name in $wanted; do
  line=$(grep "/$name\.ko:" "$from/modules.dep") || { echo "rootfs.sh: kernel $version has no module $name" >&2; exit 1; }
  for file in ${line/:/}; do
    mkdir -p "$to/${file%/*}"
    cp "$from/$file" "$to/$file"
  done
done
cp "$from"/modules.builtin "$to/"
(cd "$to" && find . -name '*.ko' | sed 's,^\./,,' | sort) | while read -r file; do grep "^$file:" "$from/modules.dep"; done > "$to/modules.dep"

# The tools for ext4, with Debian's C library
tools=$cache/ext4-arm64
if [ ! -e "$tools/ready" ]; then
  mkdir -p "$tools" "$work/debs"
  (cd "$work/debs" && for package in e2fsprogs libext2fs2 libcom-err2 libblkid1 libuuid1 libc6; do
    apt-get download -qq -o APT::Sandbox::User=root "$package:arm64" >&2
  done)
  for deb in "$work"/debs/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar x -C "$tools" --wildcards --ignore-failed-read './sbin/e2fsck' './sbin/resize2fs' \
      './lib/ld-linux-aarch64.so.1' './*lib/aarch64-linux-gnu/*.so.*' './lib/aarch64-linux-gnu/ld-linux-aarch64.so.1' 2>/dev/null || true
  done
  [ -x "$tools/sbin/e2fsck" ] && [ -x "$tools/sbin/resize2fs" ] || { echo "rootfs.sh: no e2fsck or resize2fs in Debian's e2fsprogs" >&2; exit 1; }
  touch "$tools/ready"
fi
cp "$tools"/sbin/{e2fsck,resize2fs} "$root/sbin/"
mkdir -p "$root/lib/aarch64-linux-gnu"
for name in ld-linux-aarch64.so.1 libc.so.6 libe2p.so.2 libext2fs.so.2 libcom_err.so.2 libblkid.so.1 libuuid.so.1; do
  file=$(find "$tools" -name "$name" | head -n 1)
  [ -n "$file" ] || { echo "rootfs.sh: no $name in Debian's packages" >&2; exit 1; }
  cp -L "$file" "$root/lib/aarch64-linux-gnu/$name"
done
ln -s aarch64-linux-gnu/ld-linux-aarch64.so.1 "$root/lib/ld-linux-aarch64.so.1"

cp -a "$here/rootfs/." "$root/"
tar c -C "$root" --owner=0 --group=0 --numeric-owner --sort=name --mtime=@0 -f "$out.new" .
mv "$out.new" "$out"
