/** Many agents on one broker: is anything lost, and what does a node cost. */
import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { Mosquitto, Tap } from "../broker.ts";
import { scratch, until } from "../node.ts";
import { type Heard, Observer } from "./observer.ts";
import { type Usage, usage, windowSeconds } from "./process.ts";
import { digits, type Table } from "./table.ts";

const NODES = 200;
/** Every one is refused, which is an event with the next `seq`; a node tells ten before it only counts them. */
const ROUNDS = 5;
const LIMIT_MS = 120_000;
const QUIET_MS = 3000;

/** 200 agents in one process: every message at a subscriber, every command answered once, CPU and memory per node. */
export async function fleet(): Promise<Table> {
  const seconds = windowSeconds();
  using folder = scratch();
  await using broker = await Mosquitto.start([
    "allow_anonymous true",
    "sys_interval 1",
    // What the observer has not taken yet is not a message lost.
    "max_queued_messages 0",
  ]);
  await using tap = await Tap.at(broker.port, { filter: "$SYS/broker/publish/messages/#" });
  await using observer = new Observer(broker.port);
  await using site = startSite(broker.port, folder.path);
  const nodes = () => [...observer.nodes.values()];
  await until(
    "all nodes are online",
    () => site.isReady() && isEverywhere(nodes(), (n) => n.isOnline),
    LIMIT_MS,
  );
  await until(
    "each has said its numbers",
    () => isEverywhere(nodes(), (n) => n.telemetry.size > 0),
    LIMIT_MS,
  );

  const measure = () => ({
    site: usage(site.pid),
    broker: usage(broker.pid ?? 0),
    messages: observer.messages,
  });
  const before = measure();
  const asked = await askAll(tap, seconds);
  const after = measure();

  await site.stop();
  const { received, heard, dropped } = await settled(tap, observer);
  const cpu = (process: "site" | "broker") =>
    `${digits((after[process].cpuMs - before[process].cpuMs) / seconds / 10 / NODES, 3)} % of a core`;
  const books = audit(nodes());
  const lost = received - heard + dropped + books.gaps + books.dropped + books.incomplete;
  return {
    title: `${NODES} agents in one process on one Mosquitto, telemetry every 10 s, ${seconds} s`,
    head: ["", "found"],
    rows: [
      ["messages the subscriber got / of them retained", `${observer.messages} / ${observer.retained}`],
      ["the same: broker counted in ($SYS) / subscriber got", `${received} / ${heard}`],
      ["dropped by the broker ($SYS)", String(dropped)],
      ["dropped or still buffered in the agents (tele/agent)", String(books.dropped)],
      ["events: heard / missing by seq", `${books.events} / ${books.gaps}`],
      ["telemetry sets: heard / incomplete", `${books.sets} / ${books.incomplete}`],
      ["telemetry sets of a node: fewest / most", `${books.fewest} / ${books.most}`],
      ["longest pause between two sets of a node", `${digits(books.longestMs / 1000, 2)} s`],
      ["commands: asked / final results", `${asked} / ${books.finals}`],
      ["messages a second in the window", digits((after.messages - before.messages) / seconds, 0)],
      ["CPU per node", cpu("site")],
      ["RSS: process / per node", memory(after.site, "rssKib")],
      ["anonymous: process / per node", memory(after.site, "anonKib")],
      ["Mosquitto: CPU per node", cpu("broker")],
      ["Mosquitto: RSS", `${digits(after.broker.rssKib / 1024, 1)} MiB`],
      ["agents' log: warnings and errors", String(site.complaints().length)],
    ],
    notes: [
      "sources under this Bun (glibc), plain simulated nodes without boards; the subscriber is mosquitto_sub, QoS 1",
      `messages lost, all of the above together: ${lost}, target 0: ${lost === 0 ? "kept" : "MISSED"}`,
      ...site.complaints().slice(0, 5),
    ],
  };
}

