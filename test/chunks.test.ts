/** The chunks of a payload and their index: where they end is frozen, and nothing counts that does not add up. FRUIT_FUZZ=1000000 for more mutations. */
import { expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe } from "../agent/release/pack.ts";
import {
  CHUNK_BYTES,
  CHUNKS_ALG,
  ChunkError,
  Chunker,
  ChunkIndex,
  ENTRY_BYTES,
  gearTable,
  mostIndexBytes,
} from "../boot/chunks.ts";
import { openSide, SideError, uncheckedIndex } from "../boot/side.ts";
import { parseUpdate, readStatement, statementToSign } from "../boot/updatefile.ts";
import { seeded } from "./fakes.ts";
import { mutated } from "./mutations.ts";
import { scratch } from "./node.ts";
import { believed, chunksOf, inMemory, makePayload, makeRelease, noise, sideOf } from "./releases.ts";

const ROUNDS = Number(process.env.FRUIT_FUZZ ?? 5_000);
const MiB = 1024 * 1024;
const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

const indexOf = (payload: Uint8Array) => new ChunkIndex(chunksOf(payload), payload.length);
const lengthsOf = (index: ChunkIndex) => Array.from({ length: index.count }, (_, at) => index.length(at));
const keysOf = (index: ChunkIndex) => Array.from({ length: index.count }, (_, at) => index.key(at));

test("the gear table is frozen: another would cut every release anew", () => {
  const gear = gearTable();
  const bytes = Buffer.alloc(1024);
  for (const [at, word] of gear.entries()) bytes.writeInt32LE(word, at * 4);
  // By another program: python3, hashlib.sha256(b"fruit gear64k-1 %d" % n).digest()[:4]
  expect([...gear.subarray(0, 3)]).toEqual([-1375236257, 190755833, -1712721460]);
  expect(sha256(bytes)).toBe("023e521ea8639fa982ec8aef122bd4448a64bdf1beb8311a3c2f4c51d71ed258");
});

test("where the chunks of given bytes end is frozen", () => {
  // By another program, too, whose sum begins with the chunk and looks at every byte
  const index = indexOf(noise(MiB, 7));
  expect(lengthsOf(index)).toEqual([
    27413, 25667, 54749, 90167, 133073, 29167, 72364, 22680, 182141, 99188, 80169, 27124, 81562, 92929, 30183,
  ]);
  expect(sha256(index.bytes)).toBe("d84098660766709b8f22fca0c063b2b812c016a6e45f9cc4700c7d615f23bfb4");
});

test.each([1, 31, 4096, 16_383, 70_001, 300_000])(
  "a payload that arrives %i bytes at a time has the same chunks",
  (portion) => {
    const payload = noise(portion < 32 ? 200_000 : 900_000, 3);
    const chunker = new Chunker();
    for (let at = 0; at < payload.length; at += portion) chunker.update(payload.subarray(at, at + portion));
    expect(chunker.end().equals(chunksOf(payload))).toBe(true);
  },
);

test("each chunk has the SHA-256 of its bytes, and an offset is in one of them", () => {
  const payload = noise(MiB, 5);
  const index = indexOf(payload);
  for (let chunk = 0; chunk < index.count; chunk++) {
    const start = index.start(chunk);
    const bytes = payload.subarray(start, start + index.length(chunk));
    expect(index.isRight(chunk, bytes)).toBe(true);
    expect(index.isRight(chunk, Buffer.concat([bytes.subarray(1), bytes.subarray(0, 1)]))).toBe(false);
    expect(index.isRight(chunk, bytes.subarray(1))).toBe(false);
    for (const offset of [start, start + 1, start + bytes.length - 1]) expect(index.at(offset)).toBe(chunk);
  }
  expect(index.start(index.count)).toBe(MiB);
});

test("chunks of noise have 64 KiB in the mean, none fewer than 16 and none more than 256", () => {
  const lengths = lengthsOf(indexOf(noise(24 * MiB, 11)));
  const mean = (24 * MiB) / lengths.length;
  expect(mean).toBeGreaterThan(60 * 1024);
  expect(mean).toBeLessThan(70 * 1024);
  expect(Math.min(...lengths.slice(0, -1))).toBeGreaterThanOrEqual(CHUNK_BYTES.least);
  expect(Math.max(...lengths)).toBeLessThanOrEqual(CHUNK_BYTES.most);
});

test("a chunk may end with its 16,384th byte, and all of the 32 bytes up to there decide", () => {
  const gear = gearTable();
  const bytes = noise(MiB, 21);
  let sum = 0;
  const found = bytes.findIndex((byte, at) => {
    sum = ((sum << 1) + (gear[byte] ?? 0)) | 0;
    // Without the byte that is furthest back the sum would be positive
    return at > 32 && sum < -0x8000_0000 + 87_381 && ((gear[bytes[at - 31] ?? 0] ?? 0) & 1) === 1;
  });
  const window = bytes.subarray(found - 31, found + 1);
  const payload = Buffer.concat([Buffer.alloc(CHUNK_BYTES.least - 32), window, noise(50_000, 2)]);
  expect(indexOf(payload).length(0)).toBe(CHUNK_BYTES.least);
});

