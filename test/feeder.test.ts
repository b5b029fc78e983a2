/** The watchdog feeder of the image, under BusyBox. Its uptime is the test's: nothing here depends on how fast this machine is. */
import { expect, test } from "bun:test";
import {
  existsSync,
  mkdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { scratch, until } from "./node.ts";
import { BUSYBOX, LIMIT_MS, NEEDS_BUSYBOX, ROOTFS, runScript, startScript } from "./shell.ts";

const SCRIPT = join(ROOTFS, "root/usr/libexec/fruit/watchdog");
const BOOT_ID = "01234567-89ab-cdef-0123-456789abcdef";
const GRACE = 300;
const STALE = 60;

/** A feeder at work, and everything it looks at. */
class Feeder implements AsyncDisposable {
  readonly run: string;
  readonly boot: string;
  readonly #folder = scratch();
  readonly #process: Bun.Subprocess;
  #beats = 0;

  constructor(cmdline: string, prepare: (feeder: { run: string; boot: string }) => void = () => undefined) {
    const { path } = this.#folder;
    this.run = join(path, "run");
    this.boot = join(path, "data/boot");
    for (const folder of [this.run, this.boot, join(path, "proc/sys/kernel/random")])
      mkdirSync(folder, { recursive: true });
    writeFileSync(join(path, "proc/cmdline"), `console=ttyS1 ${cmdline} panic=10\n`);
    writeFileSync(join(path, "proc/sys/kernel/random/boot_id"), `${BOOT_ID}\n`);
    writeFileSync(join(path, "watchdog"), "");
    writeFileSync(join(path, "kmsg"), "");
    this.passTo(10);
    prepare(this);
    this.#process = startScript(SCRIPT, [], {
      FRUIT_SETTINGS: "/nonexistent",
      FRUIT_BUSYBOX: BUSYBOX ?? "",
      FRUIT_WATCHDOG: join(path, "watchdog"),
      FRUIT_REBOOT: `touch ${join(path, "rebooted")}`,
      FRUIT_RUN: this.run,
      FRUIT_BOOT: this.boot,
      FRUIT_PROC: join(path, "proc"),
      FRUIT_EVERY: "0.02",
      FRUIT_GRACE: String(GRACE),
      FRUIT_STALE: String(STALE),
      FRUIT_SPARE: "20",
      FRUIT_PATIENCE: "1",
      FRUIT_KMSG: join(path, "kmsg"),
      FRUIT_OPENRC: this.run,
    });
  }

  /** The machine has been up for so long, seconds. */
  passTo(uptime: number): void {
    writeFileSync(join(this.#folder.path, "proc/uptime"), `${uptime}.53 12.20\n`);
  }

  /** The agent touches its heartbeat, at whatever the clock says. */
  beat(clockSeconds = 1_000_000 + ++this.#beats * 5): void {
    const file = join(this.run, "heartbeat");
    writeFileSync(file, "");
    utimesSync(file, clockSeconds, clockSeconds);
  }

  /** How often it has fed. */
  get meals(): number {
    return statSync(join(this.#folder.path, "watchdog")).size / 2;
  }

  /** What it has said to the kernel's log. */
  get kmsg(): string {
    return readFileSync(join(this.#folder.path, "kmsg"), "utf8");
  }

  /** Nobody reads any more what it says. */
  async silence(): Promise<void> {
    await (this.#process.stderr as ReadableStream).cancel();
  }

  get hasRebooted(): boolean {
    return existsSync(join(this.#folder.path, "rebooted"));
  }

  /** It has looked at everything as it is now, and fed. */
  async fed(): Promise<void> {
    const { meals } = this;
    await until("fed three times more", () => this.meals >= meals + 3 && !this.hasRebooted);
  }

  /** It has started the machine again and feeds no more. Returns the marks it left. */
  async ended(): Promise<string> {
    await until("rebooted", () => this.hasRebooted);
    const { meals } = this;
    rmSync(join(this.#folder.path, "rebooted"));
    await until("rebooted once more", () => this.hasRebooted);
    expect(this.meals).toBe(meals);
    const marks = join(this.boot, "marks");
    return existsSync(marks) ? readFileSync(marks, "utf8") : "";
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill("SIGKILL");
    await this.#process.exited;
    this.#folder[Symbol.dispose]();
  }
}

const TRIAL = "fruit.slot=b fruit.trial=7 fruit.try=2";
const onTrial =
  (deadline: string) =>
  ({ run }: { run: string }) =>
    writeFileSync(join(run, "trial"), deadline);

const check = (title: string, body: () => Promise<void>) =>
  test.skipIf(!BUSYBOX)(`${title}${NEEDS_BUSYBOX}`, body, LIMIT_MS);

check("feeds while the agent's heartbeat goes on, however long that is", async () => {
  await using feeder = new Feeder("fruit.slot=a");
  for (let uptime = 20; uptime < 500; uptime += STALE - 1) {
    feeder.passTo(uptime);
    feeder.beat();
    await feeder.fed();
  }
});

check("gives an agent its time to start, and starts the node again when it never says a word", async () => {
  await using feeder = new Feeder(TRIAL, onTrial("900"));
  await feeder.fed();
  feeder.passTo(10 + GRACE - 1);
  await feeder.fed();
  feeder.passTo(10 + GRACE);
  expect(await feeder.ended()).toBe(`7 2 ${BOOT_ID} agent-dead no heartbeat of the agent since the start\n`);
});

check("starts the node again when the agent falls silent on trial", async () => {
  await using feeder = new Feeder(TRIAL, onTrial("900"));
  feeder.beat();
  await feeder.fed();
  feeder.passTo(10 + STALE - 1);
  await feeder.fed();
  feeder.passTo(10 + STALE);
  expect(await feeder.ended()).toBe(`7 2 ${BOOT_ID} agent-dead no heartbeat of the agent for 60 s\n`);
});

for (const [file, text] of [
  ["rc.stopping", ""],
  ["softlevel", "shutdown"],
] as const)
  check(`ends a shutdown that does not come to its end, and holds it against nobody (${file})`, async () => {
    await using feeder = new Feeder(TRIAL, onTrial("900"));
    feeder.beat();
    writeFileSync(join(feeder.run, "softlevel"), "default");
    await feeder.fed();
    writeFileSync(join(feeder.run, file), text);
    feeder.passTo(10 + STALE);
    expect(await feeder.ended()).toBe("");
    expect(feeder.kmsg).toContain("the system does not get down");
  });

check("starts the node again when the trial's deadline has passed, though the agent lives", async () => {
  await using feeder = new Feeder(TRIAL, onTrial("400"));
  for (const uptime of [60, 110, 160, 210, 260, 310, 360, 410]) {
    feeder.passTo(uptime);
    feeder.beat();
    await feeder.fed();
  }
  // The agent itself has had its chance by then
  feeder.passTo(420);
  expect(await feeder.ended()).toBe(
    `7 2 ${BOOT_ID} deadline the trial was not decided within 420 s of the start\n`,
  );
});

check("forgets the deadline of a trial that was decided", async () => {
  await using feeder = new Feeder(TRIAL, onTrial("60"));
  feeder.beat();
  await feeder.fed();
  rmSync(join(feeder.run, "trial"));
  feeder.passTo(69);
  feeder.beat();
  await feeder.fed();
  feeder.passTo(100);
  feeder.beat();
  await feeder.fed();
});

check(
  "helps an agent that has failed its trial and does not get the node down, without evidence of its own",
  async () => {
    await using feeder = new Feeder(TRIAL, onTrial("0"));
    await feeder.fed();
    feeder.passTo(29);
    await feeder.fed();
    feeder.passTo(30);
    expect(await feeder.ended()).toBe("");
  },
);

check("does not take a deadline that is just being written for one that has passed", async () => {
  await using feeder = new Feeder(TRIAL, onTrial(""));
  await feeder.fed();
  writeFileSync(join(feeder.run, "trial"), "no number\n");
  await feeder.fed();
});

check(
  "judges by the uptime: a clock that jumps is no silence, one that stands still is no life",
  async () => {
    await using feeder = new Feeder(TRIAL, onTrial("900"));
    for (const [uptime, clock] of [
      [20, 0],
      [25, 1_900_000_000],
      [80, 86_400],
      [130, 4_000_000_000],
    ] as const) {
      feeder.passTo(uptime);
      feeder.beat(clock);
      await feeder.fed();
    }
    feeder.passTo(190);
    expect(await feeder.ended()).toContain("agent-dead");
  },
);

check("outside of a trial starts the node again three times, then keeps it up to be looked at", async () => {
  for (const round of [1, 2, 3]) {
    await using feeder = new Feeder("fruit.slot=a", ({ boot }) => {
      if (round > 1) writeFileSync(join(boot, "dead.a"), `${round - 1}\n`);
    });
    await feeder.fed();
    feeder.passTo(10 + GRACE);
    expect(await feeder.ended()).toContain(`0 0 ${BOOT_ID} agent-dead`);
    expect(readFileSync(join(feeder.boot, "dead.a"), "utf8")).toBe(`${round}\n`);
  }
  await using feeder = new Feeder("fruit.slot=a", ({ boot }) => writeFileSync(join(boot, "dead.a"), "3\n"));
  await feeder.fed();
  feeder.passTo(10 + GRACE);
  await until("it says so", () => existsSync(join(feeder.run, "loop")));
  await feeder.fed();
  expect(existsSync(join(feeder.boot, "marks"))).toBe(false);
});

check("counts for the slot that runs, and for no other", async () => {
  await using feeder = new Feeder("fruit.slot=b", ({ boot }) => writeFileSync(join(boot, "dead.a"), "3\n"));
  await feeder.fed();
  feeder.passTo(10 + GRACE);
  expect(await feeder.ended()).toContain("agent-dead");
  const counted = (slot: string) => readFileSync(join(feeder.boot, `dead.${slot}`), "utf8");
  expect([counted("a"), counted("b")]).toEqual(["3\n", "1\n"]);
});

check("on trial starts the node again whatever was counted before", async () => {
  await using feeder = new Feeder(TRIAL, (it) => {
    onTrial("900")(it);
    writeFileSync(join(it.boot, "dead.b"), "9\n");
  });
  await feeder.fed();
  feeder.passTo(10 + GRACE);
  expect(await feeder.ended()).toContain("agent-dead");
});

check("forgets what was counted once an agent has lived", async () => {
  await using feeder = new Feeder("fruit.slot=a", ({ boot }) => writeFileSync(join(boot, "dead.a"), "2\n"));
  feeder.beat();
  await feeder.fed();
  expect(existsSync(join(feeder.boot, "dead.a"))).toBe(true);
  feeder.passTo(69);
  feeder.beat();
  await feeder.fed();
  feeder.passTo(70);
  feeder.beat();
  await until("forgotten", () => !existsSync(join(feeder.boot, "dead.a")));
});

test.skipIf(!BUSYBOX).each(["loop", "data-lost"])(
  `keeps a node up whose agent is dead, with /run/fruit/%s${NEEDS_BUSYBOX}`,
  async (name) => {
    await using feeder = new Feeder("fruit.slot=a", ({ run }) => writeFileSync(join(run, name), "why\n"));
    await feeder.fed();
    feeder.passTo(10_000);
    await feeder.fed();
    expect(existsSync(join(feeder.boot, "marks"))).toBe(false);
  },
  LIMIT_MS,
);

/** No folder can be made there, and no file in it. */
function becomeFile(path: string): void {
  rmSync(path, { recursive: true });
  writeFileSync(path, "");
}

test.skipIf(!BUSYBOX).each<[string, (boot: string) => void]>([
  ["is full", (boot) => symlinkSync("/dev/full", join(boot, "dead.a.new"))],
  ["takes no writes", becomeFile],
  ["reads back otherwise", (boot) => mkdirSync(join(boot, "dead.a"))],
])(
  `keeps a node up whose agent is dead where that cannot be counted, since the data %s${NEEDS_BUSYBOX}`,
  async (_, spoil) => {
    await using feeder = new Feeder("fruit.slot=a", ({ boot }) => spoil(boot));
    await feeder.fed();
    feeder.passTo(10 + GRACE);
    await until("it says so", () => existsSync(join(feeder.run, "loop")));
    feeder.passTo(100_000);
    await feeder.fed();
    expect(feeder.kmsg).toContain("stays up to be looked at, since starts cannot be counted");
  },
  LIMIT_MS,
);

check("starts the node again when the card hangs", async () => {
  await using feeder = new Feeder("fruit.slot=a", ({ boot }) => {
    // Who opens it waits for somebody at its other end
    for (const name of ["dead.a", "marks"]) Bun.spawnSync(["mkfifo", join(boot, name)]);
  });
  await feeder.fed();
  feeder.passTo(10 + GRACE);
  await until("rebooted", () => feeder.hasRebooted);
  expect(feeder.kmsg).toBe(
    "<2>fruit-watchdog: no heartbeat of the agent since the start, and the card hangs; the node starts again\n",
  );
});

check("goes on when nobody reads any more what it says", async () => {
  await using feeder = new Feeder("fruit.slot=a", ({ boot }) => writeFileSync(join(boot, "dead.a"), "3\n"));
  await feeder.fed();
  await feeder.silence();
  feeder.passTo(10 + GRACE);
  await until("its words", () => existsSync(join(feeder.run, "loop")));
  await feeder.fed();
  expect(feeder.kmsg).toContain("since the last 3 starts did no better");
});

test.skipIf(!BUSYBOX).each(["fruit", "fruit-watchdog"])(
  `what the service %s says goes to the system's log${NEEDS_BUSYBOX}`,
  async (name) => {
    using folder = scratch();
    const script = join(folder.path, "service");
    writeFileSync(
      script,
      `. ${join(ROOTFS, "root/etc/init.d", name)}\necho "$output_logger"\necho "$error_logger"\n`,
    );
    const { out } = await runScript(script, [], {});
    const logger = `logger -t ${name} -p daemon.info`;
    expect(out).toBe(`${logger}\n${logger}\n`);
  },
  LIMIT_MS,
);

check("starts the node again without a watchdog too", async () => {
  await using feeder = new Feeder(TRIAL, ({ run }) => {
    onTrial("900")({ run });
    rmSync(join(run, "../watchdog"));
    mkdirSync(join(run, "../watchdog"));
  });
  let uptime = 10;
  await until("rebooted", () => {
    uptime += GRACE;
    feeder.passTo(uptime);
    return feeder.hasRebooted;
  });
});
