/** A rack that remembers what it was told and checks it, and a power service on it whose hours pass in milliseconds. */
import { jest, onTestFinished } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import * as v from "valibot";
import { type Caller, CODES, type Outcome, type Role } from "../agent/commands.ts";
import { type Config, parseConfig } from "../agent/config.ts";
import { KINDS, type KindName } from "../agent/messages.ts";
import type { OutletResult } from "../agent/power/result.ts";
import { createPowerService, type PowerService } from "../agent/power/service.ts";
import { Store } from "../agent/store.ts";
import {
  type Ability,
  type BoardReading,
  HalError,
  type OutletId,
  type OutletReading,
  type PowerController,
} from "../hal/ports.ts";

/** Milliseconds of the rack's own time. */
const BOOT_MS = 20_000;
const HALT_MS = 4_000;
const WIRE_MS = 10;

interface Pi {
  supply: "on" | "off";
  since: number;
  haltingAt: number | undefined;
  policy: "on" | "off";
}

/** Scripted boards of two Pis each: a heartbeat 20 s after power on, down 4 s after a signal. */
export class Rack implements PowerController {
  readonly driver = "scripted";
  readonly outlets: readonly OutletId[];
  readonly addresses = Array.from({ length: 16 }, (_, address) => address);
  abilities = new Set<Ability>(["signal", "identify", "start-policy", "boot-count", "heartbeat", "measure"]);
  counters = { exchanges: 0, retries: 0, crcErrors: 0, timeouts: 0, otherErrors: 0 };
  /** Everything that changes something, with the time since the rack was made: `3.0 on 0.1`. */
  readonly told: { at: number; what: string }[] = [];
  /** Breaches of what a board can rely on. A test ends with none. */
  readonly breaches: string[] = [];
  inputVolts: () => number = () => 12;
  railVolts: () => number = () => 5.05;
  bootCount = 7;
  hangs = new Set<OutletId>();
  /** The board takes the command and nothing happens. */
  stuck = new Set<OutletId>();
  failing: HalError | undefined;
  /** How long an address nobody has is listened to. */
  probeMs = WIRE_MS;
  /** The boards answer, and do not say whether outlets are on. */
  mute = false;
  /** The board sees no heartbeat line, or measures nothing. */
  blind = new Set<OutletId>();
  unmeasured = new Set<OutletId>();
  readonly #pis = new Map<OutletId, Pi>();
  #isBusy = false;