test("what never asks to be cut is cut where a chunk is as long as it may be", () => {
  const lengths = lengthsOf(indexOf(new Uint8Array(MiB + 1)));
  expect(lengths).toEqual([...Array(4).fill(CHUNK_BYTES.most), 1]);
});

test("bytes put in or taken out cost the chunks around them and no others", () => {
  const before = noise(4 * MiB, 2);
  const known = new Set(keysOf(indexOf(before)));
  const after = Buffer.concat([
    noise(777, 3),
    before.subarray(0, 2_000_000),
    before.subarray(2_000_100, 3_000_000),
    noise(5, 4),
    before.subarray(3_000_000),
  ]);
  const fresh = keysOf(indexOf(after)).filter((key) => !known.has(key));
  // One change touches the chunk it is in, and the next where that ends elsewhere
  expect(fresh.length).toBeLessThanOrEqual(6);
  expect(fresh.length).toBeGreaterThanOrEqual(3);
});

const entry = (length: number, fill = 7) => {
  const bytes = Buffer.alloc(ENTRY_BYTES, fill);
  bytes.writeUInt32LE(length);
  return bytes;
};

test.each([
  ["is empty", [], 20_000, "a chunk index of 0 bytes"],
  ["ends within an entry", [entry(20_000), Buffer.alloc(7)], 20_000, "a chunk index of 27 bytes"],
  ["has more chunks than fit", [entry(16_384), entry(1), entry(1)], 16_386, "40 bytes at most"],
  ["has an empty chunk at its end", [entry(20_000), entry(0)], 20_000, "chunk 1 has 0 bytes"],
  ["has a short chunk that is not the last", [entry(16_383), entry(3617)], 20_000, "chunk 0 has 16383 bytes"],
  ["has a long chunk", [entry(262_145)], 262_145, "chunk 0 has 262145 bytes; 1 to 262144"],
  ["is of fewer bytes", [entry(19_999)], 20_000, "its 1 chunks have 19999 bytes; the payload has 20000"],
  ["is of more bytes", [entry(20_001)], 20_000, "its 1 chunks have 20001 bytes; the payload has 20000"],
])("an index that %s is refused", (_what, entries, size, why) => {
  const read = () => new ChunkIndex(Buffer.concat(entries), size);
  expect(read).toThrow(ChunkError);
  expect(read).toThrow(why);
});

test("a mutated index is refused or adds up to its payload", () => {
  const random = seeded(20_261_123);
  const payload = noise(600_000, 9);
  const valid = chunksOf(payload);
  let refused = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const bytes = mutated(valid, random, [entry(0), entry(16_384), entry(262_144), entry(0xffff_ffff)]);
    try {
      const index = new ChunkIndex(bytes, payload.length);
      expect(lengthsOf(index).reduce((sum, one) => sum + one, 0)).toBe(payload.length);
      expect(index.count).toBeLessThanOrEqual(mostIndexBytes(payload.length) / ENTRY_BYTES);
    } catch (error) {
      expect(error).toBeInstanceOf(ChunkError);
      refused++;
    }
  }
  expect(refused).toBeGreaterThan(ROUNDS / 4);
});

test("a mutated side file that nobody has checked gives an index that adds up, or none", async () => {
  const random = seeded(5);
  const payload = noise(200_000, 9);
  const { bytes } = sideOf(payload, chunksOf(payload));
  const head = bytes.subarray(0, 32);
  let refused = 0;
  for (let round = 0; round < ROUNDS / 5; round++) {
    // Its header or its index: what is between them is not looked at
    const isHead = random() < 0.5;
    const whole = isHead
      ? Buffer.concat([mutated(head, random), bytes.subarray(32)])
      : Buffer.concat([bytes.subarray(0, 32 + 13 * 32), mutated(bytes.subarray(32 + 13 * 32), random)]);
    try {
      const index = await uncheckedIndex(inMemory(whole), 300_000);
      if (index) expect(lengthsOf(index).reduce((sum, one) => sum + one, 0)).toBe(index.size);
    } catch (error) {
      expect(error instanceof ChunkError || error instanceof SideError).toBe(true);
      refused++;
    }
  }
  expect(refused).toBeGreaterThan(ROUNDS / 20);
});

