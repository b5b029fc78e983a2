# What U-Boot does at every start: it reads the records (boot/record.ts has their layout), picks a slot, counts a trial
# down before it starts it, and boots. It writes records and nothing else. image/bootscript.ts makes boot.scr of this.
#
# Files on p1 (FAT32, the only partition marked active): the firmware's and its config.txt, cmdline.txt, U-Boot,
#   boot.scr            this
#   rescue/Image        an arm64 Linux Image, not compressed, at most 80 MiB
#   rescue/initramfs    at most 96 MiB
# and no extlinux/, boot.scr.uimg or uboot.env, which U-Boot would follow first.
#
# Builds of U-Boot (Debian u-boot-rpi 2023.01, stock): rpi_3 for Pi 2 v1.2, 3 and Zero 2 W; rpi_4 for Pi 4; rpi_arm64 for all of
# these. A Pi 5 needs 2024.04 or later (rpi_arm64); with an older one it starts by tryboot. Emulated: rpi_3 in every case of
# test/proof/uboot.proof.ts, rpi_arm64 in some by hand, rpi_4 never. No saved environment is written, none is needed.
# The stock builds wait two seconds for a key on serial line and keyboard, and any byte will do: what talks on the line of the
# console by itself (or a line left open) stops a node there for ever. With enable_uart=0 the firmware leaves GPIO 14 and 15
# unconnected, and U-Boot's drivers pass over a line that is (drivers/serial/serial_bcm283x_mu.c, serial_bcm283x_pl011.c), though
# the help of its Kconfig demands enable_uart=1 of Pi 3 and 4: not tried. The console of a Pi 5 is on a connector of its own.
#
# Numbers are hexadecimal, as U-Boot has them. What must not be forgotten about its shell: there are no functions, so
# commands stand in variables for `run`; no apostrophe and no comment may stand inside them; `booti` returns only if it failed.
#
# Memory, for boards of 512 MiB. U-Boot itself sits at the top, its first copy and device tree below 200000.
#   00200000  kernel, at most 05000000 bytes: what it needs beyond its file ends below 06000000
#   06000000  initramfs, at most 06000000 bytes
#   0c000000  the slot's own device tree, at most 00100000 bytes
#   0d000000  the firmware's device tree, moved away from wherever it lies, with room for what booti adds
#   0e000000  the record that counts, 0e000200 the one read last, 0e000400 a CRC-32 as U-Boot stores it, 0e000410 as the
#             records have it (big-endian), 0e000600 the record as it was
#   10000000  a packed kernel is unpacked here, at most 05000000 bytes as well
#
# A record, at 0e000000: +8 sequence, +c primary, +10 trial, +14 trial id, +18 tries left, +1c started, +24 reason,
# +40 slot a, +c0 slot b, +1fc CRC-32. A slot: +0 state (3 trying, 4 good, 5 failed), +4 reason (1 trial-started, 2 tries-spent,
# 3 files-damaged), +20 kernel, +2c initramfs, +38 device tree, each: sector in the slot, bytes, CRC-32.

test -n "${devtype}" || setenv devtype mmc
test -n "${devnum}" || setenv devnum 0
${devtype} dev ${devnum}
# Nothing is moved once it is loaded
setenv fdt_high ffffffffffffffff
setenv initrd_high ffffffffffffffff
# A slot's kernel may be packed with gzip: a third to read. booti unpacks it here and moves it to its place
setenv kernel_comp_addr_r 10000000
setenv kernel_comp_size 5000000

# The firmware's device tree has the HAT, the overlays and p1's cmdline.txt
setenv fr_tree
setenv fr_args
if test -n "${fdt_addr}"; then
  if fdt addr ${fdt_addr}; then
    if fdt move ${fdt_addr} 0d000000 100000; then
      setenv fr_tree 0d000000
      fdt get value fr_args /chosen bootargs
    fi
  fi
fi
if test ${devtype} = usb; then setenv fr_args "${fr_args} fruit.disk=sda"; fi

# A build with more hashes than CRC-32 stores it big-endian, one without as the processor has its words (common/hash.c):
# which this is, four zero bytes show, whose CRC-32 is 2144df1c. `run fr_sum` leaves that of fr_length bytes at fr_from in 0e000410
setenv fr_order 'cp.l 0e000400 0e000410 1'
mw.l 0e000600 0
crc32 0e000600 4 0e000400
if itest.l *0e000400 == 2144df1c; then
  setenv fr_order 'cp.b 0e000400 0e000413 1; cp.b 0e000401 0e000412 1; cp.b 0e000402 0e000411 1; cp.b 0e000403 0e000410 1'
fi
setenv fr_sum 'crc32 ${fr_from} ${fr_length} 0e000400; run fr_order'

