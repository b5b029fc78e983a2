/** A folder of its own for each test, and what the doctor says of it. */
import { afterAll, beforeEach } from "bun:test";
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { type Check, lineOf } from "../agent/doctor/check.ts";

/** Call once at the top of a test file: a new folder before each test, all removed after the last. */
export class Tree {
  root = "";

  constructor() {
    const made: string[] = [];
    beforeEach(() => {
      this.root = mkdtempSync(join(tmpdir(), "fruit-tree-"));
      made.push(this.root);
    });
    afterAll(() => {
      for (const dir of made) rmSync(dir, { recursive: true, force: true });
    });
  }

  at(path: string): string {
    return join(this.root, path);
  }

  /** Writes a file below the folder and says where. */
  put(path: string, content: string | Uint8Array, mode = 0o644): string {
    const file = this.at(path);
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, content);
    chmodSync(file, mode);
    return file;
  }

  remove(path: string): void {
    rmSync(this.at(path), { recursive: true });
  }

  link(path: string, target: string): void {
    mkdirSync(dirname(this.at(path)), { recursive: true });
    symlinkSync(target, this.at(path));
  }

  /** The doctor's lines, with the folder called ROOT. */
  lines(checks: Check[]): string {
    return checks.map(lineOf).join("").replaceAll(this.root, "ROOT");
  }
}

/** The checks that are not of that level. */
export function not(level: Check["level"], checks: Check[]): Check[] {
  return checks.filter((check) => check.level !== level);
}

/** The first two headers of a dynamic executable, which is all that is looked at. */
export function elf(machine: "arm64" | "x64", interpreter: string): Uint8Array {
  const bytes = new Uint8Array(512);
  const view = new DataView(bytes.buffer);
  bytes.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(18, machine === "arm64" ? 183 : 62, true);
  view.setBigUint64(32, 64n, true);
  view.setUint16(54, 56, true);
  view.setUint16(56, 2, true);
  view.setUint32(64, 6, true);
  view.setUint32(120, 3, true);
  view.setBigUint64(128, 200n, true);
  view.setBigUint64(152, BigInt(interpreter.length + 1), true);
  bytes.set(Buffer.from(`${interpreter}\0`), 200);
  return bytes;
}

/** The loader of an arm64 Alpine. */
export const MUSL = "/lib/ld-musl-aarch64.so.1";

/** A tree.root file system as an image builder makes it, with nothing wrong. */
export function image(tree: Tree): void {
  tree.put("usr/bin/fruit", elf("arm64", MUSL), 0o755);
  tree.put("bin/busybox", elf("arm64", MUSL), 0o755);
  tree.put("lib/ld-musl-aarch64.so.1", elf("arm64", MUSL), 0o755);
  tree.put("usr/lib/libstdc++.so.6.0.33", "");
  tree.link("usr/lib/libstdc++.so.6", "libstdc++.so.6.0.33");
  tree.put("usr/lib/libgcc_s.so.1", "");
  tree.put("etc/fruit/node.json", JSON.stringify({ site: "lab" }));
  tree.put("etc/init.d/fruit", "#!/sbin/openrc-run\ncommand=/usr/bin/fruit\n", 0o755);
  tree.link("etc/runlevels/default/fruit", "/etc/init.d/fruit");
  tree.put("etc/machine-id", "");
}
