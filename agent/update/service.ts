/**
 * Updates as one part of a node: hears of releases, fetches what it should have, has it tried, and gives to others what it holds.
 *
 * Invariants
 * - Without a `target` nothing is followed, nobody is asked and nothing is given; the status says so.
 * - What is fetched and tried is decided by `desire.ts` alone; a broker that is away changes none of it.
 * - A release that nobody who is trusted has signed is never fetched, and one that was withdrawn is never tried by itself.
 */
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import * as v from "valibot";
import { type Newest, overdue } from "../../boot/head.ts";
import { keyOf, signersFor, type Trust } from "../../boot/trust.ts";
import type { Hal } from "../../hal/ports.ts";
import type { Slots } from "../boot/slots.ts";
import type { Following } from "../boot/updates.ts";
import { type Command, Refusal } from "../commands.ts";
import type { Config } from "../config.ts";
import type { Log } from "../log.ts";
import type { RaiseAlarm } from "../messages.ts";
import { type Part, together } from "../parts.ts";
import { reasonOf } from "../record/lines.ts";
import { Store } from "../store.ts";
import { BUILD } from "../version.ts";
import { Announcements } from "./announcements.ts";
import { BrokerHeads, type HeadLink, type PACE } from "./broker.ts";
import { updateCommands } from "./commands.ts";
import type { Desire, Facts } from "./desire.ts";
import type { FactSources } from "./facts.ts";
import { Follower } from "./follower.ts";
import { Given } from "./given.ts";
import { NodeHands } from "./hands.ts";
import { dhtId, Known } from "./known.ts";
import { Notes } from "./notes.ts";
import { swarmOf } from "./seed.ts";
import { Swarm, type SwarmOptions } from "./swarm.ts";

/** How often it is looked whether there are slots by now. */
const RETRY_MS = 1000;
/** And how soon it is tried again where it could not be begun. */
const REST_MS = 60_000;
const ORDER = v.object({ ordered: v.optional(v.string()) });
const STORED = "update";

/** What the service is made of. */
export interface UpdateOptions {
  config: Config;
  node: string;
  dataDir: string;
  hal: Pick<Hal, "machine" | "openDisk">;
  slots: Slots;
  isPowerBusy(): boolean;
  clock: () => { synced: boolean };
  /** The site's broker. */
  link: HeadLink;
  alarm: RaiseAlarm;
  log: Log;
  /** Another child than this program's own, and another pace on the broker, in tests. */
  swarm?: Partial<Pick<SwarmOptions, "command" | "env">>;
  pace?: typeof PACE;
}

/** Updates as the agent sees them. */
export interface UpdateService {
  part: Part;
  commands: Command[];
  /** A head came from the broker. */
  heard(bytes: Uint8Array): void;
  /** For `state/update`. */
  readonly following: Following | undefined;
}

/** Makes the service. Nothing is opened before its part runs. */
export function createUpdateService(options: UpdateOptions): UpdateService {
  const updates = new Updates(options);
  return {
    part: (signal) => updates.run(signal),
    commands: updateCommands(updates),
    heard: (bytes) => void updates.broker?.heard(bytes).catch(() => undefined),
    get following() {
      return updates.said;
    },
  };
}

/** What follows while slots and swarm are open. */
interface Open {
  follower: Follower;
  hands: NodeHands;
  given: Given;
  swarm: Swarm;
}

/** Updates of one node. `run` it once. */
export class Updates {
  readonly options: UpdateOptions;
  readonly config: Config["update"];
  /** Undefined where no target is named. */
  readonly announcements: Announcements | undefined;
  readonly broker: BrokerHeads | undefined;
  readonly #sources: FactSources;
  #store: Store | undefined;
  #ordered: string | undefined;
  #open: Open | undefined;
  readonly #notes = new Notes();
  #problem: string | undefined;
  /** Keys whose heads the swarm looks for. */
  #followed = "";

  constructor(options: UpdateOptions) {
    const { config, dataDir, clock, log, link, pace } = options;
    this.options = options;
    this.config = config.update;
    this.#sources = { ...options, config: this.config };
    const { target, channel, trust: trustPath } = this.config;
    if (target === undefined) return;
    this.announcements = new Announcements({
      ...{ dataDir, trustPath, following: { target, channel }, log },
      now: () => (clock().synced ? Math.floor(Date.now() / 1000) : undefined),
      taken: (head, way) => {
        log("info", "update.announced", { version: String(head.version), infohash: head.infohash, way });
        this.#handOn(head.bytes);
        this.#open?.follower.wake();
      },
    });
    this.broker = new BrokerHeads(link, this.announcements, pace);
  }

  /** What follows; undefined where nothing does, or not yet. */
  get open(): Open | undefined {
    return this.#open;
  }

  get ordered(): string | undefined {
    return this.#ordered;
  }

  /** Why nobody can be believed. */
  get problem(): string | undefined {
    return this.#problem;
  }

  /** For `state/update`. */
  get said(): Following | undefined {
    const { target, channel } = this.config;
    if (target === undefined) return undefined;
    const { desire, facts } = this.#open?.follower.wanted ?? {};
    const head = facts?.head;
    return {
      ...{ target, channel },
      ...(desire ? { reason: desire.code } : {}),
      ...(head && !head.isWithdrawn ? { latest: head.version } : {}),
    };
  }