function isEverywhere(nodes: readonly Heard[], isSo: (node: Heard) => boolean): boolean {
  return nodes.length === NODES && nodes.every(isSo);
}

/** Adds up what was heard of all nodes. A set is complete when each of its topics came as often as every other. */
function audit(nodes: readonly Heard[]) {
  const sum = (of: (node: Heard) => number) => nodes.reduce((total, node) => total + of(node), 0);
  const sets = nodes.map(({ telemetry }) => Math.max(...telemetry.values()));
  return {
    events: sum(({ events }) => events),
    gaps: sum(({ gaps }) => gaps),
    finals: sum(({ finals }) => finals),
    dropped: sum(({ dropped }) => dropped),
    sets: sets.reduce((total, count) => total + count, 0),
    fewest: Math.min(...sets),
    most: Math.max(...sets),
    incomplete: sum(({ telemetry }) => Math.max(...telemetry.values()) - Math.min(...telemetry.values())),
    longestMs: Math.max(...nodes.map(({ longestMs }) => longestMs)),
  };
}

/** Spends the window asking: one broadcast to all, and again and again something of each that it must refuse. Returns how many answers are due. */
async function askAll(tap: Tap, seconds: number): Promise<number> {
  const endMs = performance.now() + seconds * 1000;
  const ask = (node: string, verb: string, args: object) => {
    const iat = Math.floor(Date.now() / 1000);
    const command = { id: randomUUID(), verb, site: "lab", node, args, iat, exp: iat + 60 };
    tap.client.publish(`fruit/v1/lab/${node}/cmd/${verb}`, JSON.stringify(command), { qos: 1 });
  };
  ask("all", "identify", {});
  for (let round = 0; round < ROUNDS; round++) {
    for (let index = 0; index < NODES; index++) ask(`n${index}`, "power.on", { outlets: ["0.0"] });
    await Bun.sleep((seconds * 1000) / (ROUNDS + 1));
  }
  await Bun.sleep(Math.max(0, endMs - performance.now()));
  return NODES + ROUNDS * NODES;
}

/** The broker's own counts and the observer's of the same messages, once they have come to rest. */
async function settled(tap: Tap, observer: Observer) {
  const count = (what: string) => Number(tap.texts(`$SYS/broker/publish/messages/${what}`).at(-1) ?? 0);
  for (let last = -1; last !== observer.messages + count("received"); ) {
    last = observer.messages + count("received");
    await Bun.sleep(QUIET_MS);
  }
  const counts = { received: count("received"), dropped: count("dropped") };
  // Mosquitto 2.0 leaves retained messages out of its count: whether this one does is asked here.
  tap.client.publish("bench/retained", "1", { retain: true });
  await Bun.sleep(QUIET_MS);
  const isAll = count("received") > counts.received;
  return { ...counts, heard: observer.messages - (isAll ? 0 : observer.retained) };
}

function memory(of: Usage, key: "rssKib" | "anonKib"): string {
  return `${digits(of[key] / 1024, 0)} MiB / ${digits(of[key] / NODES, 0)} KiB`;
}

function startSite(port: number, folder: string) {
  const child = Bun.spawn(
    [process.execPath, join(import.meta.dir, "site.ts"), String(port), String(NODES), folder],
    {
      stdin: "ignore",
      stdout: "pipe",
      stderr: "inherit",
    },
  );
  let said = "";
  void (async () => {
    for await (const chunk of child.stdout.pipeThrough(new TextDecoderStream())) said += chunk;
  })();
  const stop = async () => {
    child.kill("SIGTERM");
    await child.exited;
  };
  return {
    pid: child.pid,
    isReady: () => said.includes("ready\n"),
    /** What the agents logged as a warning or an error. */
    complaints: () => said.split("\n").filter((line) => line.startsWith("{")),
    stop,
    [Symbol.asyncDispose]: stop,
  };
}
