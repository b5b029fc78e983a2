/** `fruit release trust`: the first `trust.json`, and how the next ones come to nodes that have it: a chain (`.trust`). */
import { existsSync } from "node:fs";
import { parseArgs } from "node:util";
import { CHAIN_MAX_LINKS, encodeChain, linkBytes } from "../../boot/rotation.ts";
import {
  keyLine,
  keyOf,
  parseTrust,
  signersFor,
  TRUST_ROLES,
  type Trust,
  TrustError,
  type TrustRole,
} from "../../boot/trust.ts";
import { parseKeyFile, readKeyFile } from "../sign/keys.ts";
import { KEY_WORDS, openRawKey } from "../sign/rawkey.ts";
import { CliError, type CliVerb, EXIT, type Exit, table, UsageError } from "../terminal.ts";
import { changesOf, factsOf, missingIn, readChain, rowsOf } from "./chain.ts";
import { onlyFile, readTrust, readTrustText, writeNew } from "./files.ts";
import { replacing } from "./pack.ts";
import { needed } from "./words.ts";

type Context = Parameters<CliVerb["run"]>[0];

/** What follows `release trust`, for its usage line. */
export const TRUST_SYNOPSIS = `init --signer ID=FILE.pub=ROLES… --threshold release=M[,trust=M][,head=M] [--version N] --out trust.json | next FILE.trust --to NEW.json [--from trust.json] | sign FILE.trust --key ${KEY_WORDS}`;

/** Runs what the first word says. */
export async function trustVerb(context: Context): Promise<Exit> {
  const [word, ...args] = context.args;
  const run = Object.hasOwn(RUNS, word ?? "") ? RUNS[word ?? ""] : undefined;
  if (!run) throw new UsageError(`expected ${Object.keys(RUNS).join(", ")}`);
  return run({ ...context, args });
}

const RUNS: Record<string, (context: Context) => Promise<Exit>> = { init, next, sign };

async function init({ args, io, json }: Context): Promise<Exit> {
  const { values } = parseArgs({
    args,
    options: {
      signer: { type: "string", multiple: true, default: [] },
      threshold: { type: "string" },
      version: { type: "string", default: "1" },
      out: { type: "string" },
    },
  });
  const out = needed("out", values.out);
  if (values.signer.length === 0) throw new UsageError("--signer is missing");
  const document = {
    schema: "fruit.trust/1",
    version: versionOf(values.version),
    threshold: thresholdOf(needed("threshold", values.threshold)),
    signers: await Promise.all(values.signer.map(signerOf)),
  };
  const text = `${JSON.stringify(document, null, 2)}\n`;
  const trust = readable(text, "--signer and --threshold");
  await writeNew(out, text, 0o644);
  const facts = factsOf(trust);
  io.out(json ? `${JSON.stringify({ schema: "fruit.release-trust/1", ...facts })}\n` : table(rowsOf(facts)));
  return EXIT.done;
}

async function next({ args, io, json }: Context): Promise<Exit> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: { to: { type: "string" }, from: { type: "string" } },
  });
  const path = onlyChain(positionals);
  const to = needed("to", values.to);
  const text = await readTrustText(to);
  const trust = readable(text, to);
  const links = existsSync(path) ? await readChain(path) : [];
  const last = links.at(-1);
  if (last && values.from !== undefined)
    throw new UsageError(
      `--from begins a chain; ${path} is there, and goes on from version ${last.trust.version}`,
    );
  const before = last?.trust ?? (await readTrust(needed("from", values.from)));
  if (trust.version !== before.version + 1)
    throw new CliError(
      EXIT.usage,
      `${to}: its version is ${trust.version}; behind version ${before.version} comes ${before.version + 1}`,
    );
  for (const [one, whose] of [[before, `version ${before.version}`] as const, [trust, to] as const])
    if (one.threshold.trust === undefined)
      throw new CliError(EXIT.usage, `${whose}: without threshold.trust nobody can sign what comes next`);
  const missing = last ? missingIn(last, links.at(-2)?.trust) : [];
  if (missing.length > 0)
    throw new CliError(
      EXIT.usage,
      `${path}: version ${before.version} is not signed by all it takes (${missing.join("; ")}), and only the last of a chain can be signed`,
    );
  if (links.length === CHAIN_MAX_LINKS)
    throw new CliError(
      EXIT.usage,
      `${path}: it has ${CHAIN_MAX_LINKS} links, the most there are; begin another`,
    );
  const bytes = encodeChain([...links, { text, signatures: new Map() }]);
  await replacing(path, (file) => file.writeFile(bytes));
  const facts = { ...factsOf(trust), changes: changesOf(before, trust) };
  io.out(json ? `${JSON.stringify({ schema: "fruit.release-trust/1", ...facts })}\n` : table(rowsOf(facts)));
  return EXIT.done;
}

