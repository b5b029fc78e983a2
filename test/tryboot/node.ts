/** A node with a tryboot card and the modelled firmware: what runs after a start, and what it does there. */
import type { SlotName } from "../../boot/layout.ts";
import type { BootRecord } from "../../boot/records.ts";
import { slotOfBoot } from "../../boot/tryboot/layout.ts";
import { openTryboot, type TrybootSwitch } from "../../boot/tryboot/switch.ts";
import type { Image } from "../crash/disk.ts";
import { MemoryDisk } from "./disk.ts";
import type { Firmware, Outcome } from "./firmware.ts";

/** What came up: a slot, the rescue on partition 1, or nothing. */
export type Running = SlotName | "rescue" | "nothing";

/** One board with its card. */
export class TrybootNode {
  readonly firmware: Firmware;
  readonly disk: MemoryDisk;
  outcome: Outcome = { is: "halted" };
  /** Kernels that hang before anything of ours runs. */
  broken: readonly string[] = [];

  constructor(firmware: Firmware, image: Image) {
    this.firmware = firmware;
    this.disk = new MemoryDisk(image);
  }

  powerOn(): Running {
    this.outcome = this.firmware.powerOn(this.disk.image);
    return this.running;
  }

  reboot(told?: string): Running {
    this.outcome = this.firmware.reboot(this.disk.image, told);
    return this.running;
  }

  watchdog(): Running {
    this.outcome = this.firmware.watchdog(this.disk.image);
    return this.running;
  }

  get running(): Running {
    if (this.outcome.is !== "started" || this.broken.includes(this.outcome.kernel)) return "nothing";
    return slotOfBoot(this.outcome.partition) ?? "rescue";
  }

  /** The switch as whatever runs opens it: the slot is that of the mounted root, whatever the device tree says. */
  open(): Promise<TrybootSwitch> {
    const { running, disk, firmware } = this;
    if (running === "nothing") throw new Error("nothing runs");
    const current = running === "rescue" ? undefined : running;
    return openTryboot({ disk, machine: firmware, current, now: () => 1_800_000_000 });
  }

  /** What agent or rescue does first. */
  async settle(): Promise<BootRecord> {
    return (await this.open()).settle();
  }
}
