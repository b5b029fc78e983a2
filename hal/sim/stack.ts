/**
 * The simulated stack: boards with two Pis each on one 12 V supply. Whatever a simulated bus says is read from here.
 *
 * Invariants
 * - State is a function of time, brought up to date when somebody looks; there are no timers. Only what an attached
 *   host must hear at once (a power command) is told at once; a supply that a board's timer cuts is cut, and its
 *   host told, at the next look at the stack.
 * - The end of the process is not a loss of supply: with a state file everything goes on where it was.
 * - Nothing is left to chance but by the seed.
 *
 * What is not published of the real board, and assumed here: timers count seconds; their defaults (`DEFAULTS`); the
 * off delay applies to an off asked by the master, the signal-off delay to one asked by the Pi; the board reads back
 * the supply itself, not its last command; heartbeats that stop are reported and nothing is switched; the boot grace
 * has no visible effect; settings sent over RS-485 are stored at once; the error buffer's depth; the LEDs go dark
 * when the supply is lost. Not modelled: brown-outs (a supply that sags resets nobody), noise of the converters.
 */
import { HalError, type OutletId } from "../ports.ts";
import { activity } from "./activity.ts";
import { type BoardState, logCode, newBoard, restart } from "./board.ts";
import { Faults } from "./faults.ts";
import { recall, remember, type StackState } from "./memory.ts";
import {
  advance,
  amperes,
  applySupply,
  cutSupply,
  type HostState,
  type PiState,
  type Settings,
  setHost,
} from "./pi.ts";

/** Versions the boards report: every op up to 0x29, and the dividers of hardware 3. */
export const FIRMWARE = 4;
export const HARDWARE = 3;

/** What stands in for the software of one Pi. Called at once and synchronously; must not throw. */
export interface SimHost {
  /** Supply was applied: boot. */
  powered(): void;
  /** Supply was cut: cease to exist. */
  cut(): void;
  /** The board asks to shut down: stop, then report `halted`. */
  signalled(): void;
}

/** The boards, their Pis and their supply. */
export class SimStack {
  readonly boards: readonly number[];
  /** Rack order: the index is the Pi's position, which its load and current are derived from (`activity(seed ^ position)`). */
  readonly outlets: readonly OutletId[];
  readonly faults: Faults;
  readonly #now: () => number;
  readonly #statePath: string | undefined;
  readonly #state: StackState;
  /** Added to the clock, so that one that was set back does not undo what happened. */
  #ahead = 0;
  readonly #hosts = new Map<OutletId, SimHost>();
  readonly #loads: ((nowMs: number) => number)[];

