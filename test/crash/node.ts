/**
 * A whole node on a crash disk: U-Boot by its model, everything after it by the code that ships. The kernel, the initramfs and
 * the watchdog feeder are told here in one line each: who runs depends on what the slot holds.
 */
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { crc32 } from "node:zlib";
import { ChunkIndex, ENTRY_BYTES } from "../../boot/chunks.ts";
import { LEAF_BYTES } from "../../boot/content.ts";
import { copyHeld } from "../../boot/delta.ts";
import { otherSlot, RECORD_OFFSETS, SECTOR, SLOTS, type SlotName } from "../../boot/layout.ts";
import { fileProgress, type ProgressStore } from "../../boot/progress.ts";
import { type BootRecord, decodeRecord } from "../../boot/record.ts";
import { newestOf } from "../../boot/records.ts";
import type { BootSwitch } from "../../boot/switch.ts";
import { UBootSwitch } from "../../boot/uboot/switch.ts";
import { SlotWriter } from "../../boot/writer.ts";
import type { BlockDevice } from "../../hal/ports.ts";
import { type AgentEnd, type AgentStart, runAgent } from "./agent.ts";
import { BOARD, type Payload, SLOT_BYTES, SLOT_OFFSETS, slotHolds } from "./card.ts";
import { AREA, CrashDisk, type Image, type Step } from "./disk.ts";
import { digestOf, type Folder, readFolder } from "./folder.ts";
import { type Start, start } from "./model.ts";

/**
 * How a release fares once it is started: `well`; `sick`, a check says no; `mute`, the initramfs runs and the agent never does;
 * `dead`, its kernel panics before anything could be noted.
 */
export type Health = "well" | "sick" | "mute" | "dead";

/** Everything there is to install, and how it fares. */
export type World = readonly { payload: Payload; health: Health }[];

/** Unix seconds of all installs. */
const NOW = 1_800_000_000;
const ROOT = readdirSync("/dev").includes("shm") ? "/dev/shm" : tmpdir();

/** What a start came to: how it began, how it ended, what it did to the card and what it left in the data folder. */
export interface Turn {
  start: Start;
  end: AgentEnd | { is: "rescue" };
  steps: readonly Step[];
  folder: Folder;
}

/**
 * Starts that were seen before. A start depends on what it read and on nothing else, so where all of that is the same it would
 * end the same; many power cuts differ only in what nobody reads before it is written again.
 */
export class TurnMemory {
  readonly #seen = new Map<string, { areas: ReadonlyMap<number, bigint>; turn: Turn }[]>();

  find(key: string, image: Image): Turn | undefined {
    const isSame = (areas: ReadonlyMap<number, bigint>) =>
      areas.entries().every(([area, digest]) => image.digestOf(area) === digest);
    return this.#seen.get(key)?.find(({ areas }) => isSame(areas))?.turn;
  }

  keep(key: string, areas: ReadonlyMap<number, bigint>, turn: Turn): void {
    const known = this.#seen.get(key) ?? [];
    known.push({ areas, turn });
    this.#seen.set(key, known);
  }
}

/** One node. */
export class Node implements Disposable {
  readonly disk: CrashDisk;
  readonly #path: string;
  readonly #world: World;
  readonly #memory: TurnMemory | undefined;
  /** What the data folder holds, where it is not on the file system. */
  #folder: Folder | undefined;
  /** Steps of the journal when a slot was last looked at, and what it held. */
  readonly #held = new Map<SlotName, { digest: bigint; payload: Payload | undefined }>();
  #starts: number;
  /** Unix seconds by this node's clock. */
  now = NOW;

  constructor(
    image: Image,
    world: World,
    options: {
      path?: string;
      folder?: Folder;
      onStep?: (node: Node) => void;
      memory?: TurnMemory;
      starts?: number;
    } = {},
  ) {
    const { folder = new Map(), onStep = () => {}, memory, starts = 0 } = options;
    this.#path = options.path ?? mkdtempSync(join(ROOT, "fruit-crash-"));
    this.#world = world;
    this.#folder = folder;
    this.#memory = memory;
    this.#starts = starts;
    this.disk = new CrashDisk(image, () => onStep(this));
  }

