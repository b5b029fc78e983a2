/** An emulated Pi with a card in it and somebody who sits at its console: for what waits for a person, for one start of it. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { until } from "../node.ts";
import { cached } from "./cache.ts";
import { LIMITS } from "./limits.ts";
import { Line } from "./line.ts";
import { Monitor } from "./monitor.ts";

/** A Pi that is switched on, and off at its first reset. */
export class Seat implements AsyncDisposable {
  readonly #folder: string;
  readonly #console: Line;
  readonly #monitor: Monitor;
  readonly #process: Bun.Subprocess;

  private constructor(card: string, parts: { folder: string; console: Line; monitor: Line }) {
    this.#folder = parts.folder;
    this.#console = parts.console;
    this.#monitor = new Monitor(parts.monitor);
    const chardev = (id: string, { path }: Line) => ["-chardev", `socket,id=${id},path=${path},server=off`];
    this.#process = Bun.spawn(
      [
        ...["setpriv", "--pdeathsig", "KILL", "qemu-system-aarch64"],
        ...["-M", "raspi3b", "-accel", "tcg,thread=single", "-nodefaults", "-display", "none", "-no-reboot"],
        ...["-kernel", cached("arm64", "u-boot.bin"), "-dtb", cached("arm64", "bcm2837-rpi-3-b.dtb")],
        ...["-append", "console=ttyS1,115200", "-drive", `file=${card},format=raw,if=sd,cache=writeback`],
        ...[
          "-netdev",
          "user,id=net",
          ...chardev("monitor", parts.monitor),
          "-mon",
          "chardev=monitor,mode=control",
        ],
        ...["-serial", "null", ...chardev("console", parts.console), "-serial", "chardev:console"],
      ],
      { stdio: ["ignore", "ignore", "ignore"] },
    );
  }

  /** Switches it on. */
  static async on(card: string): Promise<Seat> {
    const folder = mkdtempSync(join(tmpdir(), "fruit-seat-"));
    const line = (name: string) => Line.on(join(folder, name));
    const [console, monitor] = await Promise.all([line("console"), line("monitor")]);
    return new Seat(card, { folder, console, monitor });
  }

  /** Waits until the console says something; what was said before the last typed line is forgotten. */
  async hears(what: RegExp, limitMs = LIMITS.boot): Promise<RegExpExecArray> {
    const text = () => this.#console.text.replaceAll("\r", "");
    const found = await until(`${what}`, () => what.exec(text()) ?? undefined, limitMs).catch((cause) => {
      throw new Error(`${what}: not on the console\n…${text().slice(-3000)}`, { cause });
    });
    return found;
  }

  /** Types a line, and waits for what comes of it. */
  types(line: string, what: RegExp, limitMs = LIMITS.command): Promise<RegExpExecArray> {
    this.#console.forget();
    this.#console.write(`${line}\n`);
    return this.hears(what, limitMs);
  }

  /** Plugs a network adapter into its USB socket; QEMU's DHCP gives the machine 10.0.2.15. */
  async plug(): Promise<void> {
    await this.#monitor.ask("device_add", { driver: "usb-net", id: "net0", netdev: "net" });
  }

  /** Cuts its power. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill("SIGKILL");
    await this.#process.exited;
    this.#console[Symbol.dispose]();
    this.#monitor.line[Symbol.dispose]();
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
