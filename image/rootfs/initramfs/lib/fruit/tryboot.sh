# What of fruit-records is otherwise on a card on which the firmware chooses the slot (boot/tryboot/): the slots are logical
# partitions, and one sector, that of autoboot.txt on the first partition, follows the record.
TRIAL_STARTED=1 TRIES_SPENT=2 TRIAL_ARMED=8 COMMITTING=18 SWITCH_FAILED=19

word16() { echo $((0x$(turned "$(at "$1" "$2" 2)"))); } # HEX OFFSET

# The chain of tables of the extended partition: the first partition in it is slot a, the second slot b
place_of() { # a|b
  extended=$(word32 "$table" 502)
  here=$extended
  for link in a b; do
    chain=$(sectors "$here" 1 | hex)
    [ "$(at "$chain" 510 2)" = 55aa ] || { why="the extended partition's table at sector $here is damaged" && return 1; }
    first=$((here + $(word32 "$chain" 454)))
    size=$(($(word32 "$chain" 458) * 512))
    [ "$link" != "$1" ] || return 0
    here=$((extended + $(word32 "$chain" 470)))
  done
}

# Sets sector to where autoboot.txt is, as boot/tryboot/sector.ts finds it: one file, of one sector
find_autoboot() {
  start=$(word32 "$(sectors 0 1 | hex)" 454)
  head=$(sectors "$start" 1 | hex)
  [ "$(at "$head" 11 2)" = 0002 ] && [ "$(at "$head" 510 2)" = 55aa ] || no "partition 1 does not begin with a FAT file system"
  per=$((0x$(at "$head" 13 1)))
  tables=$((start + $(word16 "$head" 14)))
  clusters=$((tables + 0x$(at "$head" 16 1) * $(word32 "$head" 36)))
  cluster=$(word32 "$head" 44)
  sector=
  for _ in $(seq 64); do
    [ "$cluster" -ge 2 ] && [ "$cluster" -lt 268435448 ] || break
    folder=$(sectors $((clusters + (cluster - 2) * per)) $per | hex)
    row=0
    while [ $row -lt $((per * 16)) ]; do
      entry=$(at "$folder" $((row * 32)) 32)
      row=$((row + 1))
      [ "$(at "$entry" 0 11)" = 4155544f424f4f54545854 ] && [ "$(word32 "$entry" 28)" = 512 ] || continue
      [ -z "$sector" ] || no "autoboot.txt is on partition 1 twice"
      sector=$((clusters + ($(word16 "$entry" 20) * 65536 + $(word16 "$entry" 26) - 2) * per))
    done
    next=$(sectors $((tables + cluster / 128)) 1 | hex)
    cluster=$(($(word32 "$next" $((cluster % 128 * 4))) & 268435455))
  done
  [ -n "$sector" ] && [ "$sector" -gt "$clusters" ] || no "partition 1 has no autoboot.txt of 512 bytes"
}

# The same bytes as boot/tryboot/autoboot.ts makes: `autoboot a|b`
autoboot() {
  case $1 in a) set a 2 3 ;; b) set b 3 2 ;; esac
  text=$(printf '[all]\ntryboot_a_b=1\nboot_partition=%s\n[tryboot]\nboot_partition=%s\n' "$2" "$3")
  text="$text
# slot $1; made by fruit from the boot record: 512 bytes, written over in place
"
  {
    for _ in 1 2 3 4 5 6 7 8; do echo "###############################################################"; done
  } | tail -c $((512 - ${#text})) | { printf %s "$text" && cat; }
}

# The sector follows the record: sets followed where it had to be changed
follow() { # a|b
  followed=
  find_autoboot
  autoboot "$1" >"$work/autoboot"
  sectors "$sector" 1 | cmp -s - "$work/autoboot" && return
  put_sector "$work/autoboot" "$sector"
  followed=yes
  echo "autoboot.txt has the firmware start slot $1 now (sector $sector)"
}

# The newest record, to be changed, and which slot it has the node start from: primary, other, and where the other one stands in it
take() {
  read_places
  [ -n "$newest" ] || no "no place holds a valid record"
  take_newest
  if [ "$(word32 "$record" 12)" = 1 ]; then primary=b other=a base=64; else primary=a other=b base=192; fi
  reason=$(word32 "$record" 36)
  is_trial=
  [ "$(word32 "$record" 16)" != 1 ] || is_trial=yes
}

# Notes that the slot on trial has started, as TrybootSwitch.markStarted does; prints the trial's id and the try. Fails where a start of
# this slot is none.
start() { # a|b
  take
  [ -n "$is_trial" ] && [ "$other" = "$1" ] && [ "$(word32 "$record" $base)" = $TRYING ] || return 1
  left=$(word32 "$record" 24)
  tried=$(word32 "$record" 28)
  case $reason in
  "$TRIAL_STARTED") ;;
  "$TRIAL_ARMED")
    [ "$left" = 0 ] || left=$((left - 1))
    tried=$((tried + 1))
    put 24 "$(le32 "$left")$(le32 "$tried")"
    (write $TRIAL_STARTED) >&2 # a try that cannot be noted is one all the same
    ;;
  *) return 1 ;;
  esac
  echo "$(word32 "$record" 20) $tried"
}

