/** An emulated Pi, the broker that it speaks with, and what it has said there; several of these may run at once. */
import { readFileSync } from "node:fs";
import type { SlotName } from "../../boot/layout.ts";
import { Mosquitto, Tap } from "../broker.ts";
import { until } from "../node.ts";
import { Fruitos } from "./fruitos.ts";
import { LIMITS } from "./limits.ts";
import type { Release, Workshop } from "./releases.ts";

/** A node that decides its trials in a few minutes; the broker is where `Fruitos` puts it. */
const NODE = {
  site: "lab",
  node: "pi1",
  mqtt: { url: "mqtt://10.0.2.100:1883", backoff_max_seconds: 5, keepalive_seconds: 5 },
  boot: {
    ...{ tries: 2, deadline_seconds: 200, settle_seconds: 5, check_seconds: 2, agent_seconds: 5 },
    // A power cut is no crash, but only a start that stays up can show it
    healthy_seconds: 5,
    reboot_command: ["reboot", "-f"],
  },
};

/** A card of that node as it is flashed, with what its owner put onto the boot partition and releases in `/data/incoming`. */
export function flashed(
  workshop: Workshop,
  version: bigint,
  incoming: readonly Release[] = [],
): Promise<string> {
  const files = { "node.json": JSON.stringify(NODE), "trust.json": readFileSync(workshop.trust, "utf8") };
  return workshop.card(version, files, incoming);
}

/** What `fruit boot status --json` says, as far as it is looked at. */
export interface Status {
  running: SlotName;
  primary: SlotName;
  trial?: object;
  slots: Record<SlotName, { state: string; version?: string; hash?: string }>;
}

/** A broker on this machine, and the node of site `lab` that speaks with it. */
export class Lab implements AsyncDisposable {
  readonly #broker: Mosquitto;
  #tap: Tap;

  private constructor(broker: Mosquitto, tap: Tap) {
    this.#broker = broker;
    this.#tap = tap;
  }

  static async open(): Promise<Lab> {
    const broker = await Mosquitto.start(["allow_anonymous true"]);
    return new Lab(broker, await Tap.at(broker.port));
  }

  /** Switches a Pi on; what was said before is forgotten. */
  switchOn(card: string): Promise<Fruitos> {
    this.forget();
    return Fruitos.on(card, this.#broker.port);
  }

  /** What the node has said about something, in order. */
  said(topic: string): Record<string, unknown>[] {
    return this.#tap.texts(`fruit/v1/lab/pi1/${topic}`).map((text) => JSON.parse(text));
  }

  forget(): void {
    this.#tap.heard.splice(0);
  }

  /** Takes the broker away while something is done. */
  async without(work: () => Promise<unknown>): Promise<void> {
    await this.#broker.go();
    await work();
    await this.#broker.come();
    this.#tap = await Tap.at(this.#broker.port);
  }

  /** Waits until the node has started from a slot for good, and its agent has told the broker so. */
  async lives(pi: Fruitos, slot: SlotName, after = 0): Promise<void> {
    const isIt = (start: { slot?: SlotName; isTrial: boolean }) => start.slot === slot && !start.isTrial;
    await pi.reached("ready", isIt, { after, limitMs: LIMITS.trial });
    const isTold = () => this.said("state/boot/main").at(-1)?.active === slot;
    await until(`slot ${slot} on MQTT`, isTold, LIMITS.trial);
  }

  /** Has the node try its other slot: it starts again, perhaps before it could say that it will. */
  async tries(pi: Fruitos): Promise<void> {
    const before = pi.starts.length;
    try {
      await pi.output("fruit boot try --reason proof");
    } catch (error) {
      if (pi.starts.length === before) throw error;
    }
    await pi.reached("reset", () => true, { after: before, limitMs: LIMITS.trial });
  }

  /** What the node says of itself. */
  async status(pi: Fruitos): Promise<Status> {
    return JSON.parse(await pi.output("fruit boot status --json"));
  }

  /** Waits until the node has written down what later trials are measured against, its broker among it. */
  async hasBaseline(pi: Fruitos): Promise<void> {
    const isThere = async () => (await pi.run("grep -l broker /data/fruit/boot/baseline*")).exit === 0;
    await until("a baseline with the broker", isThere, LIMITS.boot);
    await pi.output("sync");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#tap[Symbol.asyncDispose]();
    await this.#broker[Symbol.asyncDispose]();
  }
}

/** Into the log of the run. */
export function tell(line: string): void {
  process.stdout.write(`fruitos: ${line}\n`);
}

export const seconds = (ms: number) => `${(ms / 1000).toFixed(1)} s`;

/** Tells how long each phase of each start took. */
export function report(what: string, { starts }: Fruitos): void {
  for (const [index, { slot = "?", isTrial, atMs }] of starts.entries()) {
    const phases = Object.entries(atMs).slice(1);
    const took = phases.map(([phase, ms], at) => `${phase} ${seconds(ms - (phases[at - 1]?.[1] ?? 0))}`);
    tell(`${what}: start ${index + 1}, slot ${slot}${isTrial ? " on trial" : ""}: ${took.join(", ")}`);
  }
}
