/** `fruit release`: makes, signs, explains and checks releases, without the agent, on anybody's machine. */
import { createHash } from "node:crypto";
import { rm } from "node:fs/promises";
import { basename } from "node:path";
import { parseArgs } from "node:util";
import { keyLine, SIGNER_ID } from "../../boot/trust.ts";
import {
  parseUpdate,
  readStatement,
  signedBytes,
  statementToSign,
  withSignature,
} from "../../boot/updatefile.ts";
import { makeKey } from "../sign/keygen.ts";
import { parseKeyFile } from "../sign/keys.ts";
import { KEY_WORDS, openRawKey } from "../sign/rawkey.ts";
import { CliError, type CliVerb, EXIT, UsageError } from "../terminal.ts";
import { explainChain } from "./chain.ts";
import { comparedWith } from "./difference.ts";
import { asUsage, kindOf, onlyAbout, onlyFile, readTrust, readUpdate, writeNew } from "./files.ts";
import { announce, explainHead } from "./heads.ts";
import { explainUpdate } from "./inspect.ts";
import { replacing } from "./pack.ts";
import { packRelease } from "./packing.ts";
import { publish, withdraw } from "./publish.ts";
import { rolesOf, TRUST_SYNOPSIS, trustVerb } from "./trust.ts";
import { verify } from "./verify.ts";
import { WAYS_SYNOPSIS } from "./ways.ts";
import { needed } from "./words.ts";

type Context = Parameters<CliVerb["run"]>[0];

/** Verbs about releases. */
export const RELEASE_VERBS: readonly CliVerb[] = [
  {
    words: "release keygen",
    synopsis: "--out FILE [--id ID] [--roles release,trust,head]",
    summary:
      "makes a signer's key (OpenSSH, Ed25519; ssh-keygen -p gives it a passphrase), prints its entry for trust.json",
    needsAgent: false,
    run: keygen,
  },
  {
    words: "release pack",
    synopsis:
      '(--root SQUASHFS --kernel FILE --initramfs FILE [--dtb BOARD=FILE]… --version N --name NAME | --payload FILE) --boards "BOARD…" --channel C --target ID --expires TIME|365d [--min-from N] [--floor N] [--created TIME] [--prev FILE.fruit|INFOHASH] [--health-service NAME]… [--health-deadline 10m] [--rollout "10%@0h 50%@24h 100%@72h" [--rollout-from TIME] [--jitter 10m]] [--seed URL]… [--tracker URL]… --out DIR',
    summary: "makes payload, side file and unsigned update file: the same bytes every time",
    needsAgent: false,
    run: packRelease,
  },
  {
    words: "release sign",
    synopsis: `FILE.fruit --key ${KEY_WORDS} [--id ID]`,
    summary:
      "adds one signer to an update file and leaves the others as they are; the key: OpenSSH's, a seed in hex, or one in ssh-agent",
    needsAgent: false,
    run: sign,
  },
  {
    words: "release inspect",
    synopsis: "FILE.fruit|FILE.head|FILE.trust [--trust trust.json] [--against FILE.fruit]",
    summary:
      "explains an update file, a head or a chain: what it is, for whom, who signed it, what is missing, what is new in it",
    needsAgent: false,
    run: inspectFile,
  },
  {
    words: "release verify",
    synopsis:
      "FILE.fruit|FILE.head|FILE.trust --trust trust.json [--payload FILE] [--side FILE] [--board BOARD] [--floor N] [--running N] [--target ID] [--channel C] [--at TIME]",
    summary: "decides as a node would: exit 0 when it would be installed, 4 when it is refused",
    needsAgent: false,
    run: verify,
  },
  {
    words: "release head",
    synopsis: `FILE.fruit --key ${KEY_WORDS} [--expires 7d] [--issued TIME] [--out FILE.head]`,
    summary: "says for a time that this release is the newest: what nodes hear of it first",
    needsAgent: false,
    run: (context) => announce(context, false),
  },
  {
    words: "release publish",
    synopsis: `FILE.fruit|FILE.head [--key ${KEY_WORDS}] [--expires 7d] [--payload FILE] [--side FILE] ${WAYS_SYNOPSIS}`,
    summary:
      "one command: makes the head of a signed release, says it to everybody, and gives the payload until others have all of it",
    needsAgent: false,
    run: publish,
  },
  {
    words: "release withdraw",
    synopsis: `FILE.fruit --key ${KEY_WORDS} [--expires 7d] [--issued TIME] [--out FILE.head] [--publish ${WAYS_SYNOPSIS}]`,
    summary:
      "says that this release is called back: nodes that have not confirmed it leave it; with --publish to everybody at once",
    needsAgent: false,
    run: withdraw,
  },
  {
    words: "release trust",
    synopsis: TRUST_SYNOPSIS,
    summary: "makes trust.json, and the chain by which nodes come to believe the next one",
    needsAgent: false,
    run: trustVerb,
  },
];

