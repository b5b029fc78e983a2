/**
 * What a console offers to those who attach to it, whatever way they come: the socket, sealed frames on MQTT, RFC 2217, raw TCP.
 *
 * Invariants
 * - One writer, many readers; nobody slow holds up the line, the ring or another reader.
 * - A mark is told to readers and written to the record; it never goes into the line.
 */
import type { LineSettings, ModemLines, OutletId } from "../../hal/ports.ts";
import type { ConsoleState } from "../messages.ts";

/** Something that happened beside the bytes; shown as `[fruit 2026-11-23T07:00:00Z: TEXT]` on a line of its own. */
export interface Mark {
  /** Unix milliseconds. */
  at: number;
  kind:
    | "attach"
    | "detach"
    | "takeover"
    | "skipped"
    | "power"
    | "lock"
    | "break"
    | "settings"
    | "line"
    | "notice";
  text: string;
}

/** Who is attached, for `who`. */
export interface Attached {
  /** Counted on each console since the agent's start; nobody else gets it. */
  number: number;
  /** `local:alice`, `key:alice@desk`, `rfc2217:127.0.0.1:51234`. */
  who: string;
  door: "socket" | "mqtt" | "rfc2217" | "raw";
  writes: boolean;
  /** Unix milliseconds. */
  since: number;
  /** Milliseconds since they last typed; absent for somebody who never did. */
  idleMs?: number;
  /** What they typed, and what they were shown. */
  bytesIn: number;
  bytesOut: number;
}

/** What `console.list` says of one console. */
export interface ListLine extends ConsoleState {
  /** Seconds since it last said anything; absent where it has not since the agent's start. */
  idle_seconds?: number;
  /** Bytes in memory that can be replayed. */
  kept_bytes: number;
  /** Bytes of its recording's files, those of earlier runs too; absent without one, and where the disk does not answer. */
  record_bytes?: number;
}

/** What a reader is given, in order: first what is replayed, then a view, then what happens. */
export type Item =
  | {
      kind: "bytes";
      bytes: Uint8Array /** Unix milliseconds when they came; absent in a replay of unknown time. */;
      at?: number;
    }
  | { kind: "mark"; mark: Mark }
  /** The console, or this reader's own right to write, has changed. */
  | { kind: "view"; view: ConsoleState; mayWrite: boolean };

/** Lines that come first when nobody says how many, and the most that may be asked for. */
export const REPLAY = { lines: 200, most: 10_000 } as const;

/** How somebody attaches. */
export interface AttachOptions {
  who: string;
  door: Attached["door"];
  /** `write` falls back to reading, with a mark that says who writes, unless `force` gives a reason to take over. */
  wants: "write" | "read";
  force?: string;
  /** What for, for the mark of a quiet one. */
  reason?: string;
  /** Comes and goes without a mark or an event: for an errand, not a stay. What was typed is one mark at its end. */
  quiet?: boolean;
  /** How much of the ring comes first: lines, 0 for none. */
  replayLines: number;
  /** Shows one item; resolves when there is room for the next. While it takes its time, at most 64 KiB wait, then the oldest are skipped with a mark. */
  take(item: Item): Promise<void>;
  /** The console let go of this reader: kicked, or the agent stops. */
  ended(why: string): void;
}

/**
 * Somebody's hold on a console. What only the writer may do throws `Refusal` busy (or locked) for others, naming who, and
 * `HalError` io while the line is gone. A door that cannot ask (`rfc2217`, `raw`) has the right to write from what it first writes or sets, when nobody has it.
 */
export interface Attachment {
  readonly who: string;
  readonly mayWrite: boolean;
  /** Resolves when the line took it: whoever types faster than the line is slowed. */
  write(bytes: Uint8Array): Promise<void>;
  sendBreak(): Promise<void>;
  setLines(lines: Partial<Signals>): Promise<void>;
  change(settings: Partial<LineSettings>): Promise<void>;
  /** Takes the right to write from whoever has it. Throws `Refusal` bad-args without a reason. */
  takeOver(reason: string): void;
  /** Goes on reading and lets others write. */
  release(): void;
  /** Shows so many lines of the ring again. */
  replay(lines: number): void;
  /** Leaves; nothing is shown any more. `why` goes on record. */
  detach(why?: string): void;
}

/** What a line's signals were last set to; both are on when it is opened first. */
export interface Signals {
  dtr: boolean;
  rts: boolean;
}

/** One serial line, recorded from the agent's start on. */
export interface Console {
  readonly name: string;
  readonly outlet: OutletId | undefined;
  readonly state: ConsoleState;
  /** How the line talks now; RFC 2217 clients ask for all of it. */
  readonly settings: Readonly<LineSettings>;
  readonly signals: Readonly<Signals>;
  readonly attached: readonly Attached[];
  /** How the far side holds its control lines now, or undefined when the driver does not say; undefined at once where nobody can tell. */
  modemLines(): Promise<ModemLines | undefined> | undefined;
  /** Throws `Refusal` busy when too many are attached. */
  attach(options: AttachOptions): Attachment;
}
