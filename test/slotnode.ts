/**
 * A node with slots: the agent's own service on a card in a file, U-Boot by its model, and a world that the test holds in its hand.
 * The initramfs and the watchdog feeder are told in a line each.
 */
import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import * as v from "valibot";
import type { OpenCard } from "../agent/boot/card.ts";
import type { HistoryLine } from "../agent/boot/history.ts";
import { parseMarks } from "../agent/boot/marks.ts";
import { openNodeCard } from "../agent/boot/open.ts";
import { type BootOptions, createBootService } from "../agent/boot/service.ts";
import type { Slots } from "../agent/boot/slots.ts";
import type { BootStatus } from "../agent/boot/status.ts";
import type { Call, Command, Outcome } from "../agent/commands.ts";
import { type Config, parseConfig } from "../agent/config.ts";
import { KINDS, type KindName, type Payload as Said } from "../agent/messages.ts";
import type { SlotName } from "../boot/layout.ts";
import type { BootSwitch } from "../boot/switch.ts";
import { openDisk } from "../hal/disk.ts";
import type { Machine } from "../hal/ports.ts";
import { openSim } from "../hal/sim/hal.ts";
import { FileCard } from "./card.ts";
import { type Payload, payloadOf, SLOT_BYTES, SLOT_OFFSETS } from "./crash/card.ts";
import { LOCAL } from "./desk.ts";
import { scratch, until } from "./node.ts";

/** What works, as the test wants it; may differ from slot to slot. */
export interface World {
  broker: boolean;
  clock: boolean;
  stack: boolean;
  buses: number[];
  devices: string[];
  memoryKib: number;
  isPowerBusy: boolean;
}

const WELL: World = {
  broker: true,
  clock: true,
  stack: false,
  buses: [0],
  devices: ["gpiochip0", "i2c-1", "ttyAMA0", "tty1"],
  memoryKib: 400_000,
  isPowerBusy: false,
};

/** The old release, and one to try. */
export const OLD = payloadOf(4n, 200_000);
export const NEW = payloadOf(5n, 200_000);

/** Quick enough for a test, and still in order. */
const QUICK = {
  deadline_seconds: 20,
  settle_seconds: 0.1,
  check_seconds: 0.05,
  agent_seconds: 0.1,
  healthy_seconds: 30,
  loop_starts: 100,
};

/** A switch with some of its methods replaced. */
export function altered(boot: BootSwitch, change: Partial<BootSwitch>): BootSwitch {
  return {
    kind: boot.kind,
    current: boot.current,
    records: () => boot.records(),
    read: () => boot.read(),
    setState: (slot, to) => boot.setState(slot, to),
    setPrimary: (slot, why) => boot.setPrimary(slot, why),
    armTrial: (slot, tries) => boot.armTrial(slot, tries),
    settle: () => boot.settle(),
    ...change,
  };
}

/** A node between two power cuts. */
export class SlotNode implements AsyncDisposable {
  readonly card: FileCard;
  readonly folder = scratch();
  readonly dir = join(this.folder.path, "data/boot");
  readonly runDir = join(this.folder.path, "run");
  readonly settings: object;
  /** What each slot's system finds. */
  readonly worlds: Record<SlotName, World> = { a: { ...WELL }, b: { ...WELL } };
  /** Further files of the system that runs, by path. */
  readonly files: Record<string, string> = {};
  /** Wraps the switch, to make it fail. */
  wrap: (boot: BootSwitch) => BootSwitch = (boot) => boot;
  #starts = 0;
  #running: Running | undefined;

  constructor(settings: object = {}, card: { b?: Payload } = {}) {
    this.settings = settings;
    this.card = new FileCard(join(this.folder.path, "card.img"), OLD, card.b);
    mkdirSync(this.runDir);
  }

  /** Power comes, or a restart: U-Boot, the kernel, the initramfs and, unless left out, the agent. */
  async start(options: { init?: boolean; agent?: boolean } = {}): Promise<Running> {
    await this.off();
    const { boots, args } = this.card.start();
    if (boots !== "a" && boots !== "b") throw new Error(`U-Boot starts ${boots}: ${args}`);
    const bootId = `boot-${++this.#starts}`;
    rmSync(this.runDir, { recursive: true, force: true });
    mkdirSync(this.runDir);
    this.#running = new Running(this, boots, args, bootId);
    if (options.init !== false) this.#running.mark("init");
    if (options.init !== false && options.agent !== false) await this.#running.startAgent();
    return this.#running;
  }

