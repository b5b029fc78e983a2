/** Whether the rescue waits on, under BusyBox. */
import { expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { scratch } from "./node.ts";
import { BUSYBOX, LIMIT_MS, NEEDS_BUSYBOX, ROOTFS, runScript } from "./shell.ts";

/** What the rescue sees of whoever is there. */
function visit() {
  const folder = scratch();
  const path = (name: string) => join(folder.path, name);
  const process = (id: number, name: string) => {
    mkdirSync(path(`proc/${id}`), { recursive: true });
    writeFileSync(path(`proc/${id}/comm`), `${name}\n`);
  };
  const shell = (sinceSeconds: number) => writeFileSync(path("run/shell"), `${sinceSeconds}\n`);
  mkdirSync(path("run"));
  process(1, "rescue");
  process(40, "dropbear");
  writeFileSync(path("proc/uptime"), "90000.31 4.00\n");
  return { process, shell, stay: () => writeFileSync(path("run/stay"), ""), folder, path };
}

test.skipIf(!BUSYBOX).each<[string, boolean, (it: ReturnType<typeof visit>) => void]>([
  ["nobody", false, () => undefined],
  ["somebody who came by ssh", true, ({ process }) => process(41, "dropbear")],
  ["what is no session of ssh", false, ({ process }) => process(41, "dropbear-not")],
  ["the shell of the console, for a day", true, ({ shell }) => shell(90_000 - 86_399)],
  ["the shell of the console after a day: it may be noise", false, ({ shell }) => shell(90_000 - 86_400)],
  ["a person who wants the node to stay", true, ({ stay }) => stay()],
])(
  `the rescue waits for whom it has: %s, %p${NEEDS_BUSYBOX}`,
  async (_, isThere, comes) => {
    const it = visit();
    using _folder = it.folder;
    comes(it);
    const script = join(ROOTFS, "rescue/lib/fruit/somebody");
    const env = { FRUIT_PROC: it.path("proc"), FRUIT_RUN: it.path("run") };
    expect(await runScript(script, [], env)).toEqual({ exit: isThere ? 0 : 1, out: "", err: "" });
  },
  LIMIT_MS,
);
