/**
 * What a signer states about a release, a dictionary of the update file:
 *
 * | key | what |
 * |---|---|
 * | `++`, `alg` | 1, `ed25519` |
 * | `uuid` | the slides' target resource identifier |
 * | `boards` | `compatible` strings of the boards it is for |
 * | `channel`, `version`, `min-from`, `floor` | version is unsigned, 64 bits; the lowest version that may install it; what the version floor becomes |
 * | `created`, `expires` | Unix seconds |
 * | `size`, `sha256`, `sha512` | of the payload |
 * | `boot` | `kernel`, `initramfs`, by board `dtb`, and for tryboot alone `fat`: `{bytes, crc32, offset}` each |
 * | `side` | `{bytes, sha256}` of the side file |
 * | `health` | `{deadline?, services?}`: seconds from the start of the machine, OpenRC services: what a trial of it asks for beyond the node's own checks |
 * | `prev` | infohash of the release before it, 20 bytes |
 * | `rollout` | `{from, jitter, waves}`: Unix seconds, seconds, and `{hours, percent}` each: how much of the fleet may begin when |
 * | `seeds`, `trackers` | up to 16 addresses each: of the payload (https), of trackers (http, https, udp) |
 * | `chunks` | `{alg, bytes}`: how the payload is cut, and the bytes of the chunk index in the side file |
 */
import type { Encodable, Received } from "./bencode.ts";
import type { Health, Release, Rollout } from "./content.ts";
import { Fields } from "./fields.ts";
import type { BootFile } from "./record.ts";

/** Form of a `compatible` string. */
const BOARD_NAME = /^[\x21-\x7e]{1,60}$/;
/** Form of a channel. */
export const CHANNEL_NAME = /^[a-z0-9][a-z0-9.-]{0,31}$/;
/** Form of the name of a way to cut. */
const ALG_NAME = /^[a-z0-9][a-z0-9-]{0,31}$/;
/** Form of a target resource identifier: a UUID or a path, no longer than the salt of a head may be (BEP 44). */
export const TARGET_NAME = /^[\x21-\x7e]{1,64}$/;

/** 9999-12-31T23:59:59Z: no date is written beyond. */
export const LAST_SECOND = 253_402_300_799;

/** What a signer states. Hashes are hex. */
export type Statement = Pick<
  Release,
  | "target"
  | "boards"
  | "channel"
  | "version"
  | "minFrom"
  | "floor"
  | "created"
  | "expires"
  | "size"
  | "boot"
  | "side"
  | "chunks"
  | "health"
  | "prev"
  | "rollout"
  | "seeds"
  | "trackers"
> & { sha256: string; sha512: string };

/** Reads a statement. Throws `FieldError`. */
export function statementOf(received: Received): Statement {
  const fields = new Fields(received, "the statement");
  fields.only(...KEYS, ...MAY);
  fields.count("++", 1, 1);
  fields.text("alg", /^ed25519$/);
  const created = fields.count("created", 0, LAST_SECOND);
  const expires = fields.count("expires", 0, LAST_SECOND);
  if (expires <= created) fields.refuse("expires", `is ${expires}, not after created, ${created}`);
  const [version, floor] = [fields.integer("version"), fields.integer("floor")];
  if (floor > version) fields.refuse("floor", `is ${floor}, above the version, ${version}`);
  const side = fields.fields("side");
  side.only("bytes", "sha256");
  return {
    target: fields.text("uuid", TARGET_NAME),
    boards: fields.texts("boards", BOARD_NAME, 64),
    channel: fields.text("channel", CHANNEL_NAME),
    version,
    minFrom: fields.integer("min-from"),
    floor,
    created,
    expires,
    size: fields.count("size", 1, Number.MAX_SAFE_INTEGER),
    sha256: hex(fields.bytes("sha256", 32)),
    sha512: hex(fields.bytes("sha512", 64)),
    boot: readBoot(fields.fields("boot")),
    side: { bytes: side.count("bytes", 1, Number.MAX_SAFE_INTEGER), sha256: hex(side.bytes("sha256", 32)) },
    ...(fields.has("chunks") ? { chunks: readChunks(fields.fields("chunks")) } : {}),
    ...(fields.has("health") ? { health: readHealth(fields.fields("health")) } : {}),
    ...(fields.has("prev") ? { prev: hex(fields.bytes("prev", 20)) } : {}),
    ...(fields.has("rollout") ? { rollout: readRollout(fields.fields("rollout")) } : {}),
    ...(fields.has("seeds") ? { seeds: readAddresses(fields, "seeds", ["https:"]) } : {}),
    ...(fields.has("trackers")
      ? { trackers: readAddresses(fields, "trackers", ["http:", "https:", "udp:"]) }
      : {}),
  };
}