  constructor(options: {
    boards: readonly number[];
    seed: number;
    now?: () => number;
    faults?: readonly string[];
    statePath?: string;
  }) {
    this.boards = options.boards;
    this.outlets = options.boards.flatMap((board): OutletId[] => [`${board}.0`, `${board}.1`]);
    this.faults = new Faults(this.outlets, options.seed, options.faults ?? []);
    this.#now = options.now ?? Date.now;
    this.#statePath = options.statePath;
    this.#loads = this.outlets.map((_, position) => activity(options.seed ^ position));
    const kept = options.statePath === undefined ? undefined : recall(options.statePath);
    this.#state = kept ?? { at: this.#now(), boards: {} };
    this.now();
    for (const board of options.boards) {
      if (this.#state.boards[board]) continue;
      this.#state.boards[board] = newBoard(board);
      this.#start(board);
    }
    this.#save();
  }

  /** The stack's clock, in milliseconds; it never goes back. */
  now(): number {
    const now = this.#now() + this.#ahead;
    if (now < this.#state.at) this.#ahead += this.#state.at - now;
    this.#state.at = Math.max(now, this.#state.at);
    return this.#state.at;
  }

  /** Switches a fault on or off: everywhere, on one board or on one outlet. */
  fault(name: string, on: boolean, outletOrBoard?: string | number): void {
    this.faults.set(name, on, outletOrBoard === undefined ? undefined : String(outletOrBoard));
  }

  /** Puts somebody's own software on a Pi in place of the built-in model. It hears what happens from now on, and starts with a report. */
  attach(outlet: OutletId, host: SimHost): void {
    this.#pi(outlet);
    this.#hosts.set(outlet, host);
  }

  /** What an attached host is doing; while `running` it beats. Ignored when its supply is off: it was too late. */
  report(outlet: OutletId, host: Exclude<HostState, "off">): void {
    const pi = this.#pi(outlet);
    if (!pi.supply) return;
    setHost(pi, host, this.now());
    this.#save();
  }

  /** The Pi pulls the signal line: it is going down, and the board shall cut it after the signal-off delay. */
  askOff(outlet: OutletId): void {
    const pi = this.#pi(outlet);
    if (!pi.supply) return;
    this.#stop(outlet, pi);
    pi.cutAt = this.now() + pi.live.signalOffDelay * 1000;
    this.#save();
  }

  /** Applies the supply; ends a shutdown that would cut it. */
  on(outlet: OutletId): void {
    const pi = this.#pi(outlet);
    pi.cutAt = null;
    if (!pi.supply && !this.faults.outlet("stuck-off", outlet)) this.#apply(outlet, pi);
    this.#save();
  }

  /** Signals the Pi and cuts its supply after the off delay. */
  off(outlet: OutletId): void {
    const pi = this.#pi(outlet);
    if (!pi.supply) return;
    this.#signal(outlet, pi);
    pi.cutAt = this.now() + pi.live.offDelay * 1000;
    this.#save();
  }

  /** Cuts the supply now. */
  cut(outlet: OutletId): void {
    const pi = this.#pi(outlet);
    pi.cutAt = null;
    this.#cut(outlet, pi, this.now());
    this.#save();
  }

  /** Signals the Pi to shut down; its supply stays. */
  signal(outlet: OutletId): void {
    const pi = this.#pi(outlet);
    if (pi.supply) this.#signal(outlet, pi);
    this.#save();
  }

  /** The 12 V are lost and return: every board starts anew and does with each Pi what its EEPROM says. */
  mainsLoss(): void {
    for (const outlet of this.outlets) {
      const pi = this.#pi(outlet);
      if (!pi.supply) continue;
      cutSupply(pi, this.now());
      this.#hosts.get(outlet)?.cut();
    }
    for (const board of this.boards) this.#start(board);
    this.#save();
  }

  /** What a board keeps. Throws `absent` for one that is not there. */
  board(board: number): Readonly<BoardState> {
    return this.#board(board);
  }

  /** What a Pi is and does by now: the truth, more than its board can see. Throws `absent` for one that is not there. */
  pi(outlet: OutletId): Readonly<PiState> {
    return this.#pi(outlet);
  }

  /** What a Pi draws now, in amperes at 5 V. */
  amperes(outlet: OutletId): number {
    const load = this.#loads[this.outlets.indexOf(outlet)];
    return amperes(this.#pi(outlet), this.now(), load?.(this.now()) ?? 0);
  }

  /** The address a board answers to on RS-485: DIP switches and prefix. */
  address(board: number): number {
    return this.#board(board).prefix | (board & 0x0f);
  }

  /** Changes a setting in use (one byte); the EEPROM keeps its own until `store`. */
  set(outlet: OutletId, setting: keyof Settings, value: number): void {
    this.#pi(outlet).live[setting] = value & 0xff;
    this.#save();
  }

  /** Changes the software half of a board's address; the EEPROM keeps its own until `store`. */
  setPrefix(board: number, prefix: number): void {
    this.#board(board).prefix = prefix & 0xf0;
    this.#save();
  }

  /** Stores a board's settings in use in its EEPROM. */
  store(board: number): void {
    const state = this.#board(board);
    state.storedPrefix = state.prefix;
    for (const pi of state.pis) pi.stored = { ...pi.live };
    this.#save();
  }

  /** The LEDs that make a board visible. */
  setLeds(board: number, on: boolean): void {
    this.#board(board).leds = on;
    this.#save();
  }

  /** Puts a code into the board's error buffer and counts it. */
  error(board: number, code: number): void {
    const state = this.#board(board);
    logCode(state, code);
    state.errorCount = Math.min(0xffff, state.errorCount + 1);
    this.#save();
  }

  /** Forgets the board's errors (`buffer`), or the numbers of errors and of boots (`counts`). */
  clear(board: number, what: "buffer" | "counts"): void {
    const state = this.#board(board);
    if (what === "buffer") Object.assign(state, { errorPointer: 0, errorsKept: 0 });
    else Object.assign(state, { errorCount: 0, bootCount: 0 });
    this.#save();
  }

  #board(board: number): BoardState {
    const state = this.boards.includes(board) ? this.#state.boards[board] : undefined;
    if (!state)
      throw new HalError("absent", `sim: no board ${board}; there are ${this.boards.join(", ") || "none"}`);
    return state;
  }

  /** The Pi, up to date. */
  #pi(outlet: OutletId): PiState {
    const [board, index] = outlet.split(".");
    const pi = this.outlets.includes(outlet) ? this.#board(Number(board)).pis[Number(index)] : undefined;
    if (!pi) throw new HalError("absent", `sim: no outlet ${outlet}; there are ${this.outlets.join(", ")}`);
    const now = this.now();
    if (!this.#hosts.has(outlet)) advance(pi, Math.min(now, pi.cutAt ?? now));
    if (pi.cutAt !== null && pi.cutAt <= now) {
      const { cutAt } = pi;
      pi.cutAt = null;
      this.#cut(outlet, pi, cutAt);
      this.#save();
    }
    return pi;
  }

  /** A board's controller starts: settings from the EEPROM, supplies by them. */
  #start(board: number): void {
    const state = this.#board(board);
    restart(state);
    for (const [index, pi] of state.pis.entries()) {
      const outlet: OutletId = `${board}.${index}`;
      const isStuck = this.faults.outlet("stuck-off", outlet);
      if ((pi.live.onAtStart !== 0 && !isStuck) || this.faults.outlet("stuck-on", outlet))
        this.#apply(outlet, pi);
    }
  }

  #apply(outlet: OutletId, pi: PiState): void {
    applySupply(pi, this.now(), !this.faults.outlet("wont-boot", outlet));
    if (pi.boots) this.#hosts.get(outlet)?.powered();
  }

  #cut(outlet: OutletId, pi: PiState, at: number): void {
    if (!pi.supply || this.faults.outlet("stuck-on", outlet)) return;
    cutSupply(pi, at);
    this.#hosts.get(outlet)?.cut();
  }

  #signal(outlet: OutletId, pi: PiState): void {
    if (!pi.boots || this.faults.outlet("hang", outlet)) return;
    const host = this.#hosts.get(outlet);
    if (host) host.signalled();
    else this.#stop(outlet, pi);
  }

  /** The built-in host shuts down; one that is still starting has nobody listening to the signal line yet. */
  #stop(outlet: OutletId, pi: PiState): void {
    if (!this.#hosts.has(outlet) && pi.host === "running") setHost(pi, "stopping", this.now());
  }

  #save(): void {
    if (this.#statePath !== undefined) remember(this.#statePath, this.#state);
  }
}
