import { setTimeout as sleep } from "node:timers/promises";
import type { GpioLine } from "../../hal/ports.ts";
import type { StackOptions } from "./service.ts";
import { runShutdown } from "./shutdown.ts";

/** High for 0.2 s every 5 s (`stackdaemon.py`); a node whose event loop is stuck for a minute is as good as dead. */
const BEAT = { everyMs: 5000, highMs: 200, deadMs: 60_000 };
/** How often the heart hears that the event loop lives. */
const ALIVE_MS = 1000;
/** A board's request holds the line low for longer; what is shorter is a disturbance. The real width is not published. */
const STEADY_MS = 20;
/** How often it is looked whether the event loop was kept from its work: then an edge may be told after the board has let go again. */
const TICK_MS = 100;
const LATE_MS = 50;
/** How long the line is held low to tell the board that this node shuts itself down (`stackdaemon.py`). */
const ANNOUNCE_MS = 200;
/** Longest wait for the shutdown command itself: one that works returns at once, or hands over to somebody who takes longer. */
const COMMAND_MS = 10_000;
/** By then a board has cut the supply of a node that was to go down: its delay is one byte of seconds. */
const KNOWN_MS = 255_000;
/** Between attempts to open a line: doubled up to a minute. */
const RETRY_MS = { first: 1000, most: 60_000 };

/** The two halves of the role; each goes on without the other. */
type Half = "heart" | "line";

/**
 * What this node does in a Pi Stack, while it runs.
 *
 * A falling edge on the shutdown line is a request. So is a low line when it is opened anew, if it was seen high before;
 * a line that is low when the agent starts is none, because on boards without the pull-up it may float. An edge that was
 * told late, while this program was busy, is believed although the line is high again.
 *
 * Our own announcement makes an edge too, and a controller may keep it until the line is opened anew (PL061): no edge is
 * believed before the line was seen high again, and for its first second none for being late.
 */
export class Role {
  readonly #options: StackOptions;
  readonly #changed: () => void;
  readonly #problems = new Map<Half, string>();
  #isBeating = false;
  /** The shutdown line while it is listened to, and how to have it opened anew. */
  #listening: { line: GpioLine; again: AbortController } | undefined;
  #announcement: Promise<void> | undefined;
  /** The line since the agent started: not seen high yet, seen high, or pulled low by ourselves and not seen high since. */
  #line: "unknown" | "high" | "ours" = "unknown";
  #goesDown: string | undefined;
  /** When the board last knew that this node goes down, and how. */
  #known: { atMs: number; how: string } | undefined;

  constructor(options: StackOptions, changed: () => void) {
    this.#options = options;
    this.#changed = changed;
  }

  get isBeating(): boolean {
    return this.#isBeating;
  }