# Reads the place fr_place to 0e000200; fr_valid says whether it holds a record
setenv fr_read '
setenv fr_valid 0
mw.l 0e000200 0 80
if ${devtype} read 0e000200 ${fr_place} 1; then
  setenv fr_from 0e000200
  setenv fr_length 1fc
  run fr_sum
  if itest.l *0e000200 == 42555246 && itest.l *0e000410 == *0e0003fc; then setenv fr_valid 1; fi
fi'

# The place for the next record: the first that holds none, otherwise the oldest; never the newest, none that failed just now
setenv fr_choose '
setenv fr_best none
setenv fr_blank 0
for fr_place in 2000 4000 6000 8000; do
  if test ${fr_blank} = 0 && test ${fr_place} != ${fr_newest}; then
    if env exists fr_bad_${fr_place}; then true; else
      run fr_read
      if test ${fr_valid} = 0; then
        setenv fr_best ${fr_place}
        setenv fr_blank 1
      else
        setexpr.l fr_this *0e000208
        if test ${fr_best} = none || itest ${fr_this} -lt ${fr_least}; then
          setenv fr_best ${fr_place}
          setenv fr_least ${fr_this}
        fi
      fi
    fi
  fi
done'

# Writes the record at 0e000000 to one place and reads it back
setenv fr_put '
run fr_choose
setexpr.l fr_sequence *0e000008
if test ${fr_best} = none || test ${fr_sequence} = ffffffff; then
  echo "fruit: sequence ${fr_sequence}, place ${fr_best}: no record can be written"
else
  setexpr fr_sequence ${fr_sequence} + 1
  mw.l 0e000008 ${fr_sequence}
  setenv fr_from 0e000000
  setenv fr_length 1fc
  run fr_sum
  cp.l 0e000410 0e0001fc 1
  if ${devtype} write 0e000000 ${fr_best} 1; then
    mw.l 0e000200 0 80
    if ${devtype} read 0e000200 ${fr_best} 1; then
      if cmp.l 0e000000 0e000200 80; then setenv fr_written 1; fi
    fi
  fi
  if test ${fr_written} = 1; then
    echo "fruit: record ${fr_sequence} written at sector ${fr_best}"
    setenv fr_newest ${fr_best}
  else
    echo "fruit: record ${fr_sequence} cannot be written at sector ${fr_best}"
    setenv fr_bad_${fr_best} 1
  fi
fi'

# Writes the record to the first of three places that takes it. Each attempt has its own sequence number, so that one that
# was taken after all never stands beside another of the same
setenv fr_write '
setenv fr_written 0
for fr_turn in 1 2 3; do
  if test ${fr_written} = 0; then run fr_put; fi
done'

setenv fr_use_a 'setenv fr_slot a; setenv fr_part 2; setenv fr_base 0e000040'
setenv fr_use_b 'setenv fr_slot b; setenv fr_part 3; setenv fr_base 0e0000c0'

# Loads the file whose entry is at fr_entry to fr_to; fr_good says whether it is whole
setenv fr_file '
setenv fr_good 0
setexpr.l fr_sector *${fr_entry}
setexpr fr_entry ${fr_entry} + 4
setexpr.l fr_bytes *${fr_entry}
setexpr fr_entry ${fr_entry} + 4
if itest ${fr_bytes} != 0 && itest ${fr_bytes} -le ${fr_most}; then
  setexpr fr_sector ${fr_sector} + ${fr_start}
  setexpr fr_count ${fr_bytes} + 1ff
  setexpr fr_count ${fr_count} / 200
  if ${devtype} read ${fr_to} ${fr_sector} ${fr_count}; then
    setenv fr_from ${fr_to}
    setenv fr_length ${fr_bytes}
    run fr_sum
    if itest.l *0e000410 == *${fr_entry}; then setenv fr_good 1; fi
  fi
fi
if test ${fr_good} = 0; then echo "fruit: slot ${fr_slot}: the ${fr_what} is damaged or missing"; fi'

# Loads what the slot fr_slot starts from; fr_good says whether all of it is whole
setenv fr_load '
setenv fr_good 0
if part start ${devtype} ${devnum} ${fr_part} fr_start; then
  setenv fr_what kernel
  setenv fr_to 00200000
  setenv fr_most 05000000
  setexpr fr_entry ${fr_base} + 20
  run fr_file
  if test ${fr_good} = 1; then
    setenv fr_what initramfs
    setenv fr_to 06000000
    setenv fr_most 06000000
    setexpr fr_entry ${fr_base} + 2c
    run fr_file
    setenv fr_initramfs ${fr_bytes}
  fi
  setenv fr_dtb ${fr_tree}
  if test ${fr_good} = 1 && test -z "${fr_tree}"; then
    setenv fr_what "device tree"
    setenv fr_to 0c000000
    setenv fr_most 00100000
    setexpr fr_entry ${fr_base} + 38
    run fr_file
    setenv fr_dtb 0c000000
  fi
else
  echo "fruit: slot ${fr_slot}: no partition ${fr_part}"
