/**
 * A site in one folder: an embedded broker, simulated boards on a simulated RS-485 bus, and a real agent process per
 * node, the first of which controls the boards. What the boards do to a Pi happens to its process.
 */
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { execPath } from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import { MASTER, STATUS } from "../../hal/pistack.ts";
import type { OutletId } from "../../hal/ports.ts";
import { Rs485Link } from "../../hal/sim/rs485.ts";
import { SimStack } from "../../hal/sim/stack.ts";
import { serveBus } from "../../hal/sim/wire.ts";
import { holdFolder } from "../hold.ts";
import { program } from "../program.ts";
import { makeKey } from "../sign/keygen.ts";
import { CliError, counted, EXIT, type Io } from "../terminal.ts";
import { startBroker } from "./broker.ts";
import { DemoPi, type Report } from "./nodes.ts";
import { Screen } from "./screen.ts";

/** What the demo was asked to be. */
export interface DemoOptions {
  nodes: number;
  seed: number;
  faults: readonly string[];
  /** Ends by itself after this time. */
  seconds?: number;
  /** Insisted on; without it 1883 or any free port. */
  port?: number;
  /** Kept afterwards; without it a temporary folder. */
  state?: string;
}

const SITE = "demo";
const REDRAW_MS = 500;
/** Agents start this far apart, so that eight do not fight for two cores. */
const START_APART_MS = 150;

/** One node of the site. */
interface Place {
  node: string;
  outlet: OutletId;
  serial: string;
  config: string;
  socket: string;
  /** Its serial console, which ends at the controller. */
  console: { name: string; device: string };
}

/** Runs the demo until its time is up or the signal aborts; a temporary folder goes with it. */
export async function runDemo(options: DemoOptions, io: Io): Promise<void> {
  const folder = options.state ? resolve(options.state) : mkdtempSync(join(tmpdir(), "fruit-"));
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  try {
    using _held = holdFolder(folder);
    await runSite(folder, options, io);
  } finally {
    if (!options.state) rmSync(folder, { recursive: true, force: true });
  }
}

async function runSite(folder: string, options: DemoOptions, io: Io): Promise<void> {
  const limits = options.seconds === undefined ? [] : [AbortSignal.timeout(options.seconds * 1000)];
  const stop = AbortSignal.any([io.signal, ...limits]);
  const end = new AbortController();
  const places = placesOf(folder, options);
  const screen = new Screen(SITE, places, io.isTerminal ? () => undefined : (line) => io.out(`${line}\n`));
  const pis: DemoPi[] = [];
  const { port, seed, faults } = options;
  await using broker = await startBroker(port, 1883, (topic, payload) => screen.heard(topic, payload));
  const boards = [...new Set(places.map(({ outlet }) => Number(outlet.split(".")[0])))];
  const stack = new SimStack({ boards, seed, faults, statePath: join(folder, "boards.json") });
  const bus = new Rs485Link(stack, "rs485", true);
  const speak = (request: Uint8Array) => bus.exchange(request, isReply, 300);
  await serveBus(join(folder, "rs485.sock"), speak, isRequest, end.signal);
  writeSite(folder, places, broker.port, seed);
  const words = introduction(folder, places, broker.port);
  io.out(io.isTerminal ? `\x1b[2J\x1b[H${words}` : `${words}\n`);
  try {
    const report: Report = (outlet, state) => stack.report(outlet, state);
    for (const place of places) {
      const pi = new DemoPi({ ...place, logFile: join(folder, `${place.node}.log`), report });
      pis.push(pi);
      await pi.serveConsole(place.console.device, end.signal);
      stack.on(place.outlet);
      stack.attach(place.outlet, pi);
    }
    // The controller is the first to look at all of them
    for (const pi of pis) {
      pi.start();
      await sleep(START_APART_MS, undefined, { signal: stop }).catch(() => undefined);
    }
    await show(screen, words, io, stop);
    if (screen.online === 0)
      throw new CliError(EXIT.failed, `demo: no node came online; see the logs in ${folder}`);
  } finally {
    // While the broker still listens, so that they can say goodbye
    await Promise.all(pis.map((pi) => pi.stop()));
    end.abort();
  }
}

function placesOf(folder: string, { nodes, seed }: DemoOptions): Place[] {
  return Array.from({ length: nodes }, (_, index): Place => {
    const serial = (0x1000_0000 + seed * 256 + index * 0x0101_35).toString(16).padStart(16, "0");
    const node = `pi${serial.replace(/^0+/, "")}`;
    return {
      node,
      serial,
      outlet: `${index >> 1}.${index & 1}`,
      config: join(folder, `${node}.json`),
      socket: join(folder, `${node}.sock`),
      console: {
        name: `rack${1 + Math.floor(index / 26)}-${String.fromCharCode(97 + (index % 26))}`,
        device: join(folder, `${node}.tty.sock`),
      },
    };
  });
}

