/**
 * Keeps the discovery documents at the broker true.
 *
 * Both retained and sent again when Home Assistant says that it starts: the first alone leaves ghosts, the second alone
 * loses entities. What was published is remembered on disk, so that what vanished (an outlet taken out of the
 * configuration, an interface that is gone) is cleared even after a restart, and only forgotten once the broker
 * has acknowledged the clearing.
 * The same memory clears alarms that outlived a restart: one that nobody mentions any more (its bus has left the
 * configuration) would stand at the broker for ever.
 */
import { setTimeout as sleep } from "node:timers/promises";
import * as v from "valibot";
import type { Log } from "../log.ts";
import { ROOT } from "../messages.ts";
import type { Part } from "../parts.ts";
import type { Store } from "../store.ts";
import { type Device, discovery, type Facts, SLOTS } from "./entities.ts";
import type { Incoming, Outgoing } from "./message.ts";
import type { Session } from "./session.ts";

/** All nodes hear Home Assistant's birth message at once; they answer within this time, at random. */
const BIRTH_SPREAD_MS = 10_000;
/** Keys and instances appear one after the other; they are announced together. */
const TICK_MS = 1_000;
const ACKNOWLEDGE_MS = 10_000;
/** An instance that did not come in this many intervals does not come any more. */
const SETTLE_INTERVALS = 3;
/** An alarm that still stands is raised again within this time after the start. */
const ALARMS_MS = 60_000;

/** What is remembered: the keys of each telemetry instance, the alarms, and the platform of every component by topic. */
const Memory = v.object({
  telemetry: v.record(v.string(), v.array(v.string())),
  alarms: v.array(v.string()),
  published: v.record(v.string(), v.record(v.string(), v.string())),
});
type Published = v.InferOutput<typeof Memory>["published"];

/** What the discovery is made of; the telemetry and the alarms it learns by itself. */
export interface DiscoveryOptions {
  /** False clears whatever was published before. */
  isEnabled: boolean;
  facts: Omit<Facts, "telemetry" | "alarms">;
  session: Pick<Session, "publish" | "flush">;
  store: Store;
  log: Log;
  /** Replaced in tests only. */
  timing?: { tickMs: number; settleMs: number; alarmsMs: number; random: () => number };
}

/** Listens to what the node says, and announces it. */
export class Discovery {
  readonly #options: DiscoveryOptions;
  readonly #timing: NonNullable<DiscoveryOptions["timing"]>;
  readonly #telemetry: Map<string, Set<string>>;
  readonly #alarms: Set<string>;
  /** Alarms cleared for want of a word, until the broker has acknowledged it. */
  readonly #orphans = new Set<string>();
  readonly #seen = new Set<string>();
  /** What the broker may still have. */
  #published: Published;
  /** What it has once all is acknowledged; undefined when that is so. */
  #wanted: Published | undefined;
  #isDirty = true;
  #bornAt = Number.POSITIVE_INFINITY;