  constructor(boards: number, on: readonly OutletId[] = []) {
    this.outlets = Array.from({ length: boards * 2 }, (_, i): OutletId => `${i >> 1}.${i & 1}`);
    for (const id of this.outlets)
      this.#pis.set(id, {
        supply: on.includes(id) ? "on" : "off",
        since: performance.now() - 3_600_000,
        haltingAt: undefined,
        policy: "on",
      });
  }

  get switched(): string[] {
    return this.told.map(({ what }) => what);
  }

  supply(id: OutletId): string {
    return this.#pi(id).supply;
  }

  /** Somebody else's hand. */
  flip(id: OutletId, to: "on" | "off"): void {
    Object.assign(this.#pi(id), { supply: to, since: performance.now(), haltingAt: undefined });
  }

  /** The mains fail and return: the boards do what their EEPROM says. */
  mains(): void {
    this.bootCount++;
    for (const [id, pi] of this.#pis) this.flip(id, pi.policy);
  }

  async read(id: OutletId): Promise<OutletReading> {
    await this.#wire(`read ${id}`);
    const { supply, since, haltingAt } = this.#pi(id);
    const now = performance.now();
    if (this.mute) return { supply: "unknown" };
    if (supply === "off") return { supply, heartbeat: false, volts: 0, amperes: 0, watts: 0 };
    const isHalted = haltingAt !== undefined && now >= haltingAt + HALT_MS;
    const amperes = isHalted ? 0.05 : 0.6;
    const heartbeat = now - since >= BOOT_MS && !isHalted && !this.hangs.has(id);
    return {
      supply,
      ...(this.blind.has(id) ? {} : { heartbeat }),
      ...(this.unmeasured.has(id) ? {} : { volts: 5, amperes, watts: 5 * amperes }),
    };
  }

  async readBoard(board: number): Promise<BoardReading> {
    await this.#wire(`board ${board}`);
    const isCounting = this.abilities.has("boot-count");
    return {
      board,
      hardware: 3,
      firmware: 4,
      inputVolts: this.inputVolts(),
      railVolts: this.railVolts(),
      ...(isCounting ? { bootCount: this.bootCount } : {}),
    };
  }

  async switch(id: OutletId, to: "on" | "off"): Promise<void> {
    await this.#wire(`switch ${id}`);
    const pi = this.#pi(id);
    this.#tell(`${to} ${id}`);
    if (to === "on" && performance.now() - pi.since < 2000 && pi.supply === "off")
      this.breaches.push(`${id} on after ${performance.now() - pi.since} ms off`);
    if (!this.stuck.has(id) && pi.supply !== to) this.flip(id, to);
  }

  async signal(id: OutletId): Promise<void> {
    await this.#wire(`signal ${id}`);
    this.#tell(`signal ${id}`);
    const pi = this.#pi(id);
    if (!this.hangs.has(id)) pi.haltingAt ??= performance.now();
  }

  async identify(id: OutletId, on: boolean): Promise<void> {
    await this.#wire(`identify ${id}`);
    this.#tell(`${on ? "lit" : "dark"} ${id}`);
  }

  async startPolicy(id: OutletId): Promise<"on" | "off"> {
    await this.#wire(`policy ${id}`);
    return this.#pi(id).policy;
  }

  async setStartPolicy(id: OutletId, policy: "on" | "off"): Promise<void> {
    await this.#wire(`policy ${id}`);
    this.#tell(`store ${policy} ${id}`);
    this.#pi(id).policy = policy;
  }

  async probe(address: number): Promise<BoardReading | undefined> {
    await this.#wire(`probe ${address}`, this.probeMs);
    if (address === 9) return { board: 9 };
    return address === 0 ? { board: 0, hardware: 3, firmware: 4 } : undefined;
  }

  async close(): Promise<void> {}

  #pi(id: OutletId): Pi {
    const pi = this.#pis.get(id);
    if (!pi) throw new HalError("absent", `rack: no outlet ${id}`);
    return pi;
  }

  #tell(what: string): void {
    this.told.push({ at: performance.now(), what });
  }

  async #wire(what: string, ms = WIRE_MS): Promise<void> {
    if (this.#isBusy) this.breaches.push(`${what} while another operation held the bus`);
    this.#isBusy = true;
    this.counters.exchanges++;
    await new Promise((resolve) => setTimeout(resolve, ms));
    this.#isBusy = false;
    if (this.failing) throw this.failing;
  }
}

/** A store that can be waited for: its disk is real, unlike the clock. */
class WaitedStore extends Store {
  readonly #pending = new Set<Promise<void>>();

