/** What an update file says, for a person and for programs, whether or not it may be installed. */
import { stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { verifyEd25519 } from "../../boot/ed25519.ts";
import { instant } from "../../boot/release.ts";
import type { Statement } from "../../boot/statement.ts";
import { distinctKeys, signersFor, type Trust } from "../../boot/trust.ts";
import {
  parseUpdate,
  ReleaseError,
  readSignature,
  readStatement,
  signedBytes,
  statementToSign,
  type UpdateFile,
} from "../../boot/updatefile.ts";
import { counted, EXIT, type Exit, type Io, lasting, printable, table } from "../terminal.ts";
import { type Against, type Difference, differenceOf } from "./difference.ts";
import { asUsage, readUpdate } from "./files.ts";

/** What is known of one signer. */
interface SignerFacts {
  id: string;
  /** Whether it holds; "unknown" without `trust.json`, "unnamed" where that names no such signer for releases. */
  signature: "good" | "bad" | "unknown" | "unnamed";
}

/** Everything that `inspect` prints. Hashes are hex, versions decimal text (they have 64 bits), times Unix seconds. */
interface Facts {
  schema: "fruit.release/1";
  file: string;
  name: string;
  infohash: string;
  pieces_root: string;
  piece_length: number;
  size: number;
  /** Absent while the signers do not agree about it. */
  statement?: Record<string, unknown>;
  signers: SignerFacts[];
  /** What is new in it; absent where there is nothing to hold it against. */
  difference?: Difference;
  /** What stands between it and an installation, as far as can be told here; empty when nothing does. */
  missing: string[];
}

/** Prints what an update file says. */
export async function explainUpdate(
  { io, json }: { io: Io; json: boolean },
  path: string,
  beside: { trust?: Trust; against?: Against } = {},
): Promise<Exit> {
  const now = Math.floor(Date.now() / 1000);
  const facts = await asUsage(async () => inspect(path, await readUpdate(path), { now, ...beside }), path);
  const { stated, ...printed } = facts;
  io.out(json ? `${JSON.stringify(printed)}\n` : show(facts, now));
  return EXIT.done;
}

/** Reads an update file, and looks for what belongs beside it. Throws `ReleaseError` where it is none. */
async function inspect(
  path: string,
  bytes: Uint8Array,
  options: { trust?: Trust; against?: Against; now: number },
): Promise<Facts & { stated?: Statement }> {
  const file = parseUpdate(bytes);
  const missing: string[] = [];
  const stated = attempt(() => readStatement(statementToSign(file)), missing);
  const signers = signersOf(file, options.trust, missing);
  if (stated && options.now >= stated.expires)
    missing.push(`it expired ${lasting(options.now - stated.expires)} ago`);
  if (stated && stated.size !== file.info.length)
    missing.push(`its size is stated as ${stated.size}, but info.length is ${file.info.length}`);
  if (options.trust) missing.push(...missingSigners(options.trust, signers));
  else if (signers.length === 0) missing.push("nobody has signed it (fruit release sign)");
  if (basename(path) === `${file.info.name}.fruit`) {
    await isBeside(join(dirname(path), file.info.name), file.info.length, "payload", missing);
    if (stated)
      await isBeside(join(dirname(path), `${file.info.name}.side`), stated.side.bytes, "side file", missing);
  }
  return {
    schema: "fruit.release/1",
    file: path,
    name: file.info.name,
    infohash: file.infohash,
    pieces_root: Buffer.from(file.info.piecesRoot).toString("hex"),
    piece_length: file.info.pieceLength,
    size: file.info.length,
    ...(stated ? { statement: plain(stated), stated } : {}),
    signers,
    ...(stated && options.against ? { difference: differenceOf(file, stated, options.against) } : {}),
    missing,
  };
}

/** The facts as lines. */
function show(facts: Facts & { stated?: Statement }, now: number): string {
  const { stated } = facts;
  const rows = [
    ["release", facts.name],
    ...(stated
      ? [
          ["version", `${stated.version} (channel ${stated.channel}, for ${stated.target})`],
          ["boards", stated.boards.join(", ")],
          ["installs on", `version ${stated.minFrom} and higher; then nothing below ${floorsOf(stated)}`],
          ["made", instant(stated.created)],
          ["expires", `${instant(stated.expires)}${away(stated.expires - now)}`],
        ]
      : []),
    ["payload", `${megabytes(facts.size)}, hash tree ${facts.pieces_root}`],
    ...(stated ? bootRows(stated) : []),
    [
      "swarm",
      `${facts.infohash}, ${counted(Math.ceil(facts.size / facts.piece_length), "piece")} of ${facts.piece_length / 1024} KiB`,
    ],
    ...(stated ? moreRows(stated) : []),
    ...(facts.difference ? differenceRows(facts.difference) : []),
    ...(facts.signers.length === 0 ? [["signed by", "nobody"]] : []),
    ...facts.signers.map(({ id, signature }) => ["signed by", `${id}${WORDS[signature]}`]),
    ...facts.missing.map((what) => ["missing", what]),
  ];
  return table(rows.map((row) => row.map(printable)));
}

const WORDS = {
  good: "",
  bad: ": NOT its signature",
  unknown: " (not checked: its key is in trust.json, give --trust)",
  unnamed: " (trust.json does not name it for releases)",
};

/** The floor of the record, and that of its signers. */
const floorsOf = ({ floor, version }: Statement) =>
  floor < version ? `${floor}, and of the same signers nothing below ${version}` : `${floor}`;

/** What a statement may hold and need not. */
function moreRows({ health, prev, rollout, seeds = [], trackers = [] }: Statement): string[][] {
  const deadline = health?.deadlineSeconds;
  const asks = [
    ...(health?.services ?? []).map((service) => `service ${service}`),
    ...(deadline === undefined ? [] : [`decided within ${lasting(deadline)}`]),
  ];
  const waves = rollout?.waves.map(({ percent, hours }) => `${percent} % after ${hours} h`);
  return [
    ...(health ? [["a trial asks", asks.join(", ")]] : []),
    ...(prev === undefined ? [] : [["before it", `${prev} (swarm)`]]),
    ...(rollout && waves
      ? [
          [
            "goes round",
            `from ${instant(rollout.from)}: ${waves.join(", ")}; within ${lasting(rollout.jitterSeconds)} each`,
          ],
        ]
      : []),
    ...seeds.map((seed) => ["web seed", seed]),
    ...trackers.map((tracker) => ["tracker", tracker]),
  ];
}

function differenceRows({ against, version, size, is_same_payload, changed }: Difference): string[][] {
  const by = size.to - size.from;
  const grown = by === 0 ? "the same size" : `${megabytes(Math.abs(by))} ${by > 0 ? "more" : "less"}`;
  const files = changed.length === 0 ? "no boot file differs" : `another ${changed.join(", ")}`;
  return [
    ["beside", against],
    [
      "",
      `version ${version.from} -> ${version.to}, ${is_same_payload ? "the same payload" : `${grown}; ${files}`}`,
    ],
  ];
}

function bootRows({ boot, side }: Statement): string[][] {
  const file = ({ offset, bytes }: { offset: number; bytes: number }) =>
    `${megabytes(bytes)} at byte ${offset}`;
  return [
    ["kernel", file(boot.kernel)],
    ["initramfs", file(boot.initramfs)],
    ...(boot.fat ? [["boot set", `${file(boot.fat)}, for tryboot`]] : []),
    ...Object.entries(boot.deviceTrees).map(([board, tree]) => ["device tree", `${board}, ${file(tree)}`]),
    ["side file", `${megabytes(side.bytes)}, SHA-256 ${side.sha256}`],
  ];
}

/** The statement as JSON can say it. */
function plain(stated: Statement): Record<string, unknown> {
  const { target, minFrom, boot, version, floor, health, rollout, ...rest } = stated;
  const { deviceTrees, ...files } = boot;
  return {
    uuid: target,
    version: String(version),
    min_from: String(minFrom),
    floor: String(floor),
    ...rest,
    ...(health ? { health: { services: health.services, deadline: health.deadlineSeconds } } : {}),
    ...(rollout
      ? { rollout: { from: rollout.from, jitter: rollout.jitterSeconds, waves: rollout.waves } }
      : {}),
    boot: { ...files, dtb: deviceTrees },
  };
}

function signersOf(file: UpdateFile, trust: Trust | undefined, missing: string[]): SignerFacts[] {
  return [...file.signatures].map(([id, received]) => {
    const signed = attempt(() => readSignature(id, received), missing);
    const known = trust && signersFor(trust, "release").find((signer) => signer.id === id);
    if (!signed) return { id, signature: "bad" };
    if (!known) return { id, signature: trust ? "unnamed" : "unknown" };
    const message = signedBytes(file.infoBytes, signed.statement.bytes);
    return { id, signature: verifyEd25519(known.publicKey, message, signed.signature) ? "good" : "bad" };
  });
}

function missingSigners(trust: Trust, signers: readonly SignerFacts[]): string[] {
  const known = signersFor(trust, "release");
  const good = known.filter(({ id }) => signers.some((one) => one.id === id && one.signature === "good"));
  const needed = trust.threshold.release ?? 0;
  const have = distinctKeys(good);
  if (have >= needed) return [];
  const others = known.filter((one) => !good.includes(one)).map(({ id }) => id);
  return [`${counted(needed - have, "signature")} more of ${others.join(", ")} (${have} of ${needed} hold)`];
}

async function isBeside(path: string, bytes: number, what: string, missing: string[]): Promise<void> {
  const found = await stat(path).then(
    ({ size }) => size,
    () => undefined,
  );
  if (found === undefined) missing.push(`the ${what} is not beside it: ${path}`);
  else if (found !== bytes) missing.push(`the ${what} ${path} has ${found} bytes, not ${bytes}`);
}

function attempt<T>(read: () => T, missing: string[]): T | undefined {
  try {
    return read();
  } catch (cause) {
    if (!(cause instanceof ReleaseError)) throw cause;
    if (!missing.includes(cause.message)) missing.push(cause.message);
    return undefined;
  }
}

const away = (seconds: number) => (seconds > 0 ? ` (in ${lasting(seconds)})` : "");
const megabytes = (bytes: number) => (bytes < 100_000 ? `${bytes} B` : `${(bytes / 1e6).toFixed(1)} MB`);
