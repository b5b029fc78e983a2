/**
 * What a trial looks at. What the old slot had not, the new one need not have; everything else must be found good in this boot.
 */
import { type ExecFileException, execFile } from "node:child_process";
import { open } from "node:fs/promises";
import { join } from "node:path";
import type { Machine } from "../../hal/ports.ts";
import { ask } from "../ask.ts";
import type { Config } from "../config.ts";
import { countOf } from "./baseline.ts";
import type { Mark } from "./marks.ts";
import { type BUILT_IN_CHECKS, DEVICES, SURROUNDINGS } from "./names.ts";
import type { Check, Report } from "./trial.ts";

/** What the checks ask. */
export interface CheckOptions {
  config: Config["boot"];
  boot: string;
  machine: Machine;
  /** Where the agent answers. */
  socket: string;
  /** The folder that history and marks are in. */
  dir: string;
  /** What worked in the old slot, and what works now. */
  baseline: readonly string[];
  facts(): readonly string[];
  /** Seconds this agent has been up. */
  upSeconds(): number;
  /** What was seen of this boot. */
  marks(): Promise<readonly Mark[]>;
  /** Why the trial's own record is not one; undefined where all is well. */
  planProblem(): string | undefined;
  /** Reads the running slot through. Says what is wrong with it; undefined where nothing is. */
  readSlot(signal: AbortSignal): Promise<string | undefined>;
  /** Longest that OpenRC may take to say how one service is. */
  serviceMs?: number;
}

type Found = { isGood: boolean; message: string };
const good = (message: string): Found => ({ isGood: true, message });
const bad = (message: string): Found => ({ isGood: false, message });

const LOOK_MS = 15_000;
const SERVICE_MS = 10_000;
const SOCKET_MS = 5000;
/** So often an agent may be started in one trial without having been told to stop. */
const MOST_AGENTS = 3;
const KIB = 1024;

/** Every check of a trial; the names of the built-in ones stand in `names.ts`. */
export function checksOf(options: CheckOptions): Check[] {
  const { config, boot, baseline, serviceMs = SERVICE_MS } = options;
  const make = (name: string, look: Look, more: Partial<Check> = {}): Check => ({
    name,
    isFatal: false,
    limitMs: LOOK_MS,
    ...more,
    look: async (signal): Promise<Report> => ({ boot, ...(await look(signal)) }),
  });
  const had = (fact: string) => baseline.some((known) => known === fact || known.startsWith(`${fact}:`));
  const around = surroundingsOf(options);
  const builtIn: { [name in (typeof BUILT_IN_CHECKS)[number]]: Check | undefined } = {
    record: make("record", async () => record(options)),
    agent: make("agent", () => agent(options), { isFatal: true }),
    slot: make(
      "slot",
      once((signal) => slot(options, signal)),
      {
        isFatal: true,
        limitMs: config.deadline_seconds * 1000,
      },
    ),
    data: make("data", around.data),
    broker: had("broker") ? make("broker", around.broker) : undefined,
    power: had("bus") ? make("power", around.power) : undefined,
    stack: had("stack") ? make("stack", around.stack) : undefined,
    clock: had("clock") ? make("clock", around.clock) : undefined,
    memory: make("memory", async () => memory(options)),
    devices: DEVICES.some(had) ? make("devices", around.devices) : undefined,
    services:
      config.services.length > 0
        ? make("services", () => services(config.services, serviceMs), {
            // Each has its own limit: whichever hangs is named
            limitMs: serviceMs * (config.services.length + 1),
          })
        : undefined,
  };
  const custom = config.checks.map(({ name, command, timeout_seconds, fatal }) =>
    make(name, () => program(command, timeout_seconds * 1000), {
      isFatal: fatal,
      limitMs: timeout_seconds * 1000 + SERVICE_MS,
    }),
  );
  return [...Object.values(builtIn).filter((check) => check !== undefined), ...custom];
}

type Look = (signal: AbortSignal) => Promise<Found>;

/** What a look at the surroundings asks. */
export type Around = Pick<CheckOptions, "config" | "machine" | "dir" | "baseline" | "facts">;

function surroundingsOf(options: Around): Record<(typeof SURROUNDINGS)[number], () => Promise<Found>> {
  return {
    data: () => data(options),
    broker: fact(options, "broker", "the broker"),
    power: async () => buses(options),
    stack: fact(options, "stack", "the place in the Pi Stack"),
    clock: fact(options, "clock", "a synchronised clock"),
    devices: async () => devices(options),
  };
}

/** Whether the slot that runs has all that these checks of another slot did not find; a site's own are not looked at. */
export async function hasAround(checks: readonly string[], options: Around): Promise<boolean> {
  const looks = surroundingsOf(options);
  const found = SURROUNDINGS.filter((name) => checks.includes(name)).map((name) =>
    looks[name]().then(
      ({ isGood }) => isGood,
      () => false,
    ),
  );
  return (await Promise.all(found)).every(Boolean);
}

const DEVICE_NAMES: Record<(typeof DEVICES)[number], RegExp> = {
  gpio: /^gpiochip\d+$/,
  i2c: /^i2c-\d+$/,
  serial: /^tty(AMA|USB|ACM)\d+$/,
};

/** How many devices of each kind there are, as facts: `i2c:2`. */
export function deviceFacts(machine: Pick<Machine, "list">): string[] {
  const names = machine.list("/dev");
  return DEVICES.flatMap((kind) => {
    const count = names.filter((name) => DEVICE_NAMES[kind].test(name)).length;
    return count > 0 ? [`${kind}:${count}`] : [];
  });
}