  /** A person wants a release now. */
  async order(release: string): Promise<void> {
    if (!this.#open || !this.#store)
      throw new Refusal("busy", "the agent has not looked at its card yet; try again");
    this.#ordered = release;
    await this.#store.save(STORED, { ordered: release });
    this.#open.follower.wake(true);
  }

  async run(signal: AbortSignal): Promise<void> {
    if (!this.announcements) return;
    while (!signal.aborted) {
      const hasSlots = this.#hasSlots();
      if (hasSlots === false) return;
      if (hasSlots)
        try {
          return await this.#follow(this.announcements, signal);
        } catch (error) {
          this.options.log("error", "update.failed", { why: reasonOf(error) });
        }
      await sleep(hasSlots ? REST_MS : RETRY_MS, undefined, { signal }).catch(() => undefined);
    }
  }

  /** Undefined: not known yet. */
  #hasSlots(): boolean | undefined {
    try {
      return this.options.slots.kept.card.boot.current !== undefined;
    } catch (error) {
      return error instanceof Refusal && error.code === "no-slots" ? false : undefined;
    }
  }

  async #follow(announcements: Announcements, signal: AbortSignal): Promise<void> {
    const { config, dataDir, hal, slots, log, swarm: child } = this.options;
    this.#store = new Store(join(dataDir, "boot"), log);
    this.#ordered = this.#store.load(STORED, ORDER, {}).ordered;
    await using given = new Given({ card: slots.kept.card, dataDir, hal, log });
    const swarmOptions = swarmOf(config);
    swarmOptions.settings.id = dhtId(this.options.node);
    if (this.config.metered)
      Object.assign(swarmOptions.settings, { dht: false, trackers: false, webSeeds: false });
    const swarm = new Swarm({
      ...{ ...swarmOptions, ...child, log, files: given.files },
      known: new Known(join(dataDir, "peers.json")),
      heard: async (head) => void (await announcements.heard(head, "swarm")),
    });
    const hands = new NodeHands({
      ...{ sources: this.#sources, swarm, swarmOptions, given, log },
      wishes: () => this.#wishes(announcements, swarm),
      fulfilled: () => this.#fulfilled(),
    });
    const follower = new Follower({
      hands,
      lookMs: this.config.look_seconds * 1000,
      changed: (wanted, facts) => this.#changed(wanted, facts),
      log,
    });
    this.#open = { follower, hands, given, swarm };
    for (const head of await announcements.all().catch(() => [])) this.#handOn(head.bytes);
    const parts = [(stop: AbortSignal) => swarm.run(stop), (stop: AbortSignal) => follower.run(stop)];
    const { broker } = this;
    try {
      await together(broker ? [...parts, (stop) => broker.run(stop)] : parts, signal);
    } finally {
      this.#open = undefined;
    }
  }

  async #wishes(
    announcements: Announcements,
    swarm: Swarm,
  ): Promise<{ head: Newest | undefined; trust: Trust | undefined; ordered: string | undefined }> {
    let trust: Trust | undefined;
    try {
      trust = await announcements.trust();
      this.#problem = undefined;
    } catch (error) {
      this.#problem = reasonOf(error);
      return { head: undefined, trust, ordered: this.#ordered };
    }
    const keys = signersFor(trust, "head").map(keyOf);
    if (keys.join() !== this.#followed && this.config.target !== undefined) {
      swarm.follow({ target: this.config.target, keys });
      this.#followed = keys.join();
    }
    const head = await announcements.newest();
    this.#mindFreshness(head);
    return { head, trust, ordered: this.#ordered };
  }

  /** Nobody renews what is announced: there may be something newer that does not reach this node. */
  #mindFreshness(head: Newest | undefined): void {
    const { clock, alarm } = this.options;
    const now = clock().synced ? Math.floor(Date.now() / 1000) : undefined;
    const seconds = head ? overdue(head, { now, atLeast: BUILD.time }) : 0;
    const message = `the announcement of version ${head?.version} expired ${new Date((head?.expires ?? 0) * 1000).toISOString()} and nobody has renewed it: there may be a newer release that does not reach this node`;
    alarm("update-stale", seconds > 0 ? { severity: "warning", message } : null);
  }

  #handOn(head: Uint8Array): void {
    try {
      this.#open?.swarm.announce(head);
    } catch (error) {
      this.options.log("warn", "update.not-handed-on", { why: reasonOf(error) });
    }
  }

  async #fulfilled(): Promise<void> {
    this.#ordered = undefined;
    await this.#store?.save(STORED, {});
  }

  #changed(wanted: Desire, facts: Facts): void {
    const { alarm, log } = this.options;
    const [why = wanted.code] = wanted.because;
    log("info", "update.wanted", { what: wanted.what, code: wanted.code, why });
    const warning = (code: string) =>
      wanted.code === code ? ({ severity: "warning", message: why } as const) : null;
    alarm("update-refused", warning("refused"));
    alarm("update-withdrawn", warning("runs-withdrawn"));
    if (wanted.code === "up-to-date" && this.#ordered !== undefined)
      void this.#fulfilled().catch(() => undefined);
    void this.#notes
      .add(wanted, facts, this.options.slots.kept)
      .catch((error) => log("error", "update.not-written", { why: reasonOf(error) }));
  }
}
