/** A console service on scripted lines, asked as the agent would, in time that passes when told. */
import { jest } from "bun:test";
import { realpath } from "node:fs/promises";
import * as v from "valibot";
import { type Caller, type Outcome, ROLES } from "../agent/commands.ts";
import { parseConfig } from "../agent/config.ts";
import type { Attachment, AttachOptions, Item } from "../agent/console/port.ts";
import {
  type ConsoleService,
  createConsoleService,
  type OutletChange,
  type OutletView,
} from "../agent/console/service.ts";
import { KINDS, type KindName, type Lock } from "../agent/messages.ts";
import type { AuditEntry } from "../agent/record/audit.ts";
import { HalError, type LineEvents, type LineSettings, type OutletId } from "../hal/ports.ts";

/** One serial line that says what the test wants and remembers what it was told. */
export class ScriptedLine {
  settings: LineSettings | undefined;
  /** Everything that was done to it, in order: text written as it is, the rest in words. */
  readonly told: string[] = [];
  /** Attempts to open it, by `performance.now()`. */
  readonly opened: number[] = [];
  /** Why it cannot be opened. */
  failing: HalError | undefined;
  /** Writes wait while this is set. */
  blocked: Promise<void> | undefined;
  closed = 0;
  #events: LineEvents | undefined;

