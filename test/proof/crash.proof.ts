/**
 * Sudden death at any moment: agents are killed again and again while they switch, at moments that the seed chooses.
 * `FRUIT_KILLS` says how often (60), `FRUIT_SEED` which moments.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { verifyAudit } from "../../agent/chain.ts";
import type { CommandResult } from "../../agent/commands.ts";
import { aedes } from "../broker.ts";
import { askSocket, journalOf, place, SITE, sealed, signers } from "../doors.ts";
import { seeded } from "../fakes.ts";
import { FRUIT, scratch, until } from "../node.ts";

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

/** One node's life of sudden deaths. Returns what its commands had come to when it died. */
async function live(node: string, kills: number, random: () => number): Promise<string[]> {
  await using here = await place(folder.path, node, broker.port, {
    version: 4,
    wireTime: true,
    boards: [0, 1],
    settings: { commands: { allowed_signers: people.file } },
  });
  const { boards, person, start } = here;
  const fates: string[] = [];
  let agent = await start();
  await person.status("online");
  for (let kill = 0; kill < kills; kill++) {
    // One command for each outlet, so that whatever is said to an outlet is its command's doing.
    const sent = boards.stack.outlets.slice(0, 1 + Math.floor(random() * 4)).map((outlet, index) => {
      const verb = VERBS[Math.floor(random() * VERBS.length)] ?? "power.cycle";
      return { outlet, verb, id: `${node}-${kill}-${index}`, isForced: random() < 0.5 };
    });
    const from = boards.said.length;
    // A third each: on a word on the bus, soon after the commands, at any time.
    const way = Math.floor(random() * 3);
    const words = 1 + Math.floor(random() * 60);
    const delayMs = random() * (way === 1 ? 60 : 4000);
    const killed = agent;
    boards.onRequest = () => {
      if (way === 0 && boards.said.length - from >= words) killed.kill("SIGKILL");
    };
    const envelopes = new Map<string, string>();
    for (const { id, verb, outlet, isForced } of sent) {
      const args =
        verb === "lock.set"
          ? { outlet, for_seconds: 60 }
          : { outlets: [outlet], ...(isForced ? { force: true } : {}) };
      const text = await sealed(people.keys.alice, id, verb, args, { node, reason: "proof" });
      envelopes.set(id, text);
      await person.say(`cmd/${verb}`, text);
    }
    if (way !== 0) await Bun.sleep(delayMs);
    if (way !== 0) killed.kill("SIGKILL");
    await killed.exited;
    boards.onRequest = () => undefined;
    const atDeath = { supplies: boards.supplies, switched: boards.switched.length };
    const done = boards.said.slice(from);
    for (const { id, verb, outlet } of sent) {
      const { accepted, finished } = journalOf(killed, id);
      const answers = person.heard(`res/${id}`) as CommandResult[];
      const isTold = answers.some(({ state }) => state === "accepted");
      const isOnWire = done.some((what) => /^(on|forceOff|signal) /.test(what) && what.endsWith(outlet));
      // Nothing was promised or done that is not on record.
      expect({
        id,
        isRecorded: accepted !== undefined || !(isTold || (verb !== "lock.set" && isOnWire)),
      }).toEqual({
        id,
        isRecorded: true,
      });
      fates.push(accepted ? (finished ? String(finished.state) : "interrupted") : "never accepted");
    }

    // Sometimes the next one dies while it starts.
    if (random() < 0.3) {
      const early = Bun.spawn([...FRUIT.command, "agent", "--hal", "sim", "--config", killed.config], {
        env: { PATH: process.env.PATH ?? "", ...FRUIT.env },
        stdio: ["ignore", "ignore", "ignore"],
      });
      await Bun.sleep(random() * 200);
      early.kill("SIGKILL");
      await early.exited;
    }
    agent = await start();
    await boards.looked();
    expect(boards.switched).toHaveLength(atDeath.switched);
    expect(boards.supplies).toBe(atDeath.supplies);
    await person.status("online");
    for (const { id, verb } of sent) {
      const { accepted, finished } = journalOf(agent, id);
      if (!accepted) continue;
      expect(finished?.id).toBe(id);
      if (finished?.state === "unconfirmed" && finished.code === "restarted")
        expect(JSON.stringify(await askSocket(agent.socket, "job.get", { id }))).toContain(
          '"code":"restarted"',
        );
      const seen = person.tap.heard.length;
      await person.say(`cmd/${verb}`, envelopes.get(id) ?? "");
      const again = await person.final(`fruit/v1/${SITE}/${node}/res/${id}`, seen);
      expect(again).toMatchObject({ state: "refused", code: "duplicate" });
    }
    expect(boards.switched).toHaveLength(atDeath.switched);
    const { problems } = await verifyAudit(join(here.folder, "data/audit"), { files: 4 });
    expect(problems).toEqual([]);
    expect(existsSync(join(here.folder, "data/state/power.json.bad"))).toBe(false);
    // Whole and on, for the next round.
    await settle(
      agent.socket,
      boards.stack.outlets.filter((outlet) => !boards.stack.pi(outlet).supply),
    );
  }
  agent.kill("SIGKILL");
  await agent.exited;
  return fates;
}

async function settle(socket: string, outlets: readonly string[]): Promise<void> {
  for (const { outlet } of await locks(socket))
    await askSocket(socket, "lock.clear", { outlet, kick: true }, { reason: "proof" });
  if (outlets.length === 0) return;
  await until(
    "all are on",
    async () => (await askSocket(socket, "power.on", { outlets })).at(-1)?.state !== "refused",
  );
}

async function locks(socket: string): Promise<{ outlet: string }[]> {
  const answer = (await askSocket(socket, "lock.list")).at(-1);
  return (answer?.result as { locks: { outlet: string }[] } | undefined)?.locks ?? [];
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

test("SIGTERM ends an agent that is switching, within two seconds at the median", async () => {
  await using here = await place(folder.path, "term", broker.port, {
    version: 4,
    wireTime: true,
    settings: { commands: { allowed_signers: people.file } },
  });
  const { boards, person, start } = here;
  boards.stack.fault("hang", true);
  const times: number[] = [];
  for (let n = 0; n < 11; n++) {
    const agent = await start();
    await person.status("online");
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
