/**
 * The technician's key: whatever `ssh-keygen -t ed25519` made and wherever it is kept.
 * A plain key file is used here; a passphrase, ssh-agent or a hardware key is left to the real `ssh-keygen`,
 * which knows how to ask for it.
 */
import { spawn } from "node:child_process";
import { type FileHandle, open } from "node:fs/promises";
import { publicKeyOf, signEd25519 } from "../../boot/ed25519.ts";
import { CliError, EXIT } from "../terminal.ts";
import { armorSshsig, SignatureError, signedData, verifySshsig } from "./sshsig.ts";
import { decodeBase64, fingerprint, KEY_TYPE, readPublicKey, WireError, WireReader } from "./wire.ts";

const BEGIN = "-----BEGIN OPENSSH PRIVATE KEY-----";
const END = "-----END OPENSSH PRIVATE KEY-----";
const MAGIC = "openssh-key-v1\0";
const KEY_MAX_BYTES = 65_536;
const OUTPUT_MAX_BYTES = 16_384;
/** A person has to find and type a passphrase, or touch a token. */
const ANSWER_SECONDS = 120;

/** A key that can sign, without saying how. */
export interface SigningKey {
  fingerprint: string;
  publicKey: Uint8Array;
  /** An armored SSHSIG over these bytes. */
  sign(namespace: string, message: Uint8Array): Promise<string>;
}

/** Opens a private key file, or a `.pub` file whose other half is in ssh-agent. Throws `CliError`. */
export async function openKey(
  path: string,
  options: { env?: Record<string, string | undefined>; signal?: AbortSignal } = {},
): Promise<SigningKey> {
  const text = await readKeyFile(path);
  const { publicKey, seed } = parseKeyFile(path, text);
  if (!seed) {
    const sign = (namespace: string, message: Uint8Array) =>
      signBySshKeygen({ path, publicKey, namespace, message, ...options });
    return { fingerprint: fingerprint(publicKey), publicKey, sign };
  }
  return {
    fingerprint: fingerprint(publicKey),
    publicKey,
    sign: async (namespace, message) => {
      const signature = signEd25519(seed, signedData(namespace, "sha512", message));
      return armorSshsig({ publicKey, namespace, hash: "sha512", signature });
    },
  };
}

/** The text of a key file. Throws `CliError`, also where others could read a private key: OpenSSH's, or what `isPrivate` says is one. */
export async function readKeyFile(
  path: string,
  isPrivate: (text: string) => boolean = () => false,
): Promise<string> {
  let handle: FileHandle | undefined;
  try {
    handle = await open(path, "r");
    const { size, mode, uid } = await handle.stat();
    if (size > KEY_MAX_BYTES) throw new CliError(EXIT.usage, `${path}: ${size} bytes are no key`);
    const text = await handle.readFile("utf8");
    // OpenSSH's rule: others must not read a private key that is ours
    const isOurs = text.includes("PRIVATE KEY-----") || isPrivate(text);
    if (isOurs && uid === process.getuid?.() && mode & 0o077)
      throw new CliError(
        EXIT.usage,
        `${path}: others can read this private key (mode ${(mode & 0o777).toString(8)}); chmod 600 ${path}`,
      );
    return text;
  } catch (cause) {
    if (cause instanceof CliError) throw cause;
    throw new CliError(EXIT.usage, `${path}: the key cannot be read: ${reason(cause)}`, { cause });
  } finally {
    await handle?.close();
  }
}

/** The public half, and the seed where the file gives it away without a passphrase. Throws `CliError` naming `path`. */
export function parseKeyFile(path: string, text: string): { publicKey: Uint8Array; seed?: Uint8Array } {
  const lines = text.replaceAll("\r\n", "\n").trim();
  try {
    if (lines.startsWith(`${BEGIN}\n`) && lines.endsWith(`\n${END}`))
      return parsePrivateKey(
        decodeBase64(lines.slice(BEGIN.length, -END.length).replaceAll("\n", ""), "the key"),
      );
    const [type = "", base64 = ""] = lines.split(/\s+/, 2);
    if (/^(sk-)?(ssh|ecdsa)-/.test(type))
      return { publicKey: readPublicKey(decodeBase64(base64, "the key"), "the key") };
    throw new WireError(
      lines.includes("PRIVATE KEY-----") ? "a key of another kind" : "neither a private nor a public SSH key",
    );
  } catch (cause) {
    if (!(cause instanceof WireError)) throw cause;
    throw new CliError(
      EXIT.usage,
      `${path}: ${cause.message}; make one with: ssh-keygen -t ed25519 -f FILE`,
      { cause },
    );
  }
}

