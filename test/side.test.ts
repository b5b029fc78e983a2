/** The side file: nothing of it counts that the release did not sign, whenever it is read. */
import { expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { LEAF_BYTES } from "../boot/content.ts";
import { hashLeaf, leafCount } from "../boot/merkle.ts";
import { encodeSideHeader, openSide, SideError, WINDOW_LEAVES } from "../boot/side.ts";
import { inMemory, noise, sideOf } from "./releases.ts";

/** A payload of so many leaves, the last one short, and what its release would say. */
function sample(leaves: number, index: Uint8Array = new Uint8Array()) {
  const hashes = noise(leaves * 32, leaves);
  const size = leaves * LEAF_BYTES - 5;
  const bytes = Buffer.concat([encodeSideHeader(size, index.length), hashes, index]);
  return { bytes, size, hashes };
}

function releaseOf(bytes: Buffer, size: number, piecesRoot: Uint8Array) {
  return {
    size,
    piecesRoot,
    side: { bytes: bytes.length, sha256: createHash("sha256").update(bytes).digest("hex") },
  };
}

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");

test("each leaf of a payload is found by its number, the short one at the end too", async () => {
  const payload = noise(5 * LEAF_BYTES + 100);
  const { bytes, root } = sideOf(payload);
  const side = await openSide(inMemory(bytes), releaseOf(bytes, payload.length, root));
  expect(side.count).toBe(6);
  for (let leaf = 5; leaf >= 0; leaf--)
    expect(hex(await side.hash(leaf))).toBe(
      hex(hashLeaf(payload.subarray(leaf * LEAF_BYTES, (leaf + 1) * LEAF_BYTES))),
    );
  await expect(side.hash(6)).rejects.toThrow("there is no leaf 6; the last is 5");
  await expect(side.hash(-1)).rejects.toThrow(RangeError);
});

test("a side file of many windows is read a window at a time, and never as a whole", async () => {
  const { merkleRoot } = await import("../boot/merkle.ts");
  const leaves = 3 * WINDOW_LEAVES + 7;
  const { bytes, size, hashes } = sample(leaves, noise(200_000, 3));
  const memory = inMemory(bytes);
  let longest = 0;
  const watched = {
    ...memory,
    read: (offset: number, length: number) => {
      longest = Math.max(longest, length);
      return memory.read(offset, length);
    },
  };
  const side = await openSide(watched, releaseOf(bytes, size, merkleRoot(hashes)));
  for (const leaf of [0, WINDOW_LEAVES - 1, WINDOW_LEAVES, leaves - 1, 1])
    expect(hex(await side.hash(leaf))).toBe(hex(hashes.subarray(leaf * 32, leaf * 32 + 32)));
  expect(longest).toBe(WINDOW_LEAVES * 32);
});

const payload = noise(4 * LEAF_BYTES);
const made = sideOf(payload);
const release = releaseOf(made.bytes, payload.length, made.root);
const changed = (at: number) => Buffer.from(made.bytes).fill((made.bytes[at] ?? 0) ^ 1, at, at + 1);

test.each([
  ["is too short", made.bytes.subarray(0, 100), release, "100 bytes; the side file of this release has 160"],
  [
    "is too long",
    Buffer.concat([made.bytes, Buffer.of(0)]),
    release,
    "161 bytes; the side file of this release has 160",
  ],
  ["has another magic", changed(0), release, "its header is not that of a payload of 65536 bytes"],
  ["is for another payload", changed(9), release, "its header is not that of a payload of 65536 bytes"],
  ["has a changed hash", changed(40), release, "its SHA-256 is "],
  [
    "is right, but the root is another",
    made.bytes,
    { ...release, piecesRoot: new Uint8Array(32) },
    "do not make the root",
  ],
  [
    "is too small for the payload",
    made.bytes,
    { ...release, size: 6 * LEAF_BYTES },
    "cannot hold the 6 hashes",
  ],
])("a side file that %s is refused", async (_what, bytes, expected, why) => {
  const opened = openSide(inMemory(bytes), expected);
  await expect(opened).rejects.toThrow(SideError);
  await expect(opened).rejects.toThrow(why);
});

test("a side file that changes after it was checked is noticed before a hash of it is used", async () => {
  const bytes = Buffer.from(made.bytes);
  const side = await openSide(inMemory(bytes), release);
  bytes.fill(0, 64, 96);
  await expect(side.hash(0)).rejects.toThrow("the hashes from leaf 0 on are no longer what was checked");
});

test("the side file of 512 MiB has a MiB of hashes", () => {
  expect(leafCount(512 * 1024 * 1024) * 32).toBe(1024 * 1024);
});
