/**
 * An emulated machine from outside: its lines, what runs in it, its plugs and pins. `pi.ts`, `q35.ts` and `virt.ts` say
 * what machines there are.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { until } from "../node.ts";
import { LIMITS } from "./limits.ts";
import { Line } from "./line.ts";
import { Monitor } from "./monitor.ts";
import { Pins } from "./pins.ts";

/** What the kernel or `init.sh` say when the machine will not come up. */
const TROUBLE = /(Kernel panic.*|(?:init|steps): no .*)/;

/** What a step in the machine came to. */
export interface Ran {
  exit: number;
  out: string;
  err: string;
}

/** A device that can be pulled out, and is at the end. */
export interface Plugged extends AsyncDisposable {
  line: Line;
  unplug(): Promise<void>;
}

/** How the emulator is started. */
export interface Emulator {
  program: "qemu-system-aarch64" | "qemu-system-x86_64";
  args: string[];
  /** Names for the serial lines of the machine, in its order. */
  serial: readonly string[];
  /** Device that carries the steps, `CHARDEV` stands for their line: `usb-serial,chardev=CHARDEV`. */
  control: string[];
  /** What is plugged in when the kernel runs, for the same purpose. */
  plug?: readonly { driver: string; [option: string]: string }[];
}

/** A running machine; gone with its files when it is disposed of, or with the process that started it. */
export class Machine implements AsyncDisposable {
  readonly folder: string;
  readonly lines: ReadonlyMap<string, Line>;
  readonly monitor: Monitor;
  readonly pins: Pins;
  readonly #control: Line;
  readonly #process: Bun.Subprocess<"ignore", "ignore", "pipe">;
  readonly #plugged: Line[] = [];
  /** What the emulator itself says: errors and warnings. */
  #words = "";
  #steps = 0;
  #plugs = 0;

  private constructor(
    folder: string,
    lines: ReadonlyMap<string, Line>,
    parts: { control: Line; monitor: Line; pins: Line },
    emulator: Emulator,
  ) {
    this.folder = folder;
    this.lines = lines;
    this.#control = parts.control;
    const chardev = (id: string, { path }: Line) => ["-chardev", `socket,id=${id},path=${path},server=off`];
    const command = [
      // The machine goes with whoever started it, however that ends.
      ...["setpriv", "--pdeathsig", "KILL"],
      ...[emulator.program, "-nodefaults", "-display", "none", "-no-reboot"],
      ...emulator.args,
      ...[...lines].flatMap(([name, line]) => [...chardev(name, line), "-serial", `chardev:${name}`]),
      ...chardev("control", parts.control),
      ...emulator.control.flatMap((device) => ["-device", device.replace("CHARDEV", "control")]),
      ...[...chardev("monitor", parts.monitor), "-mon", "chardev=monitor,mode=control"],
      ...["-qtest", `unix:${parts.pins.path}`, "-qtest-log", "/dev/null"],
    ];
    this.#process = Bun.spawn(command, { stdin: "ignore", stdout: "ignore", stderr: "pipe" });
    void this.#listen();
    this.monitor = new Monitor(parts.monitor);
    this.pins = new Pins(parts.pins);
  }

  /** Starts it; `folder` for its files is made by `prepare`, which returns how. Resolves when steps can be run. */
  static async start(prepare: (folder: string) => Promise<Emulator>): Promise<Machine> {
    const folder = mkdtempSync(join(tmpdir(), "fruit-machine-"));
    const opened: Line[] = [];
    const open = async (name: string) => {
      const line = await Line.on(join(folder, `${name}.sock`));
      opened.push(line);
      return line;
    };
    let machine: Machine | undefined;
    try {
      const emulator = await prepare(folder);
      const lines = new Map<string, Line>();
      for (const name of emulator.serial) lines.set(name, await open(name));
      const parts = {
        control: await open("control"),
        monitor: await open("monitor"),
        pins: await open("pins"),
      };
      machine = new Machine(folder, lines, parts, emulator);
      await machine.#booted(emulator);
      return machine;
    } catch (error) {
      await machine?.[Symbol.asyncDispose]();
      for (const line of opened) line[Symbol.dispose]();
      rmSync(folder, { recursive: true, force: true });
      throw error;
    }
  }

  /** A serial line of the machine by its name. */
  line(name: string): Line {
    const line = this.lines.get(name);
    if (!line) throw new Error(`no line ${name}; there are ${[...this.lines.keys()].join(", ")}`);
    return line;
  }

