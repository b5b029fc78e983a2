/** Small releases in memory, signed by keys that are the same every time. */
import { createHash } from "node:crypto";
import { crc32 } from "node:zlib";
import { encodeArea, layOut } from "../boot/area.ts";
import { CHUNKS_ALG, Chunker } from "../boot/chunks.ts";
import { publicKeyOf, signEd25519 } from "../boot/ed25519.ts";
import { LeafHasher, merkleRoot } from "../boot/merkle.ts";
import { type Situation, verifyRelease } from "../boot/release.ts";
import { encodeSideHeader } from "../boot/side.ts";
import type { Statement } from "../boot/statement.ts";
import { keyLine, parseTrust, type Trust } from "../boot/trust.ts";
import {
  encodeUpdate,
  parseUpdate,
  signedBytes,
  statementToSign,
  type TorrentInfo,
  withSignature,
} from "../boot/updatefile.ts";
import { seeded } from "./fakes.ts";

export const BOARD = "raspberrypi,3-model-b";
/** When these releases are made and when they expire, and a moment between them. */
export const TIMES = { created: 1_790_000_000, expires: 1_820_000_000, now: 1_800_000_000 };

/** The seed of a signer's key, by its name. */
export const seedOf = (signer: string): Uint8Array =>
  createHash("sha256").update(`key of ${signer}`).digest();

/** Who is believed: all of `signers`, of whom `threshold` must sign. */
export function trustIn(signers: readonly string[], threshold = signers.length): Trust {
  return parseTrust(
    JSON.stringify({
      schema: "fruit.trust/1",
      version: 1,
      threshold: { release: threshold },
      signers: signers.map((id) => ({ id, key: keyLine(publicKeyOf(seedOf(id))), roles: ["release"] })),
    }),
  );
}

/** A node that would take them. */
export const NODE: Situation = { now: TIMES.now, atLeast: 0, boards: [BOARD], floor: 0n, running: 1n };

/** Bytes that look like nothing, the same ones for the same seed. */
export function noise(length: number, seed = 1): Buffer {
  const random = seeded(seed);
  return Buffer.from(Uint8Array.from({ length }, () => random() * 256));
}

/** A superblock and noise behind it: what the kernel would not mount, but what has a squashfs's length. */
export function squashfs(length: number, seed = 1): Buffer {
  const image = noise(length, seed);
  image.fill(0, 0, 96);
  image.writeUInt32LE(0x7371_7368, 0);
  image.writeUInt32LE(TIMES.created, 8);
  image.writeUInt16LE(4, 28);
  image.writeBigUInt64LE(BigInt(length), 40);
  return image;
}

/** A payload as it is laid out, from noise. */
export function makePayload(
  options: { version?: bigint; name?: string; rootBytes?: number; seed?: number } = {},
) {
  const { version = 7n, name = "fruitos-7", rootBytes = 40_000, seed = 1 } = options;
  const root = squashfs(rootBytes, seed);
  const files = {
    kernel: noise(20_000, seed + 1),
    initramfs: noise(9_000, seed + 2),
    tree: noise(500, seed + 3),
  };
  const facts = (bytes: Uint8Array) => ({ bytes: bytes.length, crc32: crc32(bytes) });
  const { headerAt, payloadBytes, boot } = layOut(root.length, {
    kernel: facts(files.kernel),
    initramfs: facts(files.initramfs),
    deviceTrees: { [BOARD]: facts(files.tree) },
  });
  const payload = Buffer.alloc(payloadBytes);
  payload.set(root);
  payload.set(encodeArea({ version, name, payloadBytes, boot }), headerAt);
  payload.set(files.kernel, boot.kernel.offset);
  payload.set(files.initramfs, boot.initramfs.offset);
  payload.set(files.tree, boot.deviceTrees[BOARD]?.offset);
  return { payload, area: { version, name, payloadBytes, boot }, headerAt };
}

/** The index of a payload's chunks. */
export function chunksOf(payload: Uint8Array): Buffer {
  const chunker = new Chunker();
  chunker.update(payload);
  return chunker.end();
}

/** The side file of a payload, with or without an index of its chunks. */
export function sideOf(
  payload: Uint8Array,
  index: Uint8Array = new Uint8Array(),
): { bytes: Buffer; root: Uint8Array } {
  const hashes: Uint8Array[] = [];
  const hasher = new LeafHasher((hash) => hashes.push(hash));
  hasher.update(payload);
  hasher.end();
  return {
    bytes: Buffer.concat([encodeSideHeader(payload.length, index.length), ...hashes, index]),
    root: merkleRoot(Buffer.concat(hashes)),
  };
}

/** A whole release, signed by `signers`; `stated` and `info` replace what would be true. */
export function makeRelease(
  options: {
    signers?: readonly string[];
    stated?: Partial<Statement>;
    info?: Partial<TorrentInfo>;
    payload?: ReturnType<typeof makePayload>;
    /** Without an index of its chunks it is as releases were before there was one. */
    chunks?: boolean;
  } = {},
) {
  const { signers = ["anna"], stated, info, chunks: isCut = true } = options;
  const { payload, area } = options.payload ?? makePayload();
  const chunks = isCut ? chunksOf(payload) : Buffer.alloc(0);
  const side = sideOf(payload, chunks);
  const pieceLength = 65_536;
  const pieces: Buffer[] = [];
  for (let at = 0; at < payload.length; at += pieceLength)
    pieces.push(
      createHash("sha1")
        .update(payload.subarray(at, at + pieceLength))
        .digest(),
    );
  const sha = (algorithm: string, bytes: Uint8Array) => createHash(algorithm).update(bytes).digest("hex");
  let update = encodeUpdate(
    {
      name: area.name,
      length: payload.length,
      pieceLength,
      pieces: Buffer.concat(pieces),
      piecesRoot: side.root,
      ...info,
    },
    {
      target: "fruitos/stable",
      boards: [BOARD],
      channel: "stable",
      version: area.version,
      minFrom: 0n,
      floor: area.version,
      created: TIMES.created,
      expires: TIMES.expires,
      size: payload.length,
      sha256: sha("sha256", payload),
      sha512: sha("sha512", payload),
      boot: area.boot,
      side: { bytes: side.bytes.length, sha256: sha("sha256", side.bytes) },
      ...(isCut ? { chunks: { alg: CHUNKS_ALG, bytes: chunks.length } } : {}),
      ...stated,
    },
  );
  const unsigned = update;
  for (const signer of signers) update = signedBy(signer, update);
  return { payload, side: side.bytes, unsigned, update, trust: trustIn(["anna"]) };
}

/** The same release, believed. */
export function believed(made: ReturnType<typeof makeRelease>) {
  return verifyRelease(made.update, made.trust, NODE);
}

/** An update file with one more signature. */
export function signedBy(signer: string, update: Uint8Array, seed = seedOf(signer)): Buffer {
  const file = parseUpdate(update);
  const message = signedBytes(file.infoBytes, statementToSign(file).bytes);
  return withSignature(file, signer, signEd25519(seed, message));
}

/** Bytes as a disk gives them. */
export function inMemory(bytes: Uint8Array, name = "memory") {
  return {
    name,
    bytes: bytes.length,
    read: async (offset: number, length: number) => {
      if (offset + length > bytes.length) throw new Error(`${name}: it ends at byte ${bytes.length}`);
      return Uint8Array.from(bytes.subarray(offset, offset + length));
    },
  };
}
