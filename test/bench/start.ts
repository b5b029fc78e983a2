/** How long a person or a broker waits for the executable to be there. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { Mosquitto, Tap } from "../broker.ts";
import { FRUIT, scratch } from "../node.ts";
import { digits, quantile, ratio, type Table, verdict } from "./table.ts";

const AGENT_STARTS = 10;
const RUNS = 20;
const LIMIT_MS = 15_000;

/** Start of the agent to `status online`, and `fruit version`, beside what people know. */
export async function start(): Promise<Table> {
  const online = await agentStarts();
  const version = await runs([...FRUIT.command, "version"], FRUIT.env);
  const known: { name: string; times: number[] }[] = [];
  for (const [program, flag] of [
    ["prometheus-node-exporter", "--version"],
    ["mosquitto_pub", "--help"],
    [process.execPath, "--version"],
  ] as const) {
    const path = Bun.which(program);
    const name = `${program === process.execPath ? "bun" : program} ${flag}`;
    if (path) known.push({ name, times: await runs([path, flag], {}) });
  }
  const medianOf = (times: readonly number[]) => quantile(times, 0.5);
  const row = (name: string, times: readonly number[], isOurs: boolean) => [
    name,
    digits(medianOf(times), 1),
    digits(Math.min(...times), 1),
    digits(Math.max(...times), 1),
    String(times.length),
    isOurs ? "" : ratio(medianOf(version), medianOf(times)),
  ];
  return {
    title: "Start",
    head: ["", "median ms", "min ms", "max ms", "runs", "fruit version/this"],
    rows: [
      row("fruit agent: start to status online at Mosquitto", online, true),
      row("fruit version", version, true),
      ...known.map(({ name, times }) => row(name, times, false)),
    ],
    notes: [
      `${FRUIT.name}; from before the process is made to the message at another client, or to the process's end`,
      verdict("status online, median", medianOf(online), 250, "ms"),
      verdict("fruit version, median", medianOf(version), 30, "ms"),
    ],
  };
}

async function agentStarts(): Promise<number[]> {
  using folder = scratch();
  await using broker = await Mosquitto.start(["allow_anonymous true"]);
  await using tap = await Tap.at(broker.port, { filter: "fruit/v1/lab/+/status" });
  const config = join(folder.path, "node.json");
  writeFileSync(
    config,
    JSON.stringify({
      site: "lab",
      data_dir: join(folder.path, "data"),
      socket: join(folder.path, "fruit.sock"),
      mqtt: { url: `mqtt://127.0.0.1:${broker.port}` },
      power: { buses: [{ driver: "pistack-rs485", device: "sim", boards: [0] }] },
    }),
  );
  const times: number[] = [];
  for (let run = 0; run < AGENT_STARTS; run++) {
    const online = heard(tap, "online");
    const startedAt = performance.now();
    const child = Bun.spawn([...FRUIT.command, "agent", "--hal", "sim", "--config", config], {
      env: { PATH: process.env.PATH ?? "", ...FRUIT.env },
      stdout: "ignore",
      stderr: "ignore",
    });
    times.push((await online) - startedAt);
    const offline = heard(tap, "offline");
    child.kill("SIGTERM");
    await Promise.all([offline, child.exited]);
  }
  return times;
}

/** When the tap next hears a status. */
function heard(tap: Tap, status: string): Promise<number> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no status ${status} within ${LIMIT_MS} ms`)), LIMIT_MS);
    const listen = (_topic: string, payload: Buffer) => {
      if (payload.toString() !== status) return;
      clearTimeout(timer);
      tap.client.off("message", listen);
      resolve(performance.now());
    };
    tap.client.on("message", listen);
  });
}

async function runs(command: string[], env: Record<string, string>): Promise<number[]> {
  const times: number[] = [];
  for (let run = 0; run < RUNS; run++) {
    const startedAt = performance.now();
    const child = Bun.spawn(command, {
      env: { PATH: process.env.PATH ?? "", ...env },
      stdin: "ignore",
      stdout: "ignore",
      stderr: "ignore",
    });
    await child.exited;
    times.push(performance.now() - startedAt);
  }
  return times;
}