/** OpenSSH's PROTOCOL.key. */
function parsePrivateKey(blob: Uint8Array): { publicKey: Uint8Array; seed?: Uint8Array } {
  const reader = new WireReader(blob);
  if (reader.bytes(MAGIC.length, "the magic word").toString("latin1") !== MAGIC)
    throw new WireError("the key is not in OpenSSH's format");
  const cipher = reader.name("the cipher");
  const derivation = reader.name("the key derivation");
  const options = reader.string("the key derivation's options");
  const count = reader.uint32("the number of keys");
  if (count !== 1) throw new WireError(`${count} keys are in the file instead of one`);
  const publicKey = readPublicKey(reader.string("the public key"), "the key");
  if (cipher !== "none") return { publicKey };
  if (derivation !== "none" || options.length > 0)
    throw new WireError("the key is damaged: a key derivation without a cipher");

  const secret = new WireReader(reader.string("the private key"));
  reader.end("the private key");
  if (secret.uint32("the first check number") !== secret.uint32("the second check number"))
    throw new WireError("the key is damaged: its check numbers differ");
  const type = secret.name("the private key's type");
  if (type !== KEY_TYPE) throw new WireError(`the private key is of type ${type}; only ${KEY_TYPE} is taken`);
  const repeated = secret.string("the public key beside the private one");
  const pair = secret.string("the private key");
  if (pair.length !== 64) throw new WireError(`the private key has ${pair.length} bytes instead of 64`);
  secret.string("the comment");
  for (let pad = 1; secret.left > 0; pad++)
    if (secret.bytes(1, "the padding")[0] !== pad) throw new WireError("the key is damaged: wrong padding");
  const seed = new Uint8Array(pair.subarray(0, 32));
  // a public key that does not belong to the seed would turn signing into a way to compute the seed
  const derived = Buffer.from(publicKeyOf(seed));
  if (![publicKey, repeated, pair.subarray(32)].every((half) => derived.equals(half)))
    throw new WireError("the key is damaged: its public half does not belong to its private half");
  return { publicKey, seed };
}

async function signBySshKeygen(job: {
  path: string;
  publicKey: Uint8Array;
  namespace: string;
  message: Uint8Array;
  env?: Record<string, string | undefined>;
  signal?: AbortSignal;
}): Promise<string> {
  const { path, publicKey, namespace, message } = job;
  const { code, out, err } = await run(
    ["-Y", "sign", "-q", "-n", namespace, "-f", path],
    message,
    job.env ?? process.env,
    job.signal,
  );
  if (code !== 0) throw new CliError(EXIT.unauthorised, `${path}: ssh-keygen did not sign: ${explain(err)}`);
  try {
    const by = verifySshsig(out, namespace, message);
    if (!Buffer.from(by.publicKey).equals(publicKey))
      throw new SignatureError(`it was made by ${by.fingerprint}, not by ${fingerprint(publicKey)}`);
    return out;
  } catch (cause) {
    if (!(cause instanceof SignatureError)) throw cause;
    throw new CliError(EXIT.failed, `${path}: ssh-keygen's signature is no good: ${cause.message}`, {
      cause,
    });
  }
}

function run(
  args: string[],
  input: Uint8Array,
  env: Record<string, string | undefined>,
  signal: AbortSignal | undefined,
): Promise<{ code: number | null; out: string; err: string }> {
  return new Promise((resolve, reject) => {
    const limit = AbortSignal.timeout(ANSWER_SECONDS * 1000);
    const child = spawn("ssh-keygen", args, {
      env,
      stdio: ["pipe", "pipe", "pipe"],
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
    });
    const out: Buffer[] = [];
    const err: Buffer[] = [];
    const collect = (into: Buffer[]) => (chunk: Buffer) => {
      if (Buffer.concat(into).length < OUTPUT_MAX_BYTES) into.push(chunk);
    };
    child.stdout.on("data", collect(out));
    child.stderr.on("data", collect(err));
    child.on("error", (cause) => reject(notRun(cause, limit.aborted)));
    child.on("close", (code) =>
      resolve({ code, out: Buffer.concat(out).toString(), err: Buffer.concat(err).toString() }),
    );
    child.stdin.on("error", () => undefined); // it may refuse before it has read; its exit code tells
    child.stdin.end(input);
  });
}

function notRun(cause: Error, isLate: boolean): CliError {
  if ("code" in cause && cause.code === "ENOENT")
    return new CliError(
      EXIT.failed,
      "ssh-keygen is not installed, and this key needs it (Debian: apt-get install openssh-client, Alpine: apk add openssh-keygen)",
      { cause },
    );
  return new CliError(
    EXIT.failed,
    isLate ? `ssh-keygen did not answer within ${ANSWER_SECONDS} s` : `ssh-keygen: ${cause.message}`,
    { cause },
  );
}

/** ssh-keygen's last words, and the way out where it gives none. */
function explain(err: string): string {
  const last =
    err
      .trim()
      .split("\n")
      .at(-1)
      ?.replace(/^Enter passphrase[^:]*: ?/, "") || "it did not say why";
  if (/incorrect passphrase/i.test(err)) return `wrong passphrase (${last})`;
  if (/no private key found/i.test(err))
    return `${last}: the private key is neither beside it nor in ssh-agent (ssh-add -l lists what is there; ssh-add FILE adds it)`;
  return last;
}

function reason(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}
