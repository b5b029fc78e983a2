/**
 * Sudden death at any moment: agents are killed again and again while they switch, at moments that the seed chooses.
 * `FRUIT_KILLS` says how often (60), `FRUIT_SEED` which moments.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { createConnection } from "node:net";
import { join } from "node:path";
import { verifyAudit } from "../../agent/record/chain.ts";
import { aedes } from "../broker.ts";
import { diesAt, MOMENTS } from "../deaths.ts";
import { askSocket, type Boards, journalOf, place, SITE, sealed, signers } from "../doors.ts";
import { seeded } from "../fakes.ts";
import { type Agent, FRUIT, scratch, until } from "../node.ts";

const KILLS = Number(process.env.FRUIT_KILLS ?? 60);
const SEED = Number(process.env.FRUIT_SEED ?? 1);
/** Several nodes at once, since most of the time is waiting. */
const NODES = 3;

const folder = scratch();
let broker: Awaited<ReturnType<typeof aedes>>;
let people: Awaited<ReturnType<typeof signers>>;

beforeAll(async () => {
  broker = await aedes();
  people = await signers(folder.path, { alice: "roles=read,power outlets=*" });
});
afterAll(async () => {
  await broker[Symbol.asyncDispose]();
  folder[Symbol.dispose]();
});

const VERBS = ["power.cycle", "power.cycle", "power.reset", "power.off", "power.on", "lock.set"] as const;

type Place = Awaited<ReturnType<typeof place>>;

/** A command on its way to an outlet of its own, so that whatever is said to the outlet is its doing. */
interface Sent {
  id: string;
  verb: (typeof VERBS)[number];
  outlet: string;
  text: string;
}

/** One node's life of sudden deaths. Returns what its commands had come to each time it died. */
async function live(node: string, kills: number, random: () => number): Promise<string[]> {
  await using here = await place(folder.path, node, broker.port, {
    version: 4,
    wireTime: true,
    boards: [0, 1],
    settings: { commands: { allowed_signers: people.file } },
  });
  const fates: string[] = [];
  let agent = await here.start();
  for (let kill = 0; kill < kills; kill++) {
    await here.person.status("online");
    const from = here.boards.said.length;
    const sent = await compose(here, `${node}-${kill}`, node, random);
    await die(here, agent, sent, random);
    const { supplies } = here.boards;
    const switched = here.boards.switched.length;
    fates.push(...sent.map((command) => fate(here, agent, command, here.boards.said.slice(from))));
    if (random() < 0.3) await dieYoung(agent.config, random() * 200);
    agent = await here.start();
    await here.boards.looked();
    await here.person.status("online");
    for (const command of sent) await isSettled(here, agent, command);
    expect(here.boards.switched).toHaveLength(switched);
    expect(here.boards.supplies).toBe(supplies);
    expect((await verifyAudit(join(here.folder, "data/audit"), { files: 4 })).problems).toEqual([]);
    expect(existsSync(join(here.folder, "data/state/power.json.bad"))).toBe(false);
    await restore(agent.socket, here.boards);
  }
  agent.kill("SIGKILL");
  await agent.exited;
  return fates;
}

/** Commands for some of the outlets. */
function compose({ boards }: Place, prefix: string, node: string, random: () => number): Promise<Sent[]> {
  const outlets = boards.stack.outlets.slice(0, 1 + Math.floor(random() * 4));
  return Promise.all(
    outlets.map(async (outlet, index): Promise<Sent> => {
      const verb = VERBS[Math.floor(random() * VERBS.length)] ?? "power.cycle";
      const id = `${prefix}-${index}`;
      const force = random() < 0.5;
      const args = verb === "lock.set" ? { outlet, for_seconds: 60 } : { outlets: [outlet], force };
      return {
        id,
        verb,
        outlet,
        text: await sealed(people.keys.alice, id, verb, args, { node, reason: "proof" }),
      };
    }),
  );
}

/** Sends the commands and kills the agent: on a word on the bus, soon after, or at any time. */
async function die(
  { boards, person }: Place,
  agent: Agent,
  sent: Sent[],
  random: () => number,
): Promise<void> {
  const way = Math.floor(random() * 3);
  const word = boards.said.length + 1 + Math.floor(random() * 60);
  const delayMs = random() * (way === 1 ? 60 : 4000);
  boards.onRequest = () => {
    if (way === 0 && boards.said.length >= word) agent.kill("SIGKILL");
  };
  for (const { verb, text } of sent) await person.say(`cmd/${verb}`, text);
  if (way !== 0) {
    await Bun.sleep(delayMs);
    agent.kill("SIGKILL");
  }
  await agent.exited;
  boards.onRequest = () => undefined;
}

/** What became of a command by the time its agent died. Fails when something was promised or done that is not on record. */
function fate({ person }: Place, agent: Agent, { id, verb, outlet }: Sent, said: readonly string[]): string {
  const { accepted, finished } = journalOf(agent, id);
  if (accepted) return finished ? String(finished.state) : "interrupted";
  expect(person.heard(`res/${id}`).filter(({ state }) => state === "accepted")).toEqual([]);
  if (verb !== "lock.set")
    expect(said.filter((what) => /^(on|forceOff|signal) /.test(what) && what.endsWith(outlet))).toEqual([]);
  return "never accepted";
}

