/** How long a command takes beyond what the wire to the boards takes. */
import { randomUUID } from "node:crypto";
import type { Socket } from "node:net";
import { ask } from "../../agent/ask.ts";
import type { CommandResult } from "../../agent/commands.ts";
import { replyFrame, requestFrame } from "../../hal/pistack.ts";
import { BYTE_MS, TURNAROUND_MS } from "../../hal/sim/rs485.ts";
import { Mosquitto, Tap } from "../broker.ts";
import { type Agent, FRUIT, scratch, startAgent, until } from "../node.ts";
import { digits, quantile, type Table, verdict } from "./table.ts";

const COMMANDS = 1000;
const LIMIT_MS = 10_000;
const NODE = "pi1";
const BASE = `fruit/v1/lab/${NODE}`;
const VERB = "power.identify";
const ARGS = { outlets: ["0.0"] };
/** Mosquitto holds a small packet back until the last one is acknowledged, up to 40 ms, unless it is told not to. */
const STOCK_BROKER = ["allow_anonymous true"];
const SHIPPED_BROKER = [...STOCK_BROKER, "set_tcp_nodelay true"];
/** What one `identify` is on the wire: LEDs on, and OK. */
const WIRE_MS = (requestFrame("ledsOn", 0).length + replyFrame().length) * BYTE_MS + TURNAROUND_MS;

/** 1,000 `power.identify` one after the other, over MQTT and over the socket, with one board on the bus and with four. */
export async function latency(): Promise<Table> {
  const rows = [row("Mosquitto echo, QoS 1, for scale", await echoes(), 0)];
  const notes: string[] = [];
  for (const boards of [1, 4]) {
    const name = `${boards} board${boards > 1 ? "s" : ""} polled`;
    const mqtt = await identifies(boards, SHIPPED_BROKER, overMqtt);
    rows.push(row(`identify over MQTT, ${name}`, mqtt, WIRE_MS));
    rows.push(
      row(`identify over the socket, ${name}`, await identifies(boards, SHIPPED_BROKER, overSocket), WIRE_MS),
    );
    notes.push(
      verdict(`over MQTT, ${name}: median beyond the wire`, quantile(mqtt, 0.5) - WIRE_MS, 5, "ms"),
      verdict(`over MQTT, ${name}: p99 beyond the wire`, quantile(mqtt, 0.99) - WIRE_MS, 20, "ms"),
    );
  }
  const stock = await identifies(1, STOCK_BROKER, overMqtt);
  rows.push(row("identify over MQTT, 1 board polled, Mosquitto's defaults", stock, WIRE_MS));
  return {
    title: `Command latency, ${COMMANDS} each, one at a time`,
    head: ["", "p50 ms", "p99 ms", "max ms", "p50 − wire", "p99 − wire"],
    rows,
    notes: [
      `${FRUIT.name}; publish to final result at the client; the socket one connection per command, as the command line does`,
      `wire: ${digits(WIRE_MS, 2)} ms = 8 bytes at 9600 baud 8N1 and ${TURNAROUND_MS} ms turnaround; the simulated wire waits whole milliseconds, ${Math.ceil(WIRE_MS)}`,
      "set_tcp_nodelay true, as in image/site/mosquitto.conf; without it Mosquitto adds up to 40 ms to whoever publishes with QoS 1 and listens on one connection",
      "every 10 s the agent polls all boards over the same wire, and a command waits for the read that is under way",
      ...notes,
    ],
  };
}

function row(name: string, times: readonly number[], wireMs: number): string[] {
  const [p50, p99] = [quantile(times, 0.5), quantile(times, 0.99)];
  const beyond = (value: number) => (wireMs === 0 ? "" : digits(value - wireMs, 2));
  return [name, digits(p50, 2), digits(p99, 2), digits(Math.max(...times), 2), beyond(p50), beyond(p99)];
}

/** One message out and back, with the client that the commands are sent with. */
async function echoes(): Promise<number[]> {
  await using broker = await Mosquitto.start(SHIPPED_BROKER);
  await using tap = await tapOf(broker.port, "bench/echo");
  return await timed(async () => {
    const text = randomUUID();
    const back = heard(tap, (_topic, payload) => payload === text);
    tap.client.publish("bench/echo", text, { qos: 1 });
    await back;
  });
}

/** The times at an agent of its own: its journal has room for so many harmless commands in ten minutes and not for many more. */
async function identifies(
  boards: number,
  settings: string[],
  over: (agent: Agent, tap: Tap) => Promise<void>,
): Promise<number[]> {
  using folder = scratch();
  await using broker = await Mosquitto.start(settings);
  await using tap = await tapOf(broker.port, `${BASE}/#`);
  await using agent = await startAgent(folder.path, {
    node: NODE,
    mqtt: { url: `mqtt://127.0.0.1:${broker.port}` },
    power: {
      buses: [
        { driver: "pistack-rs485", device: "sim", boards: Array.from({ length: boards }, (_, at) => at) },
      ],
    },
    sim: { boards },
  });
  await until("status online", () => tap.texts(`${BASE}/status`).includes("online"));
  return await timed(() => over(agent, tap));
}

async function tapOf(port: number, filter: string): Promise<Tap> {
  const tap = await Tap.at(port, { filter });
  (tap.client.stream as Socket).setNoDelay(true);
  return tap;
}

async function overMqtt(_agent: Agent, tap: Tap): Promise<void> {
  const id = randomUUID();
  const over = heard(
    tap,
    (topic, payload) => topic === `${BASE}/res/${id}` && isFinal(JSON.parse(payload) as CommandResult),
  );
  const iat = Math.floor(Date.now() / 1000);
  const command = { id, verb: VERB, site: "lab", node: NODE, args: ARGS, iat, exp: iat + 60 };
  tap.client.publish(`${BASE}/cmd/${VERB}`, JSON.stringify(command), { qos: 1 });
  await over;
}

async function overSocket(agent: Agent): Promise<void> {
  const { signal } = new AbortController();
  const options = { onProgress: () => undefined, limitMs: LIMIT_MS, signal };
  isFinal(await ask(agent.socket, { verb: VERB, args: ARGS }, options));
}

async function timed(once: () => Promise<void>): Promise<number[]> {
  const times: number[] = [];
  for (let run = 0; run < COMMANDS; run++) {
    const startedAt = performance.now();
    await once();
    times.push(performance.now() - startedAt);
  }
  return times;
}

/** Whether a command is over; throws when it did not do what is measured. */
function isFinal({ state, message }: CommandResult): boolean {
  if (state === "accepted" || state === "running") return false;
  if (state !== "done") throw new Error(`power.identify ended ${state}: ${message}`);
  return true;
}

/** Resolves at the first message that `isIt`. */
function heard(tap: Tap, isIt: (topic: string, payload: string) => boolean): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`no answer within ${LIMIT_MS} ms`)), LIMIT_MS);
    const listen = (topic: string, payload: Buffer) => {
      try {
        if (!isIt(topic, payload.toString())) return;
        resolve();
      } catch (error) {
        reject(error);
      }
      clearTimeout(timer);
      tap.client.off("message", listen);
    };
    tap.client.on("message", listen);
  });
}
