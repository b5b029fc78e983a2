/** Nodes of a DHT on this machine, each at an address of its own, and items to put into it. */
import { createHash } from "node:crypto";
import { createSocket, type Socket } from "node:dgram";
import { once } from "node:events";
import { type Dht, type DhtOptions, openDht } from "../agent/swarm/dht.ts";
import { type Item, signedBytes } from "../agent/swarm/item.ts";
import { type Message, readMessage } from "../agent/swarm/krpc.ts";
import { type Encodable, encodeBencode } from "../boot/bencode.ts";
import { publicKeyOf, signEd25519 } from "../boot/ed25519.ts";

/** The same 20 bytes for the same name, far from those of others. */
export const idOf = (name: string): Buffer => createHash("sha1").update(name).digest();

/** The seed of a key for tests. */
export const seedOf = (name: string): Buffer => createHash("sha256").update(name).digest();

/** An item as a vendor signs it: the head of a release. */
export function signedItem({
  signer = "vendor",
  salt = "stable",
  seq = 1n,
  issued = 1_700_000_000n,
  value,
}: {
  signer?: string;
  salt?: string;
  seq?: bigint;
  issued?: bigint;
  value?: Encodable;
} = {}): Item {
  const seed = seedOf(signer);
  const v = encodeBencode(value ?? { channel: "stable", ih: idOf(`release ${seq}`), issued, version: seq });
  const part = { salt: Buffer.from(salt), seq, v };
  return {
    k: Buffer.from(publicKeyOf(seed)),
    sig: Buffer.from(signEd25519(seed, signedBytes(part))),
    ...part,
  };
}

/** What a node of a test tells is a mistake of ours: it fails the test. */
export const troubles = (): { tell(text: string): void; told: string[] } => {
  const told: string[] = [];
  return { tell: (text) => told.push(text), told };
};

/** A node whose silent neighbours cost little time. */
export function node(name: string, options: Partial<DhtOptions> = {}): Promise<Dht> {
  return openDht({
    id: idOf(name),
    host: "127.0.0.1",
    answerMs: 1000,
    tell: (text) => {
      throw new Error(text);
    },
    ...options,
  });
}

/** So many nodes that have found each other through the first; node n is at 127.0.1.n. */
export async function nodes(count: number, options: Partial<DhtOptions> = {}): Promise<Dht[]> {
  const all: Dht[] = [];
  for (let n = 1; n <= count; n++) {
    const [first] = all;
    const routes = first ? [`127.0.1.1:${first.port}`] : [];
    all.push(await node(`node ${n}`, { host: `127.0.1.${n}`, routes, ...options }));
  }
  return all;
}

/** A socket that says what a test tells it to, as any stranger could. */
export interface Stranger extends Disposable {
  readonly port: number;
  /** Sends bytes, or a message, and resolves to the answer; undefined where none comes. */
  ask(
    port: number,
    message: Uint8Array | { readonly [key: string]: Encodable },
    host?: string,
  ): Promise<Message | undefined>;
  send(port: number, bytes: Uint8Array, host?: string): Promise<void>;
  readonly socket: Socket;
}

/** Opens one at an address of this machine. */
export async function stranger(host = "127.0.0.1"): Promise<Stranger> {
  const socket = createSocket("udp4").bind(0, host);
  await once(socket, "listening");
  const send = (port: number, bytes: Uint8Array, to = "127.0.0.1") =>
    new Promise<void>((resolve) => socket.send(bytes, port, to, () => resolve()));
  return {
    port: socket.address().port,
    socket,
    send,
    async ask(port, message, to = "127.0.0.1") {
      const answer = answerOn(socket);
      await send(port, message instanceof Uint8Array ? message : encodeBencode(message), to);
      return answer;
    },
    [Symbol.dispose]: () => socket.close(),
  };
}

/** The next datagram that is no question; undefined where none comes. */
async function answerOn(socket: Socket): Promise<Message | undefined> {
  const signal = AbortSignal.timeout(250);
  try {
    for (;;) {
      const [bytes] = await once(socket, "message", { signal });
      const message = readMessage(bytes);
      if (message.kind !== "query") return message;
    }
  } catch {
    return undefined;
  }
}

/** A question as it goes over the wire. */
export const question = (q: string, a: { readonly [key: string]: Encodable }, id = idOf("stranger")) => ({
  a: { id, ...a },
  q,
  t: "aa",
  y: "q",
});

/** What an answer says of itself: its error, or the names of its values. */
export function gist(message: Message | undefined): string {
  if (!message) return "silence";
  if (message.kind === "error") return `${message.code} ${message.text}`;
  return message.kind === "reply" ? message.values.keys().join(" ") : `query ${message.name}`;
}

/** A UDP port that nobody has at the moment. */
export async function freePort(): Promise<number> {
  using one = await stranger();
  return one.port;
}
