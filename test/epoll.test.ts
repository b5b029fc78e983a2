/** The class that package epoll gets from us: its own published tests, and what they leave open. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { closeSync, openSync, readSync, writeSync } from "node:fs";
import { dirname, join } from "node:path";
import { Epoll } from "../hal/native/epoll.ts";
import { libc } from "../hal/native/libc.ts";
import { until } from "./node.ts";

const PUBLISHED = join(dirname(Bun.resolveSync("epoll", import.meta.dir)), "test");
const EFD_NONBLOCK = 0o4000;

/** Files with a condition that the test makes: eventfd(2) is readable while its counter is not 0. */
const files: number[] = [];
const pollers: Epoll[] = [];

function event(): { file: number; set(): void; clear(): void } {
  const file = libc().eventfd(0, EFD_NONBLOCK);
  files.push(file);
  return {
    file,
    set: () => writeSync(file, new Uint8Array(new BigUint64Array([1n]).buffer)),
    clear: () => readSync(file, new Uint8Array(8)),
  };
}

function poller(callback: ConstructorParameters<typeof Epoll>[0]): Epoll {
  const made = new Epoll(callback);
  pollers.push(made);
  return made;
}

beforeEach(() => {
  pollers.length = 0;
  files.length = 0;
});
afterEach(() => {
  for (const one of pollers) if (!one.closed) one.close();
  for (const file of files) closeSync(file);
});

describe("epoll's own tests pass", () => {
  test.each(["closed", "do-nothing", "do-almost-nothing", "one-shot", "two-shot", "verify-events"])(
    "%s.js",
    async (name) => {
      const child = Bun.spawn([process.execPath, join(PUBLISHED, `${name}.js`)], {
        stdin: "pipe",
        stdout: "pipe",
        stderr: "pipe",
        timeout: 10_000,
      });
      child.stdin.write("\n");
      await child.stdin.flush();
      const said = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()]);
      expect(said.join("")).toBe("");
      expect(await child.exited).toBe(0);
    },
  );
});

test("the process lives while something is added, and ends when it is removed", async () => {
  const script = `
    const one = new (require("epoll").Epoll)((error, file) => { console.log("told"); one.remove(file); });
    one.add(0, 1);`;
  const child = Bun.spawn([process.execPath, "-e", script], {
    cwd: import.meta.dir,
    stdin: "pipe",
    stdout: "pipe",
    stderr: "inherit",
    timeout: 10_000,
  });
  // Long after the last line of the script
  await Bun.sleep(300);
  child.stdin.write("\n");
  await child.stdin.flush();
  expect(await new Response(child.stdout).text()).toBe("told\n");
  expect(await child.exited).toBe(0);
});

test("package epoll hands out our class", () => {
  expect(require("epoll").Epoll).toBe(Epoll);
});

test("the constants are the kernel's", () => {
  const { EPOLLIN, EPOLLPRI, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDHUP, EPOLLONESHOT, EPOLLET } = Epoll;
  expect([EPOLLIN, EPOLLPRI, EPOLLOUT, EPOLLERR, EPOLLHUP]).toEqual([1, 2, 4, 8, 16]);
  expect([EPOLLRDHUP, EPOLLONESHOT, EPOLLET]).toEqual([0x2000, 0x40000000, -0x80000000]);
});

test("tells again for as long as the condition lasts, then when it comes back", async () => {
  const { file, set, clear } = event();
  const told: unknown[][] = [];
  const one = poller((...words) => {
    told.push(words);
    if (told.length === 3 || told.length === 4) clear();
  });
  set();
  one.add(file, Epoll.EPOLLIN);
  await until("three times", () => told.length === 3);
  await Bun.sleep(50);
  expect(told).toEqual(Array(3).fill([null, file, Epoll.EPOLLIN]));
  set();
  await until("once more", () => told.length === 4);
});

test("a change is told once with EPOLLET, as long as nobody changes it", async () => {
  const { file, set } = event();
  let told = 0;
  const one = poller(() => {
    told++;
  });
  one.add(file, Epoll.EPOLLIN | Epoll.EPOLLET);
  set();
  await until("told", () => told === 1);
  await Bun.sleep(50);
  expect(told).toBe(1);
  set();
  await until("told of the next", () => told === 2);
});

