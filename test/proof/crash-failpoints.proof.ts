/**
 * SIGKILL at every named place of an update (boot/failpoint.ts), on a card in a file: the next start is whole, and the update can
 * be done again. So it is of the code as such, and then of the program that ships: an install here, trials in trial.proof.ts.
 */
import { expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { FAILPOINTS } from "../../boot/failpoint.ts";
import { CARD_BYTES, SLOT_OFFSETS } from "../crash/card.ts";
import { Image } from "../crash/disk.ts";
import { Examiner, record } from "../crash/engine.ts";
import { readFolder } from "../crash/folder.ts";
import { SCENARIOS } from "../crash/scenarios.ts";
import { FRUIT, SHIPPED, scratch } from "../node.ts";
import { desk, made } from "../updates.ts";

setDefaultTimeout(60_000);

/** Runs an update in a process of its own. */
async function run(folder: string, scenario: string, env: Record<string, string>): Promise<Bun.Subprocess> {
  mkdirSync(join(folder, "data"));
  const child = Bun.spawn([process.execPath, join(import.meta.dir, "../crash/killed.ts"), scenario, folder], {
    env: { PATH: process.env.PATH ?? "", ...env },
    stdio: ["ignore", "ignore", "inherit"],
  });
  await child.exited;
  return child;
}

/** Both updates as they go where nobody is killed. */
const went = { update: record(scenario("update")), sick: record(scenario("sick")) };

function scenario(name: string) {
  const found = SCENARIOS.find((one) => one.name === name);
  if (!found) throw new Error(`there is no scenario ${name}`);
  return found;
}

/** The card in a file. */
function cardIn(folder: string): Image {
  const [image, bytes] = [new Image(CARD_BYTES), readFileSync(join(folder, "card.img"))];
  for (let at = 0; at < bytes.length; at += 4096) {
    const block = bytes.subarray(at, at + 4096);
    if (block.some((byte) => byte !== 0)) image.write(at, Uint8Array.from(block));
  }
  return image;
}

test.each(FAILPOINTS)(
  "54 killed at %s, what starts is whole, and the update can be done again",
  async (point) => {
    using folder = scratch();
    const name = /fail(ed)?$/.test(point) ? "sick" : "update";
    const child = await run(folder.path, name, { FRUIT_FAILPOINT: point });
    // A place that nobody passes any more kills nobody
    expect([point, child.signalCode]).toEqual([point, "SIGKILL"]);
    const examiner = new Examiner(await went[name]);
    const image = cardIn(folder.path);
    expect(await examiner.examineCard(image, readFolder(join(folder.path, "data")))).toEqual([]);
  },
);

test("54 without the variable no place stops anything", async () => {
  using folder = scratch();
  const child = await run(folder.path, "update", {});
  expect([child.exitCode, child.signalCode]).toEqual([0, null]);
  using other = scratch();
  const odd = await run(other.path, "update", { FRUIT_FAILPOINT: "no.such-place" });
  expect([odd.exitCode, odd.signalCode]).toEqual([0, null]);
  expect(cardIn(other.path).digest).toBe(cardIn(folder.path).digest);
});

/** `fruit update install` by the program that ships; how it ended. */
async function install(at: ReturnType<typeof desk>, env: Record<string, string>) {
  const child = Bun.spawn([...FRUIT.command, ...at.words()], {
    env: { PATH: process.env.PATH ?? "", ...FRUIT.env, ...env },
    stdio: ["ignore", "ignore", "pipe"],
  });
  const err = await new Response(child.stderr).text();
  await child.exited;
  return { signal: child.signalCode, exit: child.exitCode, err };
}
const inSlot = ({ card }: ReturnType<typeof desk>) => card.read(SLOT_OFFSETS.b, made.payload.length);

test.skipIf(SHIPPED[0]?.missing !== undefined)(
  "54 what is killed is the executable that ships, and no older one",
  () => {
    expect(FRUIT.name).toBe(SHIPPED[0]?.name ?? "");
  },
);

test.each(FAILPOINTS.filter((name) => /^(writer|record)\./.test(name)))(
  `54 the program that ships (${FRUIT.name}), killed at %s: the node starts what it ran, and the same command finishes`,
  async (point) => {
    using at = desk();
    const before = at.card.start();
    expect(await install(at, { FRUIT_FAILPOINT: point })).toMatchObject({ signal: "SIGKILL" });
    expect(["empty", "writing", "staged"]).toContain(at.card.record.slots.b.state);
    expect(at.card.start()).toEqual(before);
    expect(await install(at, {})).toMatchObject({ signal: null, exit: 0 });
    expect(Buffer.compare(inSlot(at), made.payload)).toBe(0);
    expect(at.card.record.slots.b.state).toBe("staged");
  },
);

test.each([{}, { FRUIT_FAILPOINT: "" }, { FRUIT_FAILPOINT: "no.such-place" }])(
  `54 the program that ships (${FRUIT.name}) stops nowhere with %j`,
  async (env) => {
    using at = desk();
    expect(await install(at, env)).toMatchObject({ signal: null, exit: 0 });
    expect(Buffer.compare(inSlot(at), made.payload)).toBe(0);
    // Begun and staged: nothing was done twice
    expect(at.card.record).toMatchObject({ sequence: 6, slots: { b: { state: "staged" } } });
  },
);
