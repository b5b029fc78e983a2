/** C calls and the threads that may block: what is told, what is lost, how it ends; and that the executables carry them. */
import { describe, expect, test } from "bun:test";
import { closeSync, existsSync, openSync, writeSync } from "node:fs";
import { join } from "node:path";
import { ioctl, libc } from "../hal/native/libc.ts";
import { EPOLL, ioctlAside, watch } from "../hal/native/threads.ts";
import { BUNDLE } from "../image/build.ts";
import { fruit, SHIPPED, SOURCES, scratch, until } from "./node.ts";
import { Pty } from "./pty.ts";
import { carriesNative, isEmulated, LIMIT_MS, titled } from "./shipped.ts";

const root = join(import.meta.dir, "..");
const EFD_NONBLOCK = 0o4000;
const TCGETS = 0x5401;
const FIONREAD = 0x541b;
const TCXONC = 0x540a;
const TCIOFF = 2;

function event(): { file: number; set(): void } & Disposable {
  const file = libc().eventfd(0, EFD_NONBLOCK);
  return {
    file,
    set: () => writeSync(file, new Uint8Array(new BigUint64Array([1n]).buffer)),
    [Symbol.dispose]: () => closeSync(file),
  };
}

/** An event whose file has this number, which was closed a moment ago; lower ones may have become free as well. */
function eventAt(number: number): ReturnType<typeof event> {
  using others = new DisposableStack();
  for (;;) {
    const one = event();
    if (one.file === number) return one;
    others.use(one);
    if (one.file > number) throw new Error(`file ${number} was taken`);
  }
}

/** Runs a program of ours in a process of its own. */
async function program(text: string, env: Record<string, string> = {}) {
  const imports = `
    import { closeSync, openSync, readFileSync, readdirSync, readlinkSync, writeSync } from "node:fs";
    import { libc } from "${root}/hal/native/libc.ts";
    import { EPOLL, ioctlAside, watch } from "${root}/hal/native/threads.ts";
    const event = () => libc().eventfd(0, ${EFD_NONBLOCK});
    const set = (file) => writeSync(file, new Uint8Array(new BigUint64Array([1n]).buffer));
    const epolls = () => readdirSync("/proc/self/fd").filter((file) => {
      try { return readlinkSync("/proc/self/fd/" + file) === "anon_inode:[eventpoll]"; } catch { return false; }
    }).map(Number).sort((a, b) => a - b);`;
  const child = Bun.spawn([process.execPath, "-e", imports + text], {
    env: { ...process.env, ...env },
    stdout: "pipe",
    stderr: "pipe",
    timeout: 15_000,
  });
  const [out, err, exit] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { out, err, exit };
}

describe("a watch", () => {
  test("tells once for each time it is armed, and only after that", async () => {
    using one = event();
    const told: number[] = [];
    const waits = watch(one.file, (events) => told.push(events));
    try {
      one.set();
      await Bun.sleep(30);
      expect(told).toEqual([]);
      waits.arm(EPOLL.in | EPOLL.pri);
      await until("told", () => told.length > 0);
      await Bun.sleep(30);
      expect(told).toEqual([EPOLL.in]);
      waits.arm(EPOLL.in);
      await until("told again", () => told.length === 2);
    } finally {
      waits.close();
    }
  });

  test("a hang-up is told when it is armed and not before, although the kernel reports it unasked", async () => {
    using folder = scratch();
    const path = join(folder.path, "fifo");
    Bun.spawnSync(["mkfifo", path]);
    const reader = openSync(path, 0o4000);
    closeSync(openSync(path, "w"));
    const told: number[] = [];
    const waits = watch(reader, (events) => told.push(events));
    try {
      await Bun.sleep(30);
      expect(told).toEqual([]);
      waits.arm(EPOLL.in);
      await until("told", () => told.length > 0);
      expect(told).toEqual([EPOLL.hup]);
    } finally {
      waits.close();
      closeSync(reader);
    }
  });

  test("one whose file was closed first takes nothing from the next file of that number", async () => {
    const first = event();
    let told = 0;
    const stale = watch(first.file, () => told++);
    first.set();
    stale.arm(EPOLL.in);
    // From here on the thread opens nothing
    await until("the thread is up", () => told === 1);
    first[Symbol.dispose]();
    using second = eventAt(first.file);
    told = 0;
    const waits = watch(second.file, () => told++);
    stale.close();
    stale.close();
    stale.arm(EPOLL.in);
    second.set();
    waits.arm(EPOLL.in);
    await until("told", () => told === 1);
    waits.close();
  });

  test("a file that cannot be waited for is an error at once", () => {
    const plain = openSync(import.meta.path, "r");
    expect(() => watch(plain, () => undefined)).toThrow(
      `EPERM: operation not permitted, epoll_ctl file ${plain}`,
    );
    closeSync(plain);
    expect(() => watch(999_999, () => undefined)).toThrow("EBADF");
  });
});

