#!/usr/bin/env bash
# A root with OpenRC for test/proof/openrc.proof.ts, as a tar file: OpenRC of Debian 13 with its libraries, Debian's static BusyBox,
# the musl runtime. Debian 12's OpenRC is too old: its supervise-daemon knows no output_logger, by which the nodes' services log.
#
#   test/openrc/root.sh      prints the tar file; makes it first if it is not there
#
# Needs what test/emulator/fetch.sh and test/musl.sh x86_64 have fetched. Nothing is installed. Cached in ${XDG_CACHE_HOME:-~/.cache}/fruit.
#
# Debian has no scripts for the services that are Alpine's on a node. Here each has its name, what it needs and provides there, and
# does no more than ours can see of it: what it would do to the kernel is no business of a test.
set -euo pipefail
cache=${XDG_CACHE_HOME:-$HOME/.cache}/fruit
out=$cache/openrc/root.tar
made=$cache/openrc/made-by # this script, as it was
if [ -e "$out" ] && cmp -s "$0" "$made"; then echo "$out"; exit; fi
exec 3>&1 1>&2 # stdout carries the file's name and nothing else
for needed in "$cache/emulator/amd64/busybox" "$cache/musl-x86_64/lib/ld-musl-x86_64.so.1"; do
  [ -e "$needed" ] || { echo "root.sh: no $needed: test/emulator/fetch.sh and test/musl.sh x86_64 make it"; exit 1; }
done
work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$cache/openrc" "$root"/usr/{bin,sbin,lib,lib64} "$root"/{boot,data,dev,proc,run,sys,tmp,root,var/log,etc}
for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
ln -s ../run "$root/var/run"

# Debian 13 beside what apt knows: lists of their own, which go with the folder
trixie() {
  apt-get -o "Dir::Etc::sourcelist=$work/sources" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" \
    -o Dir::State::status=/dev/null -o APT::Architecture=amd64 -o APT::Architectures=amd64 -o Acquire::Languages=none \
    -o APT::Sandbox::User=root -qq "$@"
}
mkdir -p "$work"/{lists/partial,cache/archives/partial,debs}
keys=/usr/share/keyrings/debian-archive-keyring.gpg
mirror=$(apt-get indextargets --format '$(SITE) $(COMPONENT)' 'Created-By: Packages' | awk '$1 ~ "/debian/?$" && $2 == "main" {print $1; exit}')
[ -n "$mirror" ] || { echo "root.sh: apt knows no mirror of Debian"; exit 1; }
echo "deb [signed-by=$keys] $mirror trixie main" >"$work/sources"
trixie update
(cd "$work/debs" && trixie download openrc librc1t64 libeinfo1 libc6 libpam0g libaudit1 libcap-ng0 libcap2 libselinux1 libpcre2-8-0)
for deb in "$work"/debs/*.deb; do
  dpkg-deb --fsys-tarfile "$deb" | tar x -C "$root" --keep-directory-symlink --exclude='./usr/share' --exclude='./etc/init.d' \
    --exclude='./etc/runlevels/*/*' --exclude='*/gconv' --exclude='./etc/conf.d/*'
done

busybox=$cache/emulator/amd64/busybox
cp "$busybox" "$root/usr/bin/"
for name in $("$busybox" --list); do
  case $name in
  busybox) ;;
  init | syslogd) ln -s ../bin/busybox "$root/usr/sbin/$name" ;;
  *) [ -e "$root/usr/sbin/$name" ] || ln -s busybox "$root/usr/bin/$name" ;;
  esac
done
cp "$cache"/musl-x86_64/lib/* "$root/usr/lib/"
printf 'root:x:0:0:root:/root:/bin/sh\n' >"$root/etc/passwd"
printf 'root:x:0:\nuucp:x:14:\nutmp:x:406:\nwheel:x:10:\n' >"$root/etc/group"
echo localhost >"$root/etc/hostname"
# As Alpine has it; what ours say of it comes first
printf 'respawn_delay=2\nrespawn_max=5\nrespawn_period=1800\n' >>"$root/etc/rc.conf"
# Asked for by Debian's OpenRC
touch "$root/etc/insserv.conf"
mkdir -p "$root"/etc/{insserv.conf.d,insserv/overrides}
# As Alpine's
cat >"$root/etc/inittab" <<'EOF'
::sysinit:/sbin/openrc sysinit
::sysinit:/sbin/openrc boot
::wait:/sbin/openrc default
::shutdown:/sbin/openrc shutdown
EOF

mkdir -p "$root/etc/init.d"
service() { # NAME DEPEND [START [STOP]]
  printf '#!/sbin/openrc-run\ndepend() { %s; }\nstart() { %s; }\nstop() { %s; }\n' "$2" "${3:-:}" "${4:-:}" >"$root/etc/init.d/$1"
  chmod 755 "$root/etc/init.d/$1"
}
runlevel() { # LEVEL NAME: what is not among the links of image/rootfs/root
  mkdir -p "$root/etc/runlevels/$1"
  ln -s "/etc/init.d/$2" "$root/etc/runlevels/$1/$2"
}
service sysfs :
service devfs "provide dev-mount; before dev"
service dmesg "before dev modules"
service mdev "provide dev; need sysfs dev-mount; before fsck"
service hwdrivers "need dev; before fsck hwclock"
service modules "before hwclock hwdrivers"
service swclock "provide clock"
service fsck "use dev clock modules"
service root "after clock; need fsck" 'case ,$(fstabinfo -o /), in *,ro,*) ;; *) einfo "root would make / writable" ;; esac'
service sysctl "before bootmisc logger"
service networking "need localmount; after bootmisc hwdrivers modules; provide net"
service bootmisc "need localmount; before logger; after clock root sysctl"
service hostname : 'hostname -F /etc/hostname'
# Where unmounting fails, the real one kills whoever uses what is there: of /etc that is OpenRC itself
service localmount "need fsck root; use lvm modules; after lvm modules" : 'yesno $RC_GOINGDOWN || return 0
  for folder in /tmp /var /etc /data; do
    case " $no_umounts " in *" $folder "*) ;; *) einfo "localmount would unmount $folder" ;; esac
  done'
service syslog "need clock hostname localmount; provide logger" syslogd 'killall syslogd'
service chronyd "need net; after logger; provide ntp-client"
service sshd "use logger dns; after entropy; need net"
service killprocs : 'kill_all 15; kill_all 9'
service mount-ro "after killprocs savecache" 'for folder in /tmp /var /etc /data; do umount -r $folder; done'
runlevel boot hostname
# Sees what is there after all services were stopped and before all processes are killed
service witness "before killprocs mount-ro" 'echo; echo level "$(cat /run/openrc/softlevel)"; echo processes; ps -o pid,args; echo meals; stat -c %s /dev/watchdog; sleep 3
  stat -c %s /dev/watchdog; echo end'
runlevel shutdown witness
service last "after mount-ro" 'echo mounts; grep -v " /proc " /proc/mounts; echo end'
runlevel shutdown last

tar c -C "$root" --owner=0 --group=0 --numeric-owner --sort=name --mtime=@0 -f "$out.new" .
mv "$out.new" "$out"
cp "$0" "$made"
echo "$out" >&3