/** An agent that does not live long enough to say that it has started. */
async function dieYoung(config: string, afterMs: number): Promise<void> {
  const agent = Bun.spawn([...FRUIT.command, "agent", "--hal", "sim", "--config", config], {
    env: { PATH: process.env.PATH ?? "", ...FRUIT.env },
    stdio: ["ignore", "ignore", "ignore"],
  });
  await Bun.sleep(afterMs);
  agent.kill("SIGKILL");
  await agent.exited;
}

/** An accepted command has an end, whoever asks is told, and it is never done again. */
async function isSettled({ person }: Place, agent: Agent, { id, verb, text }: Sent): Promise<void> {
  const { accepted, finished } = journalOf(agent, id);
  if (!accepted) return;
  expect(finished?.id).toBe(id);
  const job = (await askSocket(agent.socket, "job.get", { id })).at(-1);
  expect(job?.result).toMatchObject({ jobs: [{ id, verb, state: finished?.state }] });
  const seen = person.tap.heard.length;
  await person.say(`cmd/${verb}`, text);
  const again = await person.final(`fruit/v1/${SITE}/${accepted.id.split("-")[0]}/res/${id}`, seen);
  // What is said of an id is said of the command that has it.
  expect(again).toMatchObject({ state: finished?.state });
}

/** Every outlet on and unlocked, for the next round. */
async function restore(socket: string, boards: Boards): Promise<void> {
  const locks = (await askSocket(socket, "lock.list")).at(-1)?.result as { locks: { outlet: string }[] };
  for (const { outlet } of locks.locks)
    await askSocket(socket, "lock.clear", { outlet, kick: true }, { reason: "proof" });
  const outlets = boards.stack.outlets.filter((outlet) => !boards.stack.pi(outlet).supply);
  if (outlets.length > 0) await askSocket(socket, "power.on", { outlets });
  expect(boards.supplies).not.toContain("off");
}

test(`${KILLS} agents killed at moments of seed ${SEED} leave power alone, lose no accepted command and redo none`, async () => {
  const each = Math.ceil(KILLS / NODES);
  const fates = await Promise.all(
    Array.from({ length: NODES }, (_, n) => live(`node${n}`, each, seeded(SEED * 1000 + n))),
  );
  const counts = Map.groupBy(fates.flat(), (fate) => fate);
  console.log([...counts].map(([fate, all]) => `${all.length} ${fate}`).join(", "));
  // A proof in which no command was interrupted would prove nothing.
  expect(counts.get("interrupted")?.length ?? 0).toBeGreaterThan(KILLS / 6);
}, 600_000);

test.each(MOMENTS)(
  "an agent killed in a power.cycle when $moment leaves power alone and owns up",
  (moment) => diesAt(moment, folder.path, broker.port, people),
  60_000,
);

test("SIGTERM ends an agent that is switching and has a console session with one who does not listen, within two seconds at the median", async () => {
  await using here = await place(folder.path, "term", broker.port, {
    version: 4,
    wireTime: true,
    settings: {
      commands: { allowed_signers: people.file },
      consoles: { free: { device: "/dev/ttyUSB7" } },
    },
  });
  const { boards, person, start } = here;
  boards.stack.fault("hang", true);
  const times: number[] = [];
  for (let n = 0; n < 11; n++) {
    const agent = await start();
    await person.status("online");
    const deaf = createConnection(agent.socket);
    deaf.write('{"verb":"console.open","args":{"console":"free","mode":"read"}}\n');
    await until("it is attached", async () =>
      JSON.stringify(await askSocket(agent.socket, "console.who")).includes('"door":"socket"'),
    );
    const from = boards.said.length;
    await person.say(
      "cmd/power.off",
      await sealed(people.keys.alice, `term-${n}`, "power.off", { outlets: ["0.0"] }, { node: "term" }),
    );
    await until("it is under way", () => boards.said.slice(from).includes("signal 0.0"));
    const startedAt = performance.now();
    agent.kill("SIGTERM");
    expect(await agent.exited).toBe(0);
    times.push(performance.now() - startedAt);
    deaf.destroy();
    await person.status("offline");
    const answer = await person.final(`fruit/v1/${SITE}/term/res/term-${n}`);
    expect(answer).toMatchObject({ state: "unconfirmed", code: "stopping" });
  }
  times.sort((a, b) => a - b);
  const [median = 0, worst = 0] = [times[5], times[10]];
  console.log(`SIGTERM to exit: median ${median.toFixed(0)} ms, worst of 11 ${worst.toFixed(0)} ms`);
  expect(boards.switched.filter((what) => !what.startsWith("signal"))).toEqual([]);
  expect(median).toBeLessThan(2000);
}, 60_000);
