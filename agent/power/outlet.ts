import { HalError, type OutletId, type OutletReading, type Supply } from "../../hal/ports.ts";
import { Refusal } from "../commands.ts";
import type { Config } from "../config.ts";
import type { Lock, OutletState, POWER_VERBS } from "../messages.ts";
import type { Bus, Turn } from "./bus.ts";
import { present } from "./fields.ts";
import { type Host, type HostInputs, inferHost, isAlive } from "./host.ts";
import type { Reason, Remembered } from "./memory.ts";
import type { Time } from "./time.ts";

/** A reading this old is still "now" (rule P2). */
export const FRESH_MS = 2000;

/** Longest gap between two readings that energy is reckoned over: beyond it nobody knows what was drawn. */
const ENERGY_GAP_MS = 120_000;

/** What the node behind an outlet said of itself on MQTT. */
interface Fed {
  status?: "online" | "offline" | undefined;
  updating?: string | undefined;
  isTrial: boolean;
}

/**
 * One outlet while the agent runs: the last reading, what is under way, and what is remembered.
 * The supply always comes from the last reading; when the board could not be read it is `unknown`.
 */
export class Outlet {
  readonly id: OutletId;
  readonly board: number;
  readonly bus: Bus;
  readonly name: string | undefined;
  readonly node: string | undefined;
  readonly watts: number;
  readonly memory: Remembered;
  readonly fed: Fed = { isTrial: false };
  reading: OutletReading | undefined;
  /** When the last reading succeeded. */
  readAt: number | undefined;
  /** Why the last reading did not. */
  error: string | undefined;
  busy: { verb: string; by: string; since: number } | undefined;
  /** It may come on any moment: its watts are spoken for. */
  isReserved = false;
  /** What its policy still wants since the mains came back; `any` where the board's own will is all there is. */
  owed: "on" | "off" | "any" | undefined;
  /** What the board itself does when its supply returns. */
  boardPolicy: "on" | "off" | undefined;
  isStopAnnounced = false;
  energyJoules = 0;
  /** `performance.now()` when it was first seen off: clocks that are set do not shorten a wait. */
  offAt: number | undefined;
  #seen: Supply = "unknown";
  #seenSince = 0;
  #hadHeartbeat = false;
  #wasAlive = false;

  constructor(id: OutletId, bus: Bus, configured: Config["power"]["outlets"][string], memory: Remembered) {
    this.id = id;
    this.board = Number(id.split(".")[0]);
    this.bus = bus;
    this.name = configured.name;
    this.node = configured.node;
    this.watts = configured.watts;
    this.memory = memory;
  }

  /** `1.0 rack1-c`: how people are told of it. */
  get label(): string {
    return this.name ? `${this.id} ${this.name}` : this.id;
  }

  get supply(): Supply {
    return this.reading?.supply ?? "unknown";
  }

  /** What can be asked of it. */
  get verbs(): (typeof POWER_VERBS)[number][] {
    const { abilities } = this.bus.controller;
    return [
      "on",
      "off",
      "cycle",
      "reset",
      ...(abilities.has("signal") ? (["shutdown"] as const) : []),
      ...(abilities.has("identify") ? (["identify"] as const) : []),
      ...(abilities.has("start-policy") || abilities.has("boot-count") ? (["policy"] as const) : []),
    ];
  }

  /** Reads the board now. Throws `HalError`; the outlet is then `unknown`. */
  async read(now: () => number, turn: Turn = {}): Promise<OutletReading> {
    try {
      const reading = await this.bus.do(this.id, "read", (controller) => controller.read(this.id), turn);
      this.#observe(reading, now());
      return reading;
    } catch (error) {
      // A queue that is full says nothing about the board.
      if (error instanceof HalError) {
        this.reading = undefined;
        this.error = error.message;
      }
      throw error;
    }
  }

  /** Asks the board what it does when its supply returns. Undefined where it cannot say (firmware before 4) or does not answer. */
  async readPolicy(): Promise<"on" | "off" | undefined> {
    if (!this.bus.controller.abilities.has("start-policy")) return undefined;
    try {
      this.boardPolicy = await this.bus.do(this.id, "read policy of", (controller) =>
        controller.startPolicy(this.id),
      );
    } catch (error) {
      if (!(error instanceof HalError) && !(error instanceof Refusal)) throw error;
      this.boardPolicy = undefined;
    }
    return this.boardPolicy;
  }