test("the thread goes with the last watch and leaves no file, and the next watch has another", async () => {
  const { out, err } = await program(`
    const before = epolls().length;
    const open = () => readdirSync("/proc/self/fd").length;
    const files = open();
    const file = event();
    for (let again = 0; again < 10; again++)
      await new Promise((told) => {
        const waits = watch(file, () => { waits.close(); told(); });
        set(file);
        waits.arm(EPOLL.in);
      });
    closeSync(file);
    while (epolls().length > before || open() > files) await Bun.sleep(5);
    console.log("gone");`);
  expect({ out, err }).toEqual({ out: "gone\n", err: "" });
});

describe("a process", () => {
  test("ends although its threads wait, by itself and by exit", async () => {
    const waits = `
      const waits = watch(event(), () => {}); waits.arm(EPOLL.in);
      await ioctlAside("serial", 0, ${TCGETS}, 0).catch(() => {});`;
    expect(await program(waits)).toMatchObject({ exit: 0, err: "" });
    expect(await program(`${waits} process.exit(3);`)).toMatchObject({ exit: 3, err: "" });
  });

  test("does not end while a watch that keeps it alive waits", async () => {
    const text = `
      const file = event();
      const waits = watch(file, () => { console.log("told"); waits.close(); }, { keepsAlive: true });
      waits.arm(EPOLL.in);
      setTimeout(() => set(file), 100).unref();`;
    // Nothing but the watch holds it until the timer fires
    expect(await program(text)).toMatchObject({ exit: 0, err: "", out: "told\n" });
  });

  test("survives the thread that waits: those who wait are told, with the reason, and the next has another", async () => {
    const { out, err, exit } = await program(`
      const before = epolls();
      const [first, second] = [event(), event()];
      const told = [];
      const waits = watch(first, (events) => told.push(events));
      const [ours] = epolls().filter((file) => !before.includes(file));
      const other = watch(second, (events) => told.push(events));
      waits.arm(EPOLL.in);
      other.arm(EPOLL.in);
      const calls = () => readdirSync("/proc/self/task").map((task) => readFileSync("/proc/self/task/" + task + "/syscall", "utf8"));
      while (!calls().some((call) => call.split(" ")[1] === "0x" + ours.toString(16))) await Bun.sleep(5);
      // It waits; its number becomes another file's, so that its next wait fails
      closeSync(ours);
      openSync("/dev/null");
      set(first);
      while (told.length < 3) await Bun.sleep(5);
      console.log(told.join(" "));
      try { waits.arm(EPOLL.in); } catch (error) { console.log(error.message); }
      const next = watch(first, () => { console.log("told"); next.close(); }, { keepsAlive: true });
      next.arm(EPOLL.in);
      waits.close();
      other.close();`);
    expect(err).toBe("");
    expect(out).toBe(
      "1 8 8\nthe thread that waits for files has failed: EINVAL: invalid argument, epoll_wait\ntold\n",
    );
    expect(exit).toBe(0);
  });
});

const errorOf = (work: Promise<unknown>) =>
  work.then(
    () => undefined,
    (error: Error) => error,
  );

