/** `fruit release`: makes, signs, explains and checks releases, without the agent, on anybody's machine. */
import { createHash } from "node:crypto";
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
import { openRawKey } from "../sign/rawkey.ts";
import { CliError, type CliVerb, EXIT, UsageError } from "../terminal.ts";
import { asUsage, onlyFile, readTrust, readUpdate, writeNew } from "./files.ts";
import { explainUpdate } from "./inspect.ts";
import { replacing } from "./pack.ts";
import { packRelease } from "./packing.ts";
import { verify } from "./verify.ts";
import { needed } from "./words.ts";

type Context = Parameters<CliVerb["run"]>[0];

/** Verbs about releases. */
export const RELEASE_VERBS: readonly CliVerb[] = [
  {
    words: "release keygen",
    synopsis: "--out FILE [--id ID]",
    summary:
      "makes a signer's key (OpenSSH, Ed25519; ssh-keygen -p gives it a passphrase), prints its entry for trust.json",
    needsAgent: false,
    run: keygen,
  },
  {
    words: "release pack",
    synopsis:
      '(--root SQUASHFS --kernel FILE --initramfs FILE [--dtb BOARD=FILE]… --version N --name NAME | --payload FILE) --boards "BOARD…" --channel C --target ID --expires TIME|365d [--min-from N] [--floor N] [--created TIME] --out DIR',
    summary: "makes payload, side file and unsigned update file: the same bytes every time",
    needsAgent: false,
    run: packRelease,
  },
  {
    words: "release sign",
    synopsis: "FILE.fruit --key FILE [--id ID]",
    summary: "adds one signer to an update file and leaves the others as they are",
    needsAgent: false,
    run: sign,
  },
  {
    words: "release inspect",
    synopsis: "FILE.fruit [--trust trust.json]",
    summary: "explains an update file: what it is, for whom, who signed it, what is missing",
    needsAgent: false,
    run: inspectFile,
  },
  {
    words: "release verify",
    synopsis:
      "FILE.fruit --trust trust.json [--payload FILE] [--side FILE] [--board BOARD] [--floor N] [--running N] [--at TIME]",
    summary: "decides as a node would: exit 0 when it would be installed, 4 when it is refused",
    needsAgent: false,
    run: verify,
  },
];

async function keygen({ args, io, json }: Context) {
  const { values } = parseArgs({ args, options: { out: { type: "string" }, id: { type: "string" } } });
  const path = needed("out", values.out);
  const made = makeKey(values.id ?? basename(path));
  const { publicKey } = parseKeyFile(path, made.privateFile);
  const id = signerId(values.id, publicKey);
  for (const [file, text, mode] of [
    [path, made.privateFile, 0o600],
    [`${path}.pub`, `${made.publicLine}\n`, 0o644],
  ] as const)
    await writeNew(file, text, mode);
  const entry = { id, key: keyLine(publicKey), roles: ["release"] };
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
    options: { trust: { type: "string" } },
  });
  const path = onlyFile(positionals);
  return explainUpdate(context, path, values.trust === undefined ? undefined : await readTrust(values.trust));
}

/** The id given, or one that follows from the key. */
function signerId(id: string | undefined, publicKey: Uint8Array): string {
  if (id === undefined) return `key-${createHash("sha256").update(publicKey).digest("hex").slice(0, 16)}`;
  if (!SIGNER_ID.test(id)) throw new UsageError(`--id: "${id}" is not of the form ${SIGNER_ID}`);
  return id;
}
