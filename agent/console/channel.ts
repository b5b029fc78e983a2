/**
 * What travels between a console and a person who is attached from elsewhere, and its bytes.
 *
 * A message is one type byte and a body. On a stream each message is preceded by its length, 4 bytes big-endian;
 * on MQTT each is sealed on its own. Unknown types, and requests nobody knows, are ignored: either side may be newer.
 *
 *   1 bytes   as they are                          5 ask      JSON { n, ask }
 *   2 bytes   6 bytes: Unix milliseconds when      6 answer   JSON { n, refused?, result? }
 *             they came, big-endian; then they     7 end      JSON { message }
 *   3 mark    JSON
 *   4 view    JSON { view, mayWrite }
 */
import * as v from "valibot";
import { problemsOf } from "../issues.ts";
import { ConsoleState } from "../messages.ts";
import type { Mark } from "./port.ts";

/** Longest message, bytes, its type included; `bytes` are cut into pieces of at most half of it. */
export const MESSAGE_MAX = 65_536;
/** Longest reason, characters. */
const REASON_MAX = 500;

/** What a person may ask while attached. */
export type Ask =
  | { do: "break" }
  | { do: "takeover"; reason: string }
  | { do: "release" }
  | { do: "who" }
  | { do: "replay"; lines: number };

/** One message, in either direction. */
export type Message =
  /** From the line, or typed. `at`: Unix milliseconds when they came from the line. */
  | { kind: "bytes"; bytes: Uint8Array; at?: number }
  | { kind: "mark"; mark: Mark }
  | { kind: "view"; view: ConsoleState; mayWrite: boolean }
  | { kind: "ask"; n: number; ask: Ask }
  | { kind: "answer"; n: number; refused?: string; result?: unknown }
  /** The last one of whoever ends it; `message` is for the other side's person. */
  | { kind: "end"; message: string };

/** A way to somebody attached, whole messages in order in both directions: a Unix socket, or sealed frames on MQTT. */
export interface Channel {
  /** Resolves when there is room for another message; rejects when the channel has ended. Long `bytes` are cut. */
  send(message: Message): Promise<void>;
  /**
   * To be called once; what came before is kept until then. What the handler returns is waited for before the next message,
   * so that a slow line slows the person down and fills nobody's memory. `end` is not handed over: it is how `ended` resolves.
   */
  receive(heard: (message: Message) => void | Promise<void>): void;
  /** Resolves when it has ended and all that came before was heard, with why, in words for a person. */
  readonly ended: Promise<string>;
  /** Says the last words, if any, and ends it. */
  close(message?: string): void;
}

/** What came is no message: the two sides do not speak the same language, or somebody else speaks. */
export class MessageError extends Error {}

const BYTES = 1;
const BYTES_AT = 2;
const AT_LENGTH = 6;
const AT_MAX = 2 ** 48 - 1;
const TYPES = { mark: 3, view: 4, ask: 5, answer: 6, end: 7 } as const;

const Whole = v.pipe(v.number(), v.integer(), v.minValue(0));
const KINDS = {
  [TYPES.mark]: v.pipe(
    v.object({
      at: Whole,
      // Those of a newer node too: they are shown like any other
      kind: v.pipe(
        v.string(),
        v.transform((kind) => kind as Mark["kind"]),
      ),
      text: v.string(),
    }),
    v.transform((mark): Message => ({ kind: "mark", mark })),
  ),
  [TYPES.view]: v.pipe(
    v.object({ view: ConsoleState, mayWrite: v.boolean() }),
    v.transform((body): Message => ({ kind: "view", ...body })),
  ),
  [TYPES.ask]: v.pipe(
    v.object({
      n: Whole,
      ask: v.variant("do", [
        v.object({ do: v.literal("break") }),
        v.object({
          do: v.literal("takeover"),
          reason: v.pipe(v.string(), v.minLength(1), v.maxLength(REASON_MAX)),
        }),
        v.object({ do: v.literal("release") }),
        v.object({ do: v.literal("who") }),
        v.object({ do: v.literal("replay"), lines: Whole }),
      ]),
    }),
    v.transform((body): Message => ({ kind: "ask", ...body })),
  ),
  [TYPES.answer]: v.pipe(
    v.object({ n: Whole, refused: v.exactOptional(v.string()), result: v.exactOptional(v.unknown()) }),
    v.transform((body): Message => ({ kind: "answer", ...body })),
  ),
  [TYPES.end]: v.pipe(
    v.object({ message: v.string() }),
    v.transform((body): Message => ({ kind: "end", ...body })),
  ),
};

