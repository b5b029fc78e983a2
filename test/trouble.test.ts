/** Everything that can fail under a node: it is named, leaves power as it is, and is over when it is over. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { appendFileSync, mkdirSync, rmSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { join } from "node:path";
import type { CommandResult } from "../agent/commands.ts";
import { ROOT } from "../agent/messages.ts";
import { aedes, HAS_MOSQUITTO, Mosquitto, NEEDS_MOSQUITTO, tcp } from "./broker.ts";
import { askSocket, Boards, OPEN, payload, place, SITE, sealed, signers } from "./doors.ts";
import { type Agent, FRUIT, fruit, scratch, startAgent, until } from "./node.ts";

setDefaultTimeout(20_000);

const folder = scratch();
let people: Awaited<ReturnType<typeof signers>>;

beforeAll(async () => {
  people = await signers(folder.path, { alice: "roles=read,power outlets=*" });
});
afterAll(() => {
  if (disk) spawnSync("umount", ["-l", disk]);
  folder[Symbol.dispose]();
});

const OFF = { outlets: ["0.0"] };
const json = (document: unknown) => JSON.stringify(document);
const alice = (...from: Parameters<typeof payload>) => sealed(people.keys.alice, ...from);

test.concurrent.skipIf(!HAS_MOSQUITTO)(
  `a dead bus is an answer with code bus, an alarm and unknown, and over when it is over ${NEEDS_MOSQUITTO}`,
  async () => {
    await using broker = await Mosquitto.start(OPEN);
    await using here = await place(folder.path, "dark", broker.port, {
      settings: { commands: { allowed_signers: people.file } },
    });
    const { boards, person } = here;
    await using agent = await here.start();
    await until("on", () => person.heard("state/outlet/0.1").at(-1)?.supply === "on");
    boards.stack.fault("dead-bus", true);
    const text = await alice("dark", "power.off", OFF, { node: "dark" });
    const [overMqtt, bySocket] = await Promise.all([
      person.ask("cmd/power.off", text),
      agent.cli("power", "off", "0.1"),
    ]);
    expect(overMqtt).toMatchObject({ state: "failed", code: "bus" });
    expect(bySocket.exit).toBe(6);
    await until("the alarm", () => person.heard("alarm/bus-0").at(-1)?.severity === "critical");
    expect(person.heard("state/outlet/0.0").at(-1)).toMatchObject({ supply: "unknown" });
    await agent.cli("telemetry", "boost", "--for", "20s", "--every", "1s");
    await until(
      "the errors are counted",
      () => Number(person.heard("tele/agent/main").at(-1)?.bus_errors_total) > 0,
    );
    boards.stack.fault("dead-bus", false);
    await until("it is over", () => person.tap.texts(`${ROOT}/${SITE}/dark/alarm/bus-0`).at(-1) === "");
    expect(person.heard("state/outlet/0.0").at(-1)).toMatchObject({ supply: "on" });
    expect(boards.switched).toEqual([]);
  },
);

test.concurrent.skipIf(!HAS_MOSQUITTO)(
  `while the broker is gone the node goes on, and loses no event ${NEEDS_MOSQUITTO}`,
  async () => {
    await using broker = await Mosquitto.start(OPEN);
    let isThere = true;
    const connections = new Set<Socket>();
    await using road = await tcp((socket) => {
      const there = isThere ? connect(broker.port, "127.0.0.1") : undefined;
      there?.pipe(socket).pipe(there);
      there?.on("error", () => socket.destroy()).on("close", () => socket.destroy());
      socket.on("close", () => there?.destroy());
      if (there) connections.add(socket);
      else socket.destroy();
    });
    const mqtt = { url: `mqtt://127.0.0.1:${road.port}`, backoff_max_seconds: 1, will_delay_seconds: 0 };
    await using here = await place(folder.path, "gone", broker.port, { settings: { mqtt } });
    const { boards, person } = here;
    await using agent = await here.start();
    await person.status("online");
    isThere = false;
    for (const socket of connections) socket.destroy();
    await person.status("offline");

    await until("it is noticed", () => agent.log().includes("mqtt.down"));
    expect(await agent.cli("power", "status", "0.0")).toMatchObject({ exit: 0 });
    expect(await agent.cli("lock", "0.0", "--reason", "mine")).toMatchObject({ exit: 0 });
    expect(await agent.cli("unlock", "0.0")).toMatchObject({ exit: 0 });
    expect(await agent.cli("lock", "0.1", "--reason", "mine")).toMatchObject({ exit: 0 });
    expect(boards.switched).toEqual([]);

    isThere = true;
    await person.status("online");
    await until("what happened is told", () => person.heard("event/lock.set").length === 2);
    expect(person.heard("event/lock.set")).toMatchObject([
      { outlet: "0.0", buffered: 1 },
      { outlet: "0.1", buffered: 1 },
    ]);
    expect(person.heard("state/lock/0.1").at(-1)).toMatchObject({ reason: "mine" });
    const numbers = person.tap.heard
      .filter(({ topic }) => topic.includes("/gone/event/"))
      .map(({ text }) => JSON.parse(text).seq as number);
    // An event whose arrival nobody confirmed is told again: consumers count it once.
    const once = [...new Set(numbers)].sort((a, b) => a - b);
    expect(once).toEqual(once.map((_, index) => index + 1));
  },
);

test.concurrent.skipIf(!HAS_MOSQUITTO)(
  `a broker that is full is waited for, and the node works meanwhile ${NEEDS_MOSQUITTO}`,
  async () => {
    await using broker = await Mosquitto.start([...OPEN, "max_connections 1"]);
    await using here = await place(folder.path, "full", broker.port);
    await using agent = await here.start();
    await until("it was turned away", () => agent.log().includes('"mqtt.down"'));
    expect(await agent.cli("power", "status", "0.0")).toMatchObject({ exit: 0 });
    expect(agent.log()).not.toContain("mqtt.connected");
    await here.person[Symbol.asyncDispose]();
    await until("it got in", () => agent.log().includes('"mqtt.connected"'));
    expect(here.boards.switched).toEqual([]);
  },
);

test.concurrent("on MQTT 3.1.1 a retained command is done once at most, and what was stored before never", async () => {
  await using broker = await aedes();
  await using here = await place(folder.path, "old", broker.port, {
    version: 4,
    settings: { commands: { allowed_signers: people.file } },
  });
  const { boards, person } = here;
  await person.say("cmd/power.off", await alice("stored", "power.off", OFF, { node: "old" }), {
    retain: true,
  });
  await using agent = await here.start();
  await until("it is refused", () => person.refusals.length > 0);
  expect(person.refusals).toEqual(["retained"]);
  await person.say("cmd/power.off", "", { retain: true });

  // Published while the node listens it cannot be told from a good one: 3.1.1 does not say.
  const text = json(payload("live", "power.identify", { outlets: ["0.0"] }, { node: "old" }));
  await person.say("cmd/power.identify", text, { retain: true });
  expect(await person.final(`${ROOT}/${SITE}/old/res/live`)).toMatchObject({ state: "done" });
  // A third time within a minute would look like a second node with this name.
  for (const times of [1, 2]) {
    const before = person.refusals.length;
    const connections = agent.log().split('"mqtt.connected"').length;
    broker.drop("fruit-old");
    await until(`reconnected ${times}`, () => agent.log().split('"mqtt.connected"').length > connections);
    await until("it is refused", () => person.refusals.length > before);
    expect(person.refusals.slice(before)).toEqual(["retained"]);
  }
  await person.say("cmd/power.identify", text);
  await until("the same unretained", () => person.refusals.at(-1) === "duplicate");
  expect(boards.said.filter((what) => what === "ledsOn 0")).toHaveLength(1);
  expect(boards.switched).toEqual([]);
});

/** Starts the node on files that cannot grow beyond a few lines; the signal that says so is ignored, as a service does. */
const CRAMPED = {
  ...FRUIT,
  command: ["sh", "-c", 'trap "" XFSZ; ulimit -f 6; exec "$@"', "sh", ...FRUIT.command],
};

