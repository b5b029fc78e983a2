/** `bun run bench [NAME…]`: measures, prints, and judges nothing: a slow machine is no failure. */
import { build } from "../../image/build.ts";
import { FRUIT, SOURCES } from "../node.ts";
import { consoles } from "./consoles.ts";
import { delta } from "./delta.ts";
import { fleet } from "./fleet.ts";
import { install } from "./install.ts";
import { latency } from "./latency.ts";
import { rest } from "./rest.ts";
import { start } from "./start.ts";
import { swarm } from "./swarm.ts";
import { render, type Table } from "./table.ts";
import { wires } from "./wires.ts";

const BENCHES: Record<string, () => Promise<Table>> = {
  rest,
  start,
  latency,
  fleet,
  consoles,
  wires,
  install,
  swarm,
  delta,
};

const asked = process.argv.slice(2);
const unknown = asked.filter((name) => !Object.hasOwn(BENCHES, name));
if (unknown.length > 0) {
  process.stderr.write(`bench: no ${unknown.join(", ")}; there are ${Object.keys(BENCHES).join(", ")}\n`);
  process.exit(2);
}
if (!Bun.which("mosquitto") || !Bun.which("mosquitto_sub")) {
  process.stderr.write("bench: needs mosquitto: apt-get install mosquitto mosquitto-clients\n");
  process.exit(2);
}
if (FRUIT !== SOURCES) await build("x64-musl");
for (const [name, bench] of Object.entries(BENCHES))
  if (asked.length === 0 || asked.includes(name)) process.stdout.write(`${render(await bench())}\n`);
