import * as v from "valibot";
import type { OutletId } from "../../hal/ports.ts";
import { Refusal } from "../commands.ts";
import type { OutletState } from "../messages.ts";
import { Bus } from "./bus.ts";
import { Locks } from "./locks.ts";
import { Memory } from "./memory.ts";
import { Outlet } from "./outlet.ts";
import { Pace } from "./pace.ts";
import type { Facts } from "./rules.ts";
import type { PowerOptions } from "./service.ts";
import type { Happening, Means, Voltages } from "./switch.ts";
import { Time } from "./time.ts";

/** A state that did not change is said again this often, so that its `read_at` tells. */
const SAY_AGAIN_MS = 60_000;

/** Measurements and times move all the time; a change of anything else is worth a message at once. */
const RESTLESS = ["read_at", "volts", "amperes", "watts"] as const;

/** Outlets as people name them; `Stack.resolve` knows which are meant. */
export const Words = v.pipe(
  v.array(v.pipe(v.string(), v.minLength(1), v.maxLength(64))),
  v.minLength(1),
  v.maxLength(512),
);

/** All outlets of this node with what they share: buses, locks, memory, the supply. */
export class Stack {
  readonly buses: readonly Bus[];
  readonly outlets: ReadonlyMap<OutletId, Outlet>;
  readonly locks: Locks;
  readonly means: Means;
  /** Who hears what happens to outlets. */
  readonly listeners: ((outlet: OutletId, what: Happening) => void)[] = [];
  readonly #options: PowerOptions;
  readonly #time: Time;
  #shift = 0;
  readonly #said = new Map<OutletId, { words: string; at: number }>();

  constructor(options: PowerOptions) {
    const { config, controllers, store, publish, tell, log, now, elapsed } = options;
    this.#options = options;
    this.#time = new Time(now, elapsed);
    const memory = new Memory(store, log, this.#time);
    this.buses = controllers.map(
      (controller, index) => new Bus(`bus ${index} (${controller.driver})`, controller),
    );
    this.outlets = new Map(
      this.buses.flatMap((bus) =>
        bus.controller.outlets.map((id) => [
          id,
          new Outlet(id, bus, config.outlets[id] ?? { watts: DEFAULT_WATTS }, memory.outlet(id)),
        ]),
      ),
    );
    const changed = (outlet: Outlet) => this.#say(outlet);
    const happened: Means["happened"] = (outlet, what) => {
      for (const listener of this.listeners) listener(outlet, what);
    };
    this.locks = new Locks({
      store,
      longestSeconds: config.lock_max_seconds,
      time: this.#time,
      publish,
      tell,
      happened,
      changed: (id) => {
        const outlet = this.outlets.get(id);
        if (outlet) changed(outlet);
      },
    });
    this.means = {
      config,
      memory,
      pace: new Pace(config),
      now: () => this.#time.now(),
      changed,
      facts: (outlet, voltages) => this.#facts(outlet, voltages),
      happened,
      tell,
    };
  }

  /** The outlets that words name: ids, names, ranges `0.0-1.1` in rack order, `all`. Throws `Refusal` unknown-outlet. */
  resolve(words: readonly string[]): Outlet[] {
    const known = [...this.outlets.values()];
    if (known.length === 0) throw new Refusal("unknown-outlet", "this node switches no outlets");
    const chosen = new Set(words.flatMap((word) => (word === "all" ? known : this.#named(word, known))));
    return known.filter((outlet) => chosen.has(outlet));
  }

  #named(word: string, known: readonly Outlet[]): Outlet[] {
    const find = (name: string) => {
      const at = known.findIndex((outlet) => outlet.id === name || outlet.name === name);
      if (at >= 0) return at;
      throw new Refusal(
        "unknown-outlet",
        `no outlet "${name}"; there are ${known.map((outlet) => outlet.label).join(", ")}`,
      );
    };
    const range = /^(\d+\.\d+)-(\d+\.\d+)$/.exec(word);
    if (!range) return known.slice(find(word), find(word) + 1);
    const [from, to] = [find(range[1] ?? ""), find(range[2] ?? "")];
    if (from > to) throw new Refusal("bad-args", `range ${word} runs backwards`);
    return known.slice(from, to + 1);
  }

  state(outlet: Outlet): OutletState {
    return outlet.state(this.means.config, this.locks.of(outlet.id), this.#time);
  }

  /** Keeps and says all times anew when the clock was set. */
  async followClock(): Promise<void> {
    const shift = this.#time.unix(0);
    if (shift === this.#shift) return;
    this.#shift = shift;
    for (const outlet of this.outlets.values()) this.#say(outlet);
    await this.means.memory.save();
    await this.locks.restate();
  }

  #say(outlet: Outlet): void {
    // Nobody has looked yet, so there is nothing to say.
    if (outlet.readAt === undefined && outlet.error === undefined) return;
    const state = this.state(outlet);
    const words = JSON.stringify(state, (key, value) =>
      (RESTLESS as readonly string[]).includes(key) ? undefined : value,
    );
    const at = performance.now();
    const said = this.#said.get(outlet.id);
    if (said && said.words === words && at - said.at < SAY_AGAIN_MS) return;
    this.#said.set(outlet.id, { words, at });
    this.#options.publish("state/outlet", outlet.id, state);
  }

  #facts(outlet: Outlet, voltages: Voltages | undefined): Facts {
    const { config, node, unsignedOutlets } = this.#options;
    const { fed } = outlet;
    const now = this.#time.now();
    const others = [...this.outlets.values()].filter((other) => other !== outlet);
    return {
      outlet: outlet.id,
      supply: outlet.supply,
      host: outlet.host(config, now),
      abilities: outlet.bus.controller.abilities,
      isOwnSupply: outlet.node === node,
      isUnsignedAllowed: unsignedOutlets.has(outlet.id),
      onSeconds: outlet.onSeconds(now),
      changes: outlet.memory.changes,
      lock: this.locks.of(outlet.id),
      target:
        outlet.node === undefined
          ? undefined
          : { node: outlet.node, updating: fed.updating, isTrial: fed.isTrial },
      inputVolts: voltages?.inputVolts,
      railVolts: voltages?.railVolts,
      watts: outlet.watts,
      // What cannot be read may be on.
      committedWatts: others
        .filter((other) => other.supply !== "off" || other.isReserved)
        .reduce((sum, other) => sum + other.watts, 0),
      now,
      unixNow: this.#time.unix(now),
      limits: config,
    };
  }
}

/** What an outlet without configuration is reckoned with; the same as the configuration's own default. */
const DEFAULT_WATTS = 6;
