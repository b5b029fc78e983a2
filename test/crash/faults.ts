/**
 * What a card may hold after the power failed at step `k` of a journal: one case each, named so that it can be made again.
 *
 * A name is `SCENARIO/k/KIND[:DETAIL…]`, where `k` steps have been done:
 * - `cut` all of them are on the card
 * - `torn:S:FILL` the last write ends at its sector S, which holds FILL (old: as before; mixed: half new, half old; zeros, ones,
 *   random); `tail:S` its last sectors are new and its first S are not
 * - `lost:I` write I, not yet flushed, is not on the card; `some:SEED` some of those are not; `order:SEED` some are, in another
 *   order
 * - `lie:J` flush J was a lie: nothing after it is there; `liar:J:SEED` some of what is after it is there
 * - `rot:SECTOR` a bit of a neighbouring sector, in the same 4 KiB or the same erase block of 4 MiB, has turned
 * - `late:N` the data partition is as it was N steps before; `nodata` it is empty
 */
import { SECTOR } from "../../boot/layout.ts";
import { seeded } from "../fakes.ts";
import { apply, type Fault, type Image, type Step } from "./disk.ts";

const FILLS = ["mixed", "zeros", "ones", "random"] as const;
type Fill = "old" | (typeof FILLS)[number];

/** What a fault may take away: nothing, so that every invariant holds; or more than a card is allowed to. */
export type Proviso = "none" | "data" | "rot" | "lie" | "read-only";

/** A card as a power cut left it. */
export interface Cut {
  /** `k/KIND:DETAIL` */
  name: string;
  k: number;
  proviso: Proviso;
  /** Steps by which the data partition is behind; `all` where it is empty. */
  dataBehind?: number | "all";
  make(): Image;
}

/** The images after every step of a journal, the first before any. */
export function imagesOf(base: Image, journal: readonly Step[]): Image[] {
  const images = [base];
  let now = base;
  for (const step of journal) {
    if (step.kind === "write") {
      now = now.copy();
      apply(now, step);
    }
    images.push(now);
  }
  return images;
}

type Write = Step & { kind: "write" };

/** Every case there is at step `k`; `images` are `imagesOf` the journal. Long writes are torn at every `tornEvery`th sector. */
export function* cutsAt(
  journal: readonly Step[],
  images: readonly Image[],
  k: number,
  tornEvery = 1,
): Generator<Cut> {
  const at = (index: number) => {
    const image = images[index];
    if (!image) throw new RangeError(`there is no step ${index}`);
    return image;
  };
  const cut = (kind: string, make: () => Image, proviso: Proviso = "none"): Cut => ({
    name: `${k}/${kind}`,
    k,
    proviso,
    make,
  });
  const now = at(k);
  yield cut("cut", () => now);
  for (const behind of [1, 2, 4, 8]) {
    if (behind > k) break;
    yield { ...cut(`late:${behind}`, () => now, "data"), dataBehind: behind };
  }
  yield { ...cut("nodata", () => now, "data"), dataBehind: "all" };
  const last = journal[k - 1];
  if (last?.kind === "write") {
    yield* tornCuts(cut, at(k - 1), last, { seed: k, every: tornEvery });
    yield* rotCuts(cut, now, last, k);
  }
  yield* unflushedCuts(cut, journal, images, k);
  yield* lyingCuts(cut, journal, images, k);
}

type Named = (kind: string, make: () => Image, proviso?: Proviso) => Cut;

function* tornCuts(
  cut: Named,
  before: Image,
  write: Write,
  { seed, every }: { seed: number; every: number },
): Generator<Cut> {
  const sectors = write.bytes.length / SECTOR;
  const isLong = sectors > 32;
  const random = seeded(seed);
  for (let sector = 0; sector < sectors; sector++) {
    if (sector > 0 && (!isLong || sector % every === 0))
      yield cut(`torn:${sector}:old`, () => torn(before, write, sector, "old", seed));
    if (sector > 0 && !isLong) yield cut(`tail:${sector}`, () => tail(before, write, sector));
    // Of a long write, some sectors are enough: no code looks at which one it is
    if (isLong && random() > 16 / sectors) continue;
    for (const fill of FILLS)
      yield cut(`torn:${sector}:${fill}`, () => torn(before, write, sector, fill, seed));
  }
}

function torn(before: Image, { offset, bytes }: Write, sector: number, fill: Fill, seed: number): Image {
  const image = before.copy();
  const from = sector * SECTOR;
  if (from > 0) image.write(offset, bytes.slice(0, from));
  if (fill === "old") return image;
  const random = seeded(seed * 1009 + sector);
  const old = image.read(offset + from, SECTOR);
  const half = 1 + Math.floor(random() * (SECTOR - 1));
  const filled: Record<typeof fill, (byte: number) => number> = {
    mixed: (byte) => (byte < half ? bytes[from + byte] : old[byte]) ?? 0,
    zeros: () => 0,
    ones: () => 0xff,
    random: () => random() * 256,
  };
  image.write(
    offset + from,
    Uint8Array.from(old, (_, byte) => filled[fill](byte)),
  );
  return image;
}

function tail(before: Image, { offset, bytes }: Write, sector: number): Image {
  const image = before.copy();
  image.write(offset + sector * SECTOR, bytes.slice(sector * SECTOR));
  return image;
}

