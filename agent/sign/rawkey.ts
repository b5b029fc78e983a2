/**
 * Ed25519 over the bytes themselves, for what is no SSHSIG: releases, heads, trust. A plain key file signs here, OpenSSH's or the bare
 * seed; a key with a passphrase or on a token signs in ssh-agent, which `ssh-add` has told of it.
 */
import { publicKeyOf, signEd25519, verifyEd25519 } from "../../boot/ed25519.ts";
import { CliError, EXIT } from "../terminal.ts";
import { parseKeyFile, readKeyFile } from "./keys.ts";
import { type AgentDoor, type Identity, listIdentities, signInAgent } from "./sshagent.ts";
import { fingerprint } from "./wire.ts";

/** A key that signs bytes as they are. */
export interface RawKey {
  publicKey: Uint8Array;
  fingerprint: string;
  /** 64 bytes that were found to hold. */
  sign(message: Uint8Array): Promise<Uint8Array>;
}

/** Where keys come from. */
export interface KeySurroundings {
  env: Record<string, string | undefined>;
  signal: AbortSignal;
}

/** What may be given as `--key`, for usage lines. */
export const KEY_WORDS = "FILE|agent[:KEY]";

/**
 * Opens what `--key` names: a private key file (OpenSSH's, or the seed as 64 hex digits), one whose private half is in ssh-agent (`.pub`
 * too), or `agent:KEY` with a fingerprint or comment; `agent` where that has one key alone. Throws `CliError`.
 */
export async function openRawKey(named: string, options: KeySurroundings): Promise<RawKey> {
  const [, word] = /^agent(?::(.*))?$/s.exec(named) ?? [];
  if (named === "agent" || word !== undefined) return inAgent(named, word, options);
  const text = await readKeyFile(named, isSeed);
  const { publicKey, seed } = isSeed(text) ? ofSeed(text) : parseKeyFile(named, text);
  if (seed) return opened(publicKey, async (message) => signEd25519(seed, message));
  const missing =
    "its private half is not in the file, or has a passphrase: start ssh-agent and add it (ssh-add FILE)";
  const door = doorOf(named, options, missing);
  return opened(publicKey, (message) => checked(named, door, publicKey, message));
}

const opened = (publicKey: Uint8Array, sign: RawKey["sign"]): RawKey => ({
  publicKey,
  fingerprint: fingerprint(publicKey),
  sign,
});

/** A seed (RFC 8032 §5.1.5) as hex. */
const isSeed = (text: string) => /^[0-9a-fA-F]{64}\s*$/.test(text);

function ofSeed(text: string) {
  const seed = new Uint8Array(Buffer.from(text.trim(), "hex"));
  return { publicKey: publicKeyOf(seed), seed };
}

/** The key of an agent that a word names. */
async function inAgent(named: string, word: string | undefined, options: KeySurroundings): Promise<RawKey> {
  const door = doorOf(named, options, "there is no ssh-agent here: start one and add a key (ssh-add FILE)");
  const all = await asked(named, door, () => listIdentities(door));
  const isNamed = (one: Identity) =>
    word === undefined || word === one.comment || word === fingerprint(one.publicKey);
  const [found, ...more] = all.filter(isNamed);
  if (found && more.length === 0)
    return opened(found.publicKey, (message) => checked(named, door, found.publicKey, message));
  const has = all.map((one) => `${fingerprint(one.publicKey)} ${JSON.stringify(one.comment.slice(0, 100))}`);
  const what = found ? `${more.length + 1} keys of ssh-agent are meant` : "ssh-agent has no such Ed25519 key";
  throw new CliError(EXIT.usage, `${named}: ${what}; it has ${has.join(", ") || "none"}`);
}

function doorOf(named: string, { env, signal }: KeySurroundings, missing: string): AgentDoor {
  const socketPath = env.SSH_AUTH_SOCK;
  if (socketPath) return { socketPath, signal };
  throw new CliError(EXIT.usage, `${named}: ${missing}`);
}

async function checked(
  named: string,
  door: AgentDoor,
  publicKey: Uint8Array,
  message: Uint8Array,
): Promise<Uint8Array> {
  const signature = await asked(named, door, () => signInAgent(door, publicKey, message));
  if (verifyEd25519(publicKey, message, signature)) return signature;
  throw new CliError(EXIT.failed, `${named}: the signature that ssh-agent made is no good`);
}

async function asked<T>(named: string, { socketPath }: AgentDoor, ask: () => Promise<T>): Promise<T> {
  try {
    return await ask();
  } catch (cause) {
    throw new CliError(EXIT.failed, `${named}: ssh-agent at ${socketPath}: ${(cause as Error).message}`, {
      cause,
    });
  }
}
