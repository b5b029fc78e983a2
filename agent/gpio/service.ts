/** GPIO lines that a person may look at and touch, by name. */
import * as v from "valibot";
import type { Hal } from "../../hal/ports.ts";
import {
  type Call,
  type Caller,
  type Command,
  clip,
  command,
  isProven,
  type Outcome,
  Refusal,
} from "../commands.ts";
import type { Config } from "../config.ts";
import { hatOf } from "../stack/hat.ts";
import { type Claim, claimsOf, usesOf } from "./claims.ts";
import { NamedLine } from "./line.ts";
import { followChanges } from "./watch.ts";

/** Pulse of a line when nobody says how long, as far as its limits let it. */
const PULSE_MS = 100;
/** Watches at once, and how many of them anybody's may be. */
const MOST_WATCHES = 8;
const MOST_ANYBODYS = 4;
/** Outlets of a key that may switch all: a line is no outlet, and whoever may touch only some outlets may touch none. */
const ANY_OUTLET = "1000.0";

/** What the service is made of. */
export interface GpioOptions {
  config: Config;
  hal: Pick<Hal, "listGpio" | "openGpio" | "machine">;
  /** Whether this node plays its role in a Pi Stack, whose lines are then taken. */
  hasStackRole: boolean;
}

/** What `gpio.list` says of a line. */
export interface ListedLine {
  gpio: number;
  /** The kernel's name. */
  label?: string;
  /** Ours. */
  line?: string;
  direction: "in" | "out" | "unknown";
  used_by?: string;
}

/** What `gpio.get`, `gpio.set` and `gpio.pulse` say of a line. */
export interface LineValue {
  line: string;
  gpio: number;
  value: 0 | 1;
}

const Word = v.pipe(v.string(), v.minLength(1), v.maxLength(64));
const Words = v.pipe(v.array(Word), v.minLength(1), v.maxLength(32));

/** The commands about GPIO lines, and how what they hold open is given back. */
export function createGpioService(options: GpioOptions): { commands: Command[]; close(): Promise<void> } {
  const { config, hal } = options;
  const lines = new Map(
    Object.entries(config.gpio).map(([name, line]) => [name, new NamedLine(name, line, hal)]),
  );
  const table = new LineTable(options, lines);
  const watches = new Set<Pick<Caller, "who">>();
  const commands = [
    command({
      verb: "gpio.list",
      summary: "Lists the GPIO lines of this node, and who uses them",
      tier: 0,
      role: "read",
      args: v.strictObject({}),
      run: async () => ({ state: "done", result: { lines: await table.list() } }),
    }),
    command({
      verb: "gpio.get",
      summary: "Reads GPIO lines that the configuration names",
      tier: 0,
      role: "read",
      args: v.strictObject({ lines: v.optional(Words) }),
      run: async ({ args }) => {
        const asked = args.lines ? table.resolve(args.lines) : [...lines.values()];
        const values = await Promise.all(asked.map(async (line) => said(line, await line.get())));
        return { state: "done", result: { lines: values } };
      },
    }),
    command({
      verb: "gpio.set",
      summary: "Drives a GPIO line that the configuration names as an output",
      tier: 2,
      role: "power",
      args: v.strictObject({ line: Word, value: v.picklist([0, 1]) }),
      run: async ({ args, caller }) => {
        refuseLimited(caller, "set");
        const line = table.find(args.line);
        return setTo(line, args.value, await line.set(args.value));
      },
    }),
    command({
      verb: "gpio.pulse",
      summary: "Makes an output the opposite of what it is for a moment, and back",
      tier: 2,
      role: "power",
      args: v.strictObject({
        line: Word,
        ms: v.optional(v.pipe(v.number(), v.minValue(1), v.maxValue(60_000))),
      }),
      run: async ({ args, caller, signal }) => {
        refuseLimited(caller, "pulse");
        return pulse(table.find(args.line), args.ms, signal);
      },
    }),
    command({
      verb: "gpio.watch",
      summary: "Tells every change of inputs for a while; first how they are",
      tier: 0,
      role: "read",
      args: v.strictObject({
        lines: Words,
        seconds: v.optional(v.pipe(v.number(), v.minValue(1), v.maxValue(3600)), 60),
      }),
      run: async (call: Call<{ lines: string[]; seconds: number }>) => {
        const asked = table.resolve(call.args.lines);
        const watch = { who: call.caller.who };
        refuseCrowd([...watches], watch);
        watches.add(watch);
        try {
          return { state: "done", result: await followChanges(asked, call) };
        } finally {
          watches.delete(watch);
        }
      },
    }),
  ];
  return {
    commands,
    close: async () => void (await Promise.allSettled([...lines.values()].map((line) => line.close()))),
  };
}