  #observe(reading: OutletReading, now: number): void {
    this.#integrate(reading, now);
    this.reading = reading;
    this.readAt = now;
    this.error = undefined;
    if (reading.supply !== this.#seen && reading.supply !== "unknown") {
      if (this.#seen !== "unknown") this.startAnew();
      this.#seen = reading.supply;
      this.#seenSince = performance.now();
      this.offAt = reading.supply === "off" ? this.#seenSince : undefined;
    }
    if (reading.heartbeat) this.#hadHeartbeat = true;
    if (isAlive(this.#inputs(now))) this.#wasAlive = true;
  }

  /** Its supply was cut or came on: nothing that was known of the Pi still holds. */
  startAnew(): void {
    this.isStopAnnounced = false;
    this.#hadHeartbeat = false;
    this.#wasAlive = false;
    // A retained `online` of before the cut would look like a Pi that boots in no time.
    if (this.fed.status === "online") this.fed.status = undefined;
  }

  #integrate(reading: OutletReading, now: number): void {
    const elapsedMs = now - (this.readAt ?? now);
    if (elapsedMs <= 0 || elapsedMs > ENERGY_GAP_MS) return;
    this.energyJoules += (((wattsOf(this.reading) ?? 0) + (wattsOf(reading) ?? 0)) / 2) * (elapsedMs / 1000);
  }

  /** Seconds since the supply came on: since it was explained, else since it was first seen. */
  onSeconds(now: number): number | undefined {
    if (this.supply !== "on") return undefined;
    const { supply, since } = this.memory;
    if (supply === "on" && since !== undefined && since <= now) return (now - since) / 1000;
    return undefined;
  }

  #inputs(now: number): HostInputs {
    return {
      supply: this.supply,
      heartbeat: this.reading?.heartbeat,
      hadHeartbeat: this.#hadHeartbeat,
      amperes: this.reading?.amperes,
      nodeStatus: this.fed.status,
      wasAlive: this.#wasAlive,
      isStopAnnounced: this.isStopAnnounced,
      onSeconds: this.onSeconds(now) ?? (performance.now() - this.#seenSince) / 1000,
    };
  }

  host(limits: Config["power"], now: number): Host {
    return inferHost(this.#inputs(now), {
      bootSeconds: limits.boot_seconds,
      haltedAmperes: limits.halted_amperes,
    });
  }

  /** Whether anything shows the Pi alive; undefined where nothing could. */
  alive(now: number): boolean | undefined {
    return isAlive(this.#inputs(now));
  }

  /** Writes down what is about to be done to the supply. */
  intend(supply: "on" | "off", { cause, by, reason }: Reason, now: number): void {
    this.memory.intent = { supply, at: now, cause, ...present({ by, reason }) };
  }

  /** Writes down why the supply is as it is from now on; without a time where nobody saw it change. */
  explain(supply: "on" | "off", { cause, by, reason }: Reason, now?: number): void {
    const { memory } = this;
    // Whoever did this has decided: nothing is owed to a policy any more.
    if (this.owed !== undefined) delete memory.once;
    this.owed = undefined;
    for (const key of ["since", "by", "reason", "intent"] as const) delete memory[key];
    Object.assign(memory, { supply, cause, ...present({ by, reason, since: now }) });
  }

  /** What is published as `state/outlet/<id>` and printed by `power status`. */
  state(limits: Config["power"], lock: Lock | undefined, time: Time): OutletState {
    const { reading, memory } = this;
    const iso = (at: number | undefined) => (at === undefined ? undefined : time.iso(at));
    const { since, cause, by, reason }: Partial<Remembered> = memory.supply === this.supply ? memory : {};
    return {
      v: 1,
      outlet: this.id,
      supply: this.supply,
      host: this.host(limits, time.now()),
      busy: this.busy?.verb ?? null,
      lock: lock ? { owner: lock.owner, reason: lock.reason, since: lock.since, until: lock.until } : null,
      verbs: this.verbs,
      cause: cause ?? "unknown",
      source: reading ? "board" : "stale",
      ...present({
        name: this.name,
        node: this.node,
        since: iso(since),
        by,
        reason,
        policy: memory.policy ?? this.boardPolicy,
        policy_once: memory.once,
        read_at: iso(this.readAt),
        error: this.error,
        heartbeat: reading?.heartbeat,
        node_status: this.fed.status,
      }),
      ...measured(reading),
    };
  }
}

/** What a reading measured, without what it did not. */
export function measured(reading: Partial<OutletReading> | undefined) {
  return present({
    volts: round(reading?.volts, 3),
    amperes: round(reading?.amperes, 3),
    watts: round(wattsOf(reading), 2),
  });
}

/** Cuts the digits a measurement does not have. */
export function round(value: number | undefined, digits: number): number | undefined {
  return value === undefined ? undefined : Number(value.toFixed(digits));
}

function wattsOf(reading: Partial<OutletReading> | undefined): number | undefined {
  if (reading?.watts !== undefined) return reading.watts;
  return reading?.volts === undefined || reading.amperes === undefined
    ? undefined
    : reading.volts * reading.amperes;
}
