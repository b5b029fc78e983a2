/** What a technician reads of a node's slots: the whole text, as a node prints it. */
import { afterEach, expect, setDefaultTimeout, setSystemTime, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { statusText } from "../agent/boot/show.ts";
import { until } from "./node.ts";
import { type Running, SlotNode } from "./slotnode.ts";

setDefaultTimeout(20_000);
afterEach(() => {
  setSystemTime();
});

/** As it is printed, with the paths of a real node. */
async function printed(node: SlotNode, running: Running): Promise<string> {
  const status = JSON.stringify(await running.status())
    .replaceAll(join(node.folder.path, `${running.bootId}.sock`), "/run/fruit.sock")
    .replaceAll(join(node.folder.path, "data"), "/data/fruit")
    .replaceAll(node.card.path, "/dev/mmcblk0");
  return statusText(JSON.parse(status));
}

const ON_TRIAL = `running  slot b, version 5, trying
starts   slot a, chosen by uboot on /dev/mmcblk0
trial    slot b, version 5: try 1, 2 tries left, decided within 9m
last     started version 5, slot b at 2026-11-23T12:51:14.095Z

SLOT  STATE   VERSION  HASH                              BYTES   REASON
a     good    4        d381a0bb0db3c60239b0b0d1c3b0fad1  200000  built
b     trying  5        ac3c1bdf1a86e0aa4f9ebcd92fe2e12f  200000  -

CHECK    STATE  FOR  WHAT
record   good   42s  the trial is the one that the old slot armed
agent    good   12s  up for 42 s, answers on /run/fruit.sock
slot     good   42s  all of it is what was signed
data     good   42s  /data/fruit/boot takes what is written
broker   bad    -    the old slot had the broker, this one has not
power    good   42s  the bus answers
clock    good   42s  a synchronised clock is there
memory   good   42s  390 MiB available
devices  good   42s  as many as in the old slot
`;
const BACK = `running  slot a, version 4, good
starts   slot a, chosen by uboot on /dev/mmcblk0
trial    none
last     rolled-back version 5, slot b at 2026-11-23T13:01:20.512Z (check-failed: broker bad: the old slot had the broker, this one has not)
doubted  the other slot's release: 1 round of 3 without proof against it (broker)

SLOT  STATE   VERSION  HASH                              BYTES   REASON
a     good    4        d381a0bb0db3c60239b0b0d1c3b0fad1  200000  built
b     failed  5        ac3c1bdf1a86e0aa4f9ebcd92fe2e12f  200000  check-failed
`;

test("a trial in its first minute, and what is left of it in the old slot, as texts", async () => {
  await using node = new SlotNode({ deadline_seconds: 600, settle_seconds: 60 });
  await node.armed();
  node.worlds.b.broker = false;
  setSystemTime(new Date("2026-11-23T12:51:14.095Z"));
  const trial = await node.start({ agent: false });
  let now = 0;
  await trial.startAgent({ nowMs: () => now });
  const says = async (name: string, message: string) =>
    (await trial.status().catch(() => undefined))?.trial?.checks?.some(
      (check) => check.name === name && check.message.startsWith(message),
    );
  await until("all have reported", async () =>
    (await trial.status().catch(() => undefined))?.trial?.checks?.every(({ state }) => state !== "waiting"),
  );
  await until("it is told", () => node.told.at(-1) === "started");
  now = 30_000;
  await until("the agent is good", () => says("agent", "up for 30 s"));
  now = 42_000;
  await until("it is up for longer", () => says("agent", "up for 42 s"));
  expect(await printed(node, trial)).toBe(ON_TRIAL);
  now = 600_000;
  await until("the node goes down", () => trial.reboots === 1);
  setSystemTime(new Date("2026-11-23T13:01:20.512Z"));
  const old = await node.start();
  await until("it is suspected", async () => (await old.status().catch(() => undefined))?.suspected);
  expect(await printed(node, old)).toBe(BACK);
});

test("the README shows what a node prints", () => {
  const readme = readFileSync(join(import.meta.dir, "../README.md"), "utf8");
  const [, sample = ""] = /^ {4}\$ fruit boot status\n(.*?)^ {4}\$? ?fruit boot explain/ms.exec(readme) ?? [];
  expect(sample.trimEnd()).toBe(ON_TRIAL.trimEnd().replace(/^(?=.)/gm, "    "));
});
