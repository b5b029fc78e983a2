/**
 * What travels between a console and a person who is attached from elsewhere, and its bytes.
 *
 * A message is one type byte and a body: raw for `bytes`, JSON for all others. On a stream each message is preceded by
 * its length, 4 bytes big-endian; on MQTT each is sealed on its own. Unknown types are ignored, so that either side may be newer.
 */
import type { ConsoleState } from "../messages.ts";
import type { Mark } from "./port.ts";

/** Longest message, bytes; `bytes` are cut into pieces of at most half of it. */
export const MESSAGE_MAX = 65_536;

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
  /** Resolves when there is room for another message; rejects when the channel has ended. */
  send(message: Message): Promise<void>;
  /** To be called once. What the handler returns is waited for before the next message, so that a slow line slows the person down and fills nobody's memory. */
  receive(heard: (message: Message) => void | Promise<void>): void;
  /** Resolves when it has ended, with why, in words for a person. */
  readonly ended: Promise<string>;
  /** Says the last words, if any, and ends it. */
  close(message?: string): void;
}
