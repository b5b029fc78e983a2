/** `fruit release head` and `withdraw`: says which release is the newest, and that one is called back. */
import { existsSync } from "node:fs";
import { parseArgs } from "node:util";
import { verifyEd25519 } from "../../boot/ed25519.ts";
import {
  type Announced,
  encodeHead,
  encodeV,
  HEAD_MAX_BYTES,
  type Head,
  HeadError,
  headBytes,
  headId,
  overdue,
  parseHead,
  verifyHead,
} from "../../boot/head.ts";
import { instant } from "../../boot/release.ts";
import { keyOf, signersFor, type Trust } from "../../boot/trust.ts";
import { parseUpdate, readStatement, statementToSign } from "../../boot/updatefile.ts";
import { openRawKey } from "../sign/rawkey.ts";
import { fingerprint } from "../sign/wire.ts";
import { CliError, type CliVerb, EXIT, type Exit, type Io, lasting, printable, table } from "../terminal.ts";
import { asUsage, onlyFile, readSmall, readUpdate } from "./files.ts";
import { replacing } from "./pack.ts";
import { moment, needed } from "./words.ts";

type Context = Parameters<CliVerb["run"]>[0];

/** The flags that say what a head is to be. */
export const HEAD_FLAGS = {
  key: { type: "string" },
  expires: { type: "string", default: "7d" },
  issued: { type: "string" },
  out: { type: "string" },
} as const;

/** Makes a head for a release, or one that calls it back. */
export async function announce({ args, io, json }: Context, isWithdrawn: boolean): Promise<Exit> {
  const { values, positionals } = parseArgs({ args, allowPositionals: true, options: HEAD_FLAGS });
  const { out, bytes } = await makeHead(onlyFile(positionals), values, io, isWithdrawn);
  return explainHead({ io, json }, out, bytes);
}

/** Signs a head for a release and writes it, beside the update file unless `out` says where. */
export async function makeHead(
  path: string,
  flags: { [flag in keyof typeof HEAD_FLAGS]?: string | undefined },
  io: Pick<Io, "env" | "signal">,
  isWithdrawn: boolean,
): Promise<{ out: string; bytes: Buffer }> {
  const out = flags.out ?? headBeside(path);
  const file = await asUsage(async () => parseUpdate(await readUpdate(path)), path);
  const stated = await asUsage(async () => readStatement(statementToSign(file)), path);
  const key = await openRawKey(needed("key", flags.key), { env: io.env, signal: io.signal });
  const { target, channel, version } = stated;
  const before = existsSync(out) ? await ownHead(out, key.publicKey, { target, version }) : undefined;
  if (before?.isWithdrawn && before.version === version && !isWithdrawn)
    throw new CliError(
      EXIT.usage,
      `${out}: it says that version ${version} is withdrawn; remove it to offer that release again`,
    );
  const now = flags.issued === undefined ? Math.floor(Date.now() / 1000) : moment("issued", flags.issued);
  // What it replaces was perhaps made in this very second
  const issued = before ? Math.max(now, before.issued + 1) : now;
  const said: Announced = {
    ...{ target, channel, version, infohash: file.infohash, issued, isWithdrawn },
    expires: moment("expires", flags.expires ?? HEAD_FLAGS.expires.default, issued),
  };
  const bytes = await readable(out, async () => {
    const v = encodeV(said);
    const signature = await key.sign(headBytes(target, version, v));
    return encodeHead(said, { publicKey: key.publicKey, signature, v });
  });
  await replacing(out, (handle) => handle.writeFile(bytes));
  return { out, bytes };
}

/** Where the head of a release is, unless somebody says otherwise. */
export const headBeside = (path: string) => `${path.replace(/\.fruit$/, "")}.head`;

/** A head in a file whose own signature holds. Throws `CliError`. */
export async function readSignedHead(path: string): Promise<Head> {
  const head = await readable(path, async () => parseHead(await readSmall(path, HEAD_MAX_BYTES)));
  if (factsOf(head).signature === "good") return head;
  throw new CliError(EXIT.refused, `refused: ${path}: its signature does not match it`);
}

/** Prints what a head says. */
export async function explainHead(
  { io, json }: { io: Pick<Io, "out">; json: boolean },
  path: string,
  bytes: Uint8Array,
  trust?: Trust,
): Promise<Exit> {
  const facts = await readable(path, async () => factsOf(parseHead(bytes), trust));
  const now = Math.floor(Date.now() / 1000);
  io.out(
    json ? `${JSON.stringify({ schema: "fruit.head/1", file: path, ...facts })}\n` : show(path, facts, now),
  );
  return EXIT.done;
}