describe("a call aside", () => {
  test("of one kind does not share the fate of another's thread", async () => {
    const calls = [
      ioctlAside("serial", 0, {} as never, 0),
      ioctlAside("i2c", -1, FIONREAD, 0),
      ioctlAside("serial", -1, FIONREAD, 0),
    ];
    const [broken, i2c, behind] = (await Promise.all(calls.map(errorOf))).map(String);
    expect(i2c).toContain("EBADF");
    expect(broken).toContain("the thread that makes calls of serial has failed");
    expect(behind).toBe(broken ?? "");
  });

  test("gives what the kernel gives, into the caller's memory, or its error", async () => {
    using folder = scratch();
    const file = openSync(folder.file("six", "abcdef"), "r");
    const held = new Int32Array(new ArrayBuffer(4));
    expect(await ioctlAside("serial", file, FIONREAD, held)).toBe(0);
    expect(held[0]).toBe(6);
    closeSync(file);
    const error = Object(await errorOf(ioctlAside("serial", file, FIONREAD, held, "about it")));
    expect(error).toMatchObject({ code: "EBADF", errno: -9, syscall: "ioctl" });
    expect(error.message).toBe("EBADF: bad file descriptor, ioctl about it");
  });

  test("each gets its own answer, in order, and no more wait than there is room for", async () => {
    using folder = scratch();
    const sizes = Array.from({ length: 100 }, (_, n) => n % 7);
    const files = sizes.map((size, n) => openSync(folder.file(`f${n}`, "x".repeat(size)), "r"));
    const held = files.map(() => new Int32Array(new ArrayBuffer(4)));
    const answers = await Promise.allSettled(
      files.map((file, n) => ioctlAside("serial", n % 3 === 0 ? -1 : file, FIONREAD, held[n] ?? 0)),
    );
    const codes = answers.map((answer) => (answer.status === "rejected" ? answer.reason.code : "done"));
    expect(codes).toEqual(files.map((_, n) => (n >= 64 ? "EAGAIN" : n % 3 === 0 ? "EBADF" : "done")));
    for (const [n, code] of codes.entries()) if (code === "done") expect(held[n]?.[0]).toBe(sizes[n]);
    for (const file of files) closeSync(file);
    // There is room again
    expect(await errorOf(ioctlAside("serial", -1, FIONREAD, 0))).toMatchObject({ code: "EBADF" });
  });

  test("that hangs holds up its own file and no other, and is answered when it comes back", async () => {
    using pty = new Pty();
    pty.pause();
    const file = openSync(pty.device, "r+");
    // Whoever waits in write(2) has the terminal's write lock, which TCXONC needs
    const writer = Bun.spawn(["sh", "-c", `exec cat /dev/zero > ${pty.device}`]);
    try {
      const { call } = await until("it hangs", async () => {
        const call = ioctlAside("serial", file, TCXONC, TCIOFF).then(() => "came back");
        return (await Promise.race([call, Bun.sleep(300)])) === undefined && { call };
      });
      const behind = errorOf(ioctlAside("serial", file, FIONREAD, new Int32Array(1)));
      expect(await errorOf(ioctlAside("serial", -1, FIONREAD, 0, "elsewhere"))).toMatchObject({
        code: "EBADF",
      });
      expect(await Promise.race([behind, Bun.sleep(100).then(() => "waits")])).toBe("waits");
      writer.kill("SIGKILL");
      expect(await call).toBe("came back");
      expect(await behind).toBeUndefined();
      expect(await errorOf(ioctlAside("serial", -1, FIONREAD, 0))).toMatchObject({ code: "EBADF" });
    } finally {
      writer.kill("SIGKILL");
      closeSync(file);
    }
  });

  test("memory stays while the thread may touch it, and goes afterwards", async () => {
    const refs: WeakRef<object>[] = [];
    const begin = () => {
      const memory = [4, 34].map((length) => new Uint8Array(new ArrayBuffer(length)));
      refs.push(...memory.map((one) => new WeakRef(one)));
      return errorOf(ioctlAside("serial", -1, FIONREAD, memory[0] ?? 0, "", memory.slice(1)));
    };
    const calls = Array.from({ length: 20 }, begin);
    // Past this turn a WeakRef holds nothing; the answers have not been heard yet
    await undefined;
    Bun.gc(true);
    expect(refs.every((ref) => ref.deref() !== undefined)).toBe(true);
    await Promise.all(calls);
    await until("most of it is gone", () => {
      Bun.gc(true);
      return refs.filter((ref) => ref.deref() !== undefined).length < 10;
    });
  });

  test("a thread that fails takes along what waits for it, with the reason, and the next call has another", async () => {
    const calls = [
      ioctlAside("serial", -1, FIONREAD, 0),
      ioctlAside("serial", 0, {} as never, 0),
      ioctlAside("serial", -1, FIONREAD, 0),
    ];
    const reasons = (await Promise.all(calls.map(errorOf))).map(String);
    const failed =
      "Error: the thread that makes calls of serial has failed: bun:ffi cannot convert argument to 'u64'";
    expect(reasons).toEqual(["Error: EBADF: bad file descriptor, ioctl", failed, failed]);
    expect(await errorOf(ioctlAside("serial", -1, FIONREAD, 0))).toMatchObject({ code: "EBADF" });
  });
});

