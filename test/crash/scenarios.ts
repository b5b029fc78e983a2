/** The updates that are broken at every step. */
import { LEAF_BYTES } from "../../boot/content.ts";
import type { SlotName } from "../../boot/layout.ts";
import { cardWith, payloadOf } from "./card.ts";
import type { Scenario } from "./engine.ts";
import type { Health, Node } from "./node.ts";
import { TRY } from "./orders.ts";

/** What the card is built with; what is installed; what comes after. None ends with a whole leaf. */
export const OLD = payloadOf(1n, 41 * LEAF_BYTES + 3001);
export const NEW = payloadOf(2n, 46 * LEAF_BYTES + 1234);
export const NEXT = payloadOf(3n, 43 * LEAF_BYTES + 4096);

/** Tries of every trial. */
export const TRIES = 3;

/** Starts the node until it stays up; returns the slot that runs. A restart in order flushes. */
export async function untilUp(
  node: Node,
  command?: { verb: string; args: Record<string, unknown> },
): Promise<SlotName> {
  for (let starts = 0; starts < 10; starts++) {
    node.disk.flush("all");
    const { start, end } = await node.turn(command);
    if (start.boots !== "a" && start.boots !== "b")
      throw new Error(`it starts ${start.boots}: ${start.args}`);
    if (end.is === "trouble") throw new Error(end.why);
    if (end.is === "up") return start.boots;
  }
  throw new Error("it does not stay up");
}

const world = (health: Health) => [
  { payload: OLD, health: "well" as const },
  { payload: NEW, health },
  { payload: NEXT, health: "well" as const },
];

/** Installs, arms, restarts until the node stays up. */
async function update(node: Node): Promise<void> {
  await node.install(NEW, await untilUp(node));
  await untilUp(node, TRY);
  await untilUp(node);
}

const simple = (name: string, health: Health): Scenario => ({
  name,
  world: world(health),
  card: () => cardWith(OLD),
  tornEvery: name === "update" ? 1 : 3,
  isMeddledWith: name === "update" || name === "sick",
  run: update,
});

/** All of them. */
export const SCENARIOS: readonly Scenario[] = [
  simple("update", "well"),
  simple("sick", "sick"),
  simple("mute", "mute"),
  simple("dead", "dead"),
  {
    name: "resumed",
    world: world("well"),
    card: () => cardWith(OLD),
    tornEvery: 3,
    isMeddledWith: true,
    run: async (node) => {
      await node.install(NEW, await untilUp(node), { leaves: 20 });
      await update(node);
    },
  },
  {
    name: "copied",
    world: world("well"),
    card: () => cardWith(OLD, NEXT),
    tornEvery: 3,
    isMeddledWith: false,
    run: async (node) => {
      await node.install(NEW, await untilUp(node), { copies: true });
      await untilUp(node, TRY);
      await untilUp(node);
    },
  },
  {
    name: "over",
    world: world("well"),
    card: () => cardWith(OLD, NEXT),
    tornEvery: 3,
    isMeddledWith: false,
    run: update,
  },
  {
    name: "twice",
    world: world("well"),
    card: () => cardWith(OLD),
    tornEvery: 3,
    isMeddledWith: false,
    run: async (node) => {
      await update(node);
      await node.install(NEXT, await untilUp(node));
      await untilUp(node, TRY);
      await untilUp(node);
    },
  },
  {
    name: "by-hand",
    world: world("well"),
    card: () => cardWith(OLD, NEW),
    tornEvery: 3,
    isMeddledWith: false,
    run: async (node) => {
      await untilUp(node, { verb: "boot.rollback", args: { no_reboot: true } });
      await untilUp(node);
    },
  },
  {
    name: "confirmed-by-hand",
    world: world("well"),
    card: () => cardWith(OLD),
    tornEvery: 3,
    isMeddledWith: false,
    run: async (node) => {
      await node.install(NEW, await untilUp(node));
      await untilUp(node, TRY);
      await untilUp(node, { verb: "boot.confirm", args: { force: true } });
      await untilUp(node);
    },
  },
  {
    name: "given-up-by-hand",
    world: world("well"),
    card: () => cardWith(OLD),
    tornEvery: 3,
    isMeddledWith: false,
    run: async (node) => {
      await node.install(NEW, await untilUp(node));
      await untilUp(node, TRY);
      await untilUp(node, { verb: "boot.rollback", args: { no_reboot: true } });
      await untilUp(node);
    },
  },
];
