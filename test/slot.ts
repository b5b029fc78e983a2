/** A slot in memory for tests of what is written there: a cache in front of a medium, both sparse, and faults on request. */
import { createHash } from "node:crypto";
import { LEAF_BYTES, type Release } from "../boot/content.ts";
import type { Install } from "../boot/install.ts";
import type { SlotName } from "../boot/layout.ts";
import type { Leaves } from "../boot/leaf.ts";
import { MerkleTree } from "../boot/merkle.ts";
import type { Installing, ProgressStore } from "../boot/progress.ts";
import type { BootRecord, SlotRecord } from "../boot/record.ts";
import { begin, fail, NO_HASH, stage } from "../boot/slots.ts";
import type { BootSwitch } from "../boot/switch.ts";
import type { SlotWriter } from "../boot/writer.ts";
import { type BlockDevice, HalError } from "../hal/ports.ts";

const BLOCK = 4096;

/** A disk whose cache and medium are told apart: what was not flushed is only in the cache, which keeps what was. */
export class MemoryDisk implements BlockDevice {
  readonly name: string;
  bytes: number;
  readonly medium = new Map<number, Uint8Array>();
  readonly cache = new Map<number, Uint8Array>();
  /** Every write and flush, in order. */
  readonly journal: ({ write: number; bytes: number } | "flush")[] = [];
  /** Blocks whose first byte the card stores wrong, and how often yet. */
  readonly wrong = new Map<number, number>();
  /** Asked before each call; throws what it shall fail with. */
  before: (what: "read" | "write" | "flush", offset: number) => void | Promise<void> = () => {};
  /** Writes that were in flight at once, at most. */
  inFlightMost = 0;
  #inFlight = 0;
  /** Blocks that only the cache has. */
  readonly #dirty = new Set<number>();

  constructor(bytes: number, name = "slot b") {
    this.name = name;
    this.bytes = bytes;
  }

  async read(offset: number, length: number, into?: Uint8Array): Promise<Uint8Array> {
    await this.before("read", offset);
    const from = (block: number) => this.cache.get(block) ?? this.medium.get(block);
    return this.#gather(offset, length, from, into);
  }

  async readMedium(offset: number, length: number, into?: Uint8Array): Promise<Uint8Array> {
    await this.before("read", offset);
    if (offset % BLOCK || length % BLOCK) throw new Error(`${length} bytes at ${offset} are no whole blocks`);
    return this.#gather(offset, length, (block) => this.medium.get(block), into);
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    if (offset % BLOCK || bytes.length % BLOCK || offset + bytes.length > this.bytes)
      throw new Error(`a write of ${bytes.length} bytes at ${offset} of ${this.bytes}`);
    this.#inFlight++;
    this.inFlightMost = Math.max(this.inFlightMost, this.#inFlight);
    try {
      await this.before("write", offset);
      this.journal.push({ write: offset, bytes: bytes.length });
      for (let at = 0; at < bytes.length; at += BLOCK) {
        this.cache.set((offset + at) / BLOCK, bytes.slice(at, at + BLOCK));
        this.#dirty.add((offset + at) / BLOCK);
      }
    } finally {
      this.#inFlight--;
    }
  }

  async flush(): Promise<void> {
    await this.before("flush", 0);
    this.journal.push("flush");
    for (const block of this.#dirty) {
      const stored = this.cache.get(block)?.slice() ?? new Uint8Array(BLOCK);
      const times = this.wrong.get(block) ?? 0;
      if (times > 0) stored[0] = (stored[0] ?? 0) ^ 1;
      this.wrong.set(block, times - 1);
      this.medium.set(block, stored);
    }
    this.#dirty.clear();
  }

  async close(): Promise<void> {}

  /** What was not flushed is gone. */
  powerCut(): void {
    this.cache.clear();
    this.#dirty.clear();
    this.before = () => {};
  }

  /** Bytes written since the journal was last emptied. */
  get written(): number {
    return this.journal.reduce((sum, step) => sum + (step === "flush" ? 0 : step.bytes), 0);
  }

  #gather(
    offset: number,
    length: number,
    from: (block: number) => Uint8Array | undefined,
    into?: Uint8Array,
  ): Uint8Array {
    if (offset + length > this.bytes)
      throw new HalError("io", `${this.name}: it ends at byte ${this.bytes}, asked to ${offset + length}`);
    // Memory that is given is used, as a real disk does
    const bytes = into && into.length >= length ? into.subarray(0, length).fill(0) : new Uint8Array(length);
    for (let at = 0; at < length; ) {
      const inside = (offset + at) % BLOCK;
      const count = Math.min(BLOCK - inside, length - at);
      const block = from(Math.floor((offset + at) / BLOCK));
      if (block) bytes.set(block.subarray(inside, inside + count), at);
      at += count;
    }
    return bytes;
  }
}

/** A payload that is made where it is asked for: leaf n is as `fill` says, and costs no memory. */
export interface Payload {
  release: Release;
  leaves: Leaves;
  leaf(index: number): Uint8Array;
}