  /** The power is cut. */
  async off(): Promise<void> {
    await this.#running?.killAgent();
    this.#running = undefined;
  }

  /** Lines of the history, oldest first. */
  get history(): HistoryLine[] {
    const file = join(this.dir, "history.jsonl");
    if (!existsSync(file)) return [];
    return readFileSync(file, "utf8")
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
  }

  get told(): string[] {
    return this.history.map(({ what, cause }) => (cause ? `${what} ${cause}` : what));
  }

  get marks() {
    return parseMarks(
      existsSync(join(this.dir, "marks")) ? readFileSync(join(this.dir, "marks"), "utf8") : "",
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.off();
    this.folder[Symbol.dispose]();
  }

  /** Good in slot a, seen to work, with a release staged in slot b and armed. */
  async armed(payload = NEW): Promise<void> {
    const node = await this.start();
    await node.settled();
    this.card.stage("b", payload);
    const outcome = await node.run("boot.try", { no_reboot: true });
    if (outcome.state !== "done") throw new Error(outcome.message);
    await node.killAgent();
  }
}

/** One start of a node, with or without its agent. */
export class Running {
  readonly slot: SlotName;
  readonly args: string;
  readonly bootId: string;
  readonly alarms = new Map<string, string>();
  readonly events: { type: string; [key: string]: unknown }[] = [];
  readonly logged: string[] = [];
  readonly states: Said<"state/boot">[] = [];
  readonly updates: Said<"state/update">[] = [];
  readonly #node: SlotNode;
  readonly #began = performance.now();
  #stop = new AbortController();
  #part: Promise<void> | undefined;
  #commands: Command[] = [];
  #slots: Slots | undefined;

  constructor(node: SlotNode, slot: SlotName, args: string, bootId: string) {
    this.#node = node;
    this.slot = slot;
    this.args = args;
    this.bootId = bootId;
  }

