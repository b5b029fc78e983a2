/** A person's own log of a console: what becomes of the file, whatever it is. */
import { expect, test } from "bun:test";
import { appendFileSync, existsSync, readdirSync, readFileSync, readlinkSync } from "node:fs";
import { join } from "node:path";
import { LogFile } from "../agent/console/logfile.ts";
import { scratch } from "./node.ts";

/** Whether this process has it open. */
function isOpen(path: string): boolean {
  return readdirSync("/proc/self/fd").some((file) => {
    try {
      return readlinkSync(join("/proc/self/fd", file)) === path;
    } catch {
      return false;
    }
  });
}

const HEADER = "\\[fruit \\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d:\\d\\dZ: log of console rack1-a\\]\\n";

function logging() {
  const failed: string[] = [];
  return { log: new LogFile("rack1-a", (why) => void failed.push(why)), failed };
}

test("a log has every byte that is shown while it is open, each stay after the one before, and is closed", () => {
  using folder = scratch();
  const path = join(folder.path, "a.log");
  const every = Uint8Array.from({ length: 256 }, (_, byte) => byte);
  const { log, failed } = logging();
  log.add(Buffer.from("before"));
  for (let stay = 0; stay < 2; stay++) {
    expect(log.begin(path)).toBe(path);
    expect(isOpen(path)).toBe(true);
    log.add(every);
    log.add(every);
    expect(log.end()).toBe(path);
    expect(isOpen(path)).toBe(false);
    log.add(Buffer.from("after"));
  }
  expect(log.end()).toBeUndefined();
  const bytes = Buffer.concat([every, every]).toString("latin1");
  const [first = "", second = "", third = ""] = readFileSync(path, "latin1").split(bytes);
  expect(first).toMatch(new RegExp(`^${HEADER}$`));
  expect(second).toMatch(new RegExp(`^\n${HEADER}$`));
  expect(third).toBe("");
  expect(failed).toEqual([]);
});

test("another file takes the place of the first, which is closed", () => {
  using folder = scratch();
  const [one, other] = [join(folder.path, "one"), join(folder.path, "other")];
  const { log } = logging();
  log.begin(one);
  log.begin(other);
  expect([isOpen(one), isOpen(other)]).toEqual([false, true]);
  log.end();
});

test("a disk that is full ends the log, which is said once, and the file is closed", () => {
  using folder = scratch();
  const path = join(folder.path, "a.log");
  const failed: string[] = [];
  let room = 100;
  const log = new LogFile(
    "rack1-a",
    (why) => void failed.push(why),
    (file, bytes) => {
      room -= bytes.length;
      if (room < 0) throw new Error("ENOSPC: no space left on device, write");
      appendFileSync(file, bytes);
    },
  );
  log.begin(path);
  for (let n = 0; n < 9; n++) log.add(Buffer.alloc(50));
  expect(failed).toEqual([`log ${path} is closed: ENOSPC: no space left on device, write`]);
  expect(isOpen(path)).toBe(false);
  expect(() => log.begin(path)).toThrow("ENOSPC");
  expect(isOpen(path)).toBe(false);
  expect(failed).toHaveLength(1);
});

test("what is no plain file is refused at once: a device, a pipe that nobody reads, a folder, a place that is not there", () => {
  using folder = scratch();
  const path = join(folder.path, "pipe");
  const before = isOpen("/dev/null");
  expect(Bun.spawnSync(["mkfifo", path]).exitCode).toBe(0);
  const { log } = logging();
  expect(() => log.begin(path)).toThrow("ENXIO");
  expect(() => log.begin("/dev/null")).toThrow("/dev/null: is no plain file");
  expect(isOpen("/dev/null")).toBe(before);
  expect(() => log.begin(folder.path)).toThrow("EISDIR");
  expect(() => log.begin(join(folder.path, "nowhere/a.log"))).toThrow("ENOENT");
  expect(existsSync(join(folder.path, "nowhere"))).toBe(false);
});
