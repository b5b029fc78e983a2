/**
 * Ed25519 over the bytes themselves, for what is no SSHSIG: releases. A plain key file signs here; a key with a passphrase or on
 * a token signs in ssh-agent (draft-miller-ssh-agent §4.5), which `ssh-add` has told of it.
 */
import { once } from "node:events";
import { createConnection } from "node:net";
import { signEd25519, verifyEd25519 } from "../../boot/ed25519.ts";
import { CliError, EXIT } from "../terminal.ts";
import { parseKeyFile, readKeyFile } from "./keys.ts";
import { fingerprint, KEY_TYPE, publicKeyBlob, WireError, WireReader, wireString } from "./wire.ts";

/** A person may have to touch a token. */
const ANSWER_MS = 60_000;
const ANSWER_MAX_BYTES = 4096;
const SIGN_REQUEST = 13;
const SIGN_RESPONSE = 14;

/** A key that signs bytes as they are. */
export interface RawKey {
  publicKey: Uint8Array;
  fingerprint: string;
  /** 64 bytes that were found to hold. */
  sign(message: Uint8Array): Promise<Uint8Array>;
}

/** Opens a private key file, or one (`.pub` too) whose private half is in ssh-agent. Throws `CliError`. */
export async function openRawKey(
  path: string,
  options: { env: Record<string, string | undefined>; signal: AbortSignal },
): Promise<RawKey> {
  const { publicKey, seed } = parseKeyFile(path, await readKeyFile(path));
  const sign = async (message: Uint8Array) => {
    if (seed) return signEd25519(seed, message);
    const signature = await signByAgent(path, publicKey, message, options);
    if (verifyEd25519(publicKey, message, signature)) return signature;
    throw new CliError(EXIT.failed, `${path}: the signature that ssh-agent made is no good`);
  };
  return { publicKey, fingerprint: fingerprint(publicKey), sign };
}

async function signByAgent(
  path: string,
  publicKey: Uint8Array,
  message: Uint8Array,
  { env, signal }: { env: Record<string, string | undefined>; signal: AbortSignal },
): Promise<Uint8Array> {
  const socketPath = env.SSH_AUTH_SOCK;
  if (!socketPath)
    throw new CliError(
      EXIT.usage,
      `${path}: its private half is not in the file, or has a passphrase: start ssh-agent and add it (ssh-add FILE)`,
    );
  const request = Buffer.concat([
    Buffer.of(SIGN_REQUEST),
    wireString(publicKeyBlob(publicKey)),
    wireString(message),
    Buffer.alloc(4),
  ]);
  try {
    const reader = new WireReader(await exchange(socketPath, wireString(request), signal));
    if (reader.bytes(1, "the answer")[0] !== SIGN_RESPONSE)
      throw new WireError("it does not have this key, or would not use it (ssh-add -l lists what it has)");
    const signature = new WireReader(reader.string("the signature"));
    if (signature.name("the signature's type") !== KEY_TYPE)
      throw new WireError("a signature of another kind");
    return new Uint8Array(signature.string("the signature itself"));
  } catch (cause) {
    throw new CliError(EXIT.failed, `${path}: ssh-agent at ${socketPath}: ${(cause as Error).message}`, {
      cause,
    });
  }
}

/** One request and its answer, without the length in front. */
async function exchange(socketPath: string, request: Uint8Array, signal: AbortSignal): Promise<Buffer> {
  const limit = AbortSignal.any([signal, AbortSignal.timeout(ANSWER_MS)]);
  const socket = createConnection(socketPath);
  try {
    await once(socket, "connect", { signal: limit });
    socket.write(request);
    let got = Buffer.alloc(0);
    for (;;) {
      const length = got.length >= 4 ? got.readUInt32BE() : undefined;
      if (length !== undefined && length > ANSWER_MAX_BYTES)
        throw new WireError(`an answer of ${length} bytes`);
      if (length !== undefined && got.length >= 4 + length) return got.subarray(4, 4 + length);
      const chunk = await next(socket, limit);
      got = Buffer.concat([got, chunk]);
    }
  } finally {
    socket.destroy();
  }
}

async function next(socket: ReturnType<typeof createConnection>, signal: AbortSignal): Promise<Buffer> {
  const over = new AbortController();
  try {
    const either = { signal: AbortSignal.any([signal, over.signal]) };
    const ended = once(socket, "end", either).then(() => {
      throw new WireError("it hung up without an answer");
    });
    const [chunk] = await Promise.race([once(socket, "data", either), ended]);
    return chunk as Buffer;
  } finally {
    over.abort();
  }
}