test("an index for more than the slot holds is not read, however long it says that it is", async () => {
  const payload = noise(200_000, 9);
  const { bytes } = sideOf(payload, chunksOf(payload));
  await expect(uncheckedIndex(inMemory(bytes), 199_999)).rejects.toThrow(
    "its header is not that of a side file",
  );
  expect((await uncheckedIndex(inMemory(bytes), 200_000))?.size).toBe(200_000);
  expect(await uncheckedIndex(inMemory(sideOf(payload).bytes), 200_000)).toBeUndefined();
});

const made = makeRelease();
const release = believed(made);

test("a release says how it is cut, and its side file has the index", async () => {
  expect(release.chunks).toEqual({ alg: CHUNKS_ALG, bytes: chunksOf(made.payload).length });
  const side = await openSide(inMemory(made.side), release);
  expect((await side.chunks())?.bytes.equals(chunksOf(made.payload))).toBe(true);
});

test("what is packed has the index in its side file and states it, the same bytes every time", async () => {
  using folder = scratch();
  const at = (name: string) => join(folder.path, name);
  const { payload, area } = makePayload();
  writeFileSync(at("fruitos-7"), payload);
  const { target, boards, channel, minFrom, floor, created, expires } = release;
  const claims = { target, boards, channel, minFrom, floor, created, expires };
  for (const run of ["one", "two"]) {
    const files = { payload: at("fruitos-7"), side: at(`${run}.side`), update: at(`${run}.fruit`) };
    const stated = await describe(files, { name: "fruitos-7", area, claims });
    expect(stated.chunks).toEqual({ alg: CHUNKS_ALG, bytes: chunksOf(payload).length });
    expect(stated.side).toEqual(release.side);
    expect(readFileSync(files.side).equals(made.side)).toBe(true);
  }
  expect(readFileSync(at("one.fruit")).equals(readFileSync(at("two.fruit")))).toBe(true);
});

test("a release of before, without chunks, stays good, and so does one that is cut in a way to come", async () => {
  const { bytes, root } = sideOf(made.payload);
  const side = { bytes: bytes.length, sha256: sha256(bytes) };
  const { chunks: _, ...before } = { ...release, side, piecesRoot: root };
  expect(await (await openSide(inMemory(bytes), before)).chunks()).toBeUndefined();
  const later = { ...release, chunks: { alg: "gear16k-2", bytes: release.chunks?.bytes ?? 0 } };
  expect(await (await openSide(inMemory(made.side), later)).chunks()).toBeUndefined();
});

test("an update file without chunks is read, and its statement is the same bytes again", () => {
  const { unsigned } = makeRelease({ chunks: false });
  const { bytes } = statementToSign(parseUpdate(unsigned));
  expect(Buffer.from(bytes).includes("6:chunks")).toBe(false);
  expect(believed(makeRelease({ chunks: false })).chunks).toBeUndefined();
});

test.each([
  { chunks: { alg: "Gear 64", bytes: 20 }, why: 'the statement.chunks.alg is "Gear 64"' },
  { chunks: { alg: CHUNKS_ALG, bytes: 0 }, why: "the statement.chunks.bytes is 0" },
])("a statement with $chunks is refused", ({ chunks, why }) => {
  expect(() => makeRelease({ stated: { chunks } })).toThrow(why);
});

test("a side file whose index is not as long as was signed is refused", async () => {
  const other = { ...release, chunks: { alg: CHUNKS_ALG, bytes: (release.chunks?.bytes ?? 0) + 20 } };
  await expect(openSide(inMemory(made.side), other)).rejects.toThrow("its chunk index has");
});

test("an index that changes after it was checked is noticed before it is used", async () => {
  const bytes = Buffer.from(made.side);
  const side = await openSide(inMemory(bytes), release);
  bytes.writeUInt8((bytes.at(-1) ?? 0) ^ 1, bytes.length - 1);
  await expect(side.chunks()).rejects.toThrow("its chunk index is no longer what was checked");
});

test.each([
  ["nonsense", noise(40, 1)],
  ["far too long", noise(400_000, 1)],
])("an index that was signed and is %s is told apart from a wrong file", async (_what, index) => {
  const { bytes, root } = sideOf(made.payload, index);
  const memory = inMemory(bytes);
  let longest = 0;
  const read = (offset: number, length: number) => {
    longest = Math.max(longest, length);
    return memory.read(offset, length);
  };
  const side = await openSide(
    { ...memory, read },
    {
      size: made.payload.length,
      piecesRoot: root,
      side: { bytes: bytes.length, sha256: sha256(bytes) },
      chunks: { alg: CHUNKS_ALG, bytes: index.length },
    },
  );
  expect(Buffer.from(await side.hash(0))).toHaveLength(32);
  await expect(side.chunks()).rejects.toThrow(ChunkError);
  expect(longest).toBeLessThanOrEqual(65_536);
});

test("the statement reads as it was written", () => {
  const { chunks } = readStatement(statementToSign(parseUpdate(made.unsigned)));
  expect(chunks).toEqual(release.chunks);
});
