/** Starts the program as users do: the shipped executables where this machine can run them, the sources otherwise. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { homedir, tmpdir } from "node:os";
import { join } from "node:path";

const root = join(import.meta.dir, "..");
const cache = join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "fruit");

/** One way to start the program. */
export interface Executable {
  name: string;
  command: string[];
  env: Record<string, string>;
  /** What to install to be able to, where something is missing. */
  missing?: string;
}

/** The sources under this very Bun. */
export const SOURCES: Executable = {
  name: "sources",
  command: [process.execPath, join(root, "agent/main.ts")],
  env: {},
};

/** What to do where the executable itself is missing. */
const unbuilt = (file: string) => (existsSync(join(root, file)) ? {} : { missing: "bun run build" });

function muslX64(): Executable {
  const file = "dist/fruit-linux-x64-musl";
  const lib = join(cache, "musl-x86_64/lib");
  const isReady = process.arch === "x64" && existsSync(lib) && existsSync("/lib/ld-musl-x86_64.so.1");
  return {
    name: "x64 musl",
    command: [join(root, file)],
    env: { LD_LIBRARY_PATH: lib },
    ...unbuilt(file),
    ...(isReady ? {} : { missing: "sudo --preserve-env=HOME test/musl.sh x86_64" }),
  };
}

function muslArm64(): Executable {
  const file = "dist/fruit-linux-arm64-musl";
  const lib = join(cache, "musl-aarch64/lib");
  const isReady = existsSync(lib) && Bun.which("qemu-aarch64-static") !== null;
  return {
    name: "arm64 musl, emulated",
    command: ["qemu-aarch64-static", "-E", `LD_LIBRARY_PATH=${lib}`, join(root, file)],
    env: { QEMU_LD_PREFIX: join(cache, "musl-aarch64") },
    ...unbuilt(file),
    ...(isReady
      ? {}
      : { missing: "apt-get install qemu-user-static && sudo --preserve-env=HOME test/musl.sh aarch64" }),
  };
}

/** The executables that Alpine nodes run. */
export const SHIPPED: readonly Executable[] = [muslX64(), muslArm64()];

/** The executable for this very machine's own libraries, which needs no others. */
const HERE: Executable = {
  name: "glibc",
  command: [join(root, `dist/fruit-linux-${process.arch}`)],
  env: {},
};

/**
 * The best there is on this machine for a test that wants the real thing once: an executable that is older than its sources
 * proves nothing of them. The sources take three times as much of the processor to start.
 */
export const FRUIT: Executable =
  [...SHIPPED.slice(0, 1), HERE].find(({ missing, command: [file = ""] }) => !missing && isFresh(file)) ??
  SOURCES;

function isFresh(file: string): boolean {
  const builtAt = statSync(file, { throwIfNoEntry: false })?.mtimeMs ?? 0;
  return ["agent", "boot", "hal"].every((folder) =>
    readdirSync(join(root, folder), { recursive: true, withFileTypes: true }).every(
      (entry) => !entry.isFile() || statSync(join(entry.parentPath, entry.name)).mtimeMs < builtAt,
    ),
  );
}

/** A test title with what would have to be installed for it to run. */
export function needs(
  title: string,
  ...programs: { name: string; install: string }[]
): { title: string; isSkipped: boolean } {
  const missing = programs.filter(({ name }) => !Bun.which(name));
  return {
    title:
      missing.length > 0
        ? `${title} [needs: apt-get install ${missing.map(({ install }) => install).join(" ")}]`
        : title,
    isSkipped: missing.length > 0,
  };
}