  [Symbol.dispose](): void {
    rmSync(this.#path, { recursive: true, force: true });
  }

  /** What the data folder holds. */
  snapshot(): Folder {
    return this.#folder ?? readFolder(join(this.#path, "data"));
  }

  /** The data folder on the file system. */
  get #data(): string {
    const data = join(this.#path, "data");
    if (!this.#folder) return data;
    rmSync(data, { recursive: true, force: true });
    mkdirSync(join(data, "boot"), { recursive: true, mode: 0o700 });
    for (const [path, bytes] of this.#folder) {
      const file = join(data, path);
      mkdirSync(dirname(file), { recursive: true, mode: 0o700 });
      writeFileSync(file, bytes, { mode: 0o600 });
    }
    this.#folder = undefined;
    return data;
  }

  /** What a slot holds of what there is; undefined where it is none of it, whole. */
  held(slot: SlotName): Payload | undefined {
    const digest = this.disk.image.digestOf(SLOT_OFFSETS[slot] / AREA);
    const known = this.#held.get(slot);
    if (known?.digest === digest) return known.payload;
    const payload = this.#world.find(({ payload }) => slotHolds(this.disk.image, slot, payload))?.payload;
    this.#held.set(slot, { digest, payload });
    return payload;
  }

  /** The record that counts. */
  record(): BootRecord | undefined {
    const all = RECORD_OFFSETS.map((offset, place) => {
      const bytes = this.disk.image.read(offset, SECTOR);
      const record = decodeRecord(bytes);
      return { place, offset, bytes, ...(typeof record === "string" ? {} : { record }) };
    });
    return newestOf(all)?.record;
  }

  /** Slots that may be started and hold no signed payload, or another than their record says. */
  get unsound(): { slot: SlotName; state: string; held: string }[] {
    const record = this.record();
    return SLOTS.flatMap((slot) => {
      const { state = "empty", hash } = record?.slots[slot] ?? {};
      const held = this.held(slot);
      const isRight = !["staged", "trying", "good"].includes(state) || held?.content.hash === hash;
      return isRight ? [] : [{ slot, state, held: held?.name ?? "nothing whole" }];
    });
  }

  /** What U-Boot would do, on a copy. */
  foresee(): { start: Start; writes: number } {
    const copy = new CrashDisk(this.disk.image.copy());
    return { start: start(copy.medium), writes: copy.journal.length };
  }

  /** Power comes, or a restart; until the agent is content or the node goes down again. */
  async turn(command?: AgentStart["command"]): Promise<Turn> {
    this.#starts++;
    const before = this.snapshot();
    const key = `${this.#starts} ${digestOf(before)} ${JSON.stringify(command)}`;
    const known = this.#memory?.find(key, this.disk.image);
    if (known) {
      for (const step of known.steps) this.disk.repeat(step);
      this.#folder = known.folder;
      return known;
    }
    const image = this.disk.image.copy();
    const steps = this.disk.journal.length;
    this.disk.read.clear();
    const begun = start(this.disk.medium);
    const end = await this.#live(begun, command);
    const turn = { start: begun, end, steps: this.disk.journal.slice(steps), folder: this.snapshot() };
    this.#folder = turn.folder;
    const areas = new Map([...this.disk.read].map((area) => [area, image.digestOf(area)]));
    this.#memory?.keep(key, areas, turn);
    return turn;
  }

  /** Kernel, initramfs and agent. */
  async #live({ boots, args }: Start, command: AgentStart["command"]): Promise<Turn["end"]> {
    if (boots === "rescue") return { is: "rescue" };
    if (boots === "nothing") return { is: "again", why: "no partition table" };
    const bootId = `boot-${this.#starts}`;
    const health = this.#health(boots);
    const data = this.#data;
    const [, trial] = / fruit\.trial=(\d+)/.exec(args) ?? [];
    const [, attempt] = / fruit\.try=(\d+)/.exec(args) ?? [];
    const mark = (what: string) => {
      if (trial === undefined) return;
      appendFileSync(join(data, "boot/marks"), `${trial} ${attempt} ${bootId} ${what}\n`);
    };
    if (health === "dead" && trial === undefined && !this.held(boots)) return this.#giveWay(boots);
    if (health === "dead") return { is: "again", why: "kernel panic" };
    mark("init");
    if (health === "mute") {
      mark("agent-dead");
      return { is: "again", why: "watchdog" };
    }
    return runAgent({
      disk: this.disk.open("disk"),
      boot: this.switch(boots),
      folder: this.#path,
      bootId,
      args,
      isWell: health === "well",
      upSeconds: trial === undefined || this.#isPlanned(boots, data) ? 20 : 599.95,
      command,
    });
  }

  /** Whether a slot's kernel and initramfs are what its record says: nothing else of it is ever looked at by U-Boot. */
  canBoot(slot: SlotName): boolean {
    const { kernel, initramfs } = this.record()?.slots[slot] ?? {};
    return [kernel, initramfs].every((file) => {
      if (!file) return false;
      const sectors = Math.ceil(file.bytes / SECTOR) * SECTOR;
      const bytes = this.disk.image.read(SLOT_OFFSETS[slot] + file.offset, sectors);
      return crc32(bytes.subarray(0, file.bytes)) === file.crc32;
    });
  }

  /** The initramfs cannot mount the slot that the node starts from: `fruit-records fail`, and where that refuses the rescue. */
  async #giveWay(slot: SlotName): Promise<Turn["end"]> {
    const other = otherSlot(slot);
    // As image/rootfs/rescue/bin/fruit-records looks at it: its squashfs begins like one, its files are whole
    const begins = Buffer.from(this.disk.image.read(SLOT_OFFSETS[other], 4)).toString("latin1") === "hsqs";
    this.disk.read.add(SLOT_OFFSETS[other] / AREA);
    try {
      if (!begins || !this.canBoot(other)) return { is: "rescue" };
      await this.switch(undefined).setPrimary(other, { reason: "files-damaged" });
      return { is: "again", why: `slot ${slot} gave way` };
    } catch {
      return { is: "rescue" };
    }
  }