  async open(settings: LineSettings, events: LineEvents) {
    this.opened.push(performance.now());
    if (this.failing) throw this.failing;
    if (this.#events) throw new HalError("busy", "is open already");
    this.settings = { ...settings };
    this.#events = events;
    const reach = () => {
      if (this.#events !== events) throw new HalError("io", "the line is closed");
    };
    return {
      write: async (bytes: Uint8Array) => {
        reach();
        await this.blocked;
        reach();
        this.told.push(Buffer.from(bytes).toString("latin1"));
      },
      sendBreak: async (ms: number) => {
        reach();
        this.told.push(`(break ${ms} ms)`);
      },
      setLines: async (lines: { dtr?: boolean; rts?: boolean }) => {
        reach();
        this.told.push(`(lines ${JSON.stringify(lines)})`);
      },
      change: async (changed: Partial<LineSettings>) => {
        reach();
        this.told.push(`(change ${JSON.stringify(changed)})`);
      },
      close: async () => {
        this.closed++;
        if (this.#events === events) this.#events = undefined;
      },
    };
  }

  get isOpen(): boolean {
    return this.#events !== undefined;
  }

  say(text: string | Uint8Array): void {
    this.#events?.bytes(typeof text === "string" ? Buffer.from(text) : text);
  }

  lose(why = "unplugged"): void {
    const events = this.#events;
    this.#events = undefined;
    events?.gone(new HalError("io", `/dev/ttyUSB0: ${why}`));
  }
}

/** Somebody at a console: what they were shown, as a terminal would. */
export interface Person {
  attachment: Attachment;
  items: Item[];
  /** Bytes as Latin-1 text, marks as `[text]`, views as nothing; since the last time. */
  shown(): string;
  marks(): string[];
  views(): { mayWrite: boolean; writer: string | null }[];
  ended: string[];
  /** Shows nothing until called again with false. */
  stop(isStopped: boolean): void;
}

/** A service and everything it said. */
export interface ConsoleBench {
  service: ConsoleService;
  lines: Map<string, ScriptedLine>;
  line: ScriptedLine;
  said: Map<string, Record<string, unknown>>;
  /** Every `state/console` that was published, with its moment. */
  states: { at: number; state: Record<string, unknown> }[];
  alarms: Map<string, string>;
  events: Record<string, unknown>[];
  audited: AuditEntry[];
  logged: string[];
  locks: Map<string, Lock>;
  happen(outlet: OutletId, change: OutletChange): void;
  attach(who: string, options?: Partial<AttachOptions> & { console?: string }): Person;
  ask(
    verb: string,
    args: unknown,
    from?: { who?: string; reason?: string; door?: Caller["door"] },
  ): Promise<Outcome>;
  pass(ms: number): Promise<void>;
  /** Starts the part and lets the lines open. */
  start(): Promise<void>;
  stop(): Promise<void>;
}

/** Lets everything that is ready run, also what waits for the disk. */
export async function settle(): Promise<void> {
  for (let turns = 0; turns < 6; turns++) {
    await realpath("/");
    for (let ticks = 0; ticks < 8; ticks++) await Promise.resolve();
  }
}

/** Makes a service with these consoles; `rack1-a` on /dev/ttyUSB0 behind outlet 1.0 unless said otherwise. */
export function consoleBench(
  options: {
    consoles?: Record<string, Record<string, unknown>>;
    kernelConsoles?: string[];
    teleSeconds?: number;
    /** In place of `locks` and `happen`. */
    outlets?: OutletView;
  } = {},
): ConsoleBench {
  const { consoles = { "rack1-a": { device: "/dev/ttyUSB0", outlet: "1.0" } } } = options;
  const config = parseConfig("test", {
    site: "here",
    power: { buses: [{ driver: "sim", boards: [1] }] },
    consoles,
  }).consoles;
  const lines = new Map(Object.values(config).map(({ device }) => [device, new ScriptedLine()]));
  const said: ConsoleBench["said"] = new Map();
  const states: ConsoleBench["states"] = [];
  const alarms = new Map<string, string>();
  const events: Record<string, unknown>[] = [];
  const audited: AuditEntry[] = [];
  const logged: string[] = [];
  const locks = new Map<string, Lock>();
  const listeners: ((outlet: OutletId, change: OutletChange) => void)[] = [];
  const stop = new AbortController();
  const service = createConsoleService({
    config,
    hal: {
      openLine: async (device, settings, lineEvents) => {
        const line = lines.get(device);
        if (!line) throw new Error(`no line ${device}`);
        return line.open(settings, lineEvents);
      },
    },
    outlets: options.outlets ?? {
      lockOf: (outlet) => locks.get(outlet),
      onChange: (happened) => void listeners.push(happened),
    },
    publish: (kind, instance, payload) => {
      // Whatever is published keeps to the contract
      if (payload !== null) v.parse(KINDS[kind as KindName].schema, payload);
      const facts = (payload ?? {}) as Record<string, unknown>;
      if (kind === "state/console") states.push({ at: performance.now(), state: facts });
      said.set(`${kind}/${instance}`, facts);
    },
    alarm: (id, alarm) => {
      if (alarm) alarms.set(id, `${alarm.severity}: ${alarm.message}`);
      else alarms.delete(id);
    },
    tell: (type, facts) => void events.push({ type, ...facts }),
    audit: (entry) => void audited.push(entry),
    teleSeconds: options.teleSeconds ?? 0,
    kernelConsoles: options.kernelConsoles ?? [],
    clock: () => ({ synced: true }),
    random: () => 0.5,
    log: (_level, what, fields) => void logged.push(`${what} ${JSON.stringify(fields)}`),
  });
  let running = Promise.resolve();
  const pass = async (ms: number) => {
    const step = ms > 10_000 ? 1000 : ms > 1000 ? 100 : 10;
    for (let left = ms; left > 0; left -= step) {
      jest.advanceTimersByTime(Math.min(step, left));
      await settle();
    }
  };
  return {
    service,
    lines,
    line: [...lines.values()][0] ?? new ScriptedLine(),
    said,
    states,
    alarms,
    events,
    audited,
    logged,
    locks,
    happen: (outlet, change) => {
      for (const listener of listeners) listener(outlet, change);
    },
    attach: (who, { console: name, ...rest } = {}) => {
      const console = service.consoles.get(name ?? Object.keys(consoles)[0] ?? "");
      if (!console) throw new Error(`no console ${name}`);
      return person((means) =>
        console.attach({ who, door: "socket", wants: "write", replayLines: 0, ...means, ...rest }),
      );
    },
    ask: async (verb, args, { who = "local:alice", reason, door = "socket" } = {}) => {
      const row = service.commands.find((command) => command.verb === verb);
      if (!row) throw new Error(`no row ${verb}`);
      const parsed = v.parse(row.args, args);
      row.outlets?.(parsed);
      return row.run({
        id: "cmd-1",
        args: parsed,
        ...(reason === undefined ? {} : { reason }),
        caller: { door, who, roles: new Set(ROLES), mayOutlet: () => true },
        progress: () => undefined,
        signal: stop.signal,
      });
    },
    pass,
    start: async () => {
      running = service.part(stop.signal);
      await settle();
    },
    stop: async () => {
      stop.abort();
      let isOver = false;
      const over = running.finally(() => {
        isOver = true;
      });
      for (let turns = 0; turns < 300 && !isOver; turns++) await pass(10);
      await over;
    },
  };
}

function person(attach: (means: Pick<AttachOptions, "take" | "ended">) => Attachment): Person {
  const items: Item[] = [];
  const ended: string[] = [];
  let from = 0;
  let gate: { promise: Promise<void>; resolve: () => void } | undefined;
  const attachment = attach({
    take: async (item) => {
      items.push(item);
      await gate?.promise;
    },
    ended: (why) => void ended.push(why),
  });
  return {
    attachment,
    items,
    ended,
    shown: () => {
      const text = items.slice(from).map(textOf).join("");
      from = items.length;
      return text;
    },
    marks: () => items.flatMap((item) => (item.kind === "mark" ? [item.mark.text] : [])),
    views: () =>
      items.flatMap((item) =>
        item.kind === "view" ? [{ mayWrite: item.mayWrite, writer: item.view.writer }] : [],
      ),
    stop: (isStopped) => {
      gate?.resolve();
      gate = isStopped ? Promise.withResolvers<void>() : undefined;
    },
  };
}

function textOf(item: Item): string {
  if (item.kind === "bytes") return Buffer.from(item.bytes).toString("latin1");
  return item.kind === "mark" ? `[${item.mark.text}]` : "";
}