fi'

# Starts what was loaded
setenv fr_boot '
setenv bootargs "${fr_args} fruit.slot=${fr_slot}${fr_trial} panic=10"
echo "fruit: slot ${fr_slot}${fr_trial}"
booti 00200000 06000000:${fr_initramfs} ${fr_dtb}
echo "fruit: slot ${fr_slot}: U-Boot cannot start its kernel"'

# The slot on trial has failed for fr_reason
setenv fr_fail '
mw.l ${fr_base} 5
setexpr fr_entry ${fr_base} + 4
mw.l ${fr_entry} ${fr_reason}
mw.l 0e000024 ${fr_reason}
mw.l 0e000010 0
run fr_write'

# fr_decimal is fr_number in decimal
setenv fr_count_in_tens '
setenv fr_decimal
while itest ${fr_number} != 0; do
  setexpr fr_digit ${fr_number} % a
  setexpr fr_number ${fr_number} / a
  setenv fr_decimal ${fr_digit}${fr_decimal}
done
test -n "${fr_decimal}" || setenv fr_decimal 0'

# One try of the slot on trial: counted down and marked started before anything of it is loaded
setenv fr_try '
cp.l 0e000000 0e000600 80
setexpr.l fr_left *0e000018
setexpr fr_left ${fr_left} - 1
mw.l 0e000018 ${fr_left}
setexpr.l fr_number *0e00001c
setexpr fr_number ${fr_number} + 1
mw.l 0e00001c ${fr_number}
mw.l 0e000024 1
run fr_write
if test ${fr_written} = 1; then
  run fr_count_in_tens
  setenv fr_trial " fruit.try=${fr_decimal}"
  setexpr.l fr_number *0e000014
  run fr_count_in_tens
  setenv fr_trial " fruit.trial=${fr_decimal}${fr_trial}"
  echo "fruit: slot ${fr_slot} is tried, tries left after this: ${fr_left}"
  run fr_load
  if test ${fr_good} = 1; then run fr_boot; fi
  setenv fr_trial
  setenv fr_reason 3
  run fr_fail
else
  echo "fruit: slot ${fr_slot} is not tried, since this try cannot be counted"
  setexpr.l fr_sequence *0e000008
  cp.l 0e000600 0e000000 80
  mw.l 0e000008 ${fr_sequence}
fi'

# The primary slot, and if it is damaged the other one if that is good
setenv fr_start_primary '
run fr_use_${fr_primary}
run fr_load
if test ${fr_good} = 1; then run fr_boot; fi
setenv fr_old ${fr_base}
run fr_use_${fr_other}
if itest.l *${fr_base} == 4; then
  run fr_load
  if test ${fr_good} = 1; then
    echo "fruit: slot ${fr_primary} cannot be started, slot ${fr_other} takes its place"
    if test ${fr_other} = b; then mw.l 0e00000c 1; else mw.l 0e00000c 0; fi
    mw.l ${fr_old} 5
    setexpr fr_old ${fr_old} + 4
    mw.l ${fr_old} 3
    mw.l 0e000024 3
    run fr_write
    run fr_boot
  fi
fi
setenv fr_why damaged'

setenv fr_newest none
for fr_place in 2000 4000 6000 8000; do
  run fr_read
  if test ${fr_valid} = 1; then
    setexpr.l fr_this *0e000208
    echo "fruit: sector ${fr_place}: record ${fr_this}"
    if test ${fr_newest} = none || itest.l *0e000208 -gt *0e000008; then
      cp.l 0e000200 0e000000 80
      setenv fr_newest ${fr_place}
    fi
  else
    echo "fruit: sector ${fr_place}: no valid record"
  fi
done

setenv fr_trial
if test ${fr_newest} = none; then
  setenv fr_why no-record
else
  if itest.l *0e00000c == 1; then
    setenv fr_primary b
    setenv fr_other a
  else
    setenv fr_primary a
    setenv fr_other b
  fi
  run fr_use_${fr_other}
  if itest.l *0e000010 == 1 && itest.l *${fr_base} == 3; then
    if itest.l *0e000018 == 0; then
      echo "fruit: slot ${fr_slot} has spent its tries"
      setenv fr_reason 2
      run fr_fail
    else
      run fr_try
    fi
  fi
  run fr_start_primary
fi

echo "fruit: rescue, ${fr_why}"
test -n "${fr_tree}" || setenv fr_tree ${fdtcontroladdr}
if load ${devtype} ${devnum}:1 00200000 rescue/Image && load ${devtype} ${devnum}:1 06000000 rescue/initramfs; then
  setenv bootargs "${fr_args} fruit.rescue=${fr_why} panic=10"
  booti 00200000 06000000:${filesize} ${fr_tree}
fi
echo "fruit: no slot can be started and neither can the rescue on p1; once more in 30 s"
sleep 30
reset
