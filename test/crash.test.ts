/** Sudden death: whatever moment it comes at, power stays as it is and no accepted command is lost or done twice. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { aedes, HAS_MOSQUITTO, Mosquitto, NEEDS_MOSQUITTO, obey, scripted } from "./broker.ts";
import { diesAt, MOMENTS } from "./deaths.ts";
import { askSocket, Boards, journalOf, OPEN, payload, place, sealed, signers } from "./doors.ts";
import { type Agent, FRUIT, scratch, startAgent, until } from "./node.ts";

setDefaultTimeout(20_000);

let broker: Awaited<ReturnType<typeof aedes>>;
let people: Awaited<ReturnType<typeof signers>>;
const folder = scratch();

beforeAll(async () => {
  broker = await aedes();
  people = await signers(folder.path, { alice: "roles=read,power outlets=*" });
});
afterAll(async () => {
  await broker[Symbol.asyncDispose]();
  folder[Symbol.dispose]();
});

function mkdir(name: string): string {
  const path = join(folder.path, name);
  mkdirSync(path);
  return path;
}

/** Tells an agent to stop, and fails when that takes far more than the two seconds it is given. */
async function stop(agent: Pick<Agent, "kill" | "exited">): Promise<number> {
  agent.kill("SIGTERM");
  let isLate = false;
  const limit = setTimeout(() => {
    isLate = true;
    agent.kill("SIGKILL");
  }, 5000);
  const exit = await agent.exited;
  clearTimeout(limit);
  expect(isLate).toBe(false);
  return exit;
}

/** A node whose commands alice may sign. */
const nodeOf = (node: string, port = broker.port, version: 4 | 5 = 4) =>
  place(folder.path, node, port, {
    version,
    wireTime: true,
    settings: { commands: { allowed_signers: people.file } },
  });

/** While the Pi shuts down, and while it has no power; test/proof/crash.proof.ts has every moment. */
const TWO = MOMENTS.filter(({ node }) => node === "stopping" || node === "off");

test.concurrent.each(TWO)(
  "an agent killed in a power.cycle when $moment leaves power alone and owns up",
  (moment) => diesAt(moment, folder.path, broker.port, people),
);

test.concurrent("an agent killed as soon as it has accepted a command owns up to it", async () => {
  await using here = await nodeOf("accepted");
  const { boards, person, start } = here;
  const first = await start();
  await person.status("online");
  person.tap.client.on("message", (topic) => {
    if (topic.endsWith("/res/now")) first.kill("SIGKILL");
  });
  await person.say(
    "cmd/power.off",
    await sealed(people.keys.alice, "now", "power.off", { outlets: ["0.1"] }, { node: "accepted" }),
  );
  await first.exited;
  const { supplies } = boards;
  person.tap.client.removeAllListeners("message");
  await using second = await start();
  await boards.looked();
  expect(boards.supplies).toBe(supplies);
  expect(journalOf(second, "now").finished).toMatchObject({ state: "unconfirmed", code: "restarted" });
});

test.concurrent.skipIf(!HAS_MOSQUITTO)(
  `what was sent while no agent ran is not done when one comes ${NEEDS_MOSQUITTO}`,
  async () => {
    await using mosquitto = await Mosquitto.start(OPEN);
    await using here = await nodeOf("away", mosquitto.port, 5);
    const { boards, person, start } = here;
    const first = await start();
    await person.status("online");
    first.kill("SIGKILL");
    await first.exited;
    // Mosquitto keeps the session for the seconds that it holds the will back, and queues for it.
    for (let n = 0; n < 50; n++) {
      const body = payload(`late${n}`, "power.identify", { outlets: ["0.0"] }, { node: "away" });
      await person.say("cmd/power.identify", JSON.stringify(body));
    }
    await using second = await start();
    await person.status("online");
    const [last] = await askSocket(second.socket, "power.status").then((all) => all.slice(-1));
    expect(last?.state).toBe("done");
    await boards.looked();
    expect(boards.said).not.toContain("ledsOn 0");
    expect(person.tap.heard.filter(({ topic }) => topic.includes("/res/late"))).toEqual([]);
  },
);

