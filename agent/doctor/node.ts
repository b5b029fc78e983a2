/** What `fruit doctor` looks at on a node: everything the configuration asks for, and what the board offers. */
import { lookup } from "node:dns/promises";
import { readFileSync, statfsSync, statSync } from "node:fs";
import { connect } from "node:net";
import { dirname } from "node:path";
import { within } from "../../hal/limit.ts";
import { tryThreads } from "../../hal/native/trial.ts";
import type { Hal, Machine } from "../../hal/ports.ts";
import { type Config, ConfigError, readConfig } from "../config.ts";
import { nodeIdOf } from "../identity.ts";
import { parseSigners } from "../sign/signers.ts";
import { textOf } from "../telemetry/cursor.ts";
import { checkCertificates } from "./certificate.ts";
import { type Check, fail, isThere, ok, reason, trouble, warn } from "./check.ts";
import { checkExecutable, EXECUTABLE } from "./executable.ts";
import { checkGpio } from "./gpio.ts";
import { checkSerial } from "./serial.ts";

const MEBI = 1024 * 1024;
/** Below the first nothing that must last can be written; below the second an update's caches will not fit. */
const SPACE_NEEDED = MEBI;
const SPACE_WANTED = 64 * MEBI;
/** Longest wait for the broker's name and its port, each. */
const BROKER_MS = 3000;
/** Longest wait for the threads, which are started for it. */
const THREADS_MS = 5000;
/** sun_path of Linux, with its closing NUL. */
const SOCKET_PATH_BYTES = 107;

/** Drivers whose lines are looked at elsewhere. */
const OTHERS: ReadonlySet<string> = new Set(["gpio", "pistack-rs485"]);

/** All checks of a node, in the order a person would go through them. */
export async function checkNode(
  { config, check }: Found,
  hal: Pick<Hal, "machine" | "kind"> & Partial<Pick<Hal, "listGpio">>,
): Promise<Check[]> {
  const { machine, kind } = hal;
  const node = config?.node ?? nodeIdOf(machine);
  return [
    check,
    ...(config ? await configured(config, node, kind) : []),
    ...(config && kind === "linux" ? await checkSerial(config, machine) : []),
    ...(config && kind === "linux" ? await checkGpio(config, hal) : []),
    ...(kind === "linux" ? [await native()] : []),
    clock(machine),
    ...board(machine, node),
    // Run from sources, or from elsewhere, there is nothing installed to look at.
    ...(isThere(EXECUTABLE) ? checkExecutable("/") : []),
  ];
}

/** A configuration as it was found, and what is to be said of it. */
interface Found {
  config: Config | undefined;
  check: Check;
}

/** Looks at the configuration that the other checks go by. */
export function look(file: string): Found {
  if (!isThere(file))
    return {
      config: undefined,
      check: fail("config", `${file} does not exist`, "write one, or name it with --config or FRUIT_CONFIG"),
    };
  try {
    return { config: readConfig(file), check: ok("config", `${file} is valid`) };
  } catch (cause) {
    if (!(cause instanceof ConfigError)) throw cause;
    return {
      config: undefined,
      check: fail("config", `${file}: ${cause.problems.join("; ")}`, `mend it (fruit config check ${file})`),
    };
  }
}

async function configured(config: Config, node: string, hal: Hal["kind"]): Promise<Check[]> {
  const { mqtt } = config;
  return [
    dataDir(config.data_dir),
    socket(config.socket),
    ...(mqtt
      ? [...(await broker(mqtt.url)), ...checkCertificates(mqtt, node)]
      : [warn("broker", "none configured; this node tells nobody how it is", "add mqtt.url")]),
    ...signers(config),
    ...(hal === "sim" ? [] : config.power.buses.filter(({ driver }) => !OTHERS.has(driver)).map(bus)),
  ];
}

function dataDir(dir: string): Check {
  const name = "data";
  const found = statSync(dir, { throwIfNoEntry: false });
  if (!found) {
    const parent = trouble(dirname(dir), "write");
    return parent
      ? fail(name, `${dir} does not exist, and ${parent}`, `make it: mkdir -p ${dir}`)
      : ok(name, `${dir} does not exist yet; the agent makes it`);
  }
  if (!found.isDirectory()) return fail(name, `${dir} is no folder`, "move it away");
  const problem = trouble(dir, "write");
  if (problem) return fail(name, problem, "run as the agent's user, or mount it writable");
  const { bavail, bsize } = statfsSync(dir);
  const free = bavail * bsize;
  const space = `${dir} has ${Math.floor(free / MEBI)} MiB free`;
  if (free < SPACE_NEEDED) return fail(name, space, "make room");
  return free < SPACE_WANTED ? warn(name, space, "make room") : ok(name, space);
}

