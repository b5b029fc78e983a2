/** `fruit release verify`: decides as a node would, and looks whether the bytes in hand are those of the release. */
import { isDeepStrictEqual, parseArgs } from "node:util";
import type { Release } from "../../boot/content.ts";
import { verifyRelease } from "../../boot/release.ts";
import { openSide } from "../../boot/side.ts";
import type { Statement } from "../../boot/statement.ts";
import {
  parseUpdate,
  ReleaseError,
  readSignature,
  readStatement,
  type TorrentInfo,
  type UpdateFile,
} from "../../boot/updatefile.ts";
import { openDisk } from "../../hal/disk.ts";
import { CliError, type CliVerb, EXIT } from "../terminal.ts";
import { verifyChain } from "./chain.ts";
import { digestPayload } from "./digest.ts";
import { kindOf, onlyAbout, onlyFile, readTrust, readUpdate } from "./files.ts";
import { verifyHeadFile } from "./heads.ts";
import { areaOf } from "./pack.ts";
import { moment, needed, unsigned } from "./words.ts";

/** What there is to be said of each kind of file. */
const FLAGS = {
  update: ["trust", "payload", "side", "board", "floor", "running", "at"],
  head: ["trust", "target", "channel", "at"],
  chain: ["trust"],
};

/** Exit 0 when a node would install it, 4 when it is refused. */
export async function verify({ args, io, json }: Parameters<CliVerb["run"]>[0]) {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      trust: { type: "string" },
      payload: { type: "string" },
      side: { type: "string" },
      board: { type: "string", multiple: true },
      floor: { type: "string" },
      running: { type: "string" },
      at: { type: "string" },
      target: { type: "string" },
      channel: { type: "string" },
    },
  });
  const path = onlyFile(positionals);
  const trust = await readTrust(needed("trust", values.trust));
  const bytes = await readUpdate(path);
  const kind = kindOf(bytes);
  onlyAbout(kind, values, FLAGS);
  const node = {
    now: values.at === undefined ? Math.floor(Date.now() / 1000) : moment("at", values.at),
    atLeast: 0,
    boards: values.board ?? ("any" as const),
    floor: unsigned("floor", values.floor ?? "0"),
    running: values.running === undefined ? undefined : unsigned("running", values.running),
  };
  if (kind === "chain") return verifyChain(io, json, path, bytes, trust);
  if (kind === "head")
    return verifyHeadFile(io, json, path, bytes, {
      ...{ trust, now: node.now, target: values.target, channel: values.channel },
    });
  const say = (facts: object) =>
    json && io.out(`${JSON.stringify({ schema: "fruit.release-verify/1", ...facts })}\n`);
  try {
    const release = verifyRelease(bytes, trust, node);
    const content = await checkContent(release, parseUpdate(bytes), values, io.signal);
    const { name, version, signers } = release;
    const checked = ["signatures", ...content];
    say({ ok: true, name, version: String(version), signers, checked });
    if (!json)
      io.out(
        `${name}, version ${version}: signed by ${signers.join(", ")}; checked: ${checked.join(", ")}\n`,
      );
    return EXIT.done;
  } catch (cause) {
    const refusal = refusalOf(cause, path);
    if (!refusal) throw cause;
    say({ ok: false, ...refusal });
    throw new CliError(EXIT.refused, `refused: ${refusal.why}`, { cause });
  }
}

function refusalOf(cause: unknown, path: string): { code: string; why: string } | undefined {
  if (cause instanceof ReleaseError) return { code: cause.code, why: `${path}: ${cause.message}` };
  if (cause instanceof CliError && cause.exit === EXIT.refused)
    return { code: "content", why: cause.message };
  return undefined;
}

/** Checks the files that were given, and says which. Throws `CliError`. */
async function checkContent(
  release: Release,
  file: UpdateFile,
  given: { side?: string | undefined; payload?: string | undefined },
  signal: AbortSignal,
): Promise<string[]> {
  if (given.side !== undefined) await checkSide(given.side, release);
  if (given.payload !== undefined) {
    const [id = ""] = release.signers; // all of them state the same
    const signed = file.signatures.get(id);
    if (!signed) throw new Error(`${id} signed nothing`);
    await checkPayload(given.payload, file.info, readStatement(readSignature(id, signed).statement), signal);
  }
  return [
    ...(given.side === undefined ? [] : ["side file"]),
    ...(given.payload === undefined ? [] : ["payload"]),
  ];
}

/** Checks a whole payload: every hash that is stated of it, and that its boot area says the same. Throws `CliError` with the first difference. */
async function checkPayload(
  path: string,
  info: TorrentInfo,
  stated: Statement,
  signal: AbortSignal,
): Promise<void> {
  const refuse = (what: string) => new CliError(EXIT.refused, `${path}: ${what}`);
  const found = await digestPayload(path, info.pieceLength, undefined, signal);
  if (found.size !== stated.size) throw refuse(`${found.size} bytes; the release has ${stated.size}`);
  for (let at = 0; at < info.pieces.length; at += 20) {
    if (found.pieces.subarray(at, at + 20).equals(info.pieces.subarray(at, at + 20))) continue;
    const offset = (at / 20) * info.pieceLength;
    throw refuse(`piece ${at / 20} (from byte ${offset}) is not that of the release`);
  }
  const hashes = [
    ["SHA-256", found.sha256, stated.sha256],
    ["SHA-512", found.sha512, stated.sha512],
    ["hash tree", hex(found.piecesRoot), hex(info.piecesRoot)],
  ] as const;
  for (const [what, is, due] of hashes)
    if (is !== due) throw refuse(`its ${what} is ${is}; the release states ${due}`);
  const area = await areaOf(path);
  if (area.version !== stated.version || !isDeepStrictEqual(area.boot, stated.boot))
    throw refuse("its boot area does not say what the release states");
}

/** Checks a side file. Throws `CliError`. */
async function checkSide(path: string, release: Release): Promise<void> {
  const file = await openDisk(path, "read").catch((cause: Error) => {
    throw new CliError(EXIT.usage, cause.message, { cause });
  });
  try {
    await openSide(file, release);
  } catch (cause) {
    throw new CliError(EXIT.refused, cause instanceof Error ? cause.message : String(cause), { cause });
  } finally {
    await file.close();
  }
}

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");