/** Decides as a node would: exit 0 when it would be listened to, 4 when it is refused. An expired one is listened to, and is an alarm. */
export function verifyHeadFile(
  io: Io,
  json: boolean,
  path: string,
  bytes: Uint8Array,
  {
    trust,
    ...node
  }: { trust: Trust; now: number; target?: string | undefined; channel?: string | undefined },
): Exit {
  const say = (facts: object) =>
    json && io.out(`${JSON.stringify({ schema: "fruit.head-verify/1", ...facts })}\n`);
  try {
    const { target, channel } = parseHead(bytes);
    const following = { target: node.target ?? target, channel: node.channel ?? channel };
    const head = verifyHead(bytes, trust, following, node);
    const late = overdue(head, { ...node, atLeast: 0 });
    say({ ok: true, ...factsOf(head, trust), overdue_s: late });
    const what = `version ${head.version} of ${head.target}${head.isWithdrawn ? " is withdrawn" : " is the newest"}`;
    if (!json) io.out(`${what}, says ${factsOf(head, trust).signer ?? head.key}\n`);
    if (late > 0)
      io.err(`fruit: it expired ${lasting(late)} ago: an alarm on a node that hears nothing newer\n`);
    return EXIT.done;
  } catch (cause) {
    if (!(cause instanceof HeadError)) throw cause;
    say({ ok: false, code: cause.code, why: `${path}: ${cause.message}` });
    throw new CliError(EXIT.refused, `refused: ${path}: ${cause.message}`, { cause });
  }
}

/** The head that stands where another is to be written. Throws `CliError` where it is none of this key and target. */
async function ownHead(
  path: string,
  publicKey: Uint8Array,
  { target, version }: Pick<Announced, "target" | "version">,
): Promise<Head> {
  const head = await readable(path, async () => parseHead(await readSmall(path, HEAD_MAX_BYTES)));
  if (head.key === keyOf({ publicKey }) && head.target === target && head.version <= version) return head;
  throw new CliError(
    EXIT.usage,
    `${path}: there is a head of version ${head.version} of ${head.target} by ${fingerprintOf(head)}; name another file with --out`,
  );
}

/** A head that cannot be read or said is wrong input here, not a decision. */
async function readable<T>(path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    if (!(cause instanceof HeadError)) throw cause;
    throw new CliError(EXIT.usage, `${path}: ${cause.message}`, { cause });
  }
}

/** Everything that is printed of a head. */
interface HeadFacts {
  target: string;
  channel: string;
  /** Decimal text: it has 64 bits. */
  version: string;
  infohash: string;
  issued: number;
  expires: number;
  withdrawn: boolean;
  fingerprint: string;
  /** Its place in the DHT. */
  dht_id: string;
  signature: "good" | "bad";
  /** Who that is, where `trust.json` gives it the role. */
  signer?: string;
  is_trusted?: boolean;
}

function factsOf(head: Head, trust?: Trust): HeadFacts {
  const { target, channel, version, infohash, issued, expires } = head;
  const publicKey = Buffer.from(head.key, "hex");
  const isGood = verifyEd25519(publicKey, headBytes(target, version, head.v), head.signature);
  const signer = trust && signersFor(trust, "head").find((one) => keyOf(one) === head.key)?.id;
  return {
    ...{ target, channel, version: String(version), infohash, issued, expires },
    withdrawn: head.isWithdrawn,
    fingerprint: fingerprintOf(head),
    dht_id: headId(publicKey, target),
    signature: isGood ? "good" : "bad",
    ...(signer === undefined ? {} : { signer }),
    ...(trust ? { is_trusted: signer !== undefined } : {}),
  };
}

function show(path: string, facts: HeadFacts, now: number): string {
  const away = facts.expires - now;
  const who = facts.signer ?? facts.fingerprint;
  const rows = [
    ["head", path],
    ["says", `version ${facts.version} is ${facts.withdrawn ? "WITHDRAWN" : "the newest"}`],
    ["of", `${facts.target}, channel ${facts.channel}`],
    ["swarm", facts.infohash],
    ["issued", instant(facts.issued)],
    ["expires", `${instant(facts.expires)} (${away > 0 ? `in ${lasting(away)}` : `${lasting(-away)} ago`})`],
    ["signed by", `${who}${facts.signature === "good" ? "" : ": NOT its signature"}`],
    ...(facts.is_trusted === false ? [["missing", 'its key has not the role "head" in trust.json']] : []),
    ["dht", facts.dht_id],
  ];
  return table(rows.map((row) => row.map(printable)));
}

const fingerprintOf = ({ key }: Pick<Head, "key">) => fingerprint(Buffer.from(key, "hex"));