  /** Whether the data folder knows of the trial. Without that nothing is confirmed, and the deadline need not be waited for. */
  #isPlanned(slot: SlotName, data: string): boolean {
    const file = join(data, "boot/trial.json");
    const hash = this.record()?.slots[slot].hash;
    return hash !== undefined && existsSync(file) && readFileSync(file, "utf8").includes(hash);
  }

  /** A slot of which a leaf is wrong fares badly: without the first one nothing can be mounted, otherwise its check says no. */
  #health(slot: SlotName): Health {
    const held = this.held(slot);
    // All of a slot decides how it fares, even what nothing has read yet
    this.disk.read.add(SLOT_OFFSETS[slot] / AREA);
    if (held) return this.#world.find(({ payload }) => payload === held)?.health ?? "well";
    const superblock = this.disk.image.read(SLOT_OFFSETS[slot], LEAF_BYTES);
    const isMounted = this.#world.some(
      ({ payload }) => Buffer.compare(payload.bytes.subarray(0, LEAF_BYTES), superblock) === 0,
    );
    return isMounted ? "well" : "dead";
  }

  /** The switch of a system that runs from this slot. */
  switch(current: SlotName | undefined): BootSwitch {
    // Ids of trials that no two starts share, and the same whenever a case is made again
    const trialId = () => 7000 + this.#starts;
    return new UBootSwitch({ disk: this.disk.open("disk"), current, now: () => this.now, trialId });
  }

  /** Writes a release into the slot that does not run. */
  async install(payload: Payload, current: SlotName, how: InstallOptions = {}): Promise<void> {
    const { leaves = Number.POSITIVE_INFINITY, board = BOARD, wait } = how;
    const slot = otherSlot(current);
    const device = this.disk.open(slot, SLOT_OFFSETS[slot], SLOT_BYTES);
    const leaf = (index: number) => payload.bytes.subarray(index * LEAF_BYTES, (index + 1) * LEAF_BYTES);
    const writer = await SlotWriter.open({
      boot: this.switch(current),
      slot,
      device: wait ? slowly(device, wait) : device,
      release: payload.release,
      leaves: {
        count: Math.ceil(payload.release.size / LEAF_BYTES),
        hash: async (index) => payload.leaves.subarray(index * 32, index * 32 + 32),
      },
      progress: how.progress ?? fileProgress(this.#data),
      compatible: [board],
      now: this.now,
      signal: new AbortController().signal,
    });
    if (how.copies) await this.#copy(writer, payload, { current, slot, device });
    let put = 0;
    for (let index = 0; index < writer.count; index++) {
      if (!writer.needs(index)) continue;
      if (put++ >= leaves) return writer.suspend();
      await writer.put(index, leaf(index));
    }
    await writer.finish(async (index) => leaf(index));
  }

  /** Copies from the slot that runs, which holds one release of this world, and from the one that is written, which may hold any. */
  async #copy(
    writer: SlotWriter,
    payload: Payload,
    { current, slot, device }: { current: SlotName; slot: SlotName; device: BlockDevice },
  ): Promise<void> {
    const running = this.disk.open(current, SLOT_OFFSETS[current], SLOT_BYTES);
    const held = this.#world.flatMap((one) => {
      const index = leafIndex(one.payload);
      if (slotHolds(this.disk.image, current, one.payload)) return [{ device: running, index }];
      return slotHolds(this.disk.image, slot, one.payload) ? [{ device, index }] : [];
    });
    held.push({ device, index: leafIndex(payload) });
    const hash = async (leaf: number) => payload.leaves.subarray(leaf * 32, leaf * 32 + 32);
    const leaves = { count: writer.count, hash };
    await copyHeld(writer, { leaves, index: leafIndex(payload) }, held, new AbortController().signal);
  }
}

/** An index that cuts a payload where its leaves end. */
function leafIndex({ release: { size }, leaves }: Payload): ChunkIndex {
  const entries = Array.from({ length: Math.ceil(size / LEAF_BYTES) }, (_, leaf) => {
    const entry = Buffer.alloc(ENTRY_BYTES);
    entry.writeUInt32LE(Math.min(LEAF_BYTES, size - leaf * LEAF_BYTES));
    entry.set(leaves.subarray(leaf * 32, leaf * 32 + ENTRY_BYTES - 4), 4);
    return entry;
  });
  return new ChunkIndex(Buffer.concat(entries), size);
}

/** What is not as usual about an install. */
export interface InstallOptions {
  /** Only so many leaves are put, then it is suspended. */
  leaves?: number;
  /** What the slots hold of it is copied first. */
  copies?: boolean;
  /** What the node's device tree says. */
  board?: string;
  progress?: ProgressStore;
  /** Before every call to the card. */
  wait?: () => Promise<void>;
}

function slowly(device: BlockDevice, wait: () => Promise<void>): BlockDevice {
  const after = <Args extends unknown[], T>(call: (...args: Args) => Promise<T>) => {
    return (...args: Args) => wait().then(() => call(...args));
  };
  return {
    ...device,
    read: after(device.read),
    readMedium: after(device.readMedium),
    write: after(device.write),
    flush: after(device.flush),
  };
}
