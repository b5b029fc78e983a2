/** What a decision about updates depends on, gathered from where it stands. */
import { join } from "node:path";
import { hashPrefix } from "../../boot/admit.ts";
import { disagreement, type Newest } from "../../boot/head.ts";
import { otherSlot, SLOTS } from "../../boot/layout.ts";
import type { BootRecord } from "../../boot/record.ts";
import { verifyRelease } from "../../boot/release.ts";
import { turnOf } from "../../boot/rollout.ts";
import { SlotRefusal } from "../../boot/slots.ts";
import type { Trust } from "../../boot/trust.ts";
import { parseUpdate, ReleaseError } from "../../boot/updatefile.ts";
import type { Hal } from "../../hal/ports.ts";
import { type HeldAgainst, MOST_ROUNDS } from "../boot/quarantine.ts";
import type { Kept, Slots } from "../boot/slots.ts";
import { holderOf } from "../hold.ts";
import { readUpdate } from "../release/files.ts";
import { releasesIn } from "../release/kept.ts";
import { CliError } from "../terminal.ts";
import { BUILD } from "../version.ts";
import { compatibleOf } from "./boards.ts";
import type { Facts } from "./desire.ts";
import { accept } from "./install.ts";
import { ANYWHERE, keptUpdate } from "./obtain.ts";
import type { UpdateConfig } from "./section.ts";
import { opensIn, readWindow } from "./window.ts";

/** Where facts come from. */
export interface FactSources {
  config: UpdateConfig;
  node: string;
  dataDir: string;
  hal: Pick<Hal, "machine" | "openDisk">;
  slots: Slots;
  isPowerBusy(): boolean;
  clock: () => { synced: boolean };
}

/** What was heard, and what a person wants. */
export interface Wishes {
  head: Newest | undefined;
  trust: Trust | undefined;
  ordered: string | undefined;
}

/** All of it as it is now. Throws what the card says. */
export async function gather(sources: FactSources, { head, trust, ordered }: Wishes): Promise<Facts> {
  const { config, dataDir, slots, clock } = sources;
  const { kept } = slots;
  const { boot } = kept.card;
  const record = await boot.read();
  const { current } = boot;
  const isClockSet = clock().synced;
  const now = isClockSet ? Math.floor(Date.now() / 1000) : Math.max(BUILD.time, record.time);
  const window = config.policy === "window" ? readWindow(config.window ?? "") : undefined;
  const other = record.slots[otherSlot(current ?? record.primary)];
  return {
    policy: config.policy,
    isMetered: config.metered,
    ...{ now, isClockSet, head, ordered },
    windowOpensIn: window && opensIn(window, now),
    running: current && { version: record.slots[current].version },
    other: {
      state: other.state,
      version: other.version,
      infohash: await infohashIn(dataDir, record, current),
    },
    trial:
      record.trial && current !== undefined && current !== record.primary
        ? { version: record.slots[current].version }
        : undefined,
    release: head && trust && (await thoughtsOf(sources, kept, record, head, trust)),
    loop: slots.loop,
    hindered: hindrances(sources),
  };
}

/** Of what the other slot holds, where the update file that is kept for it says so. */
async function infohashIn(
  dataDir: string,
  { slots }: BootRecord,
  current: "a" | "b" | undefined,
): Promise<string | undefined> {
  if (current === undefined) return undefined;
  const slot = otherSlot(current);
  try {
    const { info, infohash } = parseUpdate(await readUpdate(join(releasesIn(dataDir), `${slot}.fruit`)));
    return hashPrefix(info.piecesRoot) === slots[slot].hash ? infohash : undefined;
  } catch {
    return undefined;
  }
}

/** What this node thinks of the release that is announced; undefined while it has not its update file. */
async function thoughtsOf(
  { dataDir, hal, node }: FactSources,
  { card, quarantine }: Kept,
  record: BootRecord,
  head: Newest,
  trust: Trust,
): Promise<Facts["release"]> {
  const bytes = await keptUpdate(dataDir, head.infohash);
  if (!bytes) return undefined;
  try {
    const release = verifyRelease(bytes, trust, ANYWHERE);
    const turn = turnOf(release, node) ?? Number.POSITIVE_INFINITY;
    const hash = hashPrefix(release.piecesRoot);
    const why = complaint(quarantine.against(hash), record, hash);
    const held = why === undefined ? {} : { blamed: why };
    const refused = disagreement(head, release);
    if (refused !== undefined) return { refused, turn };
    // What is armed or on trial was accepted once, and nothing else could be now
    if (record.trial) return { turn, ...held };
    const ignored = () => undefined;
    await accept({
      ...{ hal, card, dataDir, trust, update: { path: head.infohash, bytes } },
      ...{ side: "", payload: "", compatible: compatibleOf(hal.machine), force: true },
      ...{ signal: new AbortController().signal, begins: ignored, report: ignored, warn: ignored },
    });
    return { turn, ...held };
  } catch (cause) {
    if ([ReleaseError, SlotRefusal, CliError].some((kind) => cause instanceof kind))
      return { refused: (cause as Error).message, turn: 0 };
    throw cause;
  }
}

/** What is held against a content here. */
function complaint({ blamed, rounds }: HeldAgainst, { slots }: BootRecord, hash: string): string | undefined {
  if (blamed) return `${blamed.reason}${blamed.evidence[0] ? `: ${blamed.evidence[0]}` : ""}`;
  if (rounds >= MOST_ROUNDS) return `it was tried ${rounds} times and never decided`;
  const isLeft = SLOTS.some((slot) => slots[slot].hash === hash && slots[slot].reason === "by-hand");
  return isLeft ? "somebody went back from it" : undefined;
}

/** Bits of the firmware's word: what is so now. Source: Raspberry Pi documentation, vcgencmd get_throttled. */
const UNDER_VOLTAGE = 1;
const THROTTLED = 4;

/** Why nothing may be begun at this moment, in sentences. */
function hindrances({ isPowerBusy, hal, slots, dataDir }: FactSources): string[] {
  const word = hal.machine.throttled()?.word ?? 0;
  const holder = holderOf(join(dataDir, "boot"), "install");
  const { unrest } = slots;
  return [
    ...(isPowerBusy() ? ["This node is switching power for others."] : []),
    ...(word & UNDER_VOLTAGE ? ["The supply is too low at the moment: a write might not end well."] : []),
    ...(word & THROTTLED ? ["The processor is throttled at the moment."] : []),
    ...(holder === undefined || holder === process.pid ? [] : [`Process ${holder} installs something.`]),
    ...(unrest === undefined ? [] : [unrest]),
  ];
}
