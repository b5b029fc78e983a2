/** `fruit sign cmd`, `fruit verify` and `fruit audit`: signatures and records, without the agent, on anybody's machine. */
import { randomUUID } from "node:crypto";
import { readFile, stat } from "node:fs/promises";
import { parseArgs } from "node:util";
import { AUDIT_FILES, type AuditHead, type AuditLine, tailAudit } from "../audit.ts";
import { verifyAudit } from "../chain.ts";
import { Refusal } from "../commands.ts";
import { CONFIG_PATH, readConfig } from "../config.ts";
import type { CommandPayload } from "../messages.ts";
import { CliError, type CliVerb, EXIT, type Io, lasting, seconds, table, UsageError } from "../terminal.ts";
import {
  COMMAND_NAMESPACE,
  ENVELOPE_MAX_BYTES,
  openEnvelope,
  SignatureRefusal,
  sealCommand,
} from "./envelope.ts";
import { openKey } from "./keys.ts";
import { FailureLimit } from "./limit.ts";
import { isValidAt, parseSigners, SIGNERS_MAX_BYTES, type Signer } from "./signers.ts";
import { SignatureError, SSHSIG_MAX_BYTES, verifySshsig } from "./sshsig.ts";

/** A signed file is hashed in memory, bytes. */
const FILE_MAX_BYTES = 268_435_456;
const AUDIT_DIR = "/data/fruit/audit";

/** Verbs about signatures. */
export const SIGN_VERBS: readonly CliVerb[] = [
  {
    words: "sign cmd",
    synopsis:
      "VERB [ARGS-JSON] --site S --node N --key FILE [--for 2m] [--reason TEXT] [--challenge C] [--id ID]",
    summary: "Makes a signed command for fruit/v1/<site>/<node>/cmd/<verb> and prints it",
    needsAgent: false,
    run: signCommand,
  },
  {
    words: "verify",
    synopsis: "--signers FILE [ENVELOPE|-] | --signers FILE --signature FILE.sig [--namespace NS] FILE",
    summary: "Tells who signed a command, or a file (ssh-keygen -Y sign), and what they may do",
    needsAgent: false,
    run: verify,
  },
];

/** Verbs about the audit log. */
export const AUDIT_VERBS: readonly CliVerb[] = [
  {
    words: "audit tail",
    synopsis: "[-n 20] [--dir DIR]",
    summary: "Shows the last lines of the audit log",
    needsAgent: false,
    run: auditTail,
  },
  {
    words: "audit verify",
    synopsis: "[--dir DIR] [--head SEQ:SHA256]",
    summary: "Checks the audit log; names lines that were changed, removed, moved or inserted",
    needsAgent: false,
    run: auditVerify,
  },
];

type Context = Parameters<CliVerb["run"]>[0];

async function signCommand({ args, io }: Context) {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      site: { type: "string" },
      node: { type: "string" },
      key: { type: "string" },
      for: { type: "string", default: "2m" },
      reason: { type: "string" },
      challenge: { type: "string" },
      id: { type: "string" },
    },
  });
  const [verb, argsJson = "{}", ...more] = positionals;
  if (verb === undefined || more.length > 0)
    throw new UsageError("expected VERB and at most one JSON object");
  const site = needed("site", values.site ?? io.env.FRUIT_SITE);
  const node = needed("node", values.node ?? io.env.FRUIT_NODE);
  const keyFile = needed("key", values.key ?? io.env.FRUIT_KEY);
  const iat = Math.floor(Date.now() / 1000);
  const payload: CommandPayload = {
    id: values.id ?? randomUUID(),
    verb,
    site,
    node,
    args: jsonObject(argsJson),
    iat,
    exp: iat + Math.round(seconds("--for", values.for)),
    ...(values.reason === undefined ? {} : { reason: values.reason }),
    ...(values.challenge === undefined ? {} : { challenge: values.challenge }),
  };
  const key = await openKey(keyFile, { env: io.env, signal: io.signal });
  try {
    io.out(`${await sealCommand(payload, key)}\n`);
  } catch (cause) {
    if (cause instanceof Refusal) throw new UsageError(cause.message, { cause });
    throw cause;
  }
  return EXIT.done;
}