  /** Why a half of the role is not played; undefined where both are. */
  get error(): string | undefined {
    return [...this.#problems.values()].join("; ") || undefined;
  }

  /** How the board knows already that this node goes down; undefined where it does not. */
  get known(): string | undefined {
    const { atMs = Number.NEGATIVE_INFINITY, how } = this.#known ?? {};
    return performance.now() - atMs < KNOWN_MS ? how : undefined;
  }

  /** Why this node goes down, once it does. */
  get goesDown(): string | undefined {
    return this.#goesDown;
  }

  async run(signal: AbortSignal): Promise<void> {
    await Promise.all([
      this.#keep("heart", signal, () => this.#beat(signal)),
      this.#keep("line", signal, () => this.#listen(signal)),
    ]);
    await this.#announced();
  }

  /** Tells the board that this node shuts itself down; whoever asks meanwhile waits for the same. Throws `HalError`. */
  announce(): Promise<void> {
    this.#announcement ??= this.#announce().finally(() => {
      this.#announcement = undefined;
    });
    return this.#announcement;
  }

  async #announce(): Promise<void> {
    const { config, hal, tell } = this.#options;
    const listening = this.#listening;
    const line = listening?.line ?? (await hal.openGpio(config.shutdown_gpio, INPUT));
    this.#line = "ours";
    try {
      await line.write(0);
      // To its end, also when the agent is told to stop: half a pulse tells nothing.
      await sleep(ANNOUNCE_MS);
      this.#known = { atMs: performance.now(), how: "the board was told already" };
      tell("stack.announced", { message: "the board was told that this node shuts down" });
    } finally {
      await line.close().finally(() => listening?.again.abort());
    }
  }

  /** Resolves when no announcement is under way. */
  async #announced(): Promise<void> {
    await this.#announcement?.catch(() => undefined);
  }

  /** Ends this node, once; what failed may be tried again. Throws what is wrong with the command, as far as it says so soon. */
  async goDown(why: string, signal: AbortSignal): Promise<void> {
    if (this.#goesDown !== undefined) return;
    const { config, tell, log, limits = { commandMs: COMMAND_MS, downMs: KNOWN_MS } } = this.#options;
    this.#goesDown = why;
    log("warn", "stack.shutdown", { why, command: config.shutdown_command });
    tell("stack.shutdown", { message: `this node shuts down: ${why}` });
    this.#changed();
    const command = runShutdown(config.shutdown_command);
    void this.#staysUp(why, command, limits.downMs);
    await Promise.race([command, pause(limits.commandMs, signal)]);
  }

  /** The command failed, at once or later, or has ended and the node is still here: an alarm, and it may be tried again. */
  async #staysUp(why: string, command: Promise<void>, downMs: number): Promise<void> {
    const { alarm, log } = this.#options;
    try {
      const over = pause(downMs);
      const returned = command.then(() => {
        alarm("stack-shutdown", null);
        return over;
      });
      await Promise.race([returned, over]);
      throw new Error(`it is still up after ${downMs / 1000} s`);
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      this.#goesDown = undefined;
      this.#known = undefined;
      this.#changed();
      log("error", "stack.shutdown-failed", { error: message });
      alarm("stack-shutdown", {
        severity: "critical",
        message: `this node was to shut down (${why}) and did not: ${message}; shut it down by hand, its supply may be cut`,
      });
    }
  }

  /** Plays a half of the role until told to stop, and again when it has failed. */
  async #keep(half: Half, signal: AbortSignal, play: () => Promise<void>): Promise<void> {
    let pauseMs = RETRY_MS.first;
    while (!signal.aborted) {
      const began = performance.now();
      try {
        await play();
        continue;
      } catch (error) {
        if (!signal.aborted) this.#problem(half, error instanceof Error ? error.message : String(error));
      }
      if (performance.now() - began > RETRY_MS.most) pauseMs = RETRY_MS.first;
      await sleep(pauseMs, undefined, { signal }).catch(() => undefined);
      pauseMs = Math.min(pauseMs * 2, RETRY_MS.most);
    }
  }

  async #beat(signal: AbortSignal): Promise<void> {
    const { config, hal } = this.#options;
    const heart = await hal.openHeart(config.heartbeat_gpio, BEAT);
    try {
      this.#isBeating = true;
      this.#problem("heart", undefined);
      while (!signal.aborted) {
        heart.alive();
        await sleep(ALIVE_MS, undefined, { signal }).catch(() => undefined);
      }
    } finally {
      this.#isBeating = false;
      this.#changed();
      await heart.close();
    }
  }

  /** Waits for the board to ask this node to shut down, until the line has failed or was used to tell the board. */
  async #listen(signal: AbortSignal): Promise<void> {
    const { config, hal } = this.#options;
    const line = await hal.openGpio(config.shutdown_gpio, INPUT);
    const again = new AbortController();
    const over = AbortSignal.any([signal, again.signal]);
    try {
      const promptness = watchLoop(over);
      let mayTellOurs = this.#line === "ours";
      await this.#look(line);
      line.onEdge((level) => {
        const isLate = promptness.wasLate() && !mayTellOurs;
        if (level === 0 || isLate) void this.#fell(line, signal, isLate);
      });
      this.#listening = { line, again };
      this.#problem("line", undefined);
      // An edge while nobody listened is missed, the level is not. At the very start it may float.
      if ((await this.#look(line)) === 0 && this.#line === "high") void this.#fell(line, signal, false);
      while (!over.aborted) {
        await sleep(ALIVE_MS, undefined, { signal: over }).catch(() => undefined);
        mayTellOurs = this.#line === "ours";
        await this.#look(line);
      }
    } catch (error) {
      if (!over.aborted) throw error;
    } finally {
      this.#listening = undefined;
      await this.#announced();
      await line.close();
    }
  }

  /** The level of the line, noted where it is high without our doing. */
  async #look(line: GpioLine): Promise<0 | 1> {
    const level = await line.read();
    if (level === 1 && !this.#announcement) this.#line = "high";
    return level;
  }

  /** The line fell: a request, unless it was a disturbance, or we did it. */
  async #fell(line: GpioLine, signal: AbortSignal, isLate: boolean): Promise<void> {
    await sleep(STEADY_MS, undefined, { signal }).catch(() => undefined);
    const isRequest = isLate || (await line.read().catch(() => 1)) === 0;
    if (!isRequest || this.#line === "ours" || this.#goesDown !== undefined || signal.aborted) return;
    this.#known = { atMs: performance.now(), how: "the board asked for it, and knows" };
    await this.goDown("the board asks for it", signal).catch(() => undefined);
  }

  /** Notes what keeps a half of the role from being played. */
  #problem(half: Half, problem: string | undefined): void {
    if (problem === undefined) this.#problems.delete(half);
    else this.#problems.set(half, problem);
    this.#changed();
  }
}

/** Tells whether the event loop has just been kept from its work, until the signal aborts. */
function watchLoop(signal: AbortSignal): { wasLate(): boolean } {
  let tickedAt = performance.now();
  let lateAt = Number.NEGATIVE_INFINITY;
  const look = () => {
    const now = performance.now();
    if (now - tickedAt > TICK_MS + LATE_MS) lateAt = now;
    return now;
  };
  void (async () => {
    while (!signal.aborted) {
      await sleep(TICK_MS, undefined, { signal, ref: false }).catch(() => undefined);
      tickedAt = look();
    }
  })();
  return { wasLate: () => look() - lateAt < TICK_MS };
}

const INPUT = { direction: "in", edge: "falling", bias: "none" } as const;

/** Waits, and keeps no process alive for it; ends early when told to stop. */
const pause = (ms: number, signal?: AbortSignal) =>
  sleep(ms, undefined, { ref: false, ...(signal ? { signal } : {}) }).catch(() => undefined);
