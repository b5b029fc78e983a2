/**
 * The child's side: does what the agent orders, and asks it for everything that counts. It decides nothing and owns nothing.
 *
 * Invariants
 * - What peers make it keep is bounded: pieces and reads that wait for the agent, events, status.
 * - It ends when the agent's pipe does.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { Discovery, DiscoveryAround } from "./discovery.ts";
import type { Engine, Finder, SwarmEvent } from "./engine.ts";
import { Files } from "./files.ts";
import {
  encodeReport,
  FrameError,
  frames,
  KNOWN_MOST,
  type Order,
  type Orders,
  plain,
  type Report,
  type ReportHead,
  readOrder,
  type Settings,
} from "./frames.ts";
import { Joined } from "./joined.ts";
import { Questions } from "./questions.ts";
import { pause } from "./repeat.ts";
import { FrameWriter } from "./writer.ts";

/** Bytes that may wait for the agent to read them. */
const WAITING_BYTES = 32 * 1024 * 1024;
const STATUS_MS = 1000;
/** Events for the log that are told in a second; the others are not. */
const EVENTS_A_SECOND = 20;
/** How often the agent is told who is worth being asked after the next start, and the first time. */
const KNOWN_MS = { every: 10 * 60_000, first: 60_000 };
/** How long leaving may take. */
const LEAVE_MS = 1500;

/** What the child is made of. */
export interface ChildOptions {
  /** What the agent says. */
  input: AsyncIterable<Uint8Array>;
  /** Says something to it; resolves when its pipe has taken it. */
  write(bytes: Uint8Array): Promise<void>;
  /** Who it is now. */
  user: number;
  signal: AbortSignal;
  /** Others than the real ones, in tests. */
  parts?: Parts;
}

/** What the child talks to peers with. */
export interface Parts {
  openEngine(options: {
    port: number;
    files: Files;
    tell(event: SwarmEvent): void;
    signal: AbortSignal;
  }): Promise<Engine>;
  /** All ways of finding peers and heads that the settings allow. */
  openDiscovery(settings: Settings, around: DiscoveryAround): Promise<Discovery>;
  /** Asks these, which a release names in its signed part. */
  trackers(urls: readonly string[], tell: (text: string) => void): Finder;
}

/** Serves the agent until its pipe ends or the signal says so. Throws what it cannot go on from. */
export async function serveAgent(options: ChildOptions): Promise<void> {
  const { input, write, user, signal } = options;
  const over = new AbortController();
  const parts = options.parts ?? (await import("./parts.ts")).PARTS;
  const child = new Child(write, user, parts, AbortSignal.any([signal, over.signal]));
  try {
    for await (const frame of frames(input)) await child.take(readOrder(frame));
  } catch (cause) {
    if (!signal.aborted) await child.unable(cause);
  } finally {
    over.abort();
    await child.close();
  }
}

class Child {
  readonly #writer: FrameWriter;
  readonly #questions: Questions;
  readonly #parts: Parts;
  readonly #user: number;
  readonly #signal: AbortSignal;
  readonly #files = new Files();
  readonly #joined = new Map<string, Joined>();
  #engine: Engine | undefined;
  #discovery: Discovery | undefined;
  #settings: Settings | undefined;
  #events = 0;

  constructor(write: ChildOptions["write"], user: number, parts: Parts, signal: AbortSignal) {
    this.#writer = new FrameWriter(write, WAITING_BYTES);
    this.#questions = new Questions((...report) => this.#report(...report));
    this.#parts = parts;
    this.#user = user;
    this.#signal = signal;
  }