async function verify({ args, io, json }: Context) {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      signers: { type: "string" },
      signature: { type: "string" },
      namespace: { type: "string" },
    },
  });
  const [file = "-", ...more] = positionals;
  if (more.length > 0) throw new UsageError("expected one file");
  if (values.namespace !== undefined && values.signature === undefined)
    throw new UsageError(`--namespace goes with --signature; commands are always "${COMMAND_NAMESPACE}"`);
  const signersFile = needed("signers", values.signers);
  const { signers, problems } = parseSigners((await read(io, signersFile, SIGNERS_MAX_BYTES)).toString());
  for (const problem of problems) io.err(`fruit: ${signersFile}: ${problem}\n`);
  const find = (fingerprint: string) => signers.find((signer) => signer.fingerprint === fingerprint);
  try {
    const opened =
      values.signature === undefined
        ? openEnvelope(await read(io, file, ENVELOPE_MAX_BYTES), {
            signers: { find },
            failures: new FailureLimit(),
          })
        : await openSigned(io, file, values.signature, values.namespace ?? COMMAND_NAMESPACE, find);
    if (!opened.signer) throw new SignatureError("it is not signed");
    say(io, json, opened.signer, opened.payload);
    return EXIT.done;
  } catch (cause) {
    if (!(cause instanceof Refusal) && !(cause instanceof SignatureError)) throw cause;
    const why = cause instanceof SignatureRefusal ? cause.why : cause.message;
    const what = file === "-" ? "standard input" : file;
    throw new CliError(EXIT.unauthorised, `${what}: not accepted: ${why}`, { cause });
  }
}

/** A file with its detached signature. Throws `SignatureError`. */
async function openSigned(
  io: Io,
  file: string,
  signatureFile: string,
  namespace: string,
  find: (fingerprint: string) => Signer | undefined,
): Promise<{ signer: Signer; payload?: CommandPayload }> {
  const armored = (await read(io, signatureFile, SSHSIG_MAX_BYTES)).toString();
  const by = verifySshsig(armored, namespace, await read(io, file, FILE_MAX_BYTES));
  const signer = find(by.fingerprint);
  if (!signer) throw new SignatureError(`${by.fingerprint} is not among the allowed signers`);
  if (!signer.maySign(namespace))
    throw new SignatureError(`the key of ${signer.principal} is not for "${namespace}"`);
  if (!isValidAt(signer, Date.now() / 1000))
    throw new SignatureError(`the key of ${signer.principal} is outside its validity`);
  return { signer };
}

function say(io: Io, json: boolean, signer: Signer, payload: CommandPayload | undefined): void {
  const { principal, fingerprint, outlets, validAfter, validBefore } = signer;
  const roles = [...signer.roles];
  if (json) {
    const facts = { principal, fingerprint, roles, outlets, validAfter, validBefore, payload };
    io.out(`${JSON.stringify({ schema: "fruit.verify/1", ...facts })}\n`);
    return;
  }
  const rows = [
    ["signed by", `${principal} ${fingerprint}`],
    ["roles", roles.join(", ")],
    ["outlets", outlets || "none"],
  ];
  if (validAfter !== undefined) rows.push(["valid from", instant(validAfter)]);
  if (validBefore !== undefined) rows.push(["valid until", instant(validBefore)]);
  if (payload) {
    const left = payload.exp - Date.now() / 1000;
    rows.push(
      ["command", `${payload.verb} ${JSON.stringify(payload.args)}`],
      ["for", `${payload.site}/${payload.node}`],
      ["id", payload.id],
      ["signed", instant(payload.iat)],
      ["expires", `${instant(payload.exp)} (${left > 0 ? `in ${lasting(left)}` : `${lasting(-left)} ago`})`],
    );
    if (payload.reason !== undefined) rows.push(["reason", payload.reason]);
  }
  io.out(table(rows.map((row) => row.map(printable))));
}

