/** A node that a group of tests shares, and that must be as it was after each of them. */
import { afterAll, afterEach, beforeAll, expect } from "bun:test";
import { Mosquitto } from "./broker.ts";
import { askSocket, OPEN, type Person, place } from "./doors.ts";
import type { Agent } from "./node.ts";

/** The node still answers, and what it was told before is still known. */
async function isWell(agent: Agent): Promise<void> {
  const [answer] = (await askSocket(agent.socket, "lock.list")).slice(-1);
  expect(answer).toMatchObject({ state: "done", result: { locks: [{ outlet: "1.0", reason: "mine" }] } });
}

async function takeLock(agent: Agent): Promise<void> {
  const [answer] = (await askSocket(agent.socket, "lock.set", { outlet: "1.0" }, { reason: "mine" })).slice(
    -1,
  );
  expect(answer?.state).toBe("done");
}

/** Starts it before the tests of a group; after each, power and what the node knows must be as before. */
export function sharedNode(
  root: string,
  node: string,
  settings: () => Record<string, unknown>,
  before: (person: Person) => Promise<void> = async () => undefined,
) {
  let broker: Mosquitto;
  let here: Awaited<ReturnType<typeof place>>;
  let agent: Agent;
  let supplies: string;
  beforeAll(async () => {
    broker = await Mosquitto.start(OPEN);
    here = await place(root, node, broker.port, {
      boards: [0, 1],
      settings: settings(),
    });
    await before(here.person);
    agent = await here.start();
    await here.person.status("online");
    await takeLock(agent);
    ({ supplies } = here.boards);
  });
  afterAll(async () => {
    await agent[Symbol.asyncDispose]();
    await here[Symbol.asyncDispose]();
    await broker[Symbol.asyncDispose]();
  });
  afterEach(async () => {
    expect(here.boards.switched).toEqual([]);
    expect(here.boards.supplies).toBe(supplies);
    await isWell(agent);
  });
  return { agent: () => agent, boards: () => here.boards, person: () => here.person };
}