/** Runs a command line to its end. */
export async function fruit(
  args: string[],
  options: { executable?: Executable; env?: Record<string, string>; cwd?: string; stdin?: string } = {},
): Promise<{ exit: number; out: string; err: string }> {
  const { executable = FRUIT } = options;
  const child = Bun.spawn([...executable.command, ...args], {
    env: { PATH: process.env.PATH ?? "", HOME: process.env.HOME ?? "", ...executable.env, ...options.env },
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    stdin: options.stdin === undefined ? "ignore" : Buffer.from(options.stdin),
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, err, exit] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { exit, out, err };
}

/** A folder that goes with the test. */
export function scratch(): Disposable & {
  path: string;
  file(name: string, content: string | object): string;
} {
  const path = mkdtempSync(join(tmpdir(), "fruit-test-"));
  return {
    path,
    file(name, content) {
      const file = join(path, name);
      writeFileSync(file, typeof content === "string" ? content : JSON.stringify(content), { mode: 0o600 });
      return file;
    },
    [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }),
  };
}

/** Longest that anything is waited for where nothing else is said, ms; `bun run proof`, which runs emulators beside, has more patience. */
const PATIENCE_MS = Number(process.env.FRUIT_PATIENCE_MS ?? 15_000);

/** Waits until `look` finds something; fails with `what` after `limitMs`. */
export async function until<T>(
  what: string,
  look: () => T | undefined | false | Promise<T | undefined | false>,
  limitMs = PATIENCE_MS,
): Promise<T> {
  const endMs = performance.now() + limitMs;
  for (let beganMs = performance.now(); beganMs < endMs; beganMs = performance.now()) {
    const found = await look();
    if (found) return found;
    // A look that starts a program costs more than all that it waits for
    await Bun.sleep(Math.min(1000, Math.max(20, 2 * (performance.now() - beganMs))));
  }
  throw new Error(`${what}: not within ${limitMs / 1000} s`);
}

/** The most memory that a process has had yet, MiB; undefined once it is gone. What its parent had is not in it, as it is in `maxRSS`. */
export function peakMib(pid: number): number | undefined {
  try {
    const kib = /^VmHWM:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
    return kib === undefined ? undefined : Number(kib) / 1024;
  } catch {
    return undefined;
  }
}

/** A running agent of its own process. */
export interface Agent extends AsyncDisposable {
  pid: number;
  folder: string;
  socket: string;
  config: string;
  /** Everything it has logged. */
  log(): string;
  /** A command line through its socket. */
  cli(...args: string[]): Promise<{ exit: number; out: string; err: string }>;
  kill(signal: NodeJS.Signals): void;
  exited: Promise<number>;
}

/** Starts an agent, on the simulated hardware unless told otherwise, and waits until it says that it has started. */
export async function startAgent(
  folder: string,
  settings: Record<string, unknown>,
  options: { executable?: Executable; env?: Record<string, string>; hal?: "sim" | "linux" } = {},
): Promise<Agent> {
  const { executable = FRUIT, hal = "sim" } = options;
  const socket = join(folder, "fruit.sock");
  const config = join(folder, "node.json");
  writeFileSync(config, JSON.stringify({ site: "lab", data_dir: join(folder, "data"), socket, ...settings }));
  const child = Bun.spawn([...executable.command, "agent", "--hal", hal, "--config", config], {
    env: { PATH: process.env.PATH ?? "", HOME: folder, ...executable.env, ...options.env },
    stdin: "ignore",
    stdout: "ignore",
    stderr: "pipe",
  });
  let log = "";
  const reading = (async () => {
    for await (const chunk of child.stderr.pipeThrough(new TextDecoderStream())) log += chunk;
  })();
  const agent: Agent = {
    pid: child.pid,
    folder,
    socket,
    config,
    log: () => log,
    cli: (...args) => fruit(args, { executable, env: { FRUIT_SOCKET: socket, FRUIT_CONFIG: config } }),
    kill: (signal) => child.kill(signal),
    exited: child.exited.then(async (exit) => {
      await reading;
      return exit;
    }),
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await child.exited;
    },
  };
  await until("agent.started", () => {
    if (child.exitCode !== null) throw new Error(`the agent ended with ${child.exitCode}: ${log}`);
    return log.includes('"agent.started"');
  });
  return agent;
}