  /** Runs a shell script in the machine to its end. */
  async run(script: string, limitMs = LIMITS.command): Promise<Ran> {
    const number = ++this.#steps;
    this.#control.forget();
    this.#control.write(`${number} ${Buffer.from(script).toString("base64")}\n`);
    const answer = new RegExp(`done ${number} (\\d+) =(\\S*) =(\\S*)\\.`);
    const [, exit, out = "", err = ""] = await this.#alive(this.#control.waitFor(answer, limitMs), script);
    const text = (base64: string) => Buffer.from(base64, "base64").toString();
    return { exit: Number(exit), out: text(out), err: text(err) };
  }

  /** Runs a script that must succeed and returns what it printed. */
  async output(script: string, limitMs = LIMITS.command): Promise<string> {
    const { exit, out, err } = await this.run(script, limitMs);
    if (exit !== 0) throw new Error(`${script}: exit ${exit}\n${out}${err}`);
    return out;
  }

  /** Writes a file in the machine. */
  async put(path: string, text: string): Promise<void> {
    await this.output(`cat > ${path} <<'end of file'\n${text}\nend of file`);
  }

  /** Waits until the machine has a device. */
  async has(device: string): Promise<void> {
    await until(device, async () => (await this.run(`test -c ${device}`)).exit === 0, LIMITS.event);
  }

  /** Plugs a USB device of QEMU's in whose far side is the line: `usb-serial`, `usb-redir`. */
  async plug(driver: string): Promise<Plugged> {
    const id = `plug${++this.#plugs}`;
    const line = await Line.on(join(this.folder, `${id}.sock`));
    this.#plugged.push(line);
    const address = { type: "unix", data: { path: line.path } };
    await this.monitor.ask("chardev-add", {
      id,
      backend: { type: "socket", data: { addr: address, server: false } },
    });
    await this.monitor.ask("device_add", { driver, id, chardev: id });
    const unplug = async () => {
      if (this.monitor.deleted.has(id)) return;
      await this.monitor.ask("device_del", { id });
      await until(`${id} is out`, () => this.monitor.deleted.has(id), LIMITS.event);
      // The other's far side leaves with it.
      if (driver !== "usb-redir") await this.monitor.ask("chardev-remove", { id });
      line[Symbol.dispose]();
    };
    return { line, unplug, [Symbol.asyncDispose]: unplug };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill("SIGKILL");
    await this.#process.exited;
    for (const line of [...this.lines.values(), ...this.#plugged]) line[Symbol.dispose]();
    for (const line of [this.#control, this.monitor.line, this.pins.line]) line[Symbol.dispose]();
    rmSync(this.folder, { recursive: true, force: true });
  }

  async #booted({ plug = [] }: Emulator): Promise<void> {
    if (plug.length > 0) await this.#alive(this.#reaches(/^steps: /m), "boot");
    for (const [index, device] of plug.entries())
      await this.monitor.ask("device_add", { id: `control${index}`, ...device });
    await this.#alive(this.#reaches(/^ready$/m), "boot");
  }

  /** Waits until one of the lines says it, or says that it never will. */
  #reaches(what: RegExp): Promise<boolean> {
    const lines = [...this.lines.values(), this.#control];
    return until(
      `${what}`,
      () => {
        const [, trouble] = lines.map(({ text }) => TROUBLE.exec(text)).find(Boolean) ?? [];
        if (trouble !== undefined) throw new Error(trouble);
        return lines.some(({ text }) => what.test(text));
      },
      LIMITS.boot,
    );
  }

  async #listen(): Promise<void> {
    for await (const chunk of this.#process.stderr.pipeThrough(new TextDecoderStream())) this.#words += chunk;
  }

  /** What is waited for, or the end of the machine with what its console said last. */
  async #alive<T>(waiting: Promise<T>, what: string): Promise<T> {
    const last = () =>
      [...this.lines, ["emulator", { text: this.#words }] as const]
        .map(([name, { text }]) => `${name}: …${text.slice(-2000)}`)
        .join("\n");
    const ended = this.#process.exited.then((code) => {
      throw new Error(`the emulator ended with ${code}`);
    });
    try {
      return await Promise.race([waiting, ended]);
    } catch (cause) {
      throw new Error(`${what}: ${cause instanceof Error ? cause.message : cause}\n${last()}`, { cause });
    } finally {
      ended.catch(() => undefined);
      waiting.catch(() => undefined);
    }
  }
}