/** Writes what each agent reads, and what the technician needs: a key, and a `fruit` that already knows the way. */
function writeSite(folder: string, places: readonly Place[], port: number, seed: number): void {
  const key = makeKey("technician@demo");
  const signers = join(folder, "allowed_signers");
  writeFileSync(join(folder, "technician"), key.privateFile, { mode: 0o600 });
  const [type, base64] = key.publicLine.split(" ");
  writeFileSync(
    signers,
    `technician@demo namespaces="fruit-cmd@v1" ${type} ${base64} roles=read,power,console outlets=*\n`,
  );
  for (const [index, place] of places.entries()) {
    const config = {
      site: SITE,
      data_dir: join(folder, place.node),
      socket: place.socket,
      mqtt: { url: `mqtt://127.0.0.1:${port}` },
      telemetry: { interval_seconds: 10 },
      sim: { serial: place.serial, seed: seed ^ index },
      ...(index === 0 ? controller(folder, places, signers) : {}),
    };
    writeFileSync(place.config, `${JSON.stringify(config, undefined, 2)}\n`);
  }
  const words = [execPath, ...program().map((script) => resolve(script))]
    .map((word) => `'${word}'`)
    .join(" ");
  const [first] = places;
  const wrapper = `#!/bin/sh
# fruit, at the controller of this demo
export FRUIT_SOCKET='${first?.socket}' FRUIT_CONFIG='${first?.config}' FRUIT_HAL=sim
exec ${words} "$@"
`;
  writeFileSync(join(folder, "fruit"), wrapper);
  chmodSync(join(folder, "fruit"), 0o755);
}

/** The first node holds the boards' bus. */
function controller(folder: string, places: readonly Place[], signers: string) {
  return {
    power: {
      buses: [
        {
          driver: "pistack-rs485",
          device: join(folder, "rs485.sock"),
          boards: [...new Set(places.map(({ outlet }) => Number(outlet.split(".")[0])))],
        },
      ],
      outlets: Object.fromEntries(
        places.map(({ outlet, node, console }) => [outlet, { name: console.name, node }]),
      ),
      poll_seconds: 2,
      boot_seconds: 20,
    },
    consoles: Object.fromEntries(
      places.map(({ outlet, console }) => [console.name, { device: console.device, outlet }]),
    ),
    commands: {
      allowed_signers: signers,
      unsigned_outlets: places.length > 2 ? [places.at(-1)?.outlet] : [],
    },
  };
}

function introduction(folder: string, places: readonly Place[], port: number): string {
  const fruit = join(folder, "fruit");
  const [first] = places;
  const victim = places[Math.min(2, places.length - 1)];
  const other = places.at(-1);
  const from = `--broker mqtt://127.0.0.1:${port} --site ${SITE} --node ${first?.node}`;
  return `A simulated site: ${counted(places.length, "node")} on ${counted(Math.ceil(places.length / 2), "board")}, each a real agent; ${first?.node} controls the boards.
MQTT broker: mqtt://127.0.0.1:${port}   files and logs: ${folder}

Try in a second terminal:
  ${fruit} power status
 a node shuts down, goes off the air and boots again; one is cut without asking, and its last will fires; and two refusals:
  ${fruit} power cycle ${victim?.outlet} --reason "hung in U-Boot"
  ${fruit} power reset ${other?.outlet} --reason "dead"
  ${fruit} lock ${victim?.outlet} --for 2h --reason "kernel test"
  ${fruit} power off ${first?.outlet}
  ${fruit} audit verify
 the serial console of a node, as any name with any password; ~. leaves:
  ${fruit} console ${victim?.console.name}
 the same from anywhere, signed with the technician's key, and what everybody hears:
  ${fruit} power status ${from}
  ${fruit} power off ${victim?.outlet} --reason "from home" ${from} --key ${folder}/technician
  mosquitto_sub -h 127.0.0.1 -p ${port} -v -t 'fruit/#'
Ctrl-C ends it.
`;
}

/** Says how to use it, then shows the site: in place on a terminal, elsewhere an event a line (by `Screen`). */
async function show(screen: Screen, introduction: string, io: Io, stop: AbortSignal): Promise<void> {
  while (!stop.aborted) {
    // Over the old lines rather than on an empty screen, which would flicker
    if (io.isTerminal)
      io.out(`\x1b[H${`${introduction}\n${screen.table()}`.replaceAll("\n", "\x1b[K\n")}\x1b[J`);
    await sleep(REDRAW_MS, undefined, { signal: stop }).catch(() => undefined);
  }
  io.out(
    `${io.isTerminal ? "" : `\n${screen.table()}`}demo: over; ${counted(screen.online, "node")} ${screen.online === 1 ? "was" : "were"} online\n`,
  );
}

/** A request is whole when it has the bytes its length byte promises, and the CRC. */
function isRequest(bytes: Uint8Array): boolean {
  return bytes.length > 3 && bytes.length > (bytes[2] ?? 0);
}

/** Whether a reply stands in the bytes, whatever a fault put before it. */
function isReply(bytes: Uint8Array): boolean {
  for (let at = 0; at + 3 < bytes.length; at++) {
    const isStart = (bytes[at] === STATUS.ok || bytes[at] === STATUS.error) && bytes[at + 1] === MASTER;
    if (isStart && bytes.length - at > (bytes[at + 2] ?? 0)) return true;
  }
  return false;
}