  override save(name: string, document: unknown): Promise<void> {
    const saving = super.save(name, document);
    this.#pending.add(saving);
    return saving.finally(() => this.#pending.delete(saving));
  }

  async idle(): Promise<void> {
    while (this.#pending.size > 0) await Promise.allSettled(this.#pending);
  }
}

/** What the service on a rack said and can be asked. */
export interface Bench {
  service: PowerService;
  config: Config["power"];
  dir: string;
  store: WaitedStore;
  alarms: Map<string, string>;
  events: Record<string, unknown>[];
  /** Last payload of `state/outlet/…`, `state/lock/…`, `tele/power/…`. */
  said: Map<string, Record<string, unknown> | null>;
  /** Starts a command; `finish` brings it to its end. */
  ask(verb: string, args?: Record<string, unknown>, from?: From): Promise<Outcome>;
  /** Runs a command to its end while time passes. */
  run(verb: string, args?: Record<string, unknown>, from?: From): Promise<Outcome>;
  /** The lines of progress of all commands. */
  progress: string[];
  /** Lets time pass. */
  pass(ms: number): Promise<void>;
  /** Lets time pass for rules and clock alike, with nothing done meanwhile; `jest.setSystemTime` alone sets the clock. */
  skip(ms: number): void;
  /** Lets time pass until it has ended; at most an hour. */
  finish<T>(promise: Promise<T>): Promise<T>;
  /** Runs the part until `stop`. */
  start(): void;
  stop(): Promise<void>;
}

interface From {
  who?: string;
  door?: Caller["door"];
  reason?: string;
  signal?: AbortSignal;
}

/** Power settings as `node.json` has them, with its defaults. */
export function powerConfig(power: Record<string, unknown> = {}, boards = 1): Config["power"] {
  return parseConfig("test", {
    site: "here",
    power: {
      buses: boards > 0 ? [{ driver: "sim", boards: Array.from({ length: boards }, (_, i) => i) }] : [],
      ...power,
    },
  }).power;
}

/** Makes a service as an agent would; with `dir` one that finds what an earlier one has left. */
export function bench(
  controllers: PowerController | PowerController[],
  options: { power?: Record<string, unknown>; dir?: string; unsigned?: string[]; node?: string } = {},
): Bench {
  const all = [controllers].flat();
  const boards = new Set(all.flatMap(({ outlets }) => outlets.map((id) => id.split(".")[0])));
  const config = powerConfig(options.power, boards.size);
  const dir = options.dir ?? mkdtempSync(join(tmpdir(), "fruit-power-"));
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }));
  const store = new WaitedStore(dir, () => undefined);
  const stop = new AbortController();
  const events: Record<string, unknown>[] = [];
  const alarms = new Map<string, string>();
  const said: Bench["said"] = new Map();
  const progress: string[] = [];
  let skipped = 0;
  const service = createPowerService({
    config,
    unsignedOutlets: new Set(options.unsigned),
    node: options.node ?? "pi1",
    controllers: all,
    store,
    publish: (kind, instance, payload) => {
      said.set(`${kind}/${instance}`, payload as Record<string, unknown> | null);
      // Whatever is published keeps to the contract.
      if (payload !== null) v.parse(KINDS[kind as KindName].schema, payload);
    },
    alarm: (id, alarm) => {
      if (alarm) alarms.set(id, `${alarm.severity}: ${alarm.message}`);
      else alarms.delete(id);
    },
    tell: (type, facts) => void events.push({ type, ...facts }),
    elapsed: () => performance.now() + skipped,
    random: () => 0.5,
    log: () => undefined,
  });
  const ask: Bench["ask"] = async (
    verb,
    args = {},
    { who = "local:alice", door = "socket", reason, signal } = {},
  ) => {
    const row = service.commands.find((command) => command.verb === verb);
    if (!row) throw new Error(`no row ${verb}`);
    const parsed = v.parse(row.args, args);
    row.outlets?.(parsed);
    const outcome = await row.run({
      id: "1",
      args: parsed,
      ...(reason === undefined ? {} : { reason }),
      caller: { door, who, roles: new Set<Role>(["admin"]), mayOutlet: () => true },
      progress: (message) => void progress.push(message),
      signal: signal ?? stop.signal,
    });
    const isKnown = (code: string) =>
      (CODES as readonly string[]).includes(code) || /^rule\.P\d+$/.test(code);
    if (outcome.code !== undefined && !isKnown(outcome.code)) throw new Error(`unknown code ${outcome.code}`);
    return outcome;
  };
  const settle = async () => {
    for (let turns = 0; turns < 12; turns++) await Promise.resolve();
    await store.idle();
    for (let turns = 0; turns < 12; turns++) await Promise.resolve();
  };
  const pass = async (ms: number) => {
    for (let left = ms; left > 0; left -= 10) {
      jest.advanceTimersByTime(Math.min(10, left));
      await settle();
    }
  };
  const finish: Bench["finish"] = async (promise) => {
    let isOver = false;
    const ended = promise.finally(() => {
      isOver = true;
    });
    ended.catch(() => undefined);
    await settle();
    for (let ms = 0; !isOver; ms += 10) {
      if (ms > 3_600_000) throw new Error("it does not end within an hour");
      await pass(10);
    }
    return ended;
  };
  let running = Promise.resolve();
  return {
    service,
    config,
    dir,
    store,
    alarms,
    events,
    said,
    progress,
    ask,
    run: (verb, args, from) => finish(ask(verb, args, from)),
    pass,
    skip: (ms) => {
      skipped += ms;
      jest.setSystemTime(Date.now() + ms);
    },
    finish,
    start: () => {
      running = service.part(stop.signal);
    },
    stop: async () => {
      stop.abort();
      await finish(running);
      await settle();
    },
  };
}

/** The answers for single outlets. */
export function outletsOf(outcome: Outcome): OutletResult[] {
  return (outcome.result as { outlets: OutletResult[] }).outlets;
}