function* rotCuts(cut: Named, now: Image, { offset, bytes }: Write, k: number): Generator<Cut> {
  const [first, end] = [offset / SECTOR, (offset + bytes.length) / SECTOR];
  const random = seeded(k * 31);
  const area = Math.floor(first / 8192) * 8192;
  const near = Array.from({ length: 8 }, (_, index) => Math.floor(first / 8) * 8 + index);
  const far = Array.from({ length: 6 }, () => area + Math.floor(random() * 8192));
  // The slots of these cards end 1 MiB into their erase block: what is behind them is nobody's
  const inside = Array.from({ length: 2 }, () => area + Math.floor(random() * 2048));
  for (const sector of new Set([...near, ...far, ...inside, end])) {
    if ((sector >= first && sector < end) || (sector + 1) * SECTOR > now.bytes) continue;
    yield cut(`rot:${sector}`, () => turned(now, sector, k), "rot");
  }
}

/** The image with one bit of a sector turned. */
export function turned(now: Image, sector: number, seed: number): Image {
  const image = now.copy();
  const content = image.read(sector * SECTOR, SECTOR);
  const bit = Math.floor(seeded(seed + sector)() * SECTOR * 8);
  content[bit >> 3] = (content[bit >> 3] ?? 0) ^ (1 << (bit & 7));
  image.write(sector * SECTOR, content);
  return image;
}

/** Indices of the writes among the first `k` steps that no flush has made last. */
export function unflushed(journal: readonly Step[], k: number): number[] {
  const open: number[] = [];
  for (const [index, step] of journal.slice(0, k).entries())
    if (step.kind === "write") open.push(index);
    else if (step.way === "all") open.length = 0;
    else open.splice(0, open.length, ...open.filter((one) => !isFlushed(journal[one], step.way)));
  return open;
}

// What the boot loader wrote is past the kernel: whatever flushes the card makes it last
const isFlushed = (step: Step | undefined, way: Step["way"]) => step?.way === way || step?.way === "loader";

function* unflushedCuts(
  cut: Named,
  journal: readonly Step[],
  images: readonly Image[],
  k: number,
): Generator<Cut> {
  const open = unflushed(journal, k);
  const [first] = open;
  const durable = first === undefined ? undefined : images[first];
  if (first === undefined || !durable) return;
  /** The card with these steps done in this order. */
  const made = (indices: readonly number[]) => () => {
    const image = durable.copy();
    for (const index of indices) apply(image, journal[index] ?? { kind: "flush", way: "all" });
    return image;
  };
  const since = Array.from({ length: k - first }, (_, index) => first + index);
  const without = (lost: ReadonlySet<number>) => made(since.filter((index) => !lost.has(index)));
  for (const index of open) yield cut(`lost:${index}`, without(new Set([index])));
  yield cut("lost:all", without(new Set(open)));
  if (open.length < 2) return;
  const lasting = since.filter((index) => !open.includes(index));
  for (let seed = 0; seed < 6; seed++) {
    const random = seeded(k * 101 + seed);
    yield cut(`some:${seed}`, without(new Set(open.filter(() => random() < 0.5))));
    const mixed = open.map((index) => ({ index, by: random() })).sort((one, other) => one.by - other.by);
    const order = mixed.slice(0, 1 + Math.floor(random() * open.length)).map(({ index }) => index);
    yield cut(`order:${seed}`, made([...lasting, ...order]));
  }
}

function* lyingCuts(
  cut: Named,
  journal: readonly Step[],
  images: readonly Image[],
  k: number,
): Generator<Cut> {
  for (let flush = 0; flush < k; flush++) {
    if (journal[flush]?.kind !== "flush") continue;
    const image = images[flush];
    if (!image) continue;
    yield cut(`lie:${flush}`, () => image, "lie");
    const writes = journal.slice(flush, k).filter((step) => step.kind === "write");
    if (writes.length < 2) continue;
    yield cut(
      `liar:${flush}`,
      () => {
        const random = seeded(k * 103 + flush);
        const made = image.copy();
        for (const step of writes) if (random() < 0.5) apply(made, step);
        return made;
      },
      "lie",
    );
  }
}

/** A fault that the card has while the update runs; `lasting` where it still has it after the power came back. */
export interface Live {
  /** `live/FAULT:WHERE:…` */
  name: string;
  fault: Fault;
  isLasting: boolean;
}

/** Every fault at every call of a run that made so many of them: a list of names and what they mean. */
export function* liveFaults(calls: { read: number; write: number; flush: number }): Generator<Live> {
  const live = (name: string, fault: Fault, isLasting = false): Live => ({
    name: `live/${name}`,
    fault,
    isLasting,
  });
  for (let at = 0; at < calls.read; at++) yield live(`EIO:read:${at}`, { fault: "EIO", on: "read", at });
  for (let at = 0; at < calls.flush; at++) {
    yield live(`EIO:flush:${at}`, { fault: "EIO", on: "flush", at });
    yield live(`hangs:flush:${at}`, { fault: "hangs", on: "flush", at });
  }
  for (let at = 0; at < calls.write; at++) {
    yield live(`EIO:write:${at}`, { fault: "EIO", on: "write", at });
    yield live(`hangs:write:${at}`, { fault: "hangs", on: "write", at });
    yield live(`EROFS:${at}`, { fault: "EROFS", on: "write", at });
    yield live(`EROFS:${at}:lasting`, { fault: "EROFS", on: "write", at }, true);
    for (const sectors of [1, 7, 33])
      yield live(`short:${at}:${sectors}`, { fault: "short", on: "write", at, sectors });
    for (const byte of [0x2c, 0x1fd, 40_000]) {
      yield live(`differs:${at}:${byte}`, { fault: "differs", on: "write", at, byte });
      yield live(`stuck:${at}:${byte}`, { fault: "differs", on: "write", at, byte, forEver: true });
    }
  }
}