  async take({ name, head, body }: Order): Promise<void> {
    switch (name) {
      case "open":
        return this.#open(head);
      case "join":
        return this.#join(head);
      case "leave":
        return this.#leave(head.infohash);
      case "meet":
        return this.#of(head).meet(head.address);
      case "begin":
        // What a release names is asked only if this node asks such at all
        return this.#of(head).begin(
          this.#settings?.webSeeds === false ? { ...head, webSeeds: [] } : head,
          body,
        );
      case "track":
        if (this.#settings?.trackers !== false) this.#of(head).track(head.trackers);
        return;
      case "gained":
        return this.#of(head).gained(body);
      case "want":
        return this.#of(head).want(head);
      case "verdict":
        return this.#of(head).verdict(head);
      case "offer":
        return this.#of(head).offer(head);
      case "judged":
        return this.#questions.judged(head);
      case "got":
        return this.#questions.got(head, body);
      case "limit":
        return this.#engine?.limit(head);
      case "follow":
        return this.#discovery?.follow(head);
      case "announce":
        return void this.#discovery
          ?.announce(Uint8Array.from(body))
          .catch((cause) => this.#event({ kind: "trouble", text: plain(cause) }));
    }
  }

  /** Tells the agent why it ends, if that still can be told. */
  async unable(cause: unknown): Promise<void> {
    await this.#report("unable", { text: plain(cause) }).catch(() => undefined);
  }

  async close(): Promise<void> {
    this.#questions.close();
    await Promise.race([this.#engine?.[Symbol.asyncDispose](), sleep(LEAVE_MS, undefined, { ref: false })]);
  }

  async #open(settings: Settings): Promise<void> {
    if (this.#engine) throw new FrameError("it was opened before");
    this.#engine = await this.#parts.openEngine({
      port: settings.port,
      files: this.#files,
      tell: (event) => this.#tell(event),
      signal: this.#signal,
    });
    this.#engine.limit(settings);
    this.#settings = settings;
    const { port } = this.#engine;
    this.#discovery = await this.#parts.openDiscovery(settings, {
      port,
      heard: (bytes, from) => this.#report("head", { from }, bytes),
      announced: (facts) => void this.#report("announced", facts).catch(() => undefined),
      tell: (text) => this.#event({ kind: "finder", text }),
      signal: this.#signal,
    });
    await this.#report("opened", { port, user: this.#user });
    void this.#tellStatus();
    void this.#tellKnown(settings.everyMs);
  }

  #join({ infohash, isFirstSeed = false }: Orders["join"]): void {
    const [engine, discovery] = [this.#engine, this.#discovery];
    if (!engine || !discovery) throw new FrameError("it was not opened");
    this.#joined.set(
      infohash,
      new Joined({
        engine,
        member: engine.join(infohash, { isFirstSeed }),
        files: this.#files,
        finders: discovery.finders,
        met: (address) => discovery.meet(address),
        trackers: this.#parts.trackers,
        questions: this.#questions,
        report: (...report) => this.#report(...report),
        tell: (kind, text, from) => this.#event({ kind, infohash, text, ...(from ? { from } : {}) }),
        anyWeb: this.#settings?.anyWeb ?? false,
        signal: this.#signal,
      }),
    );
  }

  async #leave(infohash: string): Promise<void> {
    const joined = this.#joined.get(infohash);
    this.#joined.delete(infohash);
    await joined?.leave();
  }

  #of({ infohash }: { infohash: string }): Joined {
    const joined = this.#joined.get(infohash);
    if (joined) return joined;
    throw new FrameError(`${infohash} was not joined`);
  }

  async #tellStatus(): Promise<void> {
    while (!this.#signal.aborted) {
      this.#events = 0;
      const members = [...this.#joined.values()].map((one) => one.status());
      await this.#report("status", { members }).catch(() => undefined);
      await sleep(STATUS_MS, undefined, { signal: this.#signal }).catch(() => undefined);
    }
  }

  async #tellKnown(everyMs = KNOWN_MS.every): Promise<void> {
    await pause(Math.min(everyMs, KNOWN_MS.first), this.#signal);
    while (!this.#signal.aborted) {
      const peers = [...this.#joined].map(([infohash, one]) => ({ infohash, addresses: one.good() }));
      const nodes = this.#discovery?.nodes() ?? [];
      await this.#report("known", { nodes, peers: peers.slice(0, KNOWN_MOST.payloads) }).catch(
        () => undefined,
      );
      await pause(everyMs, this.#signal);
    }
  }

  #tell(event: SwarmEvent): void {
    const { kind, infohash } = event;
    const [from, text] = wordsOf(event);
    this.#event({
      kind,
      ...(infohash ? { infohash } : {}),
      ...(from ? { from } : {}),
      ...(text ? { text } : {}),
    });
  }

  #event(event: ReportHead<"event">): void {
    if (++this.#events > EVENTS_A_SECOND) return;
    const text = event.text === undefined ? {} : { text: plain(event.text) };
    void this.#report("event", { ...event, ...text }).catch(() => undefined);
  }

  #report<K extends Report["name"]>(name: K, head: ReportHead<K>, body?: Uint8Array): Promise<void> {
    return this.#writer.send(encodeReport(name, head, body));
  }
}

/** Who an event is about, and what it says. */
function wordsOf(event: SwarmEvent): [from: string | undefined, text: string | undefined] {
  switch (event.kind) {
    case "trouble":
      return [undefined, event.text];
    case "whole":
      return [undefined, undefined];
    case "wrong":
      return [event.address, `piece ${event.piece}: leaves ${event.leaves.slice(0, 20).join(", ")}`];
    default:
      return [event.address, event.why];
  }
}