# A slot runs that cannot be started and that the record does not have the node start from: a cut came between record and sector. Brings
# to its end what it cut short; fails where that is nothing.
catch_up() { # a|b REASON
  take
  if [ -n "$is_trial" ] && [ "$reason" = $COMMITTING ] && [ "$other" = "$1" ]; then
    end_trial "$2"
    return
  fi
  follow "$primary"
  [ -n "$followed" ]
}

# The slot on trial has failed, and the node starts from the one that it started from before
end_trial() { # REASON
  put $base "$(le32 $FAILED)$(le32 "$1")"
  put 16 "$(le32 0)"
  # shellcheck disable=SC2086 # words
  echo "slot $other has failed ($(nth "$1" $reasons)), its trial is over"
  write "$1"
  follow "$primary"
}

blocks() { # FIRST BYTES, of 4096: as sectors, for what is long
  set -- "if=$disk bs=4096 skip=$(($1 / 8)) count=$(($2 / 4096))"
  # shellcheck disable=SC2086 # words
  dd $1 iflag=direct 2>/dev/null || dd $1 2>/dev/null
}

# Whether the firmware finds of a slot what its payload says. Slot b differs by one byte, that of its name in cmdline.txt
is_whole() { # a|b
  look_at "$1"
  [ -z "$why" ] && [ -n "$fat" ] || return 1
  case $1 in a) entry=462 ;; b) entry=478 ;; esac
  mkfifo "$work/set"
  blocks "$(word32 "$table" $((entry + 8)))" "$fat_bytes" >"$work/set" &
  # Where and what, in octal
  found=$(blocks "$fat" "$fat_bytes" | cmp -l - "$work/set" 2>&1 | head -n 2 | tr -s ' \n' ' ')
  rm "$work/set"
  if [ "$1" = a ]; then
    [ -z "$found" ]
    return
  fi
  # shellcheck disable=SC2086 # words
  set -- $found
  [ "$# $2 $3" = "3 141 142" ] || return 1
  own=$(($1 - 12))
  [ "$(sectors $((fat + own / 512)) 2 | tail -c +$((own % 512 + 1)) | head -c 12)" = fruit.slot=a ]
}

# The firmware has come to the first partition: it did not find its way, and the sector is mended; or what it should start cannot be
# started. It comes there by accident, too (rpi-eeprom#758), so that nobody is blamed whose files are as they should be: then 3.
settle() {
  read_places
  [ -n "$newest" ] || { repair && return; }
  take
  # What was about to become good may be started, and ends it itself
  starts=$primary
  [ -z "$is_trial" ] || [ "$reason" != $COMMITTING ] || starts=$other
  follow "$starts"
  [ -z "$followed" ] || return 0
  if [ -n "$is_trial" ]; then
    is_whole "$other" || { end_trial $FILES_DAMAGED && return; }
    left=$(word32 "$record" 24)
    [ "$reason" != $TRIAL_ARMED ] || left=$((left - 1))
    if [ "$starts" = "$primary" ] && [ "$left" -le 0 ]; then
      # What nobody saw start proves nothing against it
      [ "$(word32 "$record" 28)" = 0 ] && reason=$SWITCH_FAILED || reason=$TRIES_SPENT
      end_trial "$reason"
      return
    fi
  else
    is_whole "$primary" || { fail "$primary" && return; }
  fi
  echo "what the firmware should start is whole: another start may come further"
  return 3
}