/** A payload of `size` bytes; most leaves of one that is `sparse` are zeros, whose hash is made once. */
export function payload(
  size: number,
  options: { seed?: number; sparse?: boolean; zeros?: boolean; release?: Partial<Release> } = {},
): Payload {
  const { seed = 1, sparse = false, zeros = false } = options;
  const count = Math.ceil(size / LEAF_BYTES);
  const isZero = (index: number) => zeros || (sparse && index > 2 && index < count - 2);
  const blank = new Uint8Array(LEAF_BYTES);
  const leaf = (index: number) => {
    const length = Math.min(LEAF_BYTES, size - index * LEAF_BYTES);
    if (isZero(index)) return blank.subarray(0, length);
    const words = new Uint32Array(LEAF_BYTES / 4);
    let state = (seed * 0x9e3779b9 + index * 0x85ebca6b) >>> 0;
    for (let at = 0; at < words.length; at++) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      words[at] = state;
    }
    return new Uint8Array(words.buffer, 0, length);
  };
  const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest();
  const blankHash = sha256(blank);
  const hashes = Array.from({ length: count }, (_, index) =>
    isZero(index) && (index + 1) * LEAF_BYTES <= size ? blankHash : sha256(leaf(index)),
  );
  const tree = new MerkleTree();
  for (const one of hashes) tree.add(one);
  const root = count > 0 ? tree.root() : new Uint8Array(32);
  return {
    leaf,
    leaves: { count, hash: async (index) => hashes[index] ?? new Uint8Array(32) },
    release: {
      infohash: createHash("sha1").update(root).digest("hex"),
      name: `test-${seed}`,
      size,
      piecesRoot: root,
      target: "test",
      boards: ["raspberrypi,3-model-b"],
      channel: "stable",
      version: 8n,
      minFrom: 0n,
      floor: 0n,
      created: 1_790_000_000,
      expires: 1_900_000_000,
      boot: {
        kernel: { offset: 0, bytes: Math.min(size, 4096), crc32: 1 },
        initramfs: { offset: 0, bytes: Math.min(size, 4096), crc32: 2 },
        deviceTrees: { "raspberrypi,3-model-b": { offset: 0, bytes: Math.min(size, 512), crc32: 3 } },
      },
      side: { bytes: 0, sha256: "" },
      signers: ["test"],
      ...options.release,
    },
  };
}

/** A switch whose record is a variable. */
export class MemorySwitch implements BootSwitch {
  readonly kind = "uboot";
  readonly current: SlotName | undefined;
  record: BootRecord;

  constructor(over: Partial<BootRecord> = {}, current: SlotName | undefined = "a") {
    this.current = current;
    this.record = {
      format: 1,
      sequence: 1,
      primary: "a",
      confirmed: 0,
      reason: "built",
      time: 0,
      floor: 5n,
      slots: { a: slotRecord("good", 7n), b: slotRecord("empty", 0n) },
      ...over,
    };
  }

  records = () => Promise.reject(new Error("this switch keeps no copies"));
  read = async () => this.record;
  setPrimary = () => Promise.reject(new Error("nothing here changes the primary slot"));
  armTrial = () => Promise.reject(new Error("nothing here begins a trial"));
  settle = async () => this.record;

  async setState(slot: SlotName, change: Parameters<BootSwitch["setState"]>[1]): Promise<BootRecord> {
    if (change.to === "writing") this.record = begin(this.record, slot, change.hash);
    if (change.to === "staged") this.record = stage(this.record, slot, change.content);
    if (change.to === "failed") this.record = fail(this.record, slot, change.reason);
    return this.record;
  }
}

/** What a record says of a slot in that state. */
export const slotRecord = (state: SlotRecord["state"], version: bigint): SlotRecord => ({
  state,
  reason: "none",
  version,
  hash: NO_HASH,
  payloadBytes: 0,
});

/** Progress that outlives the writer, not the test. */
export class MemoryProgress implements ProgressStore {
  kept: Installing | undefined;
  saves = 0;
  /** What saving shall fail with. */
  failure: Error | undefined;

  load = async () => this.kept && { ...this.kept, done: this.kept.done.slice() };
  clear = async () => {
    this.kept = undefined;
  };
  save = async (installing: Installing) => {
    if (this.failure) throw this.failure;
    this.saves++;
    this.kept = { ...installing, done: installing.done.slice() };
  };
}
/** Unix seconds of all these installs. */
export const NOW = 1_800_000_000;

/** One node with a slot to install into. */
export function node(source: Payload, over: Partial<Install> & { bytes?: number } = {}) {
  const disk = new MemoryDisk(over.bytes ?? 4 * 1024 * 1024);
  const install: Install = {
    boot: new MemorySwitch(),
    slot: "b",
    device: disk,
    release: source.release,
    leaves: source.leaves,
    progress: new MemoryProgress(),
    compatible: ["raspberrypi,3-model-b", "brcm,bcm2837"],
    now: NOW,
    signal: new AbortController().signal,
    ...over,
  };
  return { disk, install, boot: install.boot as MemorySwitch, progress: install.progress as MemoryProgress };
}

/** The numbers of its leaves. */
export const inOrder = ({ leaves }: Payload) => Array.from({ length: leaves.count }, (_, leaf) => leaf);

/** Puts leaves into a slot. */
export async function putAll(writer: SlotWriter, source: Payload, order = inOrder(source)): Promise<void> {
  for (const leaf of order) await writer.put(leaf, source.leaf(leaf));
}

/** Whether the medium holds the payload, and zeros up to the end of its last block. */
export async function holds(disk: MemoryDisk, source: Payload): Promise<boolean> {
  for (const leaf of inOrder(source)) {
    const right = source.leaf(leaf);
    const held = await disk.readMedium(leaf * LEAF_BYTES, Math.ceil(right.length / 4096) * 4096);
    if (Buffer.compare(held.subarray(0, right.length), right) !== 0) return false;
    if (held.subarray(right.length).some((byte) => byte !== 0)) return false;
  }
  return true;
}
