/** The swarm as the agent has it: a child process that is started anew whenever it dies, and is believed nothing. */
import { setTimeout as sleep } from "node:timers/promises";
import { parseHead } from "../../boot/head.ts";
import type { Log } from "../log.ts";
import {
  FrameError,
  type Orders,
  plain,
  type Report,
  type ReportHead,
  type Settings,
} from "../swarm/frames.ts";
import { Bucket } from "../swarm/limit.ts";
import { type ChildStart, SwarmChild } from "./child.ts";
import type { Known } from "./known.ts";
import { Share, type ShareHow } from "./share.ts";

/** How long it rests after a death: this at first, twice as long each time, and at most. */
const REST_MS = { least: 1000, most: 60_000 };
/** Heads that a child may tell: one that is honest tells four a second, and only new ones. */
const HEARD = { burst: 128, perSecond: 8 };
/** Heads that are handed on at once. */
const MOST_ANNOUNCED = 64;
/** One that lived so long starts anew at once. */
const HEALTHY_MS = 60_000;

/** How the swarm is run. */
export interface SwarmOptions extends Omit<ChildStart, "hear"> {
  settings: Settings;
  log: Log;
  /** A head that the child says it heard, to be judged: nothing is believed of it. What it throws is told. */
  heard?(head: Uint8Array, from: ReportHead<"head">["from"]): void | Promise<void>;
  /** How far a head has come that was announced. */
  announced?(facts: ReportHead<"announced">): void;
  /** Who answered before, and is asked first. */
  known?: Known;
}

/** All payloads of this node, and the one child for them. */
export class Swarm {
  readonly #options: SwarmOptions;
  readonly #shares = new Map<string, Share>();
  #child: SwarmChild | undefined;
  #following: Orders["follow"] | undefined;
  /** By key and target. */
  readonly #announced = new Map<string, Uint8Array>();
  readonly #heard = new Bucket(HEARD);
  #opened = Promise.withResolvers<number>();

  constructor(options: SwarmOptions) {
    this.#options = options;
  }

  /** The port it listens at, once it does. */
  get port(): Promise<number> {
    return this.#opened.promise;
  }

  /** Of the child that runs now. */
  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** Runs the child until the signal says so; resolves when it is gone. */
  async run(signal: AbortSignal): Promise<void> {
    let restMs = REST_MS.least;
    while (!signal.aborted) {
      const startedMs = performance.now();
      const why = await this.#once(signal);
      if (signal.aborted) break;
      restMs = performance.now() - startedMs > HEALTHY_MS ? REST_MS.least : restMs;
      this.#options.log("warn", "swarm.died", { why, rest_s: restMs / 1000 });
      await sleep(restMs, undefined, { signal }).catch(() => undefined);
      restMs = Math.min(restMs * 2, REST_MS.most);
    }
  }

