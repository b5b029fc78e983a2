/** One start of the agent's own code for slots, with everything around it that it asks: until it is content, or wants another start. */
import { createServer } from "node:net";
import { join } from "node:path";
import { bootCommands } from "../../agent/boot/commands.ts";
import type { BootOptions } from "../../agent/boot/service.ts";
import { Slots } from "../../agent/boot/slots.ts";
import { type Config, parseConfig } from "../../agent/config.ts";
import type { SlotName } from "../../boot/layout.ts";
import type { BootSwitch } from "../../boot/switch.ts";
import type { BlockDevice, Machine } from "../../hal/ports.ts";
import { SLOT_BYTES, SLOT_OFFSETS } from "./card.ts";

/** What an agent is started with. */
export interface AgentStart {
  disk: BlockDevice;
  boot: BootSwitch;
  /** A folder of this node; `data` and `run` are in it. */
  folder: string;
  bootId: string;
  /** What U-Boot added to the kernel's command line. */
  args: string;
  /** Whether its checks say yes. */
  isWell: boolean;
  /** Seconds since the machine was started. */
  upSeconds: number;
  /** A command that somebody gives once the agent is content, or while a trial runs. */
  command?: { verb: string; args: Record<string, unknown> } | undefined;
}

/** How it ended: the agent is content with the node, wants it started again, or cannot use the card. */
export type AgentEnd = { is: "up" } | { is: "again"; why: string } | { is: "trouble"; why: string };

/** Longest that an agent may think about a start before it counts as hung, ms. */
const THINK_MS = 20_000;

/** Runs it. */
export async function runAgent(start: AgentStart): Promise<AgentEnd> {
  const { promise, resolve } = Promise.withResolvers<AgentEnd>();
  const stop = new AbortController();
  const isTrial = start.args.includes("fruit.trial=");
  await using door = isTrial ? await openDoor(join(start.folder, "door")) : undefined;
  const options = optionsOf(start, {
    content: () => {
      if (!start.command)
        void start.boot.read().then(
          ({ primary }) => {
            if (primary === start.boot.current) resolve({ is: "up" });
          },
          (error) => resolve({ is: "trouble", why: String(error) }),
        );
    },
    trouble: (why) => resolve({ is: "trouble", why }),
  });
  // What somebody decides is over when the answer is there, whatever the agent wants next
  const slots = new Watched(options, (why) => {
    if (!start.command) resolve({ is: "again", why });
  });
  const hung = () => `it does not come to an end: ${JSON.stringify(slots.trying?.progress ?? slots.status)}`;
  const limit = setTimeout(() => resolve({ is: "trouble", why: hung() }), THINK_MS);
  const running = slots.run(stop.signal);
  void door;
  if (start.command)
    await order(slots, start.command, stop.signal).then(
      (why) => resolve(why === undefined ? { is: "up" } : { is: "trouble", why }),
      (error) => resolve({ is: "trouble", why: String(error) }),
    );
  const end = await promise;
  clearTimeout(limit);
  stop.abort();
  await running;
  return end;
}

/** The slots of an agent, of which nobody is really started anew. */
class Watched extends Slots {
  readonly #again: (why: string) => void;
  constructor(options: BootOptions, again: (why: string) => void) {
    super(options);
    this.#again = again;
  }
  override reboot(why: string): void {
    this.#again(why);
  }
}

/** Gives a command as soon as the agent has looked at its card. What is wrong, where it was refused. */
async function order(
  slots: Slots,
  { verb, args }: { verb: string; args: Record<string, unknown> },
  signal: AbortSignal,
): Promise<string | undefined> {
  while (slots.status === undefined && !signal.aborted) await new Promise((done) => setTimeout(done, 0));
  const row = bootCommands(slots).find((one) => one.verb === verb);
  if (!row) throw new Error(`there is no command ${verb}`);
  const outcome = await row.run({
    id: "crash",
    args,
    reason: "crash",
    caller: { who: "crash", door: "socket" } as never,
    progress: () => undefined,
    signal,
  });
  return outcome.state === "done" || outcome.state === "unchanged" ? undefined : outcome.message;
}

function optionsOf(start: AgentStart, tell: { content(): void; trouble(why: string): void }): BootOptions {
  return {
    config: configOf(start),
    dataDir: join(start.folder, "data"),
    socket: join(start.folder, "door"),
    hal: {
      machine: machineOf(start),
      openDisk: async () => {
        throw new Error("the card is open already");
      },
    },
    open: async () => ({
      disk: start.disk,
      boot: start.boot,
      slots: { a: partition("a", 2), b: partition("b", 3) },
    }),
    isBrokerReached: () => true,
    buses: () => [],
    isStackBeating: () => false,
    isPowerBusy: () => false,
    clock: () => ({ synced: true }),
    publish: () => undefined,
    tell: () => undefined,
    // Said at the end of every round in which all was well
    alarm: (id, alarm) => {
      if (id !== "boot-card") return;
      if (alarm) tell.trouble(alarm.message);
      else tell.content();
    },
    log: () => undefined,
  };
}

const partition = (slot: SlotName, number: number) => ({
  number,
  type: 0x83,
  offset: SLOT_OFFSETS[slot],
  bytes: SLOT_BYTES,
});

function configOf({ folder, isWell, args, command }: AgentStart): Config["boot"] {
  // Who decides by hand needs a trial that is not decided yet
  const isWaiting = command !== undefined && args.includes("fruit.trial=");
  const checks = isWell ? [] : [{ name: "sick", command: ["false"], fatal: true }];
  const boot = {
    run_dir: join(folder, "run"),
    tries: 3,
    settle_seconds: 0,
    agent_seconds: isWaiting ? 500 : 0,
    check_seconds: 0.05,
    memory_min_bytes: 0,
    loop_starts: 100,
    checks,
  };
  return parseConfig("crash", { site: "crash", boot }).boot;
}

function machineOf({ args, bootId, upSeconds }: AgentStart): Machine {
  const files: Record<string, string> = {
    "/proc/cmdline": `console=ttyS1 ${args} panic=10\n`,
    "/proc/uptime": `${upSeconds} 60.00\n`,
    "/proc/meminfo": "MemAvailable:   400000 kB\n",
  };
  return {
    serial: "00000000c0ffee00",
    bootId,
    read: (path) => (files[path] === undefined ? undefined : Buffer.from(files[path])),
    list: () => [],
    link: () => undefined,
    root: () => undefined,
    space: () => undefined,
    clock: () => ({ synced: true }),
    throttled: () => undefined,
    rebootFlags: () => undefined,
    firmwareBuilt: () => undefined,
    identify: () => false,
    close: () => undefined,
  };
}

/** Answers whoever asks whether the agent is there. */
async function openDoor(path: string): Promise<AsyncDisposable> {
  const server = createServer((socket) => {
    socket.on("error", () => undefined);
    socket.once("data", () => socket.end(`${JSON.stringify({ id: "1", state: "done" })}\n`));
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(path, resolve);
  });
  return {
    [Symbol.asyncDispose]: () => new Promise((done) => server.close(() => done())),
  };
}
