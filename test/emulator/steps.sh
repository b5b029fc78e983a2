#!/bin/busybox sh
# Runs what the test asks for, one step after the other. A step comes as a line `NUMBER BASE64` on the control line and is
# answered with `done NUMBER EXIT STDOUT STDERR.`, the texts in base64. The kernel's console stays the kernel's.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
/bin/busybox --install -s /bin
export HOME=/tmp
while read -r module; do
  # shellcheck disable=SC2086 # with its parameters
  modprobe $module || echo "no module $module"
done </etc/modules
ip link set lo up
dmesg -n 1
control=$(cat /etc/control)
echo "steps: waiting for $control"
tries=0
until [ -c "$control" ]; do
  tries=$((tries + 1))
  [ $tries -lt 600 ] || { echo "steps: no control line $control"; exec sh; }
  usleep 100000
done
exec <"$control" >"$control"
stty raw -echo
echo ready
while read -r number step; do
  echo "$step" | base64 -d >/run/step
  sh /run/step </dev/null >/run/out 2>/run/err
  code=$?
  echo "done $number $code =$(base64 -w 0 /run/out) =$(base64 -w 0 /run/err)."
done
