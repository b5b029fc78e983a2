import { afterEach, beforeEach, expect, jest, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { nodeCommands } from "../agent/node.ts";
import { Journal } from "../agent/record/journal.ts";
import { openSim } from "../hal/sim/hal.ts";

beforeEach(() => {
  jest.useFakeTimers();
});
afterEach(() => {
  jest.useRealTimers();
});

/** The verb `identify` of a node whose LED keeps a diary. */
async function blinking() {
  const dir = mkdtempSync(join(tmpdir(), "fruit-lights-"));
  const journal = await Journal.open(dir, { nowSeconds: () => 0, log: () => undefined });
  const { machine } = openSim({ seed: 1, boards: [], wireTime: false, faults: [], clockSynced: true });
  const told: string[] = [];
  machine.identify = (on) => {
    told.push(on ? "lit" : "dark");
    return true;
  };
  const row = nodeCommands({ machine, journal, boost: () => undefined }).find(
    ({ verb }) => verb === "identify",
  );
  const stop = new AbortController();
  const identify = (seconds: number) =>
    row?.run({
      id: "1",
      args: { seconds },
      caller: { door: "socket", who: "local:alice", roles: new Set(), mayOutlet: () => true },
      progress: () => undefined,
      signal: stop.signal,
    });
  const pass = async (ms: number) => {
    jest.advanceTimersByTime(ms);
    for (let turns = 0; turns < 20; turns++) await Promise.resolve();
  };
  const close = async () => {
    await journal.close();
    rmSync(dir, { recursive: true });
  };
  return { told, identify, pass, [Symbol.asyncDispose]: close };
}

test("a node's LED goes dark by itself", async () => {
  await using node = await blinking();
  expect(await node.identify(5)).toMatchObject({ state: "done" });
  await node.pass(4900);
  expect(node.told).toEqual(["lit"]);
  await node.pass(200);
  expect(node.told).toEqual(["lit", "dark"]);
});

test("one that is asked to blink anew blinks until the end of the last asking", async () => {
  await using node = await blinking();
  await node.identify(10);
  await node.pass(5000);
  await node.identify(30);
  await node.pass(20_000);
  expect(node.told).toEqual(["lit", "lit"]);
  await node.pass(11_000);
  expect(node.told).toEqual(["lit", "lit", "dark"]);
});