test("a call that fails says why, whatever the last one said", () => {
  for (let again = 0; again < 200; again++) {
    expect(() => ioctl(-1, TCGETS, 0)).toThrow("EBADF: bad file descriptor, ioctl");
    expect(() => ioctl(0, 0x7777, 0, "it")).toThrow("ENOTTY: inappropriate ioctl for device, ioctl it");
  }
});

describe("with the JIT off, which C calls need,", () => {
  const OFF = { BUN_JSC_useJIT: "0" };

  test("calls fail with what to do", async () => {
    const { out, err, exit } = await program(
      `await ioctlAside("serial", 0, 1, 0).catch((error) => console.log(error.message));
       try { watch(0, () => {}); } catch (error) { console.log(error.message); }
       const native = require("bindings")("i2c.node");
       native.readByteAsync(0, 1, (error) => console.log(error.message));
       try { native.readByteSync(0, 1); } catch (error) { console.log(error.message); }`,
      OFF,
    );
    const line =
      "the C library cannot be called (bun:ffi requires the JIT); start it without BUN_JSC_useJIT=0\n";
    expect({ out, err, exit }).toEqual({ out: line.repeat(4), err: "", exit: 0 });
  });

  test("the agent runs, and says it in its log", async () => {
    using folder = scratch();
    const socket = join(folder.path, "fruit.sock");
    const config = folder.file("node.json", {
      site: "lab",
      node: "pi1",
      data_dir: join(folder.path, "data"),
      socket,
      power: { buses: [{ driver: "clusterctrl", device: "/dev/i2c-1", boards: [0] }] },
    });
    const command = [...SOURCES.command, "agent", "--hal", "linux", "--config", config];
    const child = Bun.spawn(command, { env: { ...process.env, ...OFF }, stdout: "pipe", stderr: "pipe" });
    const log = new Response(child.stderr).text();
    try {
      await until("the socket", () => existsSync(socket));
    } finally {
      child.kill("SIGTERM");
    }
    const lines = (await log)
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    expect(await child.exited).toBe(0);
    const error =
      "the C library cannot be called (bun:ffi requires the JIT); start it without BUN_JSC_useJIT=0";
    expect(lines.find(({ what }) => what === "native.unusable")).toMatchObject({ level: "error", error });
    expect(JSON.stringify(lines)).not.toContain("    at ");
  });

  test("it is an alarm, on real hardware only", async () => {
    const { out } = await program(
      `const { reportNative } = await import("${root}/agent/hardware.ts");
       for (const kind of ["linux", "sim"])
         reportNative({ kind }, (...alarm) => console.log(kind, JSON.stringify(alarm)), () => {});`,
      OFF,
    );
    const message =
      "the C library cannot be called (bun:ffi requires the JIT); start it without BUN_JSC_useJIT=0";
    expect(out).toBe(`linux ${JSON.stringify(["native", { severity: "critical", message }])}\n`);
  });

  test("the doctor says it", async () => {
    const { out, err } = await fruit(["doctor", "--json"], { env: OFF });
    const checks = JSON.parse(out).checks as { name: string; level: string; what: string }[];
    expect(checks.find(({ name }) => name === "native")).toEqual({
      name: "native",
      level: "FAIL",
      what: "the C library cannot be called (bun:ffi requires the JIT)",
      remedy: "start it without BUN_JSC_useJIT=0; until then no bus, console or GPIO line opens",
    } as never);
    expect(err).toBe("");
  });
});

describe.each([...SHIPPED, SOURCES].filter((one) => !isEmulated(one)))("$name", (executable) => {
  test.skipIf(executable.missing !== undefined)(
    titled("carries its threads and C calls", executable),
    () => carriesNative(executable),
    LIMIT_MS,
  );
});

test("nothing native of others gets into an executable, and the same sources make the same bytes", async () => {
  const make = () => Bun.build({ ...BUNDLE, target: "bun", metafile: true });
  const [one, two] = [await make(), await make()];
  const inputs = Object.keys(one.metafile?.inputs ?? {});
  expect(inputs).toContain("hal/native/libc.ts");
  expect(
    inputs.filter((name) => /\.node$|node-gyp|bindings-of-node|bindings-cpp|prebuilds/.test(name)),
  ).toEqual([]);
  const hashes = async (built: typeof one) =>
    Promise.all(built.outputs.map(({ hash, path }) => `${path} ${hash}`));
  expect(await hashes(one)).toEqual(await hashes(two));
});