async function keygen({ args, io, json }: Context) {
  const { values } = parseArgs({
    args,
    options: {
      out: { type: "string" },
      id: { type: "string" },
      roles: { type: "string", default: "release" },
    },
  });
  const path = needed("out", values.out);
  const roles = rolesOf("roles", values.roles);
  const made = makeKey(values.id ?? basename(path));
  const { publicKey } = parseKeyFile(path, made.privateFile);
  const id = signerId(values.id, publicKey);
  // A private key without its public half would be in the way of the next attempt
  await writeNew(`${path}.pub`, `${made.publicLine}\n`, 0o644);
  await writeNew(path, made.privateFile, 0o600).catch(async (cause) => {
    await rm(`${path}.pub`, { force: true });
    throw cause;
  });
  const entry = { id, key: keyLine(publicKey), roles };
  if (!json)
    io.err(`fruit: ${path} is the private key, for its owner alone. Its entry in "signers" of trust.json:\n`);
  io.out(`${JSON.stringify(entry)}\n`);
  return EXIT.done;
}

async function sign({ args, io, json }: Context) {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: { key: { type: "string" }, id: { type: "string" } },
  });
  const path = onlyFile(positionals);
  const key = await openRawKey(needed("key", values.key), {
    env: io.env,
    signal: io.signal,
  });
  const id = signerId(values.id, key.publicKey);
  const signed = await asUsage(async () => {
    const file = parseUpdate(await readUpdate(path));
    if (file.signatures.has(id))
      throw new CliError(EXIT.usage, `${path}: ${id} has signed it already; another signer has another --id`);
    const statement = statementToSign(file);
    const { version } = readStatement(statement);
    const signature = await key.sign(signedBytes(file.infoBytes, statement.bytes));
    return { bytes: withSignature(file, id, signature), name: file.info.name, version };
  }, path);
  await replacing(path, (file) => file.writeFile(signed.bytes));
  const facts = { id, fingerprint: key.fingerprint, release: signed.name, version: String(signed.version) };
  io.out(
    json
      ? `${JSON.stringify({ schema: "fruit.release-sign/1", ...facts })}\n`
      : `${id} (${key.fingerprint}) has signed ${signed.name}, version ${signed.version}\n`,
  );
  return EXIT.done;
}

async function inspectFile(context: Context) {
  const { values, positionals } = parseArgs({
    args: context.args,
    allowPositionals: true,
    options: { trust: { type: "string" }, against: { type: "string" } },
  });
  const path = onlyFile(positionals);
  const bytes = await readUpdate(path);
  const trust = values.trust === undefined ? undefined : await readTrust(values.trust);
  const kind = kindOf(bytes);
  onlyAbout(kind, values, { update: ["trust", "against"], head: ["trust"], chain: ["trust"] });
  if (kind === "head") return explainHead(context, path, bytes, trust);
  if (kind === "chain") return explainChain(context, path, bytes, trust);
  const against = await comparedWith(values.against);
  return explainUpdate(context, path, { ...(trust ? { trust } : {}), ...(against ? { against } : {}) });
}

/** The id given, or one that follows from the key. */
function signerId(id: string | undefined, publicKey: Uint8Array): string {
  if (id === undefined) return `key-${createHash("sha256").update(publicKey).digest("hex").slice(0, 16)}`;
  if (!SIGNER_ID.test(id)) throw new UsageError(`--id: "${id}" is not of the form ${SIGNER_ID}`);
  return id;
}
