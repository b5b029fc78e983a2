/**
 * KRPC (BEP 5): questions and answers of DHT nodes, one datagram each.
 *
 * Invariants
 * - Nothing is read of a datagram that is longer than 1400 bytes, of a source over its limit, or that is no canonical bencode.
 * - An answer counts only from the very address that was asked, with the number the question had; numbers cannot be guessed.
 * - What was asked for comes through a flood: answers have limits of their own.
 * - No datagram makes anything here throw.
 */
import { randomBytes } from "node:crypto";
import { createSocket, type RemoteInfo, type Socket } from "node:dgram";
import { once } from "node:events";
import {
  BencodeError,
  decodeBencode,
  type Encodable,
  encodeBencode,
  type Received,
} from "../../boot/bencode.ts";
import { FieldError, Fields } from "../../boot/fields.ts";
import { type Address, addressOf, type Family, textOf } from "./address.ts";
import { type Rate, SourceLimit } from "./limit.ts";

/** Longest datagram, both ways: under what every link carries in one piece. */
export const DATAGRAM_MAX_BYTES = 1400;
/** Bytes of node ids, infohashes and targets. */
export const ID_BYTES = 20;
/** Longest transaction number of others that is sent back. */
const NUMBER_MAX_BYTES = 32;
/** Questions without an answer yet. */
const MOST_ASKED = 256;
/** Longest text of an error that is kept. */
const ERROR_TEXT_CHARS = 100;

/** Codes of errors (BEP 5, BEP 44). */
export const KRPC = {
  generic: 201,
  server: 202,
  protocol: 203,
  unknownMethod: 204,
  tooBig: 205,
  badSignature: 206,
  saltTooBig: 207,
  casMismatch: 301,
  seqTooLow: 302,
} as const;

/** An answer that says no. */
export class KrpcError extends Error {
  override name = "KrpcError";
  readonly code: number;
  constructor(code: number, text: string) {
    super(text);
    this.code = code;
  }
}

/** Nobody answered, or nobody could be asked. */
export class Silence extends Error {
  override name = "Silence";
}

/** What a datagram says. */
export type Message =
  | ({ kind: "query"; t: Uint8Array } & Question)
  | { kind: "reply"; t: Uint8Array; id: Uint8Array; values: Fields }
  | { kind: "error"; t: Uint8Array; code: number; text: string };

/** A question of another node. */
export interface Question {
  name: string;
  /** 20 bytes. */
  id: Uint8Array;
  args: Fields;
  /** It answers nothing itself (BEP 43). */
  isReadOnly: boolean;
}

/** Reads one datagram. Throws `BencodeError`, never anything else. */
export function readMessage(bytes: Uint8Array): Message {
  const fields = new Fields(decodeBencode(bytes, DATAGRAM_MAX_BYTES), "message");
  const t = fields.bytes("t");
  if (t.length < 1 || t.length > NUMBER_MAX_BYTES)
    fields.refuse("t", `has ${t.length} bytes, not 1 to ${NUMBER_MAX_BYTES}`);
  const kind = fields.text("y", /^[qre]$/);
  if (kind === "e") return { kind: "error", t, ...errorOf(fields.any("e")) };
  const said = fields.fields(kind === "q" ? "a" : "r");
  const id = said.bytes("id", ID_BYTES);
  if (kind === "r") return { kind: "reply", t, id, values: said };
  const isReadOnly = fields.has("ro") && fields.integer("ro") === 1n;
  return { kind: "query", t, name: fields.text("q", /^[a-z_]{1,20}$/), id, args: said, isReadOnly };
}

function errorOf({ value, at }: Received): { code: number; text: string } {
  const [code, text] = Array.isArray(value) ? value.map((one: Received) => one.value) : [];
  if (typeof code !== "bigint" || code > 65_535n || !(text instanceof Uint8Array))
    throw new FieldError(at, "message.e is no code with a text");
  const shown = Buffer.from(text)
    .toString("latin1")
    .replace(/[^\x20-\x7e]/g, "?");
  return { code: Number(code), text: shown.slice(0, ERROR_TEXT_CHARS) };
}

/** How a socket for KRPC is opened. */
export interface KrpcOptions {
  /** This node's, 20 bytes. */
  id: Uint8Array;
  family: Family;
  /** Address to bind, all if absent. */
  host?: string;
  /** UDP; any free one if absent. */
  port?: number;
  /** Datagrams of each source, and of all; answers to what was asked are counted apart, by the same numbers. */
  limits?: { each: Rate; all: Rate };
  /** How long an answer is waited for, milliseconds. */
  answerMs?: number;
  /** Values of the answer to a question. Throws `KrpcError` and `BencodeError` for one that is refused. */
  answer(question: Question, from: Address): { readonly [key: string]: Encodable | undefined };
  /** Something is wrong on this side. */
  tell(text: string): void;
}

/** A whole site behind one address, each node of it at work. */
const LIMITS = { each: { burst: 100, perSecond: 30 }, all: { burst: 400, perSecond: 200 } };
const ANSWER_MS = 2000;