async function auditTail({ args, io, json }: Context) {
  const { values } = parseArgs({
    args,
    options: { n: { type: "string", short: "n", default: "20" }, dir: { type: "string" } },
  });
  if (!/^[1-9]\d{0,5}$/.test(values.n)) throw new UsageError(`-n: "${values.n}" is not a number of lines`);
  const dir = values.dir ?? defaultDir(io);
  const lines = await tailAudit(dir, Number(values.n)).catch(noLog(dir));
  if (json) io.out(`${JSON.stringify({ schema: "fruit.audit-tail/1", lines })}\n`);
  else
    io.out(
      table(
        [["SEQ", "TIME", "WHO", "VERB", "ARGS", "DECISION", "REASON"], ...lines.map(row)].map((cells) =>
          cells.map(printable),
        ),
      ),
    );
  return EXIT.done;
}

function row(line: AuditLine): string[] {
  const decision = [line.decision, line.code, line.outcome].filter((word) => word !== undefined).join(" ");
  return [
    String(line.seq),
    line.clock === "synced" ? line.ts : `${line.ts}?`,
    line.who,
    line.verb,
    line.args === undefined ? "-" : JSON.stringify(line.args),
    line.duration_s === undefined ? decision : `${decision} (${line.duration_s.toFixed(1)} s)`,
    line.reason ?? "-",
  ];
}

async function auditVerify({ args, io, json }: Context) {
  const { values } = parseArgs({ args, options: { dir: { type: "string" }, head: { type: "string" } } });
  const dir = values.dir ?? defaultDir(io);
  const published = values.head === undefined ? {} : { head: parseHead(values.head) };
  const verdict = await verifyAudit(dir, { files: AUDIT_FILES, ...published }).catch(noLog(dir));
  const { lines, first, head, problems } = verdict;
  if (json) io.out(`${JSON.stringify({ schema: "fruit.audit-verify/1", dir, ...verdict })}\n`);
  else if (problems.length > 0)
    for (const { file, line, why } of problems) io.out(`${file} line ${line}: ${why}\n`);
  else if (head)
    io.out(
      `${dir}: ${lines} lines, seq ${first} to ${head.seq}, the chain holds\nhead ${head.seq}:${head.sha256}\n`,
    );
  else io.out(`${dir}: empty\n`);
  return problems.length > 0 ? EXIT.failed : EXIT.done;
}

function parseHead(text: string): AuditHead {
  const match = /^([1-9]\d{0,14}):([0-9a-f]{64})$/.exec(text);
  if (!match?.[1] || !match[2])
    throw new UsageError(`--head: "${text}" is not SEQ:SHA256, as state/audit/main had it`);
  return { seq: Number(match[1]), sha256: match[2] };
}

/** Where this machine's agent writes, if its configuration can be read. */
function defaultDir(io: Io): string {
  try {
    return `${readConfig(io.env.FRUIT_CONFIG ?? CONFIG_PATH).data_dir}/audit`;
  } catch {
    return AUDIT_DIR;
  }
}

const noLog = (dir: string) => (cause: NodeJS.ErrnoException) => {
  throw new CliError(
    EXIT.failed,
    cause.code === "ENOENT"
      ? `${dir}: there is no audit log; another place: --dir DIR`
      : `the audit log cannot be read: ${cause.message}`,
    { cause },
  );
};

async function read(io: Io, path: string, most: number): Promise<Buffer> {
  try {
    if (path !== "-") {
      const { size } = await stat(path);
      if (size > most) throw new Error(`${size} bytes; at most ${most} are read`);
    }
    return path === "-" ? Buffer.from(await io.stdin()) : await readFile(path);
  } catch (cause) {
    throw new CliError(EXIT.usage, `${path}: ${cause instanceof Error ? cause.message : String(cause)}`, {
      cause,
    });
  }
}

function needed(flag: string, value: string | undefined): string {
  if (value) return value;
  throw new UsageError(`--${flag} is missing`);
}

function jsonObject(text: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === "object" && value !== null && !Array.isArray(value))
      return value as Record<string, unknown>;
  } catch {
    // said below
  }
  throw new UsageError(`${text}: the arguments are a JSON object, such as '{"outlets":["3.1"]}'`);
}

const instant = (unixSeconds: number) => {
  const date = new Date(unixSeconds * 1000);
  return Number.isNaN(date.getTime()) ? String(unixSeconds) : `${date.toISOString().slice(0, 19)}Z`;
};

/** Foreign text on a terminal: no escape sequences, one line. */
const printable = (text: string) => text.replace(/\p{Cc}/gu, "?");
