/** The ways by which a release and its head go out: what the command line says of them, and how far a head has come. */
import { randomUUID } from "node:crypto";
import { type Head, headId } from "../../boot/head.ts";
import { ROOT } from "../messages.ts";
import { dial } from "../mqtt/dial.ts";
import { connectError, mqttOf } from "../remote.ts";
import type { ReportHead } from "../swarm/frames.ts";
import { type Io, printable, seconds, UsageError } from "../terminal.ts";
import { readPeers } from "../update/magnet.ts";
import { swarmOf, whole } from "../update/seed.ts";
import type { Swarm } from "../update/swarm.ts";

/** The words about the ways out. */
export const WAYS_SYNOPSIS =
  "[--peer IP:PORT]… [--bootstrap IP:PORT]… [--broker URL… --site S [--user NAME --password-file FILE] [--ca FILE --cert FILE --tls-key FILE]] [--copies 2] [--for DURATION] [--no-lan] [--port PORT] [--up BYTES]";

/** Its flags. */
export const WAYS = {
  peer: { type: "string", multiple: true },
  bootstrap: { type: "string", multiple: true },
  broker: { type: "string", multiple: true },
  site: { type: "string" },
  user: { type: "string" },
  "password-file": { type: "string" },
  ca: { type: "string" },
  cert: { type: "string" },
  "tls-key": { type: "string" },
  copies: { type: "string", default: "2" },
  for: { type: "string" },
  "no-lan": { type: "boolean", default: false },
  port: { type: "string", default: "0" },
  up: { type: "string", default: "0" },
} as const;

/** A broker that has not taken it by then. */
const BROKER_MS = 15_000;
/** How a release or a head goes out. */
export interface Ways {
  peers: string[];
  bootstrap: string[];
  brokers: { url: string; config: ReturnType<typeof mqttOf>; site: string }[];
  copies: number;
  limitSeconds: number | undefined;
  lan: boolean;
  port: number;
  up: number;
}

/** Reads the words about the ways. Throws `UsageError`. */
export function waysOf(values: {
  peer?: string[] | undefined;
  bootstrap?: string[] | undefined;
  broker?: string[] | undefined;
  site?: string | undefined;
  user?: string | undefined;
  "password-file"?: string | undefined;
  ca?: string | undefined;
  cert?: string | undefined;
  "tls-key"?: string | undefined;
  copies: string;
  for?: string | undefined;
  "no-lan": boolean;
  port: string;
  up: string;
}): Ways {
  const { site, peer = [], bootstrap = [], broker = [] } = values;
  if (broker.length > 0 && site === undefined) throw new UsageError("--broker needs --site too");
  const given = Object.entries(values).filter(([, value]) => typeof value === "string");
  return {
    peers: readPeers(peer),
    bootstrap: readPeers(bootstrap, "bootstrap"),
    brokers: broker.map((url) => {
      const flags = { ...Object.fromEntries(given), broker: url, site: site ?? "", node: "vendor" };
      return { url, site: site ?? "", config: mqttOf(flags) };
    }),
    copies: whole("--copies", values.copies, 64),
    limitSeconds: values.for === undefined ? undefined : seconds("--for", values.for),
    lan: !values["no-lan"],
    port: whole("--port", values.port, 65_535),
    up: whole("--up", values.up, 1e12),
  };
}

/** Where a head has got to. */
export class Out {
  /** Nodes of the DHT that keep it. */
  nodes = 0;
  /** Brokers that keep it, and those that do not. */
  readonly taken: string[] = [];
  readonly lost: string[] = [];
  #isOnLan = false;
  readonly #head: Head;
  readonly #ways: Ways;
  readonly #io: Pick<Io, "err" | "signal">;

  constructor(head: Head, ways: Ways, io: Pick<Io, "err" | "signal">) {
    this.#head = head;
    this.#ways = ways;
    this.#io = io;
  }

  /** How the swarm is run for it. */
  settings() {
    const { port, up, lan, peers, bootstrap } = this.#ways;
    const { settings, ...rest } = swarmOf({}, { port, up });
    return { ...rest, settings: { ...settings, lan, peers, bootstrap: [...bootstrap, ...peers] } };
  }

  readonly heard = ({ dht, lan }: ReportHead<"announced">): void => {
    this.nodes = Math.max(this.nodes, dht);
    this.#isOnLan ||= lan;
  };

  /** Says it by every way; resolves when each broker has taken it or has not. */
  async begin(swarm: Swarm): Promise<void> {
    swarm.announce(this.#head.bytes);
    await Promise.all(this.#ways.brokers.map((broker) => this.#retain(broker)));
  }

  facts() {
    const { nodes, taken, lost } = this;
    return { dht_nodes: nodes, lan: this.#isOnLan, brokers: taken, brokers_lost: lost };
  }

  /** In words. */
  told(): string {
    const { nodes, taken, lost } = this;
    return [
      `the head: ${nodes} nodes of the DHT keep it`,
      this.#isOnLan ? "said in this network" : "not said in this network",
      ...taken.map((url) => `${url} keeps it`),
      ...lost.map((url) => `${url} does NOT`),
    ].join(", ");
  }

  async #retain({ url, config, site }: Ways["brokers"][number]): Promise<void> {
    const { key, target, bytes } = this.#head;
    const topic = `${ROOT}/${site}/all/head/${headId(Buffer.from(key, "hex"), target)}`;
    const signal = AbortSignal.any([this.#io.signal, AbortSignal.timeout(BROKER_MS)]);
    try {
      const role = `publish-${randomUUID().slice(0, 13)}`;
      const link = await dial({ config, node: "vendor", role, onMessage: () => undefined }, signal);
      try {
        await new Promise<void>((resolve, reject) => {
          signal.addEventListener("abort", () => reject(new Error("it does not answer")), { once: true });
          link.send({ topic, payload: bytes, qos: 1, retain: true, class: "state" }, (problem) =>
            problem ? reject(new Error(problem.message)) : resolve(),
          );
        });
      } finally {
        await link.close(500);
      }
      this.taken.push(url);
    } catch (cause) {
      this.lost.push(url);
      const { message } = connectError(cause) as Error;
      this.#io.err(`fruit: ${url}: the head is not there: ${printable(message)}\n`);
    }
  }
}
