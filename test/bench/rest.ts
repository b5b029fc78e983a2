/** What an agent costs that has nothing to do, beside what people run instead, in the same window. */
import { mkdirSync } from "node:fs";
import { basename, join } from "node:path";
import { freePort, Mosquitto, Tap } from "../broker.ts";
import { FRUIT, scratch, startAgent, until } from "../node.ts";
import { type Usage, usage, windowSeconds } from "./process.ts";
import { digits, ratio, type Table, verdict } from "./table.ts";

/** For the first telemetry, the compilers and the collectors of all of them to come to rest. */
const SETTLE_MS = 10_000;
const MINUTE_MS = 60_000;

/**
 * What a node with little memory sets for its agent: no optimising compiler, and a garbage collection at rest every 10 s
 * instead of every second. Without any JIT (`BUN_JSC_useJIT=0`) C cannot be called, and so no hardware.
 */
const LEAN = { BUN_JSC_useDFGJIT: "0", BUN_GC_TIMER_INTERVAL: "10000" };

interface Contestant {
  name: string;
  pid: number;
  /** Numbers it reports once a minute. */
  numbers: () => number;
}

/** RSS, its anonymous part and CPU of the agent at rest, of node_exporter, of a shell loop and of a bare mqtt.js. */
export async function rest(): Promise<Table> {
  const seconds = windowSeconds();
  using folder = scratch();
  await using cleanup = new AsyncDisposableStack();
  const broker = cleanup.use(await Mosquitto.start(["allow_anonymous true"]));
  const contestants = [
    await ours(cleanup, "fruit agent", join(folder.path, "fruit"), broker.port, {}),
    await ours(cleanup, "fruit agent, lean", join(folder.path, "lean"), broker.port, LEAN),
    await exporter(cleanup),
    shellLoop(cleanup, folder.file("loop.sh", SHELL_LOOP), broker.port),
    await bareMqtt(cleanup, folder.path, broker.port),
  ].filter((contestant) => contestant !== undefined);
  await Bun.sleep(SETTLE_MS);
  const before = contestants.map(({ pid }) => usage(pid));
  await Bun.sleep(seconds * 1000);
  const found = contestants.map((contestant, at) => {
    const now = usage(contestant.pid);
    return { ...contestant, ...now, cpuMs: now.cpuMs - (before[at]?.cpuMs ?? 0) };
  });
  const [fruit] = found;
  if (!fruit) throw new Error("rest: nobody ran");
  return {
    title: `At rest, ${seconds} s, one report a minute`,
    head: [
      "",
      "RSS MiB",
      "anonymous MiB",
      "CPU % of a core",
      "threads",
      "numbers",
      "RSS ours/theirs",
      "CPU ours/theirs",
    ],
    rows: found.map((one) => row(one, fruit, seconds)),
    notes: [
      `lean: ${Object.entries(LEAN)
        .map((pair) => pair.join("="))
        .join(" ")} in the environment; ratios are those of the agent as it is`,
      `the agent is ${FRUIT.name}, MQTT to Mosquitto, a simulated Pi Stack board on RS-485 polled every 10 s`,
      "the loop's children (cut, awk, df, mosquitto_pub) are in its CPU, counted in steps of 10 ms, and not in its RSS",
      verdict("RSS", fruit.rssKib / 1024, 60, "MiB"),
      verdict("anonymous", fruit.anonKib / 1024, 20, "MiB"),
      verdict("CPU", fruit.cpuMs / seconds / 10, 1, "%"),
    ],
  };
}

function row(one: Contestant & Usage, fruit: Contestant & Usage, seconds: number): string[] {
  const isOurs = one.name === fruit.name;
  return [
    one.name,
    digits(one.rssKib / 1024, 1),
    digits(one.anonKib / 1024, 1),
    digits(one.cpuMs / seconds / 10, 3),
    String(one.threads),
    String(one.numbers()),
    isOurs ? "" : ratio(fruit.rssKib, one.rssKib),
    isOurs ? "" : ratio(fruit.cpuMs, one.cpuMs),
  ];
}

