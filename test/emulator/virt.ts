/**
 * QEMU's own arm64 board (virt) with Debian's kernel, for its GPIO controller: an ARM PL061 with eight lines whose inputs can be
 * driven from outside and raise interrupts, which the emulated Pi's cannot.
 */
import { cached } from "./cache.ts";
import type { Files } from "./disk.ts";
import { makeGuest } from "./guest.ts";
import { Machine } from "./machine.ts";

/** Starts it. Its line is `ttyAMA0`, the kernel's console. `devices` are QEMU's, by its options for them. */
export function startVirt({
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
      arch: "arm64",
      root: "/dev/vda",
      control: "/dev/hvc0",
      diskModules: ["virtio_pci", "virtio_blk"],
      modules: ["virtio_console", ...modules],
      rootFiles,
    });
    return {
      program: "qemu-system-aarch64",
      args: [
        ...["-M", "virt", "-cpu", "cortex-a53", "-m", "1G", "-smp", "2"],
        ...["-kernel", cached("arm64", "vmlinuz"), "-initrd", initramfs],
        ...["-append", "console=ttyAMA0,115200 fruit.root=/dev/vda panic=-1"],
        ...["-drive", `file=${root},format=raw,if=none,id=root,readonly=on`],
        ...["-device", "virtio-blk-pci,drive=root"],
        ...devices.flatMap((device) => ["-device", device]),
      ],
      serial: ["ttyAMA0"],
      control: ["virtio-serial-pci", "virtconsole,chardev=CHARDEV"],
    };
  });
}
