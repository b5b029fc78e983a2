/**
 * A client of ssh-agent (draft-miller-ssh-agent), as much of it as signing takes: which Ed25519 keys it has (§4.4), and a signature over
 * the bytes themselves (§4.5). What is at the other end of the socket is believed in nothing: answers are bounded in size and time, and
 * whoever asks checks the signature.
 */
import { createConnection } from "node:net";
import { addAbortSignal } from "node:stream";
import { SIGNATURE_BYTES } from "../../boot/ed25519.ts";
import { KEY_TYPE, publicKeyBlob, readPublicKey, WireError, WireReader, wireString } from "./wire.ts";

const REQUEST_IDENTITIES = 11;
const IDENTITIES_ANSWER = 12;
const SIGN_REQUEST = 13;
const SIGN_RESPONSE = 14;

/** OpenSSH's own limit (AGENT_MAX_LEN). */
const LIST_MAX_BYTES = 262_144;
const LIST_MS = 10_000;
const MOST_KEYS = 1000;
const SIGNATURE_MAX_BYTES = 4096;
/** A person may have to touch a token, or to say yes. */
const SIGN_MS = 60_000;

/** A key that an agent has. */
export interface Identity {
  /** 32 bytes. */
  publicKey: Uint8Array;
  /** What it is called there, often a path. */
  comment: string;
}

/** Where an agent listens, and until when it is asked. */
export interface AgentDoor {
  socketPath: string;
  signal: AbortSignal;
  /** Longest wait for the answer, milliseconds; enough for a person unless said otherwise. */
  limitMs?: number;
}

/** The Ed25519 keys of an agent; of others nothing is told. Throws an `Error` that says what is wrong. */
export async function listIdentities(door: AgentDoor): Promise<Identity[]> {
  const answer = await exchange(Buffer.of(REQUEST_IDENTITIES), {
    limitMs: LIST_MS,
    ...door,
    maxBytes: LIST_MAX_BYTES,
  });
  return parseIdentities(answer);
}

/** A signature by the private half of a key; not checked. Throws an `Error` that says what is wrong. */
export async function signInAgent(
  door: AgentDoor,
  publicKey: Uint8Array,
  message: Uint8Array,
): Promise<Uint8Array> {
  const request = Buffer.concat([
    Buffer.of(SIGN_REQUEST),
    wireString(publicKeyBlob(publicKey)),
    wireString(message),
    Buffer.alloc(4), // no flags
  ]);
  return parseSignature(
    await exchange(request, { limitMs: SIGN_MS, ...door, maxBytes: SIGNATURE_MAX_BYTES }),
  );
}

/** Reads the answer to the request for identities. Throws `WireError`. */
export function parseIdentities(answer: Uint8Array): Identity[] {
  const reader = new WireReader(answer);
  if (reader.bytes(1, "the answer")[0] !== IDENTITIES_ANSWER)
    throw new WireError("it does not say which keys it has");
  const count = reader.uint32("the number of keys");
  if (count > MOST_KEYS) throw new WireError(`it says it has ${count} keys`);
  const all: Identity[] = [];
  for (let number = 1; number <= count; number++) {
    const blob = reader.string(`key ${number}`);
    const comment = reader.string(`the comment of key ${number}`).toString();
    if (new WireReader(blob).name(`the type of key ${number}`) !== KEY_TYPE) continue;
    all.push({ publicKey: readPublicKey(blob, `key ${number}`), comment });
  }
  reader.end("the last key");
  return all;
}

/** Reads the answer to a request for a signature. Throws `WireError`. */
export function parseSignature(answer: Uint8Array): Uint8Array {
  const reader = new WireReader(answer);
  if (reader.bytes(1, "the answer")[0] !== SIGN_RESPONSE)
    throw new WireError("it does not have this key, or would not use it (ssh-add -l lists what it has)");
  const inner = new WireReader(reader.string("the signature"));
  reader.end("the signature");
  const type = inner.name("the signature's type");
  if (type !== KEY_TYPE) throw new WireError(`a signature of type "${type}"; only ${KEY_TYPE} is taken`);
  const signature = inner.string("the signature itself");
  inner.end("the signature itself");
  if (signature.length !== SIGNATURE_BYTES)
    throw new WireError(`a signature of ${signature.length} bytes instead of ${SIGNATURE_BYTES}`);
  return new Uint8Array(signature);
}

/** One request and its answer, without the lengths in front. */
async function exchange(
  request: Uint8Array,
  { socketPath, signal, limitMs, maxBytes }: Required<AgentDoor> & { maxBytes: number },
): Promise<Buffer> {
  const late = AbortSignal.timeout(limitMs);
  const socket = createConnection(socketPath);
  addAbortSignal(AbortSignal.any([signal, late]), socket);
  socket.write(wireString(request));
  const got: Buffer[] = [];
  let [length, due] = [0, 4];
  try {
    for await (const chunk of socket as AsyncIterable<Buffer>) {
      got.push(chunk);
      length += chunk.length;
      if (due === 4 && length >= 4) {
        const announced = Buffer.concat(got).readUInt32BE();
        if (announced > maxBytes) throw new WireError(`an answer of ${announced} bytes`);
        due += announced;
      }
      if (length >= 4 && length >= due) return Buffer.concat(got).subarray(4, due);
    }
  } catch (cause) {
    if (late.aborted && !signal.aborted)
      throw new Error(`it did not answer within ${limitMs / 1000} s`, { cause });
    throw cause;
  } finally {
    socket.destroy();
  }
  throw new WireError("it hung up without an answer");
}
