/** Lines of the initramfs under BusyBox, with folders of a test in place of the node's and nothing that would reach this machine. */
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { scratch } from "./node.ts";
import { ROOTFS, runScript } from "./shell.ts";

const LIB = join(ROOTFS, "initramfs/lib/fruit");
const SHARED = ["disk.sh", "fail.sh", "starts.sh", "guard.sh"];

/** The words that init shares, without what takes time or has an effect; `$LOG` has what it has done. */
const WORDS = [
  ...SHARED.map((name) => `. "$FRUIT_LIB/${name}"`),
  'say() { echo "$*"; }',
  "sleep() { :; }",
  "usleep() { command sleep 0.01; }",
  "sync() { :; }",
  "umount() { :; }",
  'restart() { echo restart >>"$LOG"; }',
].join("\n");

/** The part of init that this finds. Throws where it finds none. */
export function linesOfInit(part: RegExp): string {
  const [, lines] = part.exec(readFileSync(join(ROOTFS, "initramfs/init"), "utf8")) ?? [];
  if (!lines) throw new Error(`init has nothing like ${part}`);
  return lines;
}

/** A node's initramfs: its data stays from start to start. */
export class Init implements Disposable {
  readonly #folder = scratch();
  readonly boot = this.path("data/fruit/boot");

  constructor() {
    for (const folder of ["lib", "data/fruit/boot"]) mkdirSync(this.path(folder), { recursive: true });
    for (const name of SHARED) writeFileSync(this.path(`lib/${name}`), readFileSync(join(LIB, name)));
    writeFileSync(this.path("lib/rescue"), '#!/bin/busybox sh\necho "rescue $*" >>"$LOG"\n', { mode: 0o755 });
  }

  path(name: string): string {
    return join(this.#folder.path, name);
  }

  /** A file of this node's; empty where there is none. */
  text(name: string): string {
    return existsSync(this.path(name)) ? readFileSync(this.path(name), "utf8") : "";
  }

  /** Runs some lines of init in a start of this slot. */
  async run(disk: string, slot: string, lines: string, cmdline = "") {
    writeFileSync(this.path("cmdline"), `fruit.slot=${slot} ${cmdline}\n`);
    rmSync(this.path("log"), { force: true });
    writeFileSync(
      this.path("init"),
      [WORDS, `disk=mmcblk0 slot=${slot} trial=$(word fruit.trial) files=${this.path("data")}`, lines].join(
        "\n",
      ),
    );
    const { exit, out, err } = await runScript(this.path("init"), [], {
      PATH: `${join(ROOTFS, "rescue/bin")}:${process.env.PATH}`,
      FRUIT_LIB: this.path("lib"),
      FRUIT_CMDLINE: this.path("cmdline"),
      FRUIT_DISK: disk,
      LOG: this.path("log"),
    });
    const marks = this.text("data/fruit/boot/marks").replace(/[\da-f-]{36}/, "BOOT");
    return { exit, out, err, did: this.text("log"), marks };
  }

  [Symbol.dispose](): void {
    this.#folder[Symbol.dispose]();
  }
}
