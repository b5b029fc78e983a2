/**
 * The node's services, started and stopped by OpenRC under BusyBox's init, in the root as the builder makes it, with the x64 executable.
 *
 * It is Debian 13's OpenRC 0.56 in namespaces of this machine, not Alpine's 0.62 on a Pi. Of Alpine's own services there are the names,
 * and what each needs, provides and does to ours (test/openrc/root.sh); disk and watchdog are files.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync, statSync } from "node:fs";
import { homedir, hostname } from "node:os";
import { basename, join } from "node:path";
import { makeSquashfs } from "../../image/fruitos/filesystems.ts";
import { finishRoot, readRoot } from "../../image/fruitos/root.ts";
import { loops, run } from "../loop.ts";
import { needs, SHIPPED, scratch, until } from "../node.ts";
import { ROOTFS } from "../shell.ts";

const OURS = ["fruit-watchdog", "fruit-firstboot", "fruit"];
const OVERLAY = join(ROOTFS, "root");

test("each link of a runlevel is to the service of its name, and each service of ours is in one", () => {
  const levels = join(OVERLAY, "etc/runlevels");
  const links = readdirSync(levels).flatMap((level) =>
    readdirSync(join(levels, level)).map((name) => join(levels, level, name)),
  );
  for (const link of links) expect(readlinkSync(link)).toBe(`/etc/init.d/${basename(link)}`);
  const services = readdirSync(join(OVERLAY, "etc/init.d"));
  expect(services.sort()).toEqual([...OURS].sort());
  for (const name of services) {
    expect(statSync(join(OVERLAY, "etc/init.d", name)).mode & 0o111).not.toBe(0);
    expect(links.filter((link) => basename(link) === name)).toHaveLength(1);
  }
});

const TAR =
  process.env.FRUIT_OPENRC ??
  join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "fruit/openrc/root.tar");
const executable = SHIPPED.find(({ name }) => name === "x64 musl");
const { title, isSkipped } = needs(
  "under OpenRC",
  { name: "unshare", install: "util-linux" },
  { name: "mksquashfs", install: "squashfs-tools" },
);
const lacks =
  loops.need ||
  (executable?.missing && ` [needs: ${executable.missing}]`) ||
  (existsSync(TAR) ? "" : " [needs: test/openrc/root.sh]");

/** What nobody may do from in there, whatever a script says: it is no matter of namespaces. */
const FORBIDDEN = "-sys_boot,-sys_time,-sys_module,-syslog,-sys_rawio";
const PATH = "/sbin:/usr/sbin:/bin:/usr/bin";
const AGENT = "/usr/bin/fruit agent --config";
const WATCHDOG = "/run/fruit/bin/watchdog run";

/** A machine of namespaces whose init has started. */
class Machine implements AsyncDisposable {
  console = "";
  readonly #unshare: Bun.Subprocess<"ignore", "pipe", "pipe">;
  readonly #reading: Promise<unknown>;

  constructor(squashfs: string, folder: string) {
    const namespaces = ["--mount", "--pid", "--uts", "--ipc", "--net", "--fork", "--kill-child"];
    const enter = join(import.meta.dir, "../openrc/enter.sh");
    this.#unshare = Bun.spawn(
      ["unshare", ...namespaces, "setpriv", `--bounding-set=${FORBIDDEN}`, enter, squashfs, folder],
      { stdin: "ignore", stdout: "pipe", stderr: "pipe" },
    );
    this.#reading = Promise.all(
      [this.#unshare.stdout, this.#unshare.stderr].map(async (stream) => {
        for await (const chunk of stream.pipeThrough(new TextDecoderStream())) this.console += chunk;
      }),
    );
  }

  /** Its init, as this machine counts processes. */
  get #init(): string {
    const { pid } = this.#unshare;
    return readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim();
  }

  /** Runs a program in it to its end. */
  run(...command: string[]): { exit: number; out: string; err: string } {
    const where = ["--mount", "--pid", "--uts", "--ipc", "--net", "--root", "--wd"];
    return run("nsenter", "--target", this.#init, ...where, "env", "-i", `PATH=${PATH}`, ...command);
  }

  /** A file of it; undefined where there is none. */
  read(path: string): string | undefined {
    try {
      return readFileSync(`/proc/${this.#init}/root${path}`, "utf8");
    } catch {
      return undefined;
    }
  }

  /** The processes whose command line has this in it. */
  pids(...words: string[]): string[] {
    const lines = this.run("ps", "-o", "pid,args").out.split("\n");
    return lines.flatMap((line) => {
      const [, pid = "", args = ""] = /^ *(\d+) (.*)/.exec(line) ?? [];
      return words.some((word) => args.includes(word)) ? [pid] : [];
    });
  }

  /** Lines in the system's log that this program has written. */
  logged(name: string): string[] {
    return (this.read("/var/log/messages") ?? "").split("\n").filter((line) => line.includes(` ${name}: `));
  }

  /** The process that supervise-daemon has started, once it runs this; another one than `not`. */
  child(service: string, command: string, not?: string): Promise<string> {
    return until(`the process of ${service}`, () => {
      const pid = this.read(`/run/openrc/options/${service}/child_pid`)?.trim() ?? not;
      const line = this.read(`/proc/${pid}/cmdline`)?.replaceAll("\0", " ");
      return pid !== not && line?.includes(command) && pid;
    });
  }

  /** An agent, once it lives; whoever wants a new one has removed the heartbeat of the old one. */
  async agent(not?: string): Promise<string> {
    const pid = await this.child("fruit", AGENT, not);
    await until("its heartbeat", () => this.read("/run/fruit/heartbeat") !== undefined);
    return pid;
  }

  async fed(): Promise<void> {
    const meals = this.read("/dev/watchdog")?.length ?? 0;
    await until("fed", () => (this.read("/dev/watchdog")?.length ?? 0) > meals + 2);
  }

  /** Until its init is gone. */
  async ended(): Promise<void> {
    await this.#unshare.exited;
    await this.#reading;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#unshare.kill("SIGKILL");
    await this.ended();
  }
}

