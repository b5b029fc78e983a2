/**
 * A head and a peer reach every node whichever way is left: last peers, LAN, DHT, tracker and a fixed list; each taken away in turn,
 * and all but one. No BitTorrent here: a node that is met is one that could be asked.
 */
import { expect, test } from "bun:test";
import { type Beacon, openBeacon } from "../agent/swarm/beacon.ts";
import type { Dht } from "../agent/swarm/dht.ts";
import type { Finder } from "../agent/swarm/engine.ts";
import { dhtFinder, listFinder, runFinders, trackerFinder } from "../agent/swarm/finders.ts";
import { type Item, isSigned } from "../agent/swarm/item.ts";
import { type Lsd, openLsd } from "../agent/swarm/lsd.ts";
import { freePort, idOf, node, signedItem } from "./dhts.ts";
import { until } from "./node.ts";
import { tracker } from "./trackers.ts";

const COUNT = 4;
const HEAD = signedItem({ seq: 7n });
const INFOHASH = idOf("release").toString("hex");
/** Ways to a peer, and ways to a head. What finds a peer by `last` or `fixed` gets the head from it in the engine's time. */
const FINDERS = ["last", "fixed", "lan", "dht", "tracker"] as const;
const HEADS = ["lan", "dht", "mqtt"] as const;
type Way = (typeof FINDERS)[number] | (typeof HEADS)[number];

/** What a fleet shares: a LAN, a tracker, a broker. */
interface World extends AsyncDisposable {
  lsdPort: number;
  beaconPort: number;
  tracker: string;
  /** Those who read what the broker retains. */
  subscribers: ((item: Item) => void)[];
}

async function world(): Promise<World> {
  const real = await tracker();
  return {
    lsdPort: await freePort(),
    beaconPort: await freePort(),
    tracker: real.http,
    subscribers: [],
    [Symbol.asyncDispose]: () => real[Symbol.asyncDispose](),
  };
}

const V4 = "239.192.70.99";
const tell = (text: string) => {
  throw new Error(text);
};

/** One of a fleet, with only some of its ways. */
class Fruit implements AsyncDisposable {
  /** Who was met, by the way. */
  readonly met = new Map<Way, Set<string>>();
  head: Item | undefined;
  readonly port: number;
  readonly #stop = new AbortController();
  readonly #parts: AsyncDisposable[] = [];
  #beacon: Beacon | undefined;
  #dht: Dht | undefined;
  #running: Promise<unknown> = Promise.resolve();

  constructor(port: number) {
    this.port = port;
  }

  async start(
    ways: ReadonlySet<Way>,
    at: World,
    route: string | undefined,
    peers: readonly string[],
  ): Promise<void> {
    const finders: Record<string, Finder> = {};
    if (ways.has("last")) finders.last = listFinder(peers);
    if (ways.has("fixed")) finders.fixed = listFinder(peers);
    if (ways.has("tracker"))
      finders.tracker = trackerFinder([at.tracker], {
        tell,
        bounds: { leastS: 0.2, mostS: 0.2, failedS: 0.2 },
      });
    if (ways.has("lan")) finders.lan = (await this.#openLan(at)).finder;
    if (ways.has("dht")) finders.dht = dhtFinder(await this.#openDht(route), 200);
    if (ways.has("mqtt")) at.subscribers.push((item) => this.#heard(item));
    // A finder that is broken stands beside every set: it must not matter
    finders.broken = () => Promise.reject(new Error("broken"));
    for (const [way, finder] of Object.entries(finders)) finders[way] = this.#recorded(way as Way, finder);
    const wanted = { infohash: INFOHASH, port: this.port, meet: () => undefined };
    this.#running = runFinders(finders, wanted, this.#stop.signal, { tell: () => undefined });
  }

  #recorded(way: Way, finder: Finder): Finder {
    const met = new Set<string>();
    this.met.set(way, met);
    return ({ meet, ...wanted }, signal) => {
      const both = (address: string) => {
        met.add(address);
        meet(address);
      };
      return finder({ ...wanted, meet: both }, signal);
    };
  }

  get dhtPort(): number | undefined {
    return this.#dht?.port;
  }

  /** Has the head already, and tells everybody. */
  async publish(at: World): Promise<void> {
    this.#heard(HEAD);
    for (const subscriber of at.subscribers) subscriber(HEAD);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#running;
    for (const part of this.#parts) await part[Symbol.asyncDispose]();
  }

  /** As the parent does: judges, keeps, hands on. */
  #heard(item: Item): void {
    if (this.head || !isSigned(item)) return;
    this.head = item;
    this.#beacon?.hold(item).catch(tell);
    this.#dht?.publish(item).catch(tell);
  }

  async #openLan(at: World): Promise<Lsd> {
    const interfaces = ["lo"];
    const lsd = await openLsd({ group: { v4: V4, port: at.lsdPort }, interfaces, everyMs: 100, tell });
    this.#beacon = await openBeacon({
      group: { v4: V4, port: at.beaconPort },
      interfaces,
      everyMs: 200,
      heard: (item) => this.#heard(item),
      tell,
    });
    this.#beacon.follow(HEAD.k, HEAD.salt);
    this.#parts.push(lsd, this.#beacon);
    return lsd;
  }

  async #openDht(route: string | undefined): Promise<Dht> {
    const every = { tableMs: 100, pollMs: 150, putMs: 300 };
    const host = `127.0.6.${this.port - 7000}`;
    this.#dht = await node(`fruit ${this.port}`, { host, every, routes: route === undefined ? [] : [route] });
    this.#dht.watch(HEAD.k, HEAD.salt, (item) => this.#heard(item));
    this.#parts.push(this.#dht);
    return this.#dht;
  }
}

/** Starts a fleet with these ways; each way brings each node a peer, and all together the head. */
async function converges(ways: ReadonlySet<Way>): Promise<void> {
  await using at = await world();
  const all = Array.from({ length: COUNT }, (_, n) => new Fruit(7001 + n));
  try {
    const [first] = all as [Fruit];
    for (const one of all) {
      const route = first.dhtPort === undefined ? undefined : `127.0.6.1:${first.dhtPort}`;
      await one.start(ways, at, route, ["192.0.2.1:6881"]);
    }
    await first.publish(at);
    const finders = FINDERS.filter((way) => ways.has(way));
    const heads = HEADS.filter((way) => ways.has(way));
    expect(finders.length + heads.length).toBeGreaterThan(0);
    // The first can be found by all others at its port, or the one that stands in a list
    const isPeer = (address: string) => address === "192.0.2.1:6881" || address.endsWith(":7001");
    for (const one of all.slice(1))
      for (const way of finders)
        await until(
          `${one.port} meets somebody by ${way}`,
          () => [...(one.met.get(way) ?? [])].some(isPeer),
          5000,
        );
    if (heads.length > 0)
      for (const one of all)
        await until(`${one.port} has the head by ${heads}`, () => one.head?.seq === 7n, 5000);
  } finally {
    for (const one of all) await one[Symbol.asyncDispose]();
  }
}

const ALL: readonly Way[] = [...new Set<Way>([...FINDERS, ...HEADS])];

test("with every way each node has the head and a peer", () => converges(new Set(ALL)));

test.each(ALL)("without %s too", (gone) => converges(new Set(ALL.filter((way) => way !== gone))));

test.each(ALL)("with %s alone what it brings is there", (left) => converges(new Set([left])));
