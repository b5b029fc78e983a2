#!/usr/bin/env bash
# What the emulated machines boot, from Debian's packages: kernels with their modules, the Raspberry Pi's U-Boot and
# device trees, a static busybox of each architecture.
#
#   test/emulator/fetch.sh      prints the folder that holds amd64/ and arm64/; fills it first if it is empty
#
# Needs root where something has to be fetched (it adds an architecture to apt's lists and installs kmod).
# Cached in ${XDG_CACHE_HOME:-~/.cache}/fruit.
set -euo pipefail
out=${XDG_CACHE_HOME:-$HOME/.cache}/fruit/emulator
if [ -e "$out/ready" ]; then echo "$out"; exit; fi
exec 3>&1 1>&2 # stdout carries the folder's name and nothing else
[ "$(id -u)" = 0 ] || { echo "fetch.sh: fetching from Debian needs root: sudo --preserve-env=HOME $0"; exit 1; }

dpkg --add-architecture arm64
apt-get update -qq || true # a foreign index that is missing is not fatal
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends kmod xz-utils >/dev/null
rm -rf "$out" && mkdir -p "$out"
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
cd "$work"

unpack() { # PACKAGE:ARCH PATTERN…: what matches, into a folder named like the architecture
  apt-get download -qq -o APT::Sandbox::User=root "$1"
  mkdir -p "${1##*:}"
  dpkg-deb --fsys-tarfile ./*.deb | tar x -C "${1##*:}" --wildcards "${@:2}"
  rm ./*.deb
}

for arch in amd64 arm64; do
  # What the meta package stands for today.
  kernel=$(apt-cache depends "linux-image-$arch:$arch" | sed -n 's/.*Depends: \(linux-image-[0-9][^: ]*\).*/\1/p')
  [ -n "$kernel" ] || { echo "fetch.sh: apt knows no kernel for $arch"; exit 1; }
  trees=() && [ $arch = arm64 ] && trees=('./usr/lib/linux-image-*/broadcom/bcm2837*')
  unpack "$kernel:$arch" --exclude='*/drivers/gpu' --exclude='*/drivers/media' --exclude='*/drivers/net/wireless' \
    --exclude='*/drivers/net/ethernet' --exclude='*/drivers/infiniband' --exclude='*/drivers/staging' --exclude='*/sound' \
    './boot/*' './lib/modules/*' "${trees[@]}"
  unpack "busybox-static:$arch" ./bin/busybox
  depmod -b $arch "${kernel#linux-image-}" 2>/dev/null
  mkdir "$out/$arch"
  mv $arch/boot/vmlinuz-* "$out/$arch/vmlinuz"
  mv $arch/bin/busybox $arch/lib/modules "$out/$arch/"
done
mv arm64/usr/lib/linux-image-*/broadcom/*.dtb "$out/arm64/"
unpack u-boot-rpi:arm64 './usr/lib/u-boot/rpi_3/u-boot.bin'
mv arm64/usr/lib/u-boot/rpi_3/u-boot.bin "$out/arm64/"
touch "$out/ready"
echo "$out" >&3