function socket(path: string): Check {
  const name = "socket";
  if (Buffer.byteLength(path) > SOCKET_PATH_BYTES)
    return fail(name, `${path} is longer than ${SOCKET_PATH_BYTES} bytes`, "choose a shorter path");
  const found = statSync(path, { throwIfNoEntry: false });
  if (found && !found.isSocket()) return fail(name, `${path} is there and is no socket`, "move it away");
  const problem = trouble(dirname(path), "write");
  if (problem) return fail(name, problem, "run as root, or choose another path");
  return ok(name, found ? `${path} is there; an agent may be running` : `${path} can be made`);
}

/** Whether the program reaches the C library, and its threads it. */
async function native(): Promise<Check> {
  const name = "native";
  try {
    await tryThreads(THREADS_MS);
    return ok(name, "the C library and the threads answer");
  } catch (cause) {
    const [what = "", remedy = "install the package this executable was made for (libstdc++, libgcc)"] =
      reason(cause).split("; ");
    return fail(name, what, `${remedy}; until then no bus, console or GPIO line opens`);
  }
}

function clock(machine: Machine): Check {
  const { synced, offsetSeconds } = machine.clock();
  if (!synced)
    return warn(
      "clock",
      `not synchronised, it says ${new Date().toISOString()}`,
      "start chronyd; until then telemetry has no ts and signed commands need a challenge",
    );
  return ok(
    "clock",
    `synchronised${offsetSeconds === undefined ? "" : `, off by ${Number(offsetSeconds.toFixed(6))} s`}`,
  );
}

const silent = () => new Error(`does not answer within ${BROKER_MS / 1000} s`);

async function broker(address: string): Promise<Check[]> {
  const url = new URL(address);
  const host = url.hostname.replace(/^\[|\]$/g, "");
  const port = Number(url.port) || (url.protocol === "mqtts:" ? 8883 : 1883);
  try {
    await within(BROKER_MS, lookup(host), silent);
  } catch (cause) {
    return [fail("broker", `${host} ${reason(cause)}`, "check mqtt.url and the resolver")];
  }
  const link = connect({ host, port });
  try {
    const connected = new Promise<void>((resolve, reject) => {
      link.once("connect", () => resolve()).once("error", reject);
    });
    await within(BROKER_MS, connected, silent);
    return [ok("broker", `${host} port ${port} answers ('fruit mqtt test' goes further)`)];
  } catch (cause) {
    return [
      fail("broker", `${host} port ${port} ${reason(cause)}`, "check mqtt.url, the network and the broker"),
    ];
  } finally {
    link.destroy();
  }
}

function signers({ commands, mqtt }: Config): Check[] {
  const name = "signers";
  const file = commands.allowed_signers;
  if (!file)
    return mqtt
      ? [
          warn(
            name,
            "no commands.allowed_signers: signed commands are refused",
            "name the file of those who may command",
          ),
        ]
      : [];
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (cause) {
    return [fail(name, `${file}: ${reason(cause)}`, "put it there; until then signed commands are refused")];
  }
  const { signers: found, problems } = parseSigners(text);
  if (problems.length > 0)
    return problems.map((problem) =>
      fail(name, `${file}: ${problem}`, "mend the line; it gives nobody any right"),
    );
  if (found.length === 0) return [warn(name, `${file}: nobody is in it`, "add those who may command")];
  return [ok(name, `${file}: ${found.length} may command`)];
}

function bus({ driver, device, boards }: Config["power"]["buses"][number]): Check {
  const name = `bus ${device}`;
  if (driver === "sim")
    return fail(name, "driver sim on real hardware", "start the agent with --hal sim, or name the driver");
  const problem = trouble(device, "both");
  if (problem) return fail(name, problem, "check the cable, the overlay and the group of the device");
  return ok(name, `${driver}, ${boards.length === 1 ? "board" : "boards"} ${boards.join(", ")}`);
}

/** What only a Pi has, and is worth a word only there. */
function board(machine: Machine, node: string): Check[] {
  const model = textOf(machine.read("/proc/device-tree/model"));
  if (machine.serial === undefined)
    return [ok("board", `${model ?? "not a Raspberry Pi"}, the node id is ${node}`)];
  const throttled = machine.throttled();
  return [
    ok("board", `${model ?? "unknown model"}, ${node}`),
    throttled
      ? ok("throttle", `the firmware's word is 0x${throttled.word.toString(16)}, by ${throttled.source}`)
      : warn(
          "throttle",
          "the firmware cannot be asked (/dev/vcio)",
          "join the group video, or load vcio; until then throttling is not reported",
        ),
    isThere("/dev/watchdog")
      ? ok("watchdog", "/dev/watchdog is there")
      : warn(
          "watchdog",
          "no /dev/watchdog",
          "add dtparam=watchdog=on to config.txt; a hung node will not restart by itself",
        ),
  ];
}