test.concurrent("SIGTERM ends a command as unconfirmed, says offline, and leaves power as it is", async () => {
  await using here = await nodeOf("term");
  const { boards, person, start } = here;
  const agent = await start();
  await person.status("online");
  boards.stack.fault("hang", true, "0.0");
  const body = await sealed(
    people.keys.alice,
    "stopped",
    "power.off",
    { outlets: ["0.0"] },
    { node: "term" },
  );
  await person.say("cmd/power.off", body);
  await until("the Pi was asked to shut down", () => boards.switched.includes("signal 0.0"));
  const asked = agent.cli("power", "off", "0.1", "--reason", "test");
  await until("both were asked", () => boards.switched.includes("signal 0.1"));
  const { supplies } = boards;
  expect(await stop(agent)).toBe(0);
  expect(await person.final("fruit/v1/lab/term/res/stopped")).toMatchObject({
    state: "unconfirmed",
    code: "stopping",
  });
  await person.status("offline");
  // Whoever asked by the socket is told the same, with the exit code that means it.
  const { exit, err } = await asked;
  expect({ exit, err }).toEqual({ exit: 5, err: expect.stringContaining("the agent stopped during off") });
  expect(boards.supplies).toBe(supplies);
  expect(boards.switched).toEqual(["signal 0.0", "signal 0.1"]);

  await using again = await start();
  await boards.looked();
  expect(again.log()).not.toContain("command.interrupted");
  expect(boards.supplies).toBe(supplies);
});

test.concurrent("SIGTERM at any moment of the start ends the agent", async () => {
  const config = join(mkdir("young"), "node.json");
  writeFileSync(
    config,
    JSON.stringify({
      site: "lab",
      data_dir: join(folder.path, "young/data"),
      socket: join(folder.path, "young/fruit.sock"),
    }),
  );
  for (const wait of ["0", "40", "80", "120", ...Array(6).fill("started")]) {
    const agent = Bun.spawn([...FRUIT.command, "agent", "--hal", "sim", "--config", config], {
      env: { PATH: process.env.PATH ?? "", ...FRUIT.env },
      stdio: ["ignore", "ignore", "pipe"],
    });
    const said = agent.stderr.getReader();
    if (wait === "started") await said.read();
    else await Bun.sleep(Number(wait));
    // Before it listens to signals the system ends it.
    expect([0, 143]).toContain(await stop(agent));
  }
});

test.concurrent("SIGTERM is obeyed within seconds when the broker has stopped answering", async () => {
  await using mute = await scripted((packet, say) => {
    if (packet.cmd === "connect") say({ cmd: "connack", reasonCode: 0, sessionPresent: false });
    if (packet.cmd === "subscribe") obey(packet, say);
  });
  const agent = await startAgent(mkdir("mute"), { mqtt: { url: `mqtt://127.0.0.1:${mute.port}` } });
  await until("it says something", () => mute.heard.some(({ cmd }) => cmd === "publish"));
  expect(await stop(agent)).toBe(0);
});

test.concurrent.each<{ when: string; node: string; requests: number }>([
  { when: "has just begun to ask", node: "dead", requests: 0 },
  { when: "is in the middle of a round", node: "dead-round", requests: 5 },
])(
  "SIGTERM is obeyed within seconds when nobody on the bus answers and the agent $when",
  async ({ node, requests }) => {
    const own = mkdir(node);
    using boards = await Boards.serve(own, { boards: [0, 1, 2, 3], wireTime: true });
    boards.stack.fault("dead-bus", true);
    const agent = await startAgent(own, { power: boards.power });
    await until("it asks", () => boards.said.length >= requests);
    expect(await stop(agent)).toBe(0);
  },
);
