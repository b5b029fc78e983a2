/** The hash tree against BEP 52, read literally: all leaves side by side, then level after level. */
import { expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { LEAF_BYTES } from "../boot/content.ts";
import { hashLeaf, LeafHasher, leafCount, MerkleTree, merkleRoot } from "../boot/merkle.ts";
import { noise } from "./releases.ts";

const sha256 = (...parts: Uint8Array[]) => createHash("sha256").update(Buffer.concat(parts)).digest();
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");

/** "The remaining leaf hashes beyond the end of the file required to construct upper layers of the merkle tree are set to zero." */
function literalRoot(payload: Uint8Array): Uint8Array {
  let level: Uint8Array[] = [];
  for (let at = 0; at < payload.length; at += LEAF_BYTES)
    level.push(sha256(payload.subarray(at, at + LEAF_BYTES)));
  while (!Number.isInteger(Math.log2(level.length))) level.push(new Uint8Array(32));
  while (level.length > 1)
    level = Array.from({ length: level.length / 2 }, (_, i) =>
      sha256(level[2 * i] ?? new Uint8Array(), level[2 * i + 1] ?? new Uint8Array()),
    );
  return level[0] ?? new Uint8Array();
}

function streamedRoot(payload: Uint8Array, portion: number): Uint8Array {
  const tree = new MerkleTree();
  const hasher = new LeafHasher((hash) => tree.add(hash));
  for (let at = 0; at < payload.length; at += portion) hasher.update(payload.subarray(at, at + portion));
  hasher.end();
  return tree.root();
}

test.each([1, 16_383, 16_384, 16_385, 32_768, 49_152, 65_536, 65_537, 5 * LEAF_BYTES + 7, 33 * LEAF_BYTES])(
  "a payload of %d bytes has the root that BEP 52 says, however it is cut on the way",
  (length) => {
    const payload = noise(length, length);
    const right = hex(literalRoot(payload));
    for (const portion of [1000, 16_384, 20_000, 65_536, length])
      expect([portion, hex(streamedRoot(payload, portion))]).toEqual([portion, right]);
  },
);

test("every number of leaves up to 70 has its root, and so has every beginning of them", () => {
  const hashes = Array.from({ length: 70 }, (_, i) => sha256(Buffer.of(i)));
  const growing = new MerkleTree();
  for (const [index, hash] of hashes.entries()) {
    growing.add(hash);
    let level: Uint8Array[] = hashes.slice(0, index + 1);
    while (!Number.isInteger(Math.log2(level.length))) level.push(new Uint8Array(32));
    while (level.length > 1)
      level = Array.from({ length: level.length / 2 }, (_, i) =>
        sha256(level[2 * i] ?? new Uint8Array(), level[2 * i + 1] ?? new Uint8Array()),
      );
    expect(hex(growing.root())).toBe(hex(level[0] ?? new Uint8Array()));
  }
  expect(growing.leaves).toBe(70);
});

test("one leaf is its own root, and the last leaf is hashed as short as it is", () => {
  expect(hex(merkleRoot(hashLeaf(Buffer.from("short"))))).toBe(hex(sha256(Buffer.from("short"))));
  expect(hex(hashLeaf(Buffer.alloc(5)))).not.toBe(hex(hashLeaf(Buffer.alloc(6))));
});

test("missing leaves count as zeros, not as the hash of nothing or of zeros", () => {
  const [a, b, c] = ["a", "b", "c"].map((text) => sha256(Buffer.from(text)));
  const right = sha256(
    sha256(a ?? Buffer.of(), b ?? Buffer.of()),
    sha256(c ?? Buffer.of(), Buffer.alloc(32)),
  );
  expect(hex(merkleRoot(Buffer.concat([a ?? Buffer.of(), b ?? Buffer.of(), c ?? Buffer.of()])))).toBe(
    hex(right),
  );
});

test("an empty payload has no root, and a hash of another length is no leaf", () => {
  expect(() => new MerkleTree().root()).toThrow("an empty payload has no hash tree");
  expect(() => new MerkleTree().add(new Uint8Array(31))).toThrow("a leaf's hash has 32 bytes, not 31");
});

test("a hash may be changed by its owner once it was added", () => {
  const [tree, hash] = [new MerkleTree(), sha256(Buffer.of(1))];
  tree.add(hash);
  hash.fill(0);
  expect(hex(tree.root())).toBe(hex(sha256(Buffer.of(1))));
});

test.each([
  [2 ** 31 - 1, 131_072],
  [2 ** 31, 131_072],
  [2 ** 31 + 1, 131_073],
  [2 ** 32 - 1, 262_144],
  [2 ** 32, 262_144],
  [2 ** 32 + 1, 262_145],
  [2 ** 41 + 1, 134_217_729],
])("a payload of %d bytes has %d leaves", (bytes, leaves) => {
  expect(leafCount(bytes)).toBe(leaves);
});

/** The root of n equal leaves, by halving: the tree of 2^k of them needs k hashes. */
function rootOfEqual(leaf: Uint8Array, count: number): Uint8Array {
  const levels = Math.ceil(Math.log2(count));
  let [full, padding] = [leaf, new Uint8Array(32) as Uint8Array];
  let partial: Uint8Array | undefined;
  for (let level = 0; level < levels; level++) {
    const isOdd = Math.floor(count / 2 ** level) % 2 === 1;
    if (isOdd) partial = sha256(full, partial ?? padding);
    else if (partial) partial = sha256(partial, padding);
    [full, padding] = [sha256(full, full), sha256(padding, padding)];
  }
  return partial ?? full;
}

// The leaves of a sparse file around 2^31 and 2^32 bytes, without reading it
test.each([2 ** 31 - 1, 2 ** 31, 2 ** 31 + 1, 2 ** 32 - 1, 2 ** 32, 2 ** 32 + 1])(
  "%d zero bytes have the root of their leaves",
  (bytes) => {
    const whole = hashLeaf(new Uint8Array(LEAF_BYTES));
    const rest = bytes % LEAF_BYTES;
    const tree = new MerkleTree();
    for (let leaf = 0; leaf < Math.floor(bytes / LEAF_BYTES); leaf++) tree.add(whole);
    if (rest === 0) {
      expect(hex(tree.root())).toBe(hex(rootOfEqual(whole, tree.leaves)));
      return;
    }
    const before = hex(tree.root());
    tree.add(hashLeaf(new Uint8Array(rest)));
    expect(tree.leaves).toBe(leafCount(bytes));
    expect(hex(tree.root())).not.toBe(before);
  },
);
