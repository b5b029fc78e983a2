/** What a follower has done: by the swarm, the installer and the slots, each of which keeps its own rules. */
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import type { Newest } from "../../boot/head.ts";
import { otherSlot } from "../../boot/layout.ts";
import { replaceFile } from "../../boot/progress.ts";
import type { Trust } from "../../boot/trust.ts";
import { rollBack, tryOut } from "../boot/decide.ts";
import { holdFolder } from "../hold.ts";
import type { Log } from "../log.ts";
import { releasesIn } from "../release/kept.ts";
import type { SwarmStatus } from "../swarm/frames.ts";
import { compatibleOf } from "./boards.ts";
import type { Facts } from "./desire.ts";
import { type FactSources, gather } from "./facts.ts";
import type { Hands } from "./follower.ts";
import type { Given } from "./given.ts";
import { install } from "./install.ts";
import { ANNOUNCED, Obtaining, type ObtainOptions } from "./obtain.ts";
import { Running } from "./running.ts";
import type { Swarm, SwarmOptions } from "./swarm.ts";
import { opensIn, readWindow } from "./window.ts";

/** Who decides, in records and histories. */
const WHO = "update";

/** What hands work with. */
export interface HandsOptions {
  sources: FactSources;
  swarm: Swarm;
  swarmOptions: Pick<SwarmOptions, "user" | "memoryMib" | "settings">;
  given: Given;
  /** What is announced, whom to believe, and what a person wants. */
  wishes(): Promise<{ head: Newest | undefined; trust: Trust | undefined; ordered: string | undefined }>;
  /** A person's order was carried out as far as that goes. */
  fulfilled(): Promise<void>;
  log: Log;
}

/** The hands of one node. */
export class NodeHands implements Hands {
  readonly #options: HandsOptions;
  #obtaining: Obtaining | undefined;

  constructor(options: HandsOptions) {
    this.#options = options;
  }

  /** How the release stands that is being obtained. */
  get status(): SwarmStatus | undefined {
    return this.#obtaining?.status;
  }

  async facts(): Promise<Facts> {
    const { sources, given, swarm, wishes } = this.#options;
    const wanted = await wishes();
    const facts = await gather(sources, wanted);
    const window = readWindow(sources.config.swarm.up_window ?? "");
    if (window && (!facts.isClockSet || opensIn(window, facts.now) > 0)) await given.leaveAll(swarm);
    else {
      const withdrawn = wanted.head?.isWithdrawn ? [wanted.head.infohash] : [];
      await given.look(swarm, withdrawn);
    }
    return facts;
  }

  async learn(infohash: string, signal: AbortSignal): Promise<void> {
    const unseen = { turn: () => undefined, around: () => undefined };
    const { trust } = await this.#believed(infohash);
    await using obtaining = this.#obtain(infohash, unseen, signal);
    const bytes = await obtaining.updateFile(trust, async () => undefined);
    await mkdir(this.#releases, { recursive: true, mode: 0o700 });
    await replaceFile(join(this.#releases, `${ANNOUNCED}.fruit`), bytes);
  }

  async fetch(infohash: string, signal: AbortSignal): Promise<void> {
    const { sources, given, swarm, log } = this.#options;
    const { dataDir, hal, slots } = sources;
    const { card, keeper } = slots.kept;
    const { trust, isOrdered } = await this.#believed(infohash);
    using _ = holdFolder(join(dataDir, "boot"), "install");
    // Before anybody opens it for writing
    await given.leaveOther(swarm);
    using running = new Running({ runDir: slots.options.config.run_dir, say: () => undefined });
    await using obtaining = this.#obtain(infohash, running, signal);
    const bytes = await obtaining.updateFile(trust, async () => undefined);
    const { release, slot, record, bytesFrom } = await install({
      ...{ hal, card, dataDir, trust, signal, update: { path: infohash, bytes } },
      side: (wanted) => obtaining.sideFile(wanted),
      payload: (wanted, leaves, side) => obtaining.source(bytes, wanted, leaves, side),
      compatible: compatibleOf(hal.machine),
      force: isOrdered,
      begins: ({ version }) => running.begins(version),
      report: (step) => running.step(step),
      warn: (text) => log("warn", "update.warning", { text }),
    });
    await slots.look();
    await keeper.note({
      what: "fetched",
      ...{ slot, version: String(release.version), hash: record.slots[slot].hash },
      evidence: [
        `${bytesFrom.slots} bytes from the slots, ${obtaining.came.peers} from peers, ${obtaining.came.web} from web seeds`,
      ],
    });
    await rm(join(this.#releases, `${ANNOUNCED}.fruit`), { force: true });
  }

  async try(infohash: string): Promise<void> {
    const { slots } = this.#options.sources;
    const { isOrdered, head } = await this.#believed(infohash);
    const reason = isOrdered
      ? `version ${head.version} was ordered`
      : `version ${head.version} was announced`;
    await tryOut(slots, {
      args: { no_reboot: false, force: isOrdered },
      by: { who: WHO, reason },
      signal: new AbortController().signal,
    });
    await this.#options.fulfilled();
  }

  async drop(infohash: string): Promise<void> {
    const { slots } = this.#options.sources;
    const { card, keeper } = slots.kept;
    const { evidence, reason, version } = await this.#withdrawal(infohash);
    const read = await card.boot.read();
    const slot = otherSlot(card.boot.current ?? read.primary);
    // A slot that is being written has no version of its own yet
    const record = { ...read, slots: { ...read.slots, [slot]: { ...read.slots[slot], version } } };
    await keeper.quarantine(record, slot, "withdrawn", evidence);
    await keeper.rollBack(record, slot, { who: WHO, reason }, "dropped");
    await slots.look();
  }

  async rollBack(infohash: string): Promise<void> {
    const { slots } = this.#options.sources;
    const { card, keeper } = slots.kept;
    const { evidence, reason } = await this.#withdrawal(infohash);
    const record = await card.boot.read();
    if (card.boot.current) await keeper.quarantine(record, card.boot.current, "withdrawn", evidence);
    await rollBack(slots, {
      args: { no_reboot: false },
      by: { who: WHO, reason },
      signal: new AbortController().signal,
    });
  }

  get #releases(): string {
    return releasesIn(this.#options.sources.dataDir);
  }

  #obtain(infohash: string, running: ObtainOptions["running"], signal: AbortSignal): Obtaining {
    const { sources, swarm, swarmOptions, log } = this.#options;
    const { config, dataDir, hal } = sources;
    const obtaining = new Obtaining({
      ...{ ...swarmOptions, swarm, dataDir, hal, running, signal },
      link: { infohash, peers: config.swarm.peers },
      warn: (text) => log("warn", "update.warning", { text }),
    });
    this.#obtaining = obtaining;
    return obtaining;
  }

  /** What is said of a release now: it may have changed since it was decided about. */
  async #believed(infohash: string): Promise<{ trust: Trust; head: Newest; isOrdered: boolean }> {
    const { head, trust, ordered } = await this.#options.wishes();
    if (!trust || head?.infohash !== infohash) throw new Error(`${infohash} is no longer what is announced`);
    return { trust, head, isOrdered: ordered === "newest" || ordered === infohash };
  }

  async #withdrawal(infohash: string): Promise<{ evidence: string[]; reason: string; version: bigint }> {
    const { head } = await this.#believed(infohash);
    const when = new Date(head.issued * 1000).toISOString();
    const evidence = [`${head.signers.join(", ")} withdrew version ${head.version} at ${when}`];
    return { evidence, reason: `withdrawn: ${evidence[0]}`, version: head.version };
  }
}
