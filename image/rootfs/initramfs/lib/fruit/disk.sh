# Words that the programs of the initramfs share.

say() { echo "fruit: $*" >/dev/console 2>/dev/null || echo "fruit: $*" >&2; }

# Value of a word of the kernel's command line: `word fruit.slot DEFAULT`
word() {
  for pair in $(cat "${FRUIT_CMDLINE:-/proc/cmdline}"); do
    case $pair in "$1="*) echo "${pair#*=}" && return ;; esac
  done
  echo "${2:-}"
}

# Name of a partition: `partition mmcblk0 2` is mmcblk0p2, `partition sda 2` is sda2.
partition() { case $1 in *[0-9]) echo "$1p$2" ;; *) echo "$1$2" ;; esac; }

# Waits until something exists, at most so many seconds: `await /dev/mmcblk0p2 30`
await() {
  turns=$(($2 * 10))
  until [ -e "$1" ]; do
    [ $turns -gt 0 ] || return 1
    turns=$((turns - 1))
    usleep 100000
  done
}

# Loads the kernel modules of a list, one a line with its parameters: `load /etc/modules`
load() {
  while read -r module; do
    # shellcheck disable=SC2086 # with its parameters
    [ -z "$module" ] || modprobe -q $module
  done <"$1"
}

# A whole number of at most four digits, as a person would write it; anything else is `whole TEXT DEFAULT`'s default. Arithmetic on
# 08 or 1x ends the shell, and with it the first program.
whole() {
  case $1 in
  0 | [1-9] | [1-9][0-9] | [1-9][0-9][0-9] | [1-9][0-9][0-9][0-9]) echo "$1" ;;
  *) echo "${2:-}" ;;
  esac
}

# Does something in a shell of its own, and goes on after 10 s whether it is done or not: for what a card that hangs must not hold up.
briefly() {
  "$@" &
  turns=100
  while [ $turns -gt 0 ]; do
    kill -0 $! 2>/dev/null || return 0
    turns=$((turns - 1))
    usleep 100000
  done
}

# Starts the node again, by every way there is.
restart() {
  briefly sync
  reboot -n -f
  echo 1 >/proc/sys/kernel/sysrq
  echo b >/proc/sysrq-trigger
}
