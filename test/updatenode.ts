/** A node with slots that follows announcements, and a peer that has what is announced. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import type { Command, Outcome } from "../agent/commands.ts";
import { parseConfig } from "../agent/config.ts";
import { createUpdateService, type UpdateOptions, type UpdateService } from "../agent/update/service.ts";
import { Swarm } from "../agent/update/swarm.ts";
import type { Announced } from "../boot/head.ts";
import { parseUpdate } from "../boot/updatefile.ts";
import { openDisk } from "../hal/disk.ts";
import { LOCAL } from "./desk.ts";
import { BOARD, makePayload, makeRelease } from "./releases.ts";
import { type Running, SlotNode } from "./slotnode.ts";
import { type Lies, toyCommand } from "./swarm/toy.ts";
import { headOf, trustText } from "./trusts.ts";

const FOREVER = 4_000_000_000;
const DAY = 86_400;

/** A release with its infohash; of another seed where versions are not to have anything in common. */
export function releaseOf(version: bigint, stated: Parameters<typeof makeRelease>[0] = {}) {
  const payload = makePayload({
    version,
    name: `fruitos-${version}`,
    rootBytes: 500_000,
    seed: Number(version),
  });
  const made = makeRelease({ payload, ...stated, stated: { expires: FOREVER, ...stated.stated } });
  return { ...made, version, infohash: parseUpdate(made.update).infohash };
}

/** What anna announces of it; the same second unless said otherwise. */
export function announcementOf(
  { version, infohash }: Pick<ReturnType<typeof releaseOf>, "version" | "infohash">,
  more: Partial<Announced> = {},
): Buffer {
  const now = Math.floor(Date.now() / 1000);
  return headOf("anna", { version, infohash, issued: now - 60, expires: now + DAY, ...more });
}

/** A peer that has these releases, in a swarm of toys. */
export async function peerWith(releases: ReturnType<typeof releaseOf>[], lies: Lies = {}) {
  const stop = new AbortController();
  const swarm = new Swarm({
    ...{ user: 65_534, memoryMib: 512, files: [], command: toyCommand(lies), log: () => undefined },
    settings: { port: 0, lan: false, dht: false, bootstrap: [] },
  });
  const running = swarm.run(stop.signal);
  for (const { infohash, update, payload, side } of releases) {
    const share = swarm.share(infohash);
    const read = async (at: number, length: number) => payload.subarray(at, at + length);
    const put = async () => undefined;
    share.begin(update, { size: payload.length, has: () => true, put, read }, () => undefined);
    share.offer({ bytes: side.length, read: async (at, length) => side.subarray(at, at + length) });
  }
  return {
    address: `127.0.0.1:${await swarm.port}`,
    async [Symbol.asyncDispose]() {
      stop.abort();
      await running;
    },
  };
}

/** A node that follows `fruitos/stable`. */
export class UpdateNode implements AsyncDisposable {
  readonly slots = new SlotNode({ healthy_seconds: 1 });
  readonly dataDir = join(this.slots.folder.path, "data");
  /** What it said on the broker. */
  readonly published: { id: string; bytes: Uint8Array }[] = [];
  isOnline = false;
  running: Running | undefined;
  service: UpdateService | undefined;
  readonly #section: { swarm?: object };
  #stop = new AbortController();
  #part: Promise<void> = Promise.resolve();

  constructor(section: { swarm?: object; [key: string]: unknown } = {}) {
    this.#section = section;
    this.slots.files["/proc/device-tree/compatible"] = `${BOARD}\0`;
    mkdirSync(this.dataDir, { recursive: true });
    this.trust(trustText(1, { anna: ["release", "trust", "head"] }));
  }

  trust(text: string): void {
    writeFileSync(join(this.dataDir, "trust.json"), text);
  }

  /** Starts the machine and its agent, which looks for peers there. */
  async start(peers: string[] = [], more: Partial<UpdateOptions> = {}): Promise<Running> {
    this.running = await this.slots.start();
    await this.startUpdates(peers, more);
    return this.running;
  }

  /** Starts the part that is tested. */
  async startUpdates(peers: string[] = [], more: Partial<UpdateOptions> = {}): Promise<void> {
    const running = this.running;
    if (!running) throw new Error("the machine is off");
    const config = parseConfig("node.json", {
      site: "lab",
      update: {
        ...{ policy: "automatic", target: "fruitos/stable", look_seconds: 1 },
        ...this.#section,
        swarm: { port: 0, lan: false, dht: false, peers, ...this.#section.swarm },
      },
    });
    const node = this;
    this.#stop = new AbortController();
    this.service = createUpdateService({
      ...{ config, node: "pi1", dataDir: this.dataDir, slots: running.slots },
      hal: { machine: running.machine(), openDisk },
      isPowerBusy: () => this.slots.worlds[running.slot].isPowerBusy,
      clock: () => ({ synced: this.slots.worlds[running.slot].clock }),
      link: {
        get isOnline() {
          return node.isOnline;
        },
        publish: (id, bytes) => this.published.push({ id, bytes }) > 0,
      },
      alarm: (id, alarm) => {
        if (alarm) running.alarms.set(id, alarm.message);
        else running.alarms.delete(id);
      },
      log: (level, what, fields) => void running.logged.push(`${level} ${what} ${JSON.stringify(fields)}`),
      swarm: { command: toyCommand() },
      pace: { jitterMs: 20, restMs: 600_000, lookMs: 10 },
      ...more,
    });
    this.#part = this.service.part(this.#stop.signal);
  }

  async stopUpdates(): Promise<void> {
    this.#stop.abort();
    await this.#part;
  }

  async off(): Promise<void> {
    await this.stopUpdates();
    await this.slots.off();
  }

  run(verb: string, args: Record<string, unknown> = {}): Promise<Outcome> {
    const row = this.service?.commands.find((one: Command) => one.verb === verb);
    if (!row) throw new Error(`no verb ${verb}`);
    return row.run({
      ...{ id: "c1", args: v.parse(row.args, args), reason: "a test", caller: LOCAL },
      ...{ progress: () => undefined, signal: this.#stop.signal },
    } as never);
  }

  announce(head: Uint8Array): Promise<Outcome> {
    return this.run("update.announce", { head: Buffer.from(head).toString("base64") });
  }

  /** What it wants, by its code. */
  get code(): string | undefined {
    return this.service?.following?.reason;
  }

  get other() {
    return this.slots.card.record.slots.b;
  }

  /** Lines of the history, `what version cause`. */
  get told(): string[] {
    return this.slots.history.map(({ what, version, cause }) =>
      [what, version, cause].filter(Boolean).join(" "),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.off();
    await this.slots[Symbol.asyncDispose]();
  }
}
