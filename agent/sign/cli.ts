/** `fruit sign cmd` and `fruit verify`: signatures, without the agent, on anybody's machine. */
import { randomUUID } from "node:crypto";
import { readFile, stat } from "node:fs/promises";
import { parseArgs } from "node:util";
import { Refusal } from "../commands.ts";
import type { CommandPayload } from "../messages.ts";
import {
  CliError,
  type CliVerb,
  duration,
  EXIT,
  type Io,
  lasting,
  printable,
  seconds,
  table,
  UsageError,
} from "../terminal.ts";
import { KNOWN_VERBS } from "../words.ts";
import {
  COMMAND_MAX_SECONDS,
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

/** Verbs about signatures. */
export const SIGN_VERBS: readonly CliVerb[] = [
  {
    words: "sign cmd",
    synopsis:
      "VERB [ARGS-JSON] --site S --node N --key FILE [--for 2m] [--reason TEXT] [--challenge C] [--id ID]",
    summary: "makes a signed command for fruit/v1/<site>/<node>/cmd/<verb> and prints it",
    needsAgent: false,
    run: signCommand,
  },
  {
    words: "verify",
    synopsis: "--signers FILE [ENVELOPE|-] | --signers FILE --signature FILE.sig [--namespace NS] FILE",
    summary: "tells who signed a command, or a file (ssh-keygen -Y sign), and what they may do",
    needsAgent: false,
    run: verify,
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
  for (const doubt of doubts(payload)) io.err(`fruit: sign cmd: ${doubt}\n`);
  const key = await openKey(keyFile, { env: io.env, signal: io.signal });
  try {
    io.out(`${await sealCommand(payload, key)}\n`);
  } catch (cause) {
    if (cause instanceof Refusal) throw new UsageError(cause.message, { cause });
    throw cause;
  }
  return EXIT.done;
}

/** Why a node of this release would refuse it; another may not, so it is signed all the same. */
function doubts({ verb, iat, exp }: CommandPayload): string[] {
  return [
    ...(KNOWN_VERBS.includes(verb)
      ? []
      : [`no verb "${verb}" in this release; there are ${KNOWN_VERBS.join(", ")}`]),
    ...(exp - iat > COMMAND_MAX_SECONDS
      ? [`--for ${duration(exp - iat)}: nodes refuse what lives longer than ${duration(COMMAND_MAX_SECONDS)}`]
      : []),
  ];
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
  const text = (await read(io, signersFile, SIGNERS_MAX_BYTES)).toString();
  const { signers, problems } = parseSigners(text, { needsRoles: false });
  for (const problem of problems) io.err(`fruit: ${signersFile}: ${problem}\n`);
  const find = (fingerprint: string) => signers.find((signer) => signer.fingerprint === fingerprint);
  try {
    const opened =
      values.signature === undefined
        ? openEnvelope(await read(io, file, ENVELOPE_MAX_BYTES), {
            signers: { find },
            failures: new FailureLimit(),
            verifications: new FailureLimit(),
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
    ["roles", roles.join(", ") || "none: no node would obey"],
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