  constructor(options: DiscoveryOptions) {
    this.#options = options;
    this.#timing = options.timing ?? {
      tickMs: TICK_MS,
      settleMs: options.facts.intervalSeconds("system") * SETTLE_INTERVALS * 1000,
      alarmsMs: ALARMS_MS,
      random: Math.random,
    };
    const memory = options.store.load("discovery", Memory, { telemetry: {}, alarms: [], published: {} });
    this.#telemetry = new Map(
      Object.entries(memory.telemetry).map(([instance, keys]) => [instance, new Set(keys)]),
    );
    this.#alarms = new Set(memory.alarms);
    this.#published = memory.published;
  }

  /** Sees every message of this node on its way out: what is really published is what is announced. */
  observe({ topic, payload, class: kind }: Outgoing): void {
    if (kind === "alarm") {
      const id = topic.split("/").at(-1) ?? "";
      this.#seen.add(`alarm/${id}`);
      if (payload.length > 0) this.#learn(this.#alarms, id);
    }
    const isSlots = topic.endsWith(`/${SLOTS}/main`) && payload.length > 0;
    if (kind !== "tele" && !isSlots) return;
    const instance = isSlots ? SLOTS : topic.split("/").slice(-2).join("/");
    this.#seen.add(instance);
    const keys = this.#telemetry.get(instance) ?? new Set();
    this.#telemetry.set(instance, keys);
    for (const key of Object.keys(JSON.parse(String(payload)))) this.#learn(keys, key);
  }

  /** Where Home Assistant says that it starts; subscribe to it without what is retained. */
  get birthTopic(): string {
    return `${this.#options.facts.prefix}/status`;
  }

  /** Takes the birth message; false when the message is something else. */
  heard({ topic, payload }: Incoming): boolean {
    if (topic !== this.birthTopic) return false;
    if (Buffer.from(payload).toString() === "online")
      this.#bornAt = performance.now() + this.#timing.random() * BIRTH_SPREAD_MS;
    return true;
  }

  /** Announces at the start, after every change and after every birth. */
  part: Part = async (signal) => {
    let settlesAt = performance.now() + this.#timing.settleMs;
    let alarmsAt = performance.now() + this.#timing.alarmsMs;
    while (!signal.aborted) {
      await sleep(this.#timing.tickMs, undefined, { signal }).catch(() => undefined);
      if (signal.aborted) return;
      const now = performance.now();
      if (now >= settlesAt) {
        settlesAt = Number.POSITIVE_INFINITY;
        this.#forgetUnseen();
      }
      if (now >= alarmsAt) {
        alarmsAt = Number.POSITIVE_INFINITY;
        this.#clearOrphans();
      }
      if (now >= this.#bornAt) {
        this.#bornAt = Number.POSITIVE_INFINITY;
        this.#isDirty = true;
      }
      if (this.#isDirty) await this.#announce();
      if (this.#wanted) await this.#settle(this.#wanted);
    }
  };

  #learn(set: Set<string>, item: string): void {
    if (set.has(item)) return;
    set.add(item);
    this.#isDirty = true;
  }

  #forgetUnseen(): void {
    for (const instance of this.#telemetry.keys()) {
      if (this.#seen.has(instance)) continue;
      this.#telemetry.delete(instance);
      this.#isDirty = true;
    }
  }

  #clearOrphans(): void {
    const { facts, session } = this.#options;
    for (const id of this.#alarms) {
      if (this.#seen.has(`alarm/${id}`)) continue;
      this.#alarms.delete(id);
      this.#orphans.add(id);
      this.#isDirty = true;
      const topic = `${ROOT}/${facts.site}/${facts.node}/alarm/${id}`;
      session.publish({ topic, payload: "", qos: 1, retain: true, class: "alarm" });
    }
  }

  async #announce(): Promise<void> {
    this.#isDirty = false;
    const { isEnabled, facts, session } = this.#options;
    const documents = isEnabled
      ? discovery({ ...facts, telemetry: this.#telemetry, alarms: this.#alarms })
      : new Map<string, Device>();
    const before = this.#published;
    this.#wanted = platformsOf(documents);
    this.#published = union(before, this.#wanted);
    // Written down first: after a crash in between, too much is cleared rather than too little.
    await this.#save();
    for (const topic of Object.keys(this.#published)) {
      const payload = documentText(documents.get(topic), before[topic] ?? {});
      session.publish({ topic, payload, qos: 1, retain: true, class: "state" });
    }
  }

  /** Forgets what was cleared, when the broker has it all. */
  async #settle(wanted: Published): Promise<void> {
    if (!(await this.#options.session.flush(ACKNOWLEDGE_MS))) return;
    this.#published = wanted;
    this.#wanted = undefined;
    this.#orphans.clear();
    await this.#save();
  }

  async #save(): Promise<void> {
    const { store, log } = this.#options;
    const telemetry = Object.fromEntries(
      [...this.#telemetry].map(([instance, keys]) => [instance, [...keys]]),
    );
    await store
      .save("discovery", {
        telemetry,
        alarms: [...this.#alarms, ...this.#orphans],
        published: this.#published,
      })
      .catch((error) => log("error", "discovery.not-saved", { error: String(error) }));
  }
}

/** Empty clears the device. A component that is gone stands there with its platform alone, which removes it. */
function documentText(document: Device | undefined, before: Published[string]): string {
  if (!document) return "";
  const gone = Object.entries(before)
    .filter(([id]) => !(id in document.cmps))
    .map(([id, p]) => [id, { p }]);
  return JSON.stringify({ ...document, cmps: { ...document.cmps, ...Object.fromEntries(gone) } });
}

function platformsOf(documents: Map<string, Device>): Published {
  return Object.fromEntries(
    [...documents].map(([topic, { cmps }]) => [
      topic,
      Object.fromEntries(Object.entries(cmps).map(([id, { p }]) => [id, p])),
    ]),
  );
}

function union(a: Published, b: Published): Published {
  const topics = new Set([...Object.keys(a), ...Object.keys(b)]);
  return Object.fromEntries([...topics].map((topic) => [topic, { ...a[topic], ...b[topic] }]));
}
