# Counts the starts of a slot that is no trial, and has the other one take its place when they lead to nothing: U-Boot counts tries
# only, and would start for ever what panics or hangs behind switch_root. Wants disk.sh, fail.sh, and the data mounted.
#
#   DATA/boot/starts.a, .b   a boot id a line; the agent removes them once it was up for long enough (agent/boot/starts.ts)
#   DATA/boot/spent.a, .b    the last starts that the other slot took over from, for the agent to tell
#   DATA/boot/dead.a, .b     how often in a row the feeder has started the node again for a dead agent of this slot
#
# Ten: a power cut looks like a crash. Nobody switches a node off and on ten times in a row, each time within minutes, whereas one
# that crashes gets there in a quarter of an hour; and if it was the power after all, little is lost: the other slot is good as well,
# and nothing is held against the release. A dead agent is no power cut, the feeder has waited for minutes each time, and after
# three times it leaves the node as it is: then the other slot is tried before.
#
# The slot that gives way has failed, and one that has failed takes no other's place: two bad slots do not take turns. The second of
# them is started for ever, says so each time, and after some starts its agent and the feeder leave the node up for a person. Where
# the person chooses the first one again, it has its own ten: a slot's list is over as soon as the other one starts.
often=10
thrice=3
most=1000 # lines, as the agent has it

starts() { head -n $most "$files/fruit/boot/starts.$slot" 2>/dev/null | grep -xE '[A-Za-z0-9_-]{1,64}' | sort -u | wc -l; }
dead() {
  died=$(head -c 9 "$files/fruit/boot/dead.$slot" 2>/dev/null)
  case $died in '' | *[!0-9]*) echo 0 ;; *) echo "$died" ;; esac
}
note() {
  mkdir -p "$files/fruit/boot" && cat /proc/sys/kernel/random/boot_id >>"$files/fruit/boot/starts.$slot"
  sync
}
# What was counted of a slot is over: `retire a|b`
retire() {
  set -- "$files/fruit/boot" "$1"
  [ ! -e "$1/starts.$2" ] && [ ! -e "$1/dead.$2" ] && return
  mv "$1/starts.$2" "$1/spent.$2" 2>/dev/null
  rm -f "$1/dead.$2"
  sync
}

count() {
  # Perhaps the power went before the other one could do so itself
  case $slot in a) briefly retire b ;; b) briefly retire a ;; esac
  counted=$(starts)
  why=
  [ "$(dead)" -lt $thrice ] || why="its agent was dead in $(dead) starts in a row"
  [ "$counted" -lt $often ] || why="$counted starts in a row without health"
  if [ -n "$why" ]; then
    say "slot $slot: $why"
    if give_way starts-spent; then
      briefly mark init "$why"
      briefly retire "$slot"
      again
    fi
    say "slot $slot is started all the same"
  fi
  [ "$counted" -ge $most ] || briefly note
}