  /** What the initramfs or the feeder writes. */
  mark(what: string, text = ""): void {
    const [, trial] = /fruit\.trial=(\d+)/.exec(this.args) ?? [];
    const [, attempt] = /fruit\.try=(\d+)/.exec(this.args) ?? [];
    if (trial === undefined) return;
    mkdirSync(this.#node.dir, { recursive: true, mode: 0o700 });
    appendFileSync(
      join(this.#node.dir, "marks"),
      `${trial} ${attempt} ${this.bootId} ${what}${text && ` ${text}`}\n`,
    );
  }

  get config(): Config["boot"] {
    const reboot = ["/bin/sh", "-c", `echo again >> ${join(this.#node.runDir, "rebooted")}`];
    return parseConfig("node.json", {
      site: "lab",
      boot: { ...QUICK, run_dir: this.#node.runDir, reboot_command: reboot, ...this.#node.settings },
    }).boot;
  }

  /** The slots as its agent has them. */
  get slots(): Slots {
    if (!this.#slots) throw new Error("no agent was started");
    return this.#slots;
  }

  /** Since the machine was started. */
  get upSeconds(): number {
    return (performance.now() - this.#began) / 1000;
  }

  /** How often the reboot command was run. */
  get reboots(): number {
    const file = join(this.#node.runDir, "rebooted");
    return existsSync(file) ? readFileSync(file, "utf8").trimEnd().split("\n").length : 0;
  }

  async startAgent(more: Partial<BootOptions> = {}): Promise<void> {
    const node = this.#node;
    const world = () => node.worlds[this.slot];
    const socket = join(node.folder.path, `${this.bootId}.sock`);
    const door = createServer((peer) => void peer.end(`${JSON.stringify({ state: "done" })}\n`));
    rmSync(socket, { force: true });
    await new Promise<void>((resolve) => door.listen(socket, resolve));
    this.#stop = new AbortController();
    const service = createBootService({
      config: this.config,
      dataDir: join(node.folder.path, "data"),
      socket,
      hal: { machine: this.machine(), openDisk },
      open: () => this.#open(),
      isBrokerReached: () => world().broker,
      buses: () => world().buses,
      isStackBeating: () => world().stack,
      isPowerBusy: () => world().isPowerBusy,
      clock: () => ({ synced: world().clock }),
      publish: (kind, instance, payload) => {
        v.parse(KINDS[kind as KindName].schema, payload);
        if (`${kind}/${instance}` === "state/boot/main") this.states.push(payload as Said<"state/boot">);
        if (`${kind}/${instance}` === "state/update/main") this.updates.push(payload as Said<"state/update">);
      },
      tell: (type, facts) => void this.events.push({ type, ...facts }),
      alarm: (id, alarm) => {
        if (alarm) this.alarms.set(id, `${alarm.severity}: ${alarm.message}`);
        else this.alarms.delete(id);
      },
      log: (level, what, fields) => void this.logged.push(`${level} ${what} ${JSON.stringify(fields)}`),
      ...more,
    });
    this.#commands = service.commands;
    this.#slots = service.slots;
    this.#part = service.part(this.#stop.signal).finally(() => door.close());
  }

  /** SIGTERM and its end, or a crash: the one leaves word, the other does not. */
  async killAgent(): Promise<void> {
    const before = this.#node.marks.length;
    const list = join(this.#node.dir, `starts.${this.slot}`);
    const starts = existsSync(list) ? readFileSync(list) : undefined;
    this.#stop.abort();
    await this.#part;
    this.#part = undefined;
    // A power cut leaves no word, and takes none back; only `stopAgent` does
    if (starts) writeFileSync(list, starts);
    const file = join(this.#node.dir, "marks");
    if (this.#node.marks.length > before && this.#node.marks.at(-1)?.what === "stopped")
      writeFileSync(file, `${readFileSync(file, "utf8").trimEnd().split("\n").slice(0, -1).join("\n")}\n`);
  }

  /** The agent is told to stop. */
  async stopAgent(): Promise<void> {
    this.#stop.abort();
    await this.#part;
    this.#part = undefined;
  }

  run(
    verb: string,
    args: Record<string, unknown> = {},
    reason: string | undefined = "a test",
  ): Promise<Outcome> {
    const row = this.#commands.find((one) => one.verb === verb);
    if (!row) throw new Error(`no verb ${verb}`);
    const call: Call<unknown> = {
      id: "c1",
      args: v.parse(row.args, args),
      ...(reason === undefined ? {} : { reason }),
      caller: LOCAL,
      progress: () => undefined,
      signal: this.#stop.signal,
    };
    return row.run(call as Call<never>);
  }

  /** How a command is refused, `code: message`. */
  refusal(verb: string, args: Record<string, unknown> = {}): Promise<string> {
    return this.run(verb, args).then(
      ({ state }) => state,
      (error) => `${error.code}: ${error.message}`,
    );
  }

  async status(): Promise<BootStatus> {
    return (await this.run("boot.status")).result as BootStatus;
  }

  async explain(): Promise<string> {
    const { result } = await this.run("boot.explain");
    return (result as { sentences: string[] }).sentences.join("\n");
  }

  /** The agent knows what this start is, and has said so. */
  async settled(): Promise<void> {
    await until("a first look at the card", () => this.states.length > 0 || this.alarms.has("boot-card"));
    await until("what works is written down", () =>
      this.slot === this.#node.card.record.primary ? existsSync(join(this.#node.dir, "baseline.json")) : true,
    );
  }

  async #open(): Promise<OpenCard | undefined> {
    const card = await openNodeCard({ machine: this.machine(), openDisk }, this.#node.card.path, "write");
    return card && { ...card, boot: this.#node.wrap(card.boot) };
  }

  /** The machine as its system sees it. */
  machine(): Machine {
    const { machine } = openSim({ seed: 1, boards: [0], wireTime: false, faults: [], clockSynced: true });
    const world = () => this.#node.worlds[this.slot];
    const files: Record<string, () => string> = {
      "/proc/cmdline": () => `console=tty1 ${this.args} panic=10\n`,
      "/proc/uptime": () => `${this.upSeconds.toFixed(2)} 0.00\n`,
      "/proc/meminfo": () => `MemTotal: 900000 kB\nMemAvailable: ${world().memoryKib} kB\n`,
    };
    return {
      ...machine,
      bootId: this.bootId,
      root: () => ({ disk: this.#node.card.path, offset: SLOT_OFFSETS[this.slot], bytes: SLOT_BYTES }),
      read: (path) => {
        const text = this.#node.files[path];
        const file = text === undefined ? files[path] : () => text;
        return file ? new TextEncoder().encode(file()) : machine.read(path);
      },
      list: (path) => {
        if (path === "/dev") return world().devices;
        return path === this.#node.runDir ? readdirSync(path) : machine.list(path);
      },
    };
  }
}