async function sign({ args, io, json }: Context): Promise<Exit> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: { key: { type: "string" } },
  });
  const path = onlyChain(positionals);
  const links = await readChain(path);
  const last = links.at(-1);
  if (!last) throw new Error(`${path}: it has no link`);
  const key = await openRawKey(needed("key", values.key), { env: io.env, signal: io.signal });
  const hex = keyOf(key);
  const { version } = last.trust;
  const before = links.at(-2)?.trust;
  const isListed = [last.trust, ...(before ? [before] : [])].some((trust) =>
    signersFor(trust, "trust").some((one) => keyOf(one) === hex),
  );
  if (!isListed && before)
    throw new CliError(
      EXIT.usage,
      `${path}: neither version ${before.version} nor ${version} gives ${key.fingerprint} the role "trust"`,
    );
  if (!isListed)
    io.err(
      `fruit: version ${version} does not give ${key.fingerprint} the role "trust": it counts only where the version before does\n`,
    );
  const signature = await key.sign(linkBytes(last.text));
  const signatures = new Map(last.signatures).set(hex, signature);
  const bytes = encodeChain([...links.slice(0, -1), { text: last.text, signatures }]);
  await replacing(path, (file) => file.writeFile(bytes));
  const facts = { fingerprint: key.fingerprint, version, signatures: signatures.size };
  io.out(
    json
      ? `${JSON.stringify({ schema: "fruit.release-trust-sign/1", ...facts })}\n`
      : `${key.fingerprint} has signed version ${version}, the ${ordinal(signatures.size)} to do so\n`,
  );
  return EXIT.done;
}

const onlyChain = (positionals: string[]) => onlyFile(positionals, "chain, FILE.trust");

/** `ID=FILE.pub=release,trust`: an entry of `signers`. */
async function signerOf(text: string) {
  const [, id = "", file = "", roles = ""] = /^([^=]+)=(.+)=([a-z,]+)$/.exec(text) ?? [];
  if (id === "") throw new UsageError(`--signer: "${text}" is not ID=FILE.pub=ROLES`);
  const { publicKey } = parseKeyFile(file, await readKeyFile(file));
  return { id, key: keyLine(publicKey), roles: rolesOf("signer", roles) };
}

/** A version of `trust.json`, of which a program must be able to count. */
function versionOf(text: string): number {
  const version = /^\d{1,16}$/.test(text) ? Number(text) : 0;
  if (version > 0 && Number.isSafeInteger(version)) return version;
  throw new UsageError(`--version: "${text}" is no integer from 1 to 2^53-1`);
}

/** `release,trust`: roles. Throws `UsageError`. */
export function rolesOf(flag: string, text: string): TrustRole[] {
  const roles = text.split(",").map((word) => {
    const role = TRUST_ROLES.find((known) => known === word);
    if (!role) throw new UsageError(`--${flag}: "${word}" is no role; there are ${TRUST_ROLES.join(", ")}`);
    return role;
  });
  return onlyOnce(flag, roles);
}

function onlyOnce(flag: string, roles: TrustRole[]): TrustRole[] {
  const twice = roles.find((role, index) => roles.indexOf(role) < index);
  if (twice === undefined) return roles;
  throw new UsageError(`--${flag}: ${twice} stands twice`);
}

function thresholdOf(text: string): Record<string, number> {
  const pairs = text.split(",").map((word): [TrustRole, number] => {
    const [, name = "", count = ""] = /^([a-z]+)=(\d{1,3})$/.exec(word) ?? [];
    if (count === "") throw new UsageError(`--threshold: "${word}" is not ROLE=M`);
    const [role] = rolesOf("threshold", name);
    return [role ?? "release", Number(count)];
  });
  onlyOnce(
    "threshold",
    pairs.map(([role]) => role),
  );
  return Object.fromEntries(pairs);
}

function readable(text: string, where: string): Trust {
  try {
    return parseTrust(text);
  } catch (cause) {
    if (!(cause instanceof TrustError)) throw cause;
    throw new CliError(EXIT.config, cause.problems.map((one) => `${where}: ${one}`).join("\n"), { cause });
  }
}

const ordinal = (n: number) => ["", "first", "second", "third"][n] ?? `${n}th`;
