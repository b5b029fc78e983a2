/**
 * Who has reserved an outlet. A lock has an owner, a reason and always an end; only its owner switches the outlet meanwhile.
 * There is no queue: sites with queues run labgrid and give it our outlets as resources.
 */
import * as v from "valibot";
import type { OutletId } from "../../hal/ports.ts";
import { type Call, type Command, command, Refusal } from "../commands.ts";
import { Lock, type Publish, type Tell } from "../messages.ts";
import type { Store } from "../store.ts";
import { duration } from "../terminal.ts";
import { present } from "./fields.ts";
import { clockTime, ONE_OUTLET, person } from "./show.ts";
import type { Happening } from "./switch.ts";
import type { Time } from "./time.ts";

/** How long a lock lasts when nobody says: 4 h. */
export const LOCK_SECONDS = 4 * 3600;

/** Says who holds an outlet, since when, why, until when, and how to get in. */
export function lockedBy(lock: Lock, now: number): string {
  const why = lock.reason ? ` (${lock.reason})` : "";
  const times = `since ${clockTime(lock.since, now)} until ${clockTime(lock.until, now)}`;
  const owner = person(lock.owner);
  return `locked by ${owner}${why} ${times}; ask ${owner}, wait, or 'fruit unlock ${lock.outlet} --kick --reason TEXT'`;
}

/** What locks are made of. */
interface LockOptions {
  store: Store;
  longestSeconds: number;
  time: Time;
  publish: Publish;
  tell: Tell;
  /** The same in words, for the outlet's console. */
  happened: (outlet: OutletId, what: Happening) => void;
  /** A lock came or went: the outlet's state shows it. */
  changed: (outlet: OutletId) => void;
}

/** A lock with its moments. */
interface Held {
  outlet: OutletId;
  owner: string;
  reason: string;
  since: number;
  until: number;
}

/** The locks of this node's outlets, kept over restarts and published while they stand. */
export class Locks {
  readonly #options: LockOptions;
  readonly #locks: Map<OutletId, Held>;

  constructor(options: LockOptions) {
    this.#options = options;
    const kept = options.store.load("locks", v.array(Lock), []);
    // Every lock ends: also one that was kept when the clock was wrong.
    const latest = options.time.now() + options.longestSeconds * 1000;
    this.#locks = new Map(
      kept.map((lock) => {
        const outlet = lock.outlet as OutletId;
        const until = Math.min(Date.parse(lock.until), latest);
        return [outlet, { ...lock, outlet, since: Date.parse(lock.since), until }];
      }),
    );
  }

  /** The lock on an outlet, if it still stands. */
  of(outlet: OutletId): Lock | undefined {
    const held = this.#held(outlet);
    return held && this.#told(held);
  }

  list(): Lock[] {
    return [...this.#locks.values()].filter((held) => this.#stands(held)).map((held) => this.#told(held));
  }

  /** Takes or renews a lock. Throws `Refusal` locked when somebody else holds it. */
  async set(outlet: OutletId, owner: string, reason: string, forSeconds: number): Promise<Lock> {
    const { longestSeconds, time, tell, happened } = this.#options;
    if (forSeconds > longestSeconds)
      throw new Refusal(
        "bad-args",
        `a lock lasts ${duration(longestSeconds)} at most (lock_max_seconds), not ${duration(forSeconds)}; take it again when it ends`,
      );
    const held = this.#held(outlet);
    if (held && held.owner !== owner) throw this.#refusal(held);
    const now = time.now();
    const since = held?.since ?? now;
    const mine = { outlet, owner, reason, since, until: now + forSeconds * 1000 };
    await this.#replace(outlet, mine);
    const lock = this.#told(mine);
    const message = `${outlet} locked by ${person(owner)} until ${clockTime(lock.until, time.unix(now))}`;
    tell("lock.set", { ...lock, message });
    happened(outlet, { kind: "lock", what: message });
    return lock;
  }

  /** Gives a lock up, or takes somebody else's away. Undefined where there was none. */
  async clear(outlet: OutletId, who: string, kick: boolean, reason?: string): Promise<Lock | undefined> {
    const lock = this.#held(outlet);
    if (!lock) return undefined;
    const isKick = lock.owner !== who;
    if (isKick && !kick) throw this.#refusal(lock);
    await this.#replace(outlet, undefined);
    const message = isKick
      ? `${person(who)} took the lock of ${person(lock.owner)} on ${outlet}`
      : `${outlet} unlocked by ${person(who)}`;
    this.#options.tell(isKick ? "lock.kicked" : "lock.cleared", {
      outlet,
      owner: lock.owner,
      by: who,
      ...present({ reason }),
      message,
    });
    this.#options.happened(outlet, { kind: "lock", what: message, ...(isKick ? { lost: lock.owner } : {}) });
    return this.#told(lock);
  }

  /** Forgets what has ended, and says so. */
  async expire(): Promise<void> {
    for (const lock of [...this.#locks.values()]) {
      if (this.#stands(lock)) continue;
      await this.#replace(lock.outlet, undefined);
      const { outlet, owner } = lock;
      const message = `the lock of ${person(owner)} on ${outlet} has ended`;
      this.#options.tell("lock.expired", { outlet, owner, message });
      this.#options.happened(outlet, { kind: "lock", what: message });
    }
  }

  /** Publishes all that stand: a new process, or one that lost its broker's memory, says it again. */
  publishAll(): void {
    for (const lock of this.list()) this.#options.publish("state/lock", lock.outlet, lock);
  }

  /** Keeps and publishes them with the times that they have by a clock that was set. */
  async restate(): Promise<void> {
    if (this.#locks.size === 0) return;
    await this.#save();
    this.publishAll();
  }

  #held(outlet: OutletId): Held | undefined {
    const held = this.#locks.get(outlet);
    return held && this.#stands(held) ? held : undefined;
  }

  #stands({ until }: Held): boolean {
    return this.#options.time.now() < until;
  }

  /** As it is published, kept and shown. */
  #told(held: Held): Lock {
    const { time } = this.#options;
    return { ...held, since: time.iso(held.since), until: time.iso(held.until) };
  }

  #refusal(held: Held): Refusal {
    const { time } = this.#options;
    return new Refusal(
      "locked",
      `outlet ${held.outlet}: ${lockedBy(this.#told(held), time.unix(time.now()))}`,
    );
  }

  #save(): Promise<void> {
    return this.#options.store.save(
      "locks",
      [...this.#locks.values()].map((held) => this.#told(held)),
    );
  }

  /** On the disk first: a lock that a restart would forget is not granted. */
  async #replace(outlet: OutletId, lock: Held | undefined): Promise<void> {
    const { publish, changed } = this.#options;
    const before = this.#locks.get(outlet);
    this.#put(outlet, lock);
    try {
      await this.#save();
    } catch (error) {
      this.#put(outlet, before);
      throw error;
    }
    publish("state/lock", outlet, lock ? this.#told(lock) : null);
    changed(outlet);
  }

  #put(outlet: OutletId, lock: Held | undefined): void {
    if (lock) this.#locks.set(outlet, lock);
    else this.#locks.delete(outlet);
  }
}