/** Harmless commands until one cannot be recorded. */
async function fillUp(agent: Agent): Promise<CommandResult> {
  for (let n = 0; n < 100; n++) {
    const [answer] = (await askSocket(agent.socket, "power.identify", { outlets: ["0.0"], on: false })).slice(
      -1,
    );
    if (answer && answer.state !== "done") return answer;
  }
  throw new Error("a hundred commands were recorded");
}

test.concurrent("what cannot be recorded in the audit log is not done", async () => {
  const own = join(folder.path, "cramped");
  mkdirSync(own);
  using boards = await Boards.serve(own);
  await using agent = await startAgent(own, { power: boards.power }, { executable: CRAMPED });
  expect(await fillUp(agent)).toMatchObject({ state: "refused", code: "audit" });
  const off = await agent.cli("power", "off", "0.0", "--force", "--reason", "test");
  expect(off.exit).not.toBe(0);
  expect(off.err).toContain("the audit log cannot be written: EFBIG");
  expect(boards.switched).toEqual([]);
  expect(await agent.cli("power", "status", "0.0")).toMatchObject({ exit: 0 });
  expect(await agent.cli("audit", "verify")).toMatchObject({ exit: 0 });
});

/** A file system of 128 KiB, where this user may mount one. */
function tinyDisk(): string | undefined {
  const path = join(folder.path, "disk");
  mkdirSync(path);
  const { status } = spawnSync("mount", ["-t", "tmpfs", "-o", "size=128k", "tmpfs", path]);
  return status === 0 ? path : undefined;
}
const disk = tinyDisk();

test.concurrent.skipIf(!disk)(
  "on a full disk nothing is switched, and as soon as there is room it is again [needs root, to mount a tmpfs]",
  async () => {
    const own = join(folder.path, "full-disk");
    mkdirSync(own);
    using boards = await Boards.serve(own);
    await using agent = await startAgent(own, { power: boards.power, data_dir: disk });
    const filler = join(String(disk), "filler");
    expect(() => {
      for (;;) appendFileSync(filler, Buffer.alloc(4096));
    }).toThrow("ENOSPC");
    // Which of the two records has the last free bytes of a block is the disk's business.
    expect(await fillUp(agent)).toMatchObject({
      state: "refused",
      code: expect.stringMatching(/^(audit|disk)$/),
    });
    expect((await agent.cli("power", "off", "0.0", "--force", "--reason", "test")).err).toContain("ENOSPC");
    expect(boards.switched).toEqual([]);
    // The node starts again all the same, and can be asked.
    agent.kill("SIGTERM");
    expect(await agent.exited).toBe(0);
    await using again = await startAgent(own, { power: boards.power, data_dir: disk });
    expect(await again.cli("power", "status", "0.0")).toMatchObject({ exit: 0 });
    expect(boards.switched).toEqual([]);
    rmSync(filler);
    const off = await again.cli("power", "off", "0.0", "--force", "--reason", "test");
    expect(off).toMatchObject({ exit: 0 });
    expect(boards.switched).toEqual(["forceOff 0.0"]);
    expect(await fruit(["audit", "verify", "--dir", join(String(disk), "audit")])).toMatchObject({ exit: 0 });
  },
);
