/** A node with a tryboot card and the modelled firmware: what runs after a start, and what it does there. */
import {
  closeSync,
  mkdtempSync,
  openSync,
  readSync,
  rmSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SECTOR, SLOTS, type SlotName } from "../../boot/layout.ts";
import type { BootRecord } from "../../boot/record.ts";
import { makeAutoboot } from "../../boot/tryboot/autoboot.ts";
import { slotOfBoot } from "../../boot/tryboot/layout.ts";
import { openTryboot, type TrybootSwitch } from "../../boot/tryboot/switch.ts";
import type { Image } from "../crash/disk.ts";
import { ROOTFS, runScript } from "../shell.ts";
import { PLACES } from "./card.ts";
import { MemoryDisk, type Write } from "./disk.ts";
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

  /** The switch as the agent of the slot that runs opens it: the slot is that of the mounted root, whatever the device tree says. */
  open(): Promise<TrybootSwitch> {
    const { running, disk, firmware } = this;
    if (running === "nothing" || running === "rescue") throw new Error(`no agent: ${running} runs`);
    return openTryboot({ disk, machine: firmware, current: running, now: () => 1_800_000_000 });
  }

  /** What the agent does first. */
  async settle(): Promise<BootRecord> {
    return (await this.open()).settle();
  }

  /** `fruit-records`, as the initramfs or the rescue runs it. */
  async records(...args: string[]): Promise<Said> {
    const { image } = this.disk;
    const { writes, ...said } = await recordsOn(image, args);
    for (const { offset, bytes } of writes) image.write(offset, bytes);
    return said;
  }
}

/** What a run of `fruit-records` came to. */
export interface Said {
  exit: number;
  out: string;
  err: string;
}

/** A run of it on a card in a file: what it says, and what it writes, in the order in which it says so. */
export async function recordsOn(image: Image, args: readonly string[]): Promise<Said & { writes: Write[] }> {
  const folder = mkdtempSync(join(tmpdir(), "fruit-records-"));
  const path = join(folder, "card");
  try {
    writeFileSync(path, "");
    truncateSync(path, image.bytes);
    const fd = openSync(path, "r+");
    for (const { offset, bytes } of image.written()) writeSync(fd, bytes, 0, bytes.length, offset);
    const said = await runScript(join(ROOTFS, "rescue/bin/fruit-records"), args, {
      ...{ FRUIT_DISK: path, FRUIT_LIB: join(ROOTFS, "initramfs/lib/fruit") },
    });
    const writes = [...`${said.out}${said.err}`.matchAll(/\bsector (\d+)/g)].map(([, sector]) => {
      const [offset, bytes] = [Number(sector) * SECTOR, new Uint8Array(SECTOR)];
      readSync(fd, bytes, 0, SECTOR, offset);
      return { offset, bytes };
    });
    closeSync(fd);
    return { ...said, writes };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** The rescue of a card that the firmware came to by itself. Of sectors that are garbage one stands for all: each is a run of many programs. */
export class Rescue {
  readonly #known = new Map<string, ReturnType<typeof recordsOn>>();

  /** What it does to a card. */
  async settle({ disk: { image } }: TrybootNode): Promise<Said> {
    const held = Buffer.from(image.read(PLACES.autoboot, SECTOR));
    const asked = image.copy();
    if (!SLOTS.some((slot) => held.equals(makeAutoboot(slot))))
      asked.write(PLACES.autoboot, new Uint8Array(SECTOR));
    const known = this.#known.get(asked.digest) ?? recordsOn(asked, ["settle"]);
    this.#known.set(asked.digest, known);
    const { writes, ...said } = await known;
    for (const { offset, bytes } of writes) image.write(offset, bytes.slice());
    return said;
  }
}
