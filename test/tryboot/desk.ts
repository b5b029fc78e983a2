/** A node with a card for tryboot as the builder made it: the next release, the real command, the shell of the rescue. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { $ } from "bun";
import { openNodeCard } from "../../agent/boot/open.ts";
import { run } from "../../agent/cli.ts";
import { readTrust } from "../../agent/release/files.ts";
import { install, type Order } from "../../agent/update/install.ts";
import { publicKeyOf } from "../../boot/ed25519.ts";
import type { SlotName } from "../../boot/layout.ts";
import { readRecords } from "../../boot/records.ts";
import { keyLine } from "../../boot/trust.ts";
import { readTrybootCard } from "../../boot/tryboot/layout.ts";
import { findAutoboot } from "../../boot/tryboot/sector.ts";
import { openTryboot, type TrybootSwitch } from "../../boot/tryboot/switch.ts";
import { openDisk } from "../../hal/disk.ts";
import { type BlockDevice, HalError } from "../../hal/ports.ts";
import { openSim } from "../../hal/sim/hal.ts";
import type { Image } from "../../image/fruitos/builder.ts";
import { seedOf, signedBy } from "../releases.ts";
import { ROOTFS, runScript } from "../shell.ts";
import type { Firmware, Outcome } from "./firmware.ts";
import { buildBoth, cardIn, PI5 } from "./image.ts";

/** What may come up. */
export const A = "partition 2, fruit.slot=a";
export const B = "partition 3, fruit.slot=b";
export const RESCUE = "partition 1, fruit.rescue=firmware";

/** What was started, by its partition and by the kernel's command line. */
export function started(outcome: Outcome): string {
  if (outcome.is !== "started") throw new Error(JSON.stringify(outcome));
  return `partition ${outcome.partition}, ${/fruit\.(slot|rescue)=\S+/.exec(outcome.words)?.[0]}`;
}

/** A simulated Pi, for what asks a machine for the time and its mounted root. */
export const { machine } = openSim({ seed: 1, boards: [], wireTime: false, faults: [], clockSynced: true });

/** A card of version 7 and a release of version 8. */
export class Desk {
  readonly folder = mkdtempSync(join(tmpdir(), "fruit-tryboot-"));
  readonly once = buildBoth(this.folder, 7n);
  readonly next = this.once.then(() => buildBoth(this.folder, 8n, { payloadOnly: true }));

  async close(): Promise<void> {
    await this.next.catch(() => {});
    rmSync(this.folder, { recursive: true, force: true });
  }

  /** A copy of the card. */
  async copy(name: string): Promise<Copy> {
    const { tryboot } = await this.once;
    const path = join(this.folder, `${name}.img`);
    await $`cp --sparse=always ${tryboot?.raw ?? ""} ${path}`;
    return new Copy(this, name, path);
  }

  /** A release, signed, in a node's data folder. */
  async signed(name: string, kind: "tryboot" | "uboot") {
    const both = await this.next;
    const release: Image | undefined = kind === "uboot" ? both : both.tryboot;
    if (!release) throw new Error("no release was made");
    const data = join(this.folder, `node-${name}`);
    mkdirSync(data, { recursive: true });
    const update = join(data, `${release.name}.fruit`);
    writeFileSync(update, signedBy("anna", readFileSync(release.update)));
    const signers = [{ id: "anna", key: keyLine(publicKeyOf(seedOf("anna"))), roles: ["release"] }];
    const trust = { schema: "fruit.trust/1", version: 1, threshold: { release: 1 }, signers };
    writeFileSync(join(data, "trust.json"), JSON.stringify(trust));
    const config = { site: "lab", data_dir: data, boot: { run_dir: join(data, "run") } };
    writeFileSync(join(data, "node.json"), JSON.stringify(config));
    return { ...release, update, data, board: kind === "uboot" ? "raspberrypi,3-model-b" : PI5 };
  }
}

/** One card, with what a test asks of it. */
export class Copy {
  readonly path: string;
  readonly card: ReturnType<typeof cardIn>;
  readonly #desk: Desk;
  readonly #name: string;

  constructor(desk: Desk, name: string, path: string) {
    this.path = path;
    this.card = cardIn(path);
    this.#desk = desk;
    this.#name = name;
  }

  async opened<T>(use: (disk: BlockDevice) => Promise<T>): Promise<T> {
    const disk = await openDisk(this.path, "write");
    return use(disk).finally(() => disk.close());
  }

  async record() {
    return (await this.opened((disk) => readRecords(disk))).newest?.record;
  }

  sector() {
    return this.opened(async (disk) => findAutoboot(disk, (await readTrybootCard(disk)).selector));
  }

  /** The switch as it is opened in a slot, or in the rescue. */
  slot<T>(
    current: SlotName | undefined,
    firmware: Firmware,
    act: (it: TrybootSwitch) => Promise<T>,
  ): Promise<T> {
    return this.opened(async (disk) => act(await openTryboot({ disk, current, machine: firmware })));
  }

  /** `fruit-records`. */
  records(...args: string[]) {
    return runScript(join(ROOTFS, "rescue/bin/fruit-records"), args, {
      ...{ FRUIT_DISK: this.path, FRUIT_LIB: join(ROOTFS, "initramfs/lib/fruit") },
    });
  }

  /** `fruit update install` of the next release, onto this card unless another is named. */
  async install(kind: "tryboot" | "uboot" = "tryboot", disk = this.path) {
    const { update, payload, side, data, board } = await this.#desk.signed(this.#name, kind);
    const words = [update, "--payload", payload, "--side", side, "--board", board, "--disk", disk];
    let [out, err] = ["", ""];
    const exit = await run(["update", "install", ...words, "--config", join(data, "node.json")], {
      ...{ out: (text) => (out += text), err: (text) => (err += text), env: {}, isTerminal: false },
      ...{ stdin: async () => new Uint8Array(), signal: new AbortController().signal },
    });
    return { exit, out, err };
  }

  /** The same until the power fails: at the first write for which that is said, of which nothing reaches the card. */
  async installUntil(isCut: (offset: number, bytes: Uint8Array) => boolean): Promise<void> {
    const { update, payload, side, data, board } = await this.#desk.signed(this.#name, "tryboot");
    let isOff = false;
    const cut = async (path: string, how: "read" | "write" | "exclusive"): Promise<BlockDevice> => {
      const disk = await openDisk(path, how);
      const live = () => {
        if (isOff) throw new HalError("io", "the power is off");
      };
      const write = disk.write.bind(disk);
      const flush = disk.flush.bind(disk);
      return Object.assign(disk, {
        write: async (offset: number, bytes: Uint8Array) => {
          isOff ||= path === this.path && isCut(offset, bytes);
          live();
          await write(offset, bytes);
        },
        flush: async () => {
          live();
          await flush();
        },
      });
    };
    const hal = { machine, openDisk: cut };
    const card = await openNodeCard(hal, this.path, "write");
    if (!card) throw new Error("no card");
    const order: Order = {
      ...{ hal, card, dataDir: data, update: { path: update, bytes: readFileSync(update) } },
      ...{
        trust: await readTrust(join(data, "trust.json")),
        side,
        payload,
        compatible: [board],
        force: false,
      },
      signal: new AbortController().signal,
      begins() {},
      report() {},
      warn() {},
    };
    const came = await install(order).then(
      () => "staged",
      (error: Error) => error.message,
    );
    await card.disk.close();
    if (!came.includes("the power is off")) throw new Error(`expected a cut, got: ${came}`);
  }
}