describe.skipIf(isSkipped || lacks !== "")(`${title}${lacks}`, () => {
  const folder = scratch();
  let machine: Machine;

  beforeAll(async () => {
    const root = await readRoot(TAR, folder.path);
    const release = { name: "fruitos-1", version: 1n, boards: [], channel: "stable", floor: 0n };
    const files = {
      "etc/fruit/watchdog": { text: "FRUIT_EVERY=1\n" },
      // A folder in the place of the boot partition
      "etc/conf.d/fruit-firstboot": { text: "export FRUIT_P1=/etc/p1\n" },
      "etc/p1/node.json": { text: '{ "site": "lab", "node": "pi7" }\n' },
    };
    const agent = executable?.command[0] ?? "";
    const system = finishRoot(root, { overlay: ROOTFS, agent, release, files });
    const squashfs = join(folder.path, "root.squashfs");
    await makeSquashfs(squashfs, system, 1);
    mkdirSync(join(folder.path, "mounted"));
    machine = new Machine(squashfs, join(folder.path, "mounted"));
    await until("started", () => machine.console.includes("Starting fruit ..."), 30_000);
    await machine.agent();
  }, 60_000);

  afterAll(async () => {
    await machine?.[Symbol.asyncDispose]();
    folder[Symbol.dispose]();
  });

  test("they start in their order, and nothing complains", async () => {
    for (const name of OURS)
      await until(`${name} is started`, () => machine.run("rc-service", name, "status").exit === 0);
    const said = ["Starting fruit-watchdog", "Taking over what the boot partition", "Starting fruit ..."];
    const places = said.map((words) => machine.console.indexOf(words));
    expect(places).toEqual(places.filter((place) => place >= 0).sort((one, other) => one - other));
    expect(machine.console).not.toMatch(/ERROR|!!|can't|cannot|non existent|would/);
    expect(machine.run("rc-status", "--crashed").out.trim()).toBe("");
  });

  test("the node has the name and the configuration that were on the boot partition", () => {
    expect(machine.read("/data/fruit/node.json")).toContain("pi7");
    expect(machine.read("/etc/p1/node.json")).toBeUndefined();
    expect(machine.run("hostname").out).toBe("pi7\n");
    expect(hostname()).not.toBe("pi7");
  });

  test("the agent's words reach the system's log, and the watchdog is fed", async () => {
    const started = await until("agent.started", () =>
      machine.logged("fruit").find((line) => line.includes('"agent.started"')),
    );
    expect(started).toContain('"node":"pi7"');
    await machine.fed();
  });

  test("an agent that is killed is started again", async () => {
    const killed = await machine.agent();
    machine.run("rm", "/run/fruit/heartbeat");
    machine.run("kill", "-9", killed);
    await machine.agent(killed);
    expect(machine.run("rc-service", "fruit", "status").exit).toBe(0);
  }, 30_000);

  test("a feeder that is killed is started again, more often than OpenRC would have it", async () => {
    for (let round = 0; round < 6; round++) {
      const killed = await machine.child("fruit-watchdog", WATCHDOG);
      machine.run("kill", "-9", killed);
      await machine.child("fruit-watchdog", WATCHDOG, killed);
    }
    await machine.fed();
    expect(machine.logged("fruit-watchdog").at(-1)).toEndWith("feeds /dev/watchdog");
  }, 60_000);

  test("an agent that is stopped leaves no process behind, not even one that hangs", async () => {
    for (const signal of ["-CONT", "-STOP"]) {
      machine.run("kill", signal, await machine.agent());
      expect(machine.run("rc-service", "fruit", "stop").exit).toBe(0);
      expect(machine.pids(AGENT, "supervise-daemon fruit ", "logger -t fruit ")).toEqual([]);
      machine.run("rm", "/run/fruit/heartbeat");
      expect(machine.run("rc-service", "fruit", "start").exit).toBe(0);
      await machine.agent();
    }
    await machine.fed();
  }, 60_000);

  test("while the node goes down the watchdog is fed to the last, and the data is let go of", async () => {
    expect(machine.pids(AGENT)).toHaveLength(1);
    machine.run("reboot");
    await machine.ended();
    const [, processes = "", meals = ""] =
      /^processes\n([\s\S]*)^meals\n([\s\S]*?)^end/m.exec(machine.console) ?? [];
    // By which the feeder knows it
    expect(machine.console).toMatch(/^level shutdown$/m);
    expect(processes).toContain(WATCHDOG);
    expect(processes).not.toContain(AGENT);
    const [before = 0, after = 0] = meals.trim().split("\n").map(Number);
    expect(after).toBeGreaterThan(before);
    const [, mounts] = /^mounts\n([\s\S]*?)^end/m.exec(machine.console) ?? [];
    expect(mounts).toContain(" / squashfs ro");
    expect(mounts).not.toMatch(/ \/(data|etc) \S+ rw/);
    expect(machine.console).not.toMatch(/aborting|would unmount|Stopping fruit-watchdog/);
    expect(machine.console).toContain("Requesting system reboot");
    expect(readFileSync("/proc/mounts", "utf8")).not.toContain(folder.path);
  }, 60_000);
});
