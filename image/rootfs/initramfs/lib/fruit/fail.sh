# What init does where a slot cannot be started, and the evidence it leaves. Wants disk.sh, and
#   slot, trial, disk    of the kernel's command line
#   files                the folder that the data is mounted at; without it the evidence is lost, and nothing else

# Adds to what was seen of this start (agent/boot/marks.ts): `mark init [TEXT]`
mark() {
  mkdir -p "$files/fruit/boot" &&
    echo "${trial:-0} $(word fruit.try 0) $(cat /proc/sys/kernel/random/boot_id) $*" >>"$files/fruit/boot/marks"
  sync
}

# Whoever comes next finds the card's file systems as they should be left.
leave() {
  for folder in tmp var etc data ""; do umount "/sysroot/$folder"; done 2>/dev/null
  umount "$files" 2>/dev/null
}

# Starts the node again, and does not come back.
again() {
  briefly leave
  say "starting again in 10 s"
  sleep 10
  restart
  exit 1 # the kernel panics, and panic=10 starts it again
}

# Has the other slot take this one's place, where it can: `give_way REASON`, as the record names it
give_way() {
  said=$(fruit-records fail "$slot" "$1" 2>&1)
  gave=$?
  say "$said"
  return $gave
}

# A slot on trial has spent a try, which U-Boot has counted: the node starts again. The slot that the node starts from would be
# started again and again, since U-Boot sees no more of it than its kernel and this initramfs: the other one takes its place, and
# where it cannot, the rescue waits for a person.
fail() {
  say "$*"
  briefly mark init "$*"
  briefly leave
  # What it is for is on the command line of a rescue that U-Boot starts
  [ -n "$trial" ] || give_way files-damaged || exec "${FRUIT_LIB:-/lib/fruit}/rescue" "$disk" "slot-$slot"
  again
}
