/**
 * The ways to find peers, side by side. Each runs by itself: one that fails is started again after a while, one that is flooded floods
 * nobody else, and what none of them finds the others still do.
 */
import { randomBytes } from "node:crypto";
import { isLoopback, isTellable, readAddress, textOf } from "./address.ts";
import type { Dht } from "./dht.ts";
import type { Finder } from "./engine.ts";
import { Bucket } from "./limit.ts";
import { pause } from "./repeat.ts";
import { type Announcement, announce, type TrackerAnswer } from "./tracker.ts";

const MINUTE_MS = 60_000;
/** Until a finder that failed is started again: the first time, and at most. */
const AGAIN = { firstMs: 5_000, mostMs: 10 * MINUTE_MS };
/** Addresses that one finder may bring at once, and then. */
const MEETINGS = { burst: 400, perSecond: 2 };
/** Until an address that one finder has brought may be brought by it again. */
const MEET_AGAIN_MS = 2 * MINUTE_MS;
const MOST_MET = 1024;
/** How often the DHT is asked for peers, and a list is gone through. */
const DHT_MS = 10 * MINUTE_MS;
const LIST_MS = 10 * MINUTE_MS;
/** Bounds of a tracker's wish when to be asked again. */
const TRACKER = { leastS: 60, mostS: 3600, failedS: 300 };
/** How long a tracker may take to hear that this node goes. */
const FAREWELL_MS = 2000;

/** What a set of finders is run with. */
export interface FinderOptions {
  again?: { firstMs: number; mostMs: number };
  /** A finder failed; it is started again. */
  tell(finder: string, text: string): void;
}

/** Runs finders until the signal aborts. Never rejects. */
export async function runFinders(
  finders: Readonly<Record<string, Finder>>,
  wanted: Parameters<Finder>[0],
  signal: AbortSignal,
  options: FinderOptions,
): Promise<void> {
  await Promise.all(
    Object.entries(finders).map(([name, finder]) => runOne(name, finder, wanted, signal, options)),
  );
}

/** One finder that returns has nothing more to say; one that throws is started again, each time later. */
async function runOne(
  name: string,
  finder: Finder,
  wanted: Parameters<Finder>[0],
  signal: AbortSignal,
  { again = AGAIN, tell }: FinderOptions,
): Promise<void> {
  const meet = sifted((address) => {
    try {
      wanted.meet(address);
    } catch (error) {
      tell(name, `${address}: ${error}`); // not the finder's fault
    }
  });
  for (let ms = again.firstMs; !signal.aborted; ms = Math.min(ms * 2, again.mostMs)) {
    try {
      await finder({ ...wanted, meet }, signal);
      return;
    } catch (error) {
      if (signal.aborted) return;
      tell(name, error instanceof Error ? error.message : String(error));
    }
    await pause(ms * (0.5 + Math.random()), signal);
  }
}

/** Lets through addresses that are some, each now and then, and only so many. */
function sifted(meet: (address: string) => void): (address: string) => void {
  const bucket = new Bucket(MEETINGS);
  const met = new Map<string, number>();
  return (text) => {
    const address = readAddress(text);
    if (!address) return;
    const written = textOf(address);
    const now = performance.now();
    if (now - (met.get(written) ?? Number.NEGATIVE_INFINITY) < MEET_AGAIN_MS || !bucket.take()) return;
    met.delete(written);
    met.set(written, now);
    const [oldest] = met.keys();
    if (met.size > MOST_MET && oldest !== undefined) met.delete(oldest);
    meet(written);
  };
}

/** Addresses in hand: the last good peers, or a fixed list. */
export function listFinder(addresses: readonly string[], everyMs = LIST_MS): Finder {
  return async ({ meet }, signal) => {
    while (!signal.aborted) {
      for (const address of addresses) meet(address);
      await pause(everyMs * (0.5 + Math.random()), signal);
    }
  };
}

/** Peers that the DHT knows; it is told of this node too. Sooner again as long as nobody was found. */
export function dhtFinder(dht: Pick<Dht, "peers">, everyMs = DHT_MS): Finder {
  return async ({ infohash, port, meet }, signal) => {
    for (let ms = Math.min(everyMs, 5_000); !signal.aborted; ms = Math.min(everyMs, ms * 2)) {
      await dht.peers(infohash, port, (address) => {
        if (!signal.aborted) meet(address);
      });
      await pause(ms * (0.5 + Math.random()), signal);
    }
  };
}

/** How trackers are asked. */
export interface TrackerOptions {
  /** This node's in its swarms, 20 bytes; any if absent. */
  peerId?: Uint8Array;
  bounds?: typeof TRACKER;
  tell(text: string): void;
}

/** Peers that trackers know, each asked by itself; they are told of this node, and when it goes. */
export function trackerFinder(
  urls: readonly string[],
  { peerId, bounds = TRACKER, tell }: TrackerOptions,
): Finder {
  const id = peerId ?? Buffer.concat([Buffer.from("-FR0001-"), randomBytes(12)]);
  return async (wanted, signal) => {
    const each = [...new Set(urls)].map((url) =>
      askForPeers(url, wanted, { peerId: id, bounds, tell }, signal),
    );
    await Promise.all(each);
  };
}

/** One tracker, as long as the signal lasts. */
async function askForPeers(
  url: string,
  { infohash, port, meet }: Parameters<Finder>[0],
  { peerId, bounds, tell }: Required<TrackerOptions>,
  signal: AbortSignal,
): Promise<void> {
  const what = { infohash, port, peerId };
  let isKnown = false;
  while (!signal.aborted) {
    const answer = await asked(url, { ...what, event: isKnown ? "none" : "started" }, signal, tell);
    isKnown ||= answer !== undefined;
    if (answer && !signal.aborted) meetAll(answer, url, meet);
    const wishS = answer ? Math.max(answer.intervalS, bounds.leastS) : bounds.failedS;
    await pause(Math.min(wishS, bounds.mostS) * 1000 * (0.9 + Math.random() * 0.2), signal);
  }
  // Told even now that everything else ends: otherwise it sends others here for half an hour
  if (isKnown)
    await asked(url, { ...what, event: "stopped" }, AbortSignal.timeout(FAREWELL_MS), () => undefined);
}

/** What a tracker answers; undefined where it does not, which is told. */
async function asked(url: string, what: Announcement, signal: AbortSignal, tell: (text: string) => void) {
  try {
    return await announce(url, what, signal);
  } catch (error) {
    if (!signal.aborted) tell(error instanceof Error ? error.message : String(error));
    return undefined;
  }
}

/** A tracker on this machine may name peers on it. */
function meetAll({ peers }: TrackerAnswer, url: string, meet: (address: string) => void): void {
  const host = new URL(url).hostname.replace(/^\[|\]$/g, "");
  const teller = host === "localhost" || isLoopback(host) ? "127.0.0.1" : host;
  for (const peer of peers) if (isTellable(peer, teller)) meet(textOf(peer));
}
