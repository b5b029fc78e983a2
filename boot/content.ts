/** What a release is once it was read and believed: `release.ts` makes it, the writer and the trial use it. */
import type { BootFile } from "./record.ts";

/** Bytes of one leaf of the hash tree: what is checked before it is written. The last one of a payload may be shorter. */
export const LEAF_BYTES = 16_384;

/** What a release asks of a trial of it. */
export interface Health {
  /** OpenRC services that must run. */
  services: readonly string[];
  /** How long the trial may take, from the start of the machine; as the node has it where it does not say. */
  deadlineSeconds?: number;
}

/** How a release goes round: wave by wave. */
export interface Rollout {
  /** When the first wave begins, Unix seconds. */
  from: number;
  /** Nodes of one wave begin within so many seconds. */
  jitterSeconds: number;
  /** How much of the fleet may have begun so many hours later; both rise. Who is beyond the last waits to be told. */
  waves: readonly { percent: number; hours: number }[];
}

/** A release whose signatures were checked against `trust.json`. Times are Unix seconds. */
export interface Release {
  /** SHA-1 of the bencoded `info`, hex: its name in the swarm. */
  infohash: string;
  name: string;
  /** Bytes of the payload. */
  size: number;
  /** Merkle root over the SHA-256 of 16 KiB leaves (BEP 52), 32 bytes: the content hash. */
  piecesRoot: Uint8Array;
  /** The slides' target resource identifier. */
  target: string;
  /** `compatible` strings of device trees: one of the node's own must be among them. */
  boards: readonly string[];
  channel: string;
  version: bigint;
  /** The lowest version that may install it. */
  minFrom: bigint;
  /** What the version floor becomes once it is confirmed. */
  floor: bigint;
  created: number;
  expires: number;
  /** Where its boot files stand in the payload. `fat`: the boot set for cards of tryboot, which kernel and initramfs are files of. */
  boot: {
    kernel: BootFile;
    initramfs: BootFile;
    deviceTrees: Readonly<Record<string, BootFile>>;
    fat?: BootFile;
  };
  /** The side file: the leaf hashes and the chunk index. */
  side: { bytes: number; sha256: string };
  /** How the payload is cut into chunks, and the bytes of their index in the side file. */
  chunks?: { alg: string; bytes: number };
  /** What must be well, beyond the node's own checks, before it is confirmed. */
  health?: Health;
  /** Infohash of the release before it, hex. */
  prev?: string;
  /** Which nodes take it when, by themselves; all at once where it does not say. */
  rollout?: Rollout;
  /** Web servers that have the payload too (BEP 19), https. */
  seeds?: readonly string[];
  /** Where peers may be asked for: http, https, udp. */
  trackers?: readonly string[];
  /** Who signed it and was believed, by signer id. */
  signers: readonly string[];
}