  /** One more payload, by its infohash. Throws where it is shared already. */
  share(infohash: string, how: ShareHow = {}): Share {
    if (this.#shares.has(infohash)) throw new Error(`${infohash} is shared already`);
    const share = new Share(infohash, how, (...order) => this.#tell(...order));
    for (const address of this.#options.known?.peers(infohash) ?? []) share.meet(address);
    this.#shares.set(infohash, share);
    if (this.#child) share.tellAll();
    return share;
  }

  /** Neither fetched nor given any more. */
  leave(share: Share): void {
    this.#shares.delete(share.infohash);
    this.#tell("leave", { infohash: share.infohash });
  }

  /** Looks for the heads of these keys (hex) for a target, instead of others; heads of others are no longer handed on. */
  follow(following: Orders["follow"]): void {
    const { target, keys } = following;
    this.#following = following;
    for (const [name, head] of this.#announced) {
      const { key, target: its } = parseHead(head);
      if (its !== target || !keys.includes(key)) this.#announced.delete(name);
    }
    this.#tell("follow", following);
  }

  /** Hands a head on that was judged, from now on and instead of an older one of the same key. Throws `HeadError`. */
  announce(head: Uint8Array): void {
    const { key, target } = parseHead(head);
    const name = `${key} ${target}`;
    if (!this.#announced.has(name) && this.#announced.size >= MOST_ANNOUNCED)
      throw new RangeError(`${MOST_ANNOUNCED} heads are handed on already`);
    this.#announced.set(name, Uint8Array.from(head));
    this.#tell("announce", {}, head);
  }

  /** Bytes a second from now on. */
  limit(rates: Orders["limit"]): void {
    const { up: _, down: __, ...rest } = this.#options.settings;
    this.#options.settings = { ...rest, ...rates };
    this.#tell("limit", rates);
  }

  async #once(signal: AbortSignal): Promise<string> {
    const { user, memoryMib, files, command, env } = this.#options;
    let child: SwarmChild;
    try {
      child = new SwarmChild({
        user,
        memoryMib,
        files,
        ...(command ? { command } : {}),
        ...(env ? { env } : {}),
        hear: (report) => this.#hear(report, child),
      });
    } catch (cause) {
      return plain(cause);
    }
    const stop = () => child.end("stopped");
    signal.addEventListener("abort", stop, { once: true });
    if (signal.aborted) stop();
    try {
      child.send("open", this.#settings());
      this.#child = child;
      if (this.#following) child.send("follow", this.#following);
      for (const head of this.#announced.values()) child.send("announce", {}, head);
      for (const share of this.#shares.values()) share.tellAll();
      return await child.gone;
    } finally {
      this.#child = undefined;
      signal.removeEventListener("abort", stop);
    }
  }

  #hear(report: Report, child: SwarmChild): void {
    const { name, head } = report;
    if (name === "opened") this.#hasOpened(head);
    else if (name === "status")
      for (const status of head.members) this.#shares.get(status.infohash)?.heard(status);
    else if (name === "event") {
      const { kind, ...facts } = head;
      this.#options.log("info", `swarm.${kind}`, facts);
    } else if (name === "head") this.#hasHeard(head.from, report.body);
    else if (name === "announced") this.#options.announced?.(head);
    else if (name === "known") void this.#options.known?.take(head).catch((cause) => this.#warn(cause));
    else if (name !== "unable")
      // A child that says what cannot be ends, however late that comes out
      this.#answer(report, child).catch((cause) => child.end(plain(cause)));
  }

  async #answer(
    report: Extract<Report, { name: "piece" | "get" | "part" }>,
    child: SwarmChild,
  ): Promise<void> {
    const { name, head, body } = report;
    const share = this.#shares.get(head.infohash);
    const tell = child.send.bind(child);
    if (!share) return; // it was left while this was under way
    if (name === "piece") await share.piece(head, body, tell);
    else if (name === "get") await share.get(head, tell);
    else await share.part(head, body, tell);
  }

  /** Throws `FrameError` for a child that tells more than an honest one does. */
  #hasHeard(from: ReportHead<"head">["from"], head: Uint8Array): void {
    if (!this.#heard.take()) throw new FrameError("it tells too many heads");
    const { heard, log } = this.#options;
    Promise.resolve()
      .then(() => heard?.(head, from))
      .catch((cause) => log("info", "swarm.head", { from, why: plain(cause) }));
  }

  /** What is remembered is asked after what was named. */
  #settings(): Settings {
    const { settings, known } = this.#options;
    const bootstrap = new Set([...(known?.nodes ?? []), ...settings.bootstrap]);
    return { ...settings, bootstrap: [...bootstrap] };
  }

  #warn(cause: unknown): void {
    this.#options.log("warn", "swarm.known", { why: plain(cause) });
  }

  #hasOpened({ port, user }: Extract<Report, { name: "opened" }>["head"]): void {
    if (process.getuid?.() === 0 && user !== this.#options.user)
      throw new FrameError(`it runs as user ${user}, not ${this.#options.user}`);
    this.#opened.resolve(port);
    this.#options.log("info", "swarm.opened", { port });
  }

  #tell<K extends keyof Orders>(name: K, head: Orders[K], body?: Uint8Array): void {
    this.#child?.send(name, head, body);
  }
}
