/**
 * A PC in emulation (QEMU q35) with Debian's kernel, for its SMBus controller: an Intel ICH9, driven by i2c-i801, which makes
 * SMBus transactions and no plain I²C transfers. QEMU puts eight EEPROMs of 256 bytes on its bus, at 0x50 to 0x57.
 */
import { cached } from "./cache.ts";
import type { Files } from "./disk.ts";
import { makeGuest } from "./guest.ts";
import { Machine } from "./machine.ts";

const DISK_MODULES = ["virtio_pci", "virtio_blk"];

/** Starts it. Its lines are `ttyS0`, the kernel's console, and `ttyS1`, both 16550A. `devices` are QEMU's, by its options for them. */
export function startQ35({
  rootFiles,
  modules = [],
  devices = [],
}: {
  rootFiles: Files;
  modules?: readonly string[];
  devices?: readonly string[];
}): Promise<Machine> {
  return Machine.start(async (folder) => {
    const { initramfs, root } = await makeGuest(folder, {
      arch: "amd64",
      root: "/dev/vda",
      control: "/dev/hvc0",
      diskModules: DISK_MODULES,
      modules: ["virtio_console", ...modules],
      rootFiles,
    });
    return {
      program: "qemu-system-x86_64",
      args: [
        ...["-M", "q35", "-cpu", "max", "-m", "1G", "-smp", "2", "-accel", "tcg,thread=multi"],
        ...["-kernel", cached("amd64", "vmlinuz"), "-initrd", initramfs],
        ...["-append", "console=ttyS0,115200 fruit.root=/dev/vda panic=-1"],
        ...["-drive", `file=${root},format=raw,if=none,id=root,readonly=on`],
        ...["-device", "virtio-blk-pci,drive=root"],
        ...devices.flatMap((device) => ["-device", device]),
      ],
      serial: ["ttyS0", "ttyS1"],
      control: ["virtio-serial-pci", "virtconsole,chardev=CHARDEV"],
    };
  });
}