/** The rows of the command table about locks. */
export function lockCommands(locks: Locks, resolve: (word: string) => { id: OutletId }[]): Command[] {
  const one = (word: string) => {
    const [outlet, ...others] = resolve(word);
    if (!outlet || others.length > 0) throw new Refusal("bad-args", `"${word}": ${ONE_OUTLET}`);
    return outlet;
  };
  const outlets = ({ outlet }: { outlet: string }) => [one(outlet).id];
  const Outlet = { outlet: v.pipe(v.string(), v.maxLength(64)) };
  return [
    command({
      verb: "lock.set",
      summary: "Reserves an outlet: only its owner switches it until the lock ends",
      tier: 2,
      role: "power",
      args: v.strictObject({
        ...Outlet,
        for_seconds: v.optional(v.pipe(v.number(), v.minValue(1)), LOCK_SECONDS),
      }),
      outlets,
      run: async ({ args, caller, reason = "" }) => ({
        state: "done",
        result: await locks.set(one(args.outlet).id, caller.who, reason, args.for_seconds),
      }),
    }),
    command({
      verb: "lock.clear",
      summary: "Gives a lock up; with kick, takes somebody else's away",
      tier: ({ kick }) => (kick ? 3 : 2),
      role: "power",
      args: v.strictObject({ ...Outlet, kick: v.optional(v.boolean(), false) }),
      outlets,
      run: async ({ args, caller, reason }: Call<{ outlet: string; kick: boolean }>) => {
        if (args.kick && !reason) throw new Refusal("bad-args", "--kick needs a reason; add --reason TEXT");
        const { id } = one(args.outlet);
        const cleared = await locks.clear(id, caller.who, args.kick, reason);
        return cleared
          ? { state: "done", result: cleared }
          : { state: "unchanged", message: `outlet ${id}: not locked` };
      },
    }),
    command({
      verb: "lock.list",
      summary: "Lists the locks that stand",
      tier: 0,
      role: "read",
      broadcast: true,
      args: v.strictObject({}),
      run: async () => ({ state: "done", result: { locks: locks.list() } }),
    }),
  ];
}
