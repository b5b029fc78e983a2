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
 * | `chunks health prev rollout seeds trackers` | may stand there, and are not looked at |
 */
import type { Encodable, Received } from "./bencode.ts";
import type { Release } from "./content.ts";
import { Fields } from "./fields.ts";
import type { BootFile } from "./record.ts";

/** Form of a `compatible` string. */
const BOARD_NAME = /^[\x21-\x7e]{1,60}$/;
/** Form of a channel. */
const CHANNEL_NAME = /^[a-z0-9][a-z0-9.-]{0,31}$/;
/** Form of a target resource identifier: a UUID or a path. */
const TARGET_NAME = /^[\x21-\x7e]{1,100}$/;

/** 9999-12-31T23:59:59Z: no date is written beyond. */
const LAST_SECOND = 253_402_300_799;

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
> & { sha256: string; sha512: string };

/** Reads a statement. Throws `FieldError`. */
export function statementOf(received: Received): Statement {
  const fields = new Fields(received, "the statement");
  fields.only(...KEYS, ...UNREAD);
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
  };
}

/** A statement as it is written. */
export function encodeStatement(statement: Statement): Encodable {
  const file = ({ bytes, crc32, offset }: BootFile) => ({ bytes, crc32, offset });
  const { boot, side } = statement;
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
    created: statement.created,
    expires: statement.expires,
    floor: statement.floor,
    "min-from": statement.minFrom,
    sha256: Buffer.from(statement.sha256, "hex"),
    sha512: Buffer.from(statement.sha512, "hex"),
    side: { bytes: side.bytes, sha256: Buffer.from(side.sha256, "hex") },
    size: statement.size,
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
const UNREAD = ["chunks", "health", "prev", "rollout", "seeds", "trackers"];

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

function readFile(file: Fields): BootFile {
  file.only("bytes", "crc32", "offset");
  return {
    offset: file.count("offset", 0, Number.MAX_SAFE_INTEGER),
    bytes: file.count("bytes", 1, 0xffff_ffff),
    crc32: file.count("crc32", 0, 0xffff_ffff),
  };
}

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");