/** What the configuration, the HAT and the kernel say of lines. */
class LineTable {
  readonly #options: GpioOptions;
  readonly #lines: ReadonlyMap<string, NamedLine>;

  constructor(options: GpioOptions, lines: ReadonlyMap<string, NamedLine>) {
    this.#options = options;
    this.#lines = lines;
  }

  async list(): Promise<ListedLine[]> {
    const named = new Map([...this.#lines.values()].map((line) => [line.gpio, line]));
    const claims = this.#claims();
    return (await this.#options.hal.listGpio()).map(({ gpio, name, consumer, direction }) => {
      const line = named.get(gpio)?.name;
      const used = this.#user(gpio, claims) ?? consumer;
      return {
        gpio,
        ...(name === undefined ? {} : { label: name }),
        ...(line === undefined ? {} : { line }),
        direction,
        ...(used === undefined ? {} : { used_by: used }),
      };
    });
  }

  resolve(words: readonly string[]): NamedLine[] {
    return [...new Set(words.map((word) => this.find(word)))];
  }

  /** The line of that name. Throws `Refusal`, which says who has it: busy, or unknown-gpio where a number was meant. */
  find(word: string): NamedLine {
    const line = this.#lines.get(word);
    if (line) {
      const user = this.#user(line.gpio, this.#claims());
      if (user === undefined) return line;
      throw new Refusal("busy", `${line.name}: GPIO${line.gpio} is taken: ${user}`);
    }
    const names = [...this.#lines.keys()];
    const gpio = /^(?:gpio)?(\d{1,3})$/i.exec(word)?.[1];
    const user = gpio === undefined ? undefined : this.#user(Number(gpio), this.#claims());
    const what = user === undefined ? `no line "${clip(word)}"` : `GPIO${gpio} is taken: ${user}`;
    throw new Refusal(
      "unknown-gpio",
      `${what}; ${names.length > 0 ? `there are ${names.join(", ")}` : 'name lines under "gpio" in node.json to use them'}`,
    );
  }

  #claims(): ReadonlyMap<number, Claim> {
    const { config, hal, hasStackRole } = this.#options;
    const { power, consoles } = config;
    const stack = hasStackRole ? config.stack : { ...config.stack, role: "off" as const };
    const claims = claimsOf({ power, consoles, stack }, usesOf(hal.machine));
    return new Map(claims.map((claim) => [claim.gpio, claim]));
  }

  /** Who has a line by configuration, with the HAT it belongs to. */
  #user(gpio: number, claims: ReadonlyMap<number, Claim>): string | undefined {
    const claim = claims.get(gpio);
    if (!claim) return undefined;
    const hat = /^(HAT|Pi Stack)/.test(claim.by) ? hatOf(this.#options.hal.machine) : undefined;
    return hat === undefined ? claim.by : `${claim.by} (${clip(hat)})`;
  }
}

const said = ({ name, gpio }: NamedLine, value: 0 | 1): LineValue => ({ line: name, gpio, value });

function setTo(line: NamedLine, wanted: 0 | 1, found: 0 | 1): Outcome {
  const result = said(line, found);
  if (found === wanted) return { state: "done", result };
  return {
    state: "unconfirmed",
    message: `${line.name}: reads ${found} after ${wanted} was set; somebody else drives GPIO${line.gpio}, or it is shorted`,
    result,
  };
}

async function pulse(line: NamedLine, asked: number | undefined, signal: AbortSignal): Promise<Outcome> {
  const { min, max } = line.pulseMs;
  const ms = asked ?? Math.min(Math.max(PULSE_MS, min), max);
  if (ms < min || ms > max)
    throw new Refusal("bad-args", `${line.name}: ${ms} ms; a pulse of it takes ${min} to ${max} ms`);
  const { value, isCut } = await line.pulse(ms, signal);
  if (!isCut) return { state: "done", result: { ...said(line, value), ms } };
  return {
    state: "failed",
    code: "stopping",
    message: `${line.name}: the agent stopped before ${ms} ms were over; it is ${value} again`,
  };
}

function refuseLimited(caller: Caller, what: string): void {
  if (!caller.mayOutlet(ANY_OUTLET))
    throw new Refusal(
      "unauthorised",
      `${caller.who} may not gpio ${what}: only with outlets=*, as a line is no outlet`,
    );
}

function refuseCrowd(watches: readonly Pick<Caller, "who">[], { who }: Pick<Caller, "who">): void {
  const anybodys = watches.filter((watch) => !isProven(watch.who)).length;
  if (watches.length >= MOST_WATCHES || (!isProven(who) && anybodys >= MOST_ANYBODYS))
    throw new Refusal("busy", `${watches.length} watches are under way; wait until one of them is over`);
}