interface Asked {
  to: string;
  done(answer: Fields): void;
  failed(why: Error): void;
}

/** Opens a socket. Rejects where it cannot be bound. */
export async function openKrpc(options: KrpcOptions): Promise<Krpc> {
  const socket = createSocket({
    type: `udp${options.family}`,
    ...(options.family === 6 ? { ipv6Only: true } : {}),
  });
  socket.bind({ port: options.port ?? 0, ...(options.host === undefined ? {} : { address: options.host }) });
  await once(socket, "listening");
  return new Krpc(socket, options);
}

/** One socket, and what was asked through it. */
export class Krpc {
  /** UDP. */
  readonly port: number;
  /** Datagrams that came, those of them that nothing was made of, and answers that could not be sent. */
  readonly counts = { received: 0, limited: 0, malformed: 0, unasked: 0, unsent: 0 };
  readonly #socket: Socket;
  readonly #options: KrpcOptions;
  readonly #strangers: SourceLimit;
  readonly #answering: SourceLimit;
  /** By transaction number, hex. */
  readonly #asked = new Map<string, Asked>();
  #isClosed = false;

  constructor(socket: Socket, options: KrpcOptions) {
    this.#socket = socket;
    this.#options = options;
    this.port = socket.address().port;
    this.#strangers = new SourceLimit(options.limits ?? LIMITS);
    this.#answering = new SourceLimit(options.limits ?? LIMITS);
    socket.on("message", (bytes, from) => this.#received(bytes, from));
    // Whoever asks and is gone before the answer causes them: no fault of this side
    socket.on("error", () => this.counts.unsent++);
  }

  /** Asks one node. Its answer's values; rejects with `KrpcError` where it says no and `Silence` where it says nothing. */
  ask(to: Address, name: string, args: { readonly [key: string]: Encodable | undefined }): Promise<Fields> {
    const { id, answerMs = ANSWER_MS } = this.#options;
    if (this.#isClosed || this.#asked.size >= MOST_ASKED)
      return Promise.reject(new Silence(`${textOf(to)}: ${this.#asked.size} questions wait already`));
    const number = randomBytes(8);
    const key = number.toString("hex");
    return new Promise<Fields>((resolve, reject) => {
      const over = () => {
        clearTimeout(timer);
        this.#asked.delete(key);
      };
      const done = (answer: Fields) => {
        over();
        resolve(answer);
      };
      const failed = (why: Error) => {
        over();
        reject(why);
      };
      const timer = setTimeout(() => failed(new Silence(`${textOf(to)}: no answer to ${name}`)), answerMs);
      this.#asked.set(key, { to: textOf(to), done, failed });
      this.#send(to, { a: { id, ...args }, q: name, t: number, y: "q" }, failed);
    });
  }

  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    for (const { to, failed } of [...this.#asked.values()]) failed(new Silence(`${to}: closed`));
    this.#socket.close();
  }

  #received(bytes: Uint8Array, { address, port }: RemoteInfo): void {
    this.counts.received++;
    const from = addressOf(address, port);
    if (!from || bytes.length > DATAGRAM_MAX_BYTES) {
      this.counts.malformed++;
      return;
    }
    const sender = textOf(from);
    const isAsked = [...this.#asked.values()].some(({ to }) => to === sender);
    if (!(isAsked ? this.#answering : this.#strangers).take(from.host)) {
      this.counts.limited++;
      return;
    }
    try {
      this.#heard(readMessage(bytes), from);
    } catch (error) {
      if (error instanceof BencodeError) this.counts.malformed++;
      else this.#options.tell(`${sender}: ${error}`);
    }
  }

  #heard(message: Message, from: Address): void {
    if (message.kind === "query") {
      this.#send(from, { ...this.#answer(message, from), t: message.t }, () => this.counts.unsent++);
      return;
    }
    const asked = this.#asked.get(Buffer.from(message.t).toString("hex"));
    if (asked?.to !== textOf(from)) this.counts.unasked++;
    else if (message.kind === "reply") asked.done(message.values);
    else asked.failed(new KrpcError(message.code, `${asked.to}: ${message.code} ${message.text}`));
  }

  #answer(question: Question, from: Address): { [key: string]: Encodable } {
    try {
      return { r: { id: this.#options.id, ...this.#options.answer(question, from) }, y: "r" };
    } catch (error) {
      if (error instanceof KrpcError) return { e: [error.code, error.message], y: "e" };
      if (error instanceof BencodeError) return { e: [KRPC.protocol, error.message], y: "e" };
      throw error;
    }
  }

  #send(to: Address, message: { readonly [key: string]: Encodable }, failed: (why: Error) => void): void {
    if (this.#isClosed) return;
    const why = (error: unknown) =>
      failed(new Silence(`${textOf(to)}: ${error instanceof Error ? error.message : error}`));
    try {
      this.#socket.send(encodeBencode(message), to.port, to.host, (error) => error && why(error));
    } catch (error) {
      why(error);
    }
  }
}
