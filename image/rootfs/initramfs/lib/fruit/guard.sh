# Has the watchdog run from before the slot's own first program on: one that hangs is started again, though nothing of it ever fed.
# Wants disk.sh.
#
# It is begun last of all, once nothing but switch_root is left. Whatever of the initramfs can be slow on a healthy node (e2fsck
# and resize2fs of a large card: many minutes) is over by then, and nothing has to be fed meanwhile: a program that feeds while
# another one hangs would guard nothing. What comes before has limits of its own, but for a card or a driver that never answers: a
# node that hangs in the initramfs needs its power cut. The rescue is never reached from here, so that nothing bites it.
#
# Whoever begins a watchdog without feeding it must be sure that somebody does within the time. So the device is the one that the
# feeder will take, by the same settings (/etc/fruit/watchdog, with what a person has changed there), and where these cannot be read
# there is none. Whoever takes the feeder out of a node sets FRUIT_EARLY=0. init calls it by `briefly`: these settings last across
# slots, and whatever they do, it ends neither the first program nor the start.
#
# Facts (Documentation/watchdog/watchdog-api.rst and watchdog-kernel-api.rst, drivers/watchdog/watchdog_dev.c)
# - One that is closed without `V` runs on, and keeps its time: kill -9 lets busybox's `watchdog` write none. Whoever opens it again
#   feeds the same one. With `nowayout` no `V` would stop it either; nothing here needs one to.
# - A time beyond what the hardware can count (max_hw_heartbeat_ms: 16 s for the bcm2835) is kept by the kernel, which feeds the
#   hardware until it is over. One that hangs itself feeds no more, and the hardware bites within its 16 s.
# - bcm2835_wdt, until the middle of 2026, gives the hardware the low four bits of the time instead of its most (start: the ticks,
#   16 bits a second, are cut to 20 bits; raspberrypi/linux #7432). Of 180 s there are 4 left, and the kernel feeds every 8 s: the node
#   would start again before anything has begun. Of a time that is 15 above a multiple of 16 there are 15.

# The settings, as the feeder has them: `settings ROOT`
settings() (
  FRUIT_WATCHDOG='' FRUIT_EARLY='' FRUIT_MODULE=''
  # shellcheck disable=SC1091 # the node's
  [ ! -e "$1/etc/fruit/watchdog" ] || . "$1/etc/fruit/watchdog" >/dev/null 2>&1 </dev/null
  echo "${FRUIT_WATCHDOG:-/dev/watchdog} ${FRUIT_EARLY:-300} $FRUIT_MODULE"
)

# Begins it and lets go of it: `guard ROOT`, which has dev, proc and sys already
guard() {
  guarded=$1
  # shellcheck disable=SC2046 # words
  set -- $(settings "$guarded")
  device=$1 time=$2 module=$3
  time=$(whole "$time")
  case $time in
  0) return ;;
  '')
    say "/etc/fruit/watchdog cannot be read: nothing watches this start until its feeder runs"
    return
    ;;
  esac
  time=$(((time + 1) / 16 * 16 - 1))
  [ "$time" -gt 0 ] || time=15
  [ -z "$module" ] || chroot "$guarded" modprobe -q "$module"
  if [ ! -e "$guarded$device" ] || ! command -v watchdog >/dev/null; then
    say "no $device: nothing watches this start until its feeder runs"
    return
  fi
  of=${device##*/}
  [ "$of" != watchdog ] || of=watchdog0
  of=$guarded/sys/class/watchdog/$of
  # Some take no longer than their hardware: that is too short for a start. 0 has no limit
  most=$(cat "$of/max_timeout" 2>/dev/null)
  if [ "${most:-0}" -gt 0 ] && [ "$most" -lt "$time" ]; then
    say "$device takes no more than $most s: nothing watches this start until its feeder runs"
    return
  fi
  watchdog -F -T "$time" -t 1 "$guarded$device" >/dev/null 2>&1 &
  turns=20
  until [ -e "$guarded/proc/$!/fd/3" ] || [ $turns = 0 ]; do
    turns=$((turns - 1))
    usleep 100000
  done
  # It sets the time next
  usleep 500000
  took=$(cat "$of/timeout" 2>/dev/null) || took=$time
  if [ $turns = 0 ] || [ "$took" != "$time" ]; then
    # This one writes its `V`
    kill "$!"
    say "$device has not taken $time s: nothing watches this start until its feeder runs"
  else
    kill -9 "$!"
    say "$device starts this node again unless it is fed within $time s"
  fi
  wait "$!" 2>/dev/null
}