/** A statement as it is written. */
export function encodeStatement(statement: Statement): Encodable {
  const file = ({ bytes, crc32, offset }: BootFile) => ({ bytes, crc32, offset });
  const { boot, chunks, side, health, prev, rollout } = statement;
  const trees = Object.entries(boot.deviceTrees).map(([board, tree]) => [board, file(tree)] as const);
  return {
    "++": 1,
    alg: "ed25519",
    boards: statement.boards,
    boot: {
      dtb: new Map(trees),
      ...(boot.fat ? { fat: file(boot.fat) } : {}),
      initramfs: file(boot.initramfs),
      kernel: file(boot.kernel),
    },
    channel: statement.channel,
    ...(chunks ? { chunks: { alg: chunks.alg, bytes: chunks.bytes } } : {}),
    created: statement.created,
    expires: statement.expires,
    floor: statement.floor,
    ...(health
      ? { health: { deadline: health.deadlineSeconds, ...listOf("services", health.services) } }
      : {}),
    "min-from": statement.minFrom,
    ...(prev === undefined ? {} : { prev: Buffer.from(prev, "hex") }),
    ...(rollout
      ? { rollout: { from: rollout.from, jitter: rollout.jitterSeconds, waves: rollout.waves } }
      : {}),
    ...listOf("seeds", statement.seeds),
    sha256: Buffer.from(statement.sha256, "hex"),
    sha512: Buffer.from(statement.sha512, "hex"),
    side: { bytes: side.bytes, sha256: Buffer.from(side.sha256, "hex") },
    size: statement.size,
    ...listOf("trackers", statement.trackers),
    uuid: statement.target,
    version: statement.version,
  };
}

const KEYS = ["++", "alg", "boards", "boot", "channel", "created", "expires", "floor", "min-from"].concat([
  "sha256",
  "sha512",
  "side",
  "size",
  "uuid",
  "version",
]);
const MAY = ["chunks", "health", "prev", "rollout", "seeds", "trackers"];
/** Form of an OpenRC service's name. */
const SERVICE_NAME = /^[\w.+@-]{1,64}$/;
/** Form of an address: what may stand in a URL, and no more of it than a person reads. */
const ADDRESS = /^[a-z]{3,5}:\/\/[\x21-\x7e]{1,200}$/;
const MOST_ADDRESSES = 16;
const MOST_WAVES = 16;
/** 90 days. */
const LONGEST_HOURS = 2160;

/** A list that is left out where it is empty. */
const listOf = (key: string, all: readonly string[] | undefined) =>
  all === undefined || all.length === 0 ? {} : { [key]: all };

function readHealth(health: Fields): Health {
  health.only("deadline", "services");
  if (health.keys().length === 0)
    health.refuse("services", "is missing, and so is deadline: it asks for nothing");
  return {
    services: health.has("services") ? health.texts("services", SERVICE_NAME, 32) : [],
    ...(health.has("deadline") ? { deadlineSeconds: health.count("deadline", 60, 3600) } : {}),
  };
}

function readRollout(rollout: Fields): Rollout {
  rollout.only("from", "jitter", "waves");
  const waves = rollout.all("waves", MOST_WAVES).map((wave) => {
    wave.only("hours", "percent");
    return { percent: wave.count("percent", 1, 100), hours: wave.count("hours", 0, LONGEST_HOURS) };
  });
  for (const [index, { percent, hours }] of waves.entries()) {
    const before = waves[index - 1];
    if (before && (percent <= before.percent || hours <= before.hours))
      rollout.refuse(
        "waves",
        `do not rise: ${percent} % after ${hours} h stands behind ${before.percent} % after ${before.hours} h`,
      );
  }
  return {
    from: rollout.count("from", 0, LAST_SECOND),
    jitterSeconds: rollout.count("jitter", 0, 86_400),
    waves,
  };
}

/** Addresses that say all there is to say: no user, no fragment, and written as a program would write them. */
function readAddresses(fields: Fields, key: string, protocols: readonly string[]): string[] {
  const all = fields.texts(key, ADDRESS, MOST_ADDRESSES);
  for (const text of all) {
    const url = URL.parse(text);
    const isPlain = url?.username === "" && url.password === "" && url.hash === "" && url.hostname !== "";
    if (!url || !isPlain || !protocols.includes(url.protocol) || text.includes("#"))
      fields.refuse(
        key,
        `has "${text}", not an address of ${protocols.map((one) => one.slice(0, -1)).join(", ")} without user and fragment`,
      );
  }
  return all;
}

function readBoot(boot: Fields): Release["boot"] {
  boot.only("dtb", "fat", "initramfs", "kernel");
  const trees = boot.fields("dtb");
  const deviceTrees: [string, BootFile][] = trees.keys().map((board) => {
    if (!BOARD_NAME.test(board)) trees.refuse(board, `is not of the form ${BOARD_NAME}`);
    return [board, readFile(trees.fields(board))];
  });
  return {
    kernel: readFile(boot.fields("kernel")),
    initramfs: readFile(boot.fields("initramfs")),
    deviceTrees: Object.fromEntries(deviceTrees),
    ...(boot.has("fat") ? { fat: readFile(boot.fields("fat")) } : {}),
  };
}

function readChunks(chunks: Fields): NonNullable<Release["chunks"]> {
  chunks.only("alg", "bytes");
  return { alg: chunks.text("alg", ALG_NAME), bytes: chunks.count("bytes", 1, 0xffff_ffff) };
}

function readFile(file: Fields): BootFile {
  file.only("bytes", "crc32", "offset");
  return {
    offset: file.count("offset", 0, Number.MAX_SAFE_INTEGER),
    bytes: file.count("bytes", 1, 0xffff_ffff),
    crc32: file.count("crc32", 0, 0xffff_ffff),
  };
}

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");