/** Without the trial's own record nobody knows what to measure by. */
function record({ planProblem }: CheckOptions): Found {
  const problem = planProblem();
  if (problem !== undefined) throw new Error(problem);
  return good("the trial is the one that the old slot armed");
}

/** Up for long enough, answering, and not started over and over. */
async function agent({ config, boot, socket, upSeconds, marks }: CheckOptions): Promise<Found> {
  const own = (await marks()).filter((mark) => mark.boot === boot);
  const count = (what: Mark["what"]) => own.filter((mark) => mark.what === what).length;
  const died = count("agent") - 1 - count("stopped");
  if (died >= MOST_AGENTS - 1) return bad(`it died ${died} times in this trial`);
  const up = Math.floor(upSeconds());
  // Not a no: only too early
  if (upSeconds() < config.agent_seconds)
    throw new Error(`up for ${up} s, ${config.agent_seconds} are needed`);
  const signal = AbortSignal.timeout(SOCKET_MS);
  const { state } = await ask(
    socket,
    { verb: "job.get", args: { last: 1 } },
    { onProgress: () => undefined, limitMs: SOCKET_MS, signal },
  );
  if (state !== "done") throw new Error(`${socket} answers "${state}"`);
  return good(`up for ${up} s, answers on ${socket}`);
}

async function slot({ readSlot }: CheckOptions, signal: AbortSignal): Promise<Found> {
  const wrong = await readSlot(signal);
  return wrong === undefined ? good("all of it is what was signed") : bad(wrong);
}

/** What the next update needs: a folder that keeps what is written. */
async function data({ dir, config, machine }: Around): Promise<Found> {
  if (machine.list(config.run_dir).includes("data-lost"))
    return bad(`${dir} is in memory: the data partition cannot be used`);
  const file = await open(join(dir, "written"), "w", 0o600);
  try {
    await file.write(`${Date.now()}\n`);
    await file.datasync();
  } finally {
    await file.close();
  }
  return good(`${dir} takes what is written`);
}

function fact({ facts }: Around, name: string, what: string): () => Promise<Found> {
  return async () =>
    facts().includes(name) ? good(`${what} is there`) : bad(`the old slot had ${what}, this one has not`);
}

function buses({ baseline, facts }: Around): Found {
  const now = facts();
  const wanted = baseline.filter((fact) => fact.startsWith("bus:"));
  const silent = wanted.filter((bus) => !now.includes(bus)).map((bus) => bus.slice(4));
  return silent.length === 0
    ? good(`${wanted.length === 1 ? "the bus answers" : `all ${wanted.length} buses answer`}`)
    : bad(`bus ${silent.join(", ")} answered in the old slot and is silent now`);
}

function devices({ baseline, facts }: Around): Found {
  const now = facts();
  const missing = DEVICES.flatMap((kind) => {
    const [before, found] = [countOf(baseline, kind), countOf(now, kind)];
    return found < before ? [`${found} of ${before} ${kind}`] : [];
  });
  return missing.length === 0 ? good("as many as in the old slot") : bad(`only ${missing.join(", ")}`);
}

function memory({ machine, config }: CheckOptions): Found {
  const text = Buffer.from(machine.read("/proc/meminfo") ?? []).toString();
  const [, kib] = /^MemAvailable:\s+(\d+) kB$/m.exec(text) ?? [];
  if (kib === undefined) throw new Error("/proc/meminfo does not say how much is available");
  const mib = (bytes: number) => `${Math.floor(bytes / KIB / KIB)} MiB`;
  const found = Number(kib) * KIB;
  return found >= config.memory_min_bytes
    ? good(`${mib(found)} available`)
    : bad(`${mib(found)} available, ${mib(config.memory_min_bytes)} are needed`);
}

async function services(names: readonly string[], limitMs: number): Promise<Found> {
  for (const name of names) {
    const found = await program(["rc-service", name, "status"], limitMs);
    if (!found.isGood) return bad(`${name}: ${found.message}`);
  }
  return good(names.join(", "));
}

/** Runs a program to its end; its last line of output says more. Throws where it cannot be started: then it has not run. */
async function program([name = "", ...args]: readonly string[], limitMs: number): Promise<Found> {
  const options = { timeout: limitMs, killSignal: "SIGKILL", maxBuffer: 65_536 } as const;
  const { error, said } = await new Promise<{ error: ExecFileException | null; said: string }>((resolve) => {
    execFile(name, args, options, (error, out, err) => resolve({ error, said: lastLine(`${out}\n${err}`) }));
  });
  if (!error) return good(said || "exit code 0");
  if (typeof error.code === "string" && error.code.startsWith("E") && !error.code.startsWith("ERR_"))
    throw new Error(`${name}: ${error.message}`);
  const how = error.killed ? `no end within ${limitMs / 1000} s` : `exit code ${error.code ?? error.signal}`;
  return bad(said ? `${how}: ${said}` : how);
}

function lastLine(text: string): string {
  return (
    text
      .trim()
      .split("\n")
      .at(-1)
      ?.replace(/\p{Cc}/gu, "?")
      .slice(0, 200) ?? ""
  );
}

/** A look whose answer stays: reading a slot through costs minutes, and its no ends the trial. */
function once(look: Look): Look {
  let found: Found | undefined;
  return async (signal) => {
    found ??= await look(signal);
    return found;
  };
}
