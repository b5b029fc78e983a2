/**
 * Many agents in one process, for `fleet.ts`: `bun site.ts PORT NODES FOLDER`. Prints `ready` when the last has started
 * and ends when told to.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { runAgent } from "../../agent/agent.ts";
import { parseConfig } from "../../agent/config.ts";
import { openSim } from "../../hal/sim/hal.ts";

const [port, nodes, folder = ""] = process.argv.slice(2);
const stop = new AbortController();
process.once("SIGTERM", () => stop.abort());

/** Starts one and resolves when it has started; `over` is its end. */
async function startOne(index: number): Promise<{ over: Promise<void> }> {
  const place = join(folder, String(index));
  mkdirSync(place);
  const config = parseConfig("bench", {
    site: "lab",
    node: `n${index}`,
    data_dir: join(place, "data"),
    socket: join(place, "fruit.sock"),
    mqtt: { url: `mqtt://127.0.0.1:${port}` },
    telemetry: { interval_seconds: 10 },
  });
  const hal = openSim({ seed: index, boards: [0], wireTime: true, faults: [], clockSynced: true });
  const started = Promise.withResolvers<void>();
  const log: Parameters<typeof runAgent>[2] = (level, what, fields) => {
    if (what === "agent.started") started.resolve();
    if (level === "warn" || level === "error")
      process.stdout.write(`${JSON.stringify({ node: config.node, level, what, ...fields })}\n`);
  };
  const over = runAgent(config, hal, log, stop.signal);
  over.catch(started.reject);
  await started.promise;
  return { over };
}

const running: Promise<void>[] = [];
// One after the other: 200 nodes do not get their power in the same millisecond, and start-up is not what is measured.
for (let index = 0; index < Number(nodes); index++) running.push((await startOne(index)).over);
process.stdout.write("ready\n");
await Promise.all(running);
