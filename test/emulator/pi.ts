/**
 * A Raspberry Pi 3 in emulation (QEMU raspi3b, four Cortex-A53, 1 GB): Debian's U-Boot starts Debian's kernel from the SD card.
 *
 * It has two UARTs, USB, the SD card and the GPIO controller's outputs. It has no I²C, no firmware mailbox device, no edges
 * on GPIO lines (QEMU 7.2 models none), no clock that is right, and its UARTs pass bytes whatever the baud rate.
 */
import { join } from "node:path";
import { cached } from "./cache.ts";
import { type Files, makeBootScript, makeSdCard } from "./disk.ts";
import { makeGuest } from "./guest.ts";
import { Machine } from "./machine.ts";

/** Pins of the SoC, by QEMU's name for their controller. */
export const PI_GPIO = "/machine/soc/peripherals/gpio";

/** Registers of the BCM2837 (BCM2835 ARM Peripherals, with the Pi 3's base). */
const REGISTER = { gpioFunction: 0x3f200000, gpioLevel: 0x3f200034, uartDivisor: 0x3f201024 };

/** What a GPIO pin is, as the hardware has it. */
export async function pinOf(pi: Machine, pin: number): Promise<{ isOutput: boolean; level: number }> {
  const functions = await pi.monitor.word(REGISTER.gpioFunction + 4 * Math.floor(pin / 10));
  const levels = await pi.monitor.word(REGISTER.gpioLevel + 4 * (pin >> 5));
  return { isOutput: ((functions >> (3 * (pin % 10))) & 7) === 1, level: (levels >>> (pin & 31)) & 1 };
}

/**
 * QEMU's mini UART does not know that its first register is the divisor's low half while that is set, and sends it as a byte:
 * 50 MHz / 9600 = 0x1458 (ttyS1's base_baud; drivers/tty/serial/8250).
 */
export const TTYS1_NOISE = 0x58;

/** What the PL011 divides its clock by, for its baud rate: 48 MHz / (16 × divisor). */
export async function uartDivisor(pi: Machine): Promise<number> {
  const [whole, part] = [
    await pi.monitor.word(REGISTER.uartDivisor),
    await pi.monitor.word(REGISTER.uartDivisor + 4),
  ];
  return whole + part / 64;
}

const DISK_MODULES = ["sdhci-iproc", "bcm2835"];
const MODULES = ["phy-generic", "dwc2", "ftdi_sio", "bcm2835_wdt"];

/** What the firmware of a real Pi does to the device tree, in U-Boot's words. */
const TREE = [
  // As `dtoverlay=disable-bt`: otherwise the Bluetooth driver has ttyAMA0 for itself.
  "fdt rm /soc/serial@7e201000/bluetooth",
  // U-Boot writes it there; QEMU's firmware has none.
  "env set -f serial# 00000000c0ffee00",
];

/** U-Boot's own default addresses leave 38 MB for a kernel; this one is larger once it runs. */
const script = (tree: readonly string[]) => `fdt addr \${fdt_addr}
fdt resize 4096
${tree.join("\n")}
setenv bootargs "console=ttyS1,115200 fruit.root=/dev/mmcblk0p2 panic=-1"
load mmc 0:1 0x00200000 vmlinuz
load mmc 0:1 0x06000000 initramfs
booti 0x00200000 0x06000000:\${filesize} \${fdt_addr}
`;

/**
 * Starts it. Its lines are `ttyAMA0` and `ttyS1`, which is U-Boot's and the kernel's console until the first step.
 * `tree` are U-Boot's commands for what else stands in the device tree, such as a HAT.
 */
export function startPi({
  rootFiles,
  tree = [],
}: {
  rootFiles: Files;
  tree?: readonly string[];
}): Promise<Machine> {
  return Machine.start(async (folder) => {
    const { initramfs, root } = await makeGuest(folder, {
      arch: "arm64",
      root: "/dev/mmcblk0p2",
      control: "/dev/ttyUSB0",
      diskModules: DISK_MODULES,
      modules: MODULES,
      rootFiles,
    });
    const bootScript = await makeBootScript(join(folder, "boot.scr"), script([...TREE, ...tree]));
    const vmlinuz = cached("arm64", "vmlinuz");
    const sd = await makeSdCard(join(folder, "sd.img"), { vmlinuz, initramfs, "boot.scr": bootScript }, root);
    return {
      program: "qemu-system-aarch64",
      args: [
        // One thread: cores that wait for Linux spin, and would take the time of the one that works
        ...["-M", "raspi3b", "-accel", "tcg,thread=single", "-dtb", cached("arm64", "bcm2837-rpi-3-b.dtb")],
        ...["-kernel", cached("arm64", "u-boot.bin"), "-drive", `file=${sd},format=raw,if=sd`],
      ],
      serial: ["ttyAMA0", "ttyS1"],
      control: [],
      // Later, since dwc2 does not find what U-Boot has found before it. The root hub has one port.
      plug: [
        { driver: "usb-hub", port: "1" },
        { driver: "usb-serial", port: "1.1", chardev: "control" },
      ],
    };
  });
}