test("once with EPOLLONESHOT, and again after modify", async () => {
  const { file, set } = event();
  let told = 0;
  const one = poller(() => {
    told++;
  });
  set();
  one.add(file, Epoll.EPOLLIN | Epoll.EPOLLONESHOT);
  await until("told", () => told === 1);
  await Bun.sleep(50);
  expect(told).toBe(1);
  one.modify(file, Epoll.EPOLLIN | Epoll.EPOLLONESHOT);
  await until("told again", () => told === 2);
});

test("what is modified waits for the other event", async () => {
  const { file } = event();
  const told: number[] = [];
  const one = poller((_, __, events) => {
    told.push(events);
    one.remove(file);
  });
  one.add(file, Epoll.EPOLLPRI);
  await Bun.sleep(30);
  expect(told).toEqual([]);
  one.modify(file, Epoll.EPOLLOUT);
  await until("told", () => told.length > 0);
  expect(told).toEqual([Epoll.EPOLLOUT]);
});

test("nothing is told after remove, not even what was on its way, and its number may be another's", async () => {
  const first = event();
  const told: number[] = [];
  const one = poller((_, file) => told.push(file));
  one.add(first.file, Epoll.EPOLLIN);
  first.set();
  await until("the thread is up", () => told.length > 0);
  first.clear();
  await Bun.sleep(20);
  told.length = 0;
  first.set();
  // The thread has the news by now; the event loop has not.
  Bun.sleepSync(50);
  one.remove(first.file);
  files.splice(files.indexOf(first.file), 1);
  closeSync(first.file);
  let second = event();
  // Lower numbers may have become free as well
  while (second.file < first.file) second = event();
  expect(second.file).toBe(first.file);
  one.add(second.file, Epoll.EPOLLIN);
  await Bun.sleep(50);
  expect(told).toEqual([]);
  second.set();
  await until("the second", () => told.length > 0);
});

test("several pollers and files at once are told of their own", async () => {
  const events = Array.from({ length: 20 }, () => event());
  const told = events.map(() => 0);
  for (const [n, { file, set, clear }] of events.entries()) {
    const one = poller((_, which) => {
      expect(which).toBe(file);
      told[n] = (told[n] ?? 0) + 1;
      clear();
    });
    one.add(file, Epoll.EPOLLIN);
    if (n % 2 === 0) set();
  }
  await until("the even ones", () => told.filter((count) => count > 0).length === 10);
  await Bun.sleep(30);
  expect(told).toEqual(events.map((_, n) => (n % 2 === 0 ? 1 : 0)));
});

test("a callback that throws is told so, ends nothing, and is told again", async () => {
  const { file, set } = event();
  const told: (string | undefined)[] = [];
  const one = poller((error) => {
    told.push(error?.message);
    if (told.length >= 4) one.remove(file);
    throw new Error("a callback's own");
  });
  set();
  one.add(file, Epoll.EPOLLIN);
  await until("twice", () => told.length >= 4);
  expect(told.slice(0, 4)).toEqual([undefined, "a callback's own", undefined, "a callback's own"]);
});

test("fails as epoll_ctl does", () => {
  const { file } = event();
  const one = poller(() => undefined);
  const codeOf = (work: () => unknown) => {
    try {
      return work() && "none";
    } catch (error) {
      return (error as NodeJS.ErrnoException).code ?? (error as Error).message;
    }
  };
  expect(codeOf(() => one.modify(file, Epoll.EPOLLIN))).toBe("ENOENT");
  expect(codeOf(() => one.remove(file))).toBe("ENOENT");
  expect(codeOf(() => one.add(file, Epoll.EPOLLIN))).toBe("none");
  expect(codeOf(() => one.add(file, Epoll.EPOLLIN))).toBe("EEXIST");
  expect(codeOf(() => poller(() => undefined).add(file, Epoll.EPOLLIN))).toBe("EEXIST");
  expect(codeOf(() => one.add(999_999, Epoll.EPOLLIN))).toBe("EBADF");
  const plain = openSync(import.meta.path, "r");
  files.push(plain);
  expect(codeOf(() => one.add(plain, Epoll.EPOLLIN))).toBe("EPERM");
  expect(codeOf(() => one.add("x" as never, Epoll.EPOLLIN))).toContain("file's number");
  expect(one.close()).toBeNull();
  expect(one.closed).toBe(true);
  for (const late of [
    () => one.add(file, 1),
    () => one.modify(file, 1),
    () => one.remove(file),
    () => one.close(),
  ])
    expect(codeOf(late)).toContain("close");
  expect(() => new Epoll("x" as never)).toThrow("no function");
});