/** A message's bytes. Throws `MessageError` when it is longer than a message may be. */
export function encode(message: Message): Uint8Array {
  if (message.kind === "bytes") return encodeBytes(message);
  const { kind, ...body } = message;
  const json = Buffer.from(JSON.stringify(message.kind === "mark" ? message.mark : body));
  return bounded(Buffer.concat([Uint8Array.of(TYPES[kind]), json]), kind);
}

function encodeBytes({ bytes, at }: Extract<Message, { kind: "bytes" }>): Uint8Array {
  if (at === undefined) return bounded(Buffer.concat([Uint8Array.of(BYTES), bytes]), "bytes");
  const head = Buffer.alloc(1 + AT_LENGTH, BYTES_AT);
  // A clock before 1970 is a clock that was not set yet
  head.writeUIntBE(Math.min(Math.max(Math.round(at), 0), AT_MAX), 1, AT_LENGTH);
  return bounded(Buffer.concat([head, bytes]), "bytes");
}

function bounded(bytes: Uint8Array, what: string): Uint8Array {
  if (bytes.length <= MESSAGE_MAX) return bytes;
  throw new MessageError(`${what} of ${bytes.length} bytes: a message is at most ${MESSAGE_MAX}`);
}

/** The message in some bytes; undefined for what only a newer side says. Throws `MessageError` for what no side says. */
export function decode(bytes: Uint8Array): Message | undefined {
  if (bytes.length === 0 || bytes.length > MESSAGE_MAX)
    throw new MessageError(`a message of ${bytes.length} bytes: there are 1 to ${MESSAGE_MAX}`);
  const type = bytes[0] ?? 0;
  if (type === BYTES) return { kind: "bytes", bytes: bytes.subarray(1) };
  if (type === BYTES_AT) return decodeDated(bytes);
  const schema = Object.hasOwn(KINDS, type) ? KINDS[type as keyof typeof KINDS] : undefined;
  if (!schema) return undefined;
  const body = parse(type, bytes.subarray(1));
  const parsed = v.safeParse(schema, body);
  if (parsed.success) return parsed.output;
  if (type === TYPES.ask && isForeignAsk(body)) return undefined;
  throw new MessageError(`a message of type ${type}: ${problemsOf(parsed.issues).join("; ")}`);
}

function decodeDated(bytes: Uint8Array): Message {
  if (bytes.length < 1 + AT_LENGTH)
    throw new MessageError(`dated bytes without a date: ${bytes.length} bytes`);
  const at = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).readUIntBE(1, AT_LENGTH);
  return { kind: "bytes", bytes: bytes.subarray(1 + AT_LENGTH), at };
}

function parse(type: number, bytes: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (cause) {
    throw new MessageError(`a message of type ${type} that is not JSON`, { cause });
  }
}

/** Asks for something that this release does not know. */
function isForeignAsk(body: unknown): boolean {
  const asked = (body as { ask?: { do?: unknown } } | null)?.ask?.do;
  return typeof asked === "string" && !["break", "takeover", "release", "who", "replay"].includes(asked);
}

/** The same message, `bytes` in pieces of at most `most`. */
export function* pieces(message: Message, most = MESSAGE_MAX / 2): Generator<Message> {
  if (message.kind !== "bytes" || message.bytes.length <= most) {
    yield message;
    return;
  }
  for (let at = 0; at < message.bytes.length; at += most)
    yield { ...message, bytes: message.bytes.subarray(at, at + most) };
}