async function ours(
  cleanup: AsyncDisposableStack,
  name: string,
  folder: string,
  port: number,
  env: Record<string, string>,
): Promise<Contestant> {
  mkdirSync(folder);
  const node = basename(folder);
  const tap = cleanup.use(await Tap.at(port, { filter: `fruit/v1/lab/${node}/#` }));
  const settings = {
    node,
    mqtt: { url: `mqtt://127.0.0.1:${port}` },
    power: { buses: [{ driver: "pistack-rs485", device: "sim", boards: [0] }] },
  };
  const agent = cleanup.use(await startAgent(folder, settings, { env }));
  await until("status online", () => tap.heard.some(({ text }) => text === "online"));
  const numbers = () => {
    const latest = new Map(
      tap.heard.filter(({ topic }) => topic.includes("/tele/")).map(({ topic, text }) => [topic, text]),
    );
    return [...latest.values()].reduce((sum, text) => sum + Object.keys(JSON.parse(text)).length - 1, 0);
  };
  return { name, pid: agent.pid, numbers };
}

async function exporter(cleanup: AsyncDisposableStack): Promise<Contestant | undefined> {
  const program = Bun.which("prometheus-node-exporter") ?? Bun.which("node_exporter");
  if (!program) return undefined;
  const address = `127.0.0.1:${await freePort()}`;
  const child = Bun.spawn([program, `--web.listen-address=${address}`], {
    stdout: "ignore",
    stderr: "ignore",
  });
  cleanup.defer(() => stop(child));
  const scrape = async () => {
    const answer = await fetch(`http://${address}/metrics`).catch(() => undefined);
    return answer?.text();
  };
  const first = await until("a scrape", scrape);
  const scraping = new AbortController();
  cleanup.defer(() => scraping.abort());
  void (async () => {
    while (!scraping.signal.aborted) {
      await Bun.sleep(MINUTE_MS);
      if (!scraping.signal.aborted) await scrape();
    }
  })();
  const samples = first.split("\n").filter((line) => line !== "" && !line.startsWith("#")).length;
  return { name: "prometheus-node-exporter", pid: child.pid, numbers: () => samples };
}

const SHELL_LOOP = `#!/bin/sh
while :; do
  load=$(cut -d' ' -f1 /proc/loadavg)
  available=$(awk '/^MemAvailable/ {print $2 * 1024}' /proc/meminfo)
  uptime=$(cut -d' ' -f1 /proc/uptime)
  disk=$(df -P / | awk 'NR == 2 {print $4 * 1024}')
  mosquitto_pub -h 127.0.0.1 -p "$1" -t bench/shell -m "{\\"load1\\":$load,\\"available\\":$available,\\"uptime\\":$uptime,\\"disk\\":$disk}"
  sleep 60
done
`;

function shellLoop(cleanup: AsyncDisposableStack, script: string, port: number): Contestant | undefined {
  if (!Bun.which("mosquitto_pub")) return undefined;
  const child = Bun.spawn(["sh", script, String(port)], { stdout: "ignore", stderr: "ignore" });
  cleanup.defer(() => stop(child));
  return { name: "sh + mosquitto_pub", pid: child.pid, numbers: () => 4 };
}

async function bareMqtt(cleanup: AsyncDisposableStack, folder: string, port: number): Promise<Contestant> {
  const script = join(import.meta.dir, "bare.ts");
  const outfile = join(folder, "bare");
  const isMusl = FRUIT.name === "x64 musl";
  if (isMusl)
    await Bun.build({
      entrypoints: [script],
      compile: { target: "bun-linux-x64-musl" as Bun.Build.CompileTarget, outfile },
      minify: true,
      bytecode: true,
      format: "esm",
    });
  const child = Bun.spawn([...(isMusl ? [outfile] : [process.execPath, script]), String(port)], {
    env: { PATH: process.env.PATH ?? "", ...FRUIT.env },
    stdout: "ignore",
    stderr: "ignore",
  });
  cleanup.defer(() => stop(child));
  return { name: "bare mqtt.js, same Bun", pid: child.pid, numbers: () => 3 };
}

async function stop(child: Bun.Subprocess): Promise<void> {
  child.kill();
  await child.exited;
}
