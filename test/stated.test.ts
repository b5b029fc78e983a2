/** What a node that lives makes of what its releases state: signers' floors when one is confirmed, health while one is tried. */
import { expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { asAsked } from "../agent/boot/health.ts";
import { parseConfig } from "../agent/config.ts";
import { trustPaths } from "../agent/update/trust.ts";
import { hashPrefix } from "../boot/admit.ts";
import { signerFloors } from "../boot/floors.ts";
import type { Statement } from "../boot/statement.ts";
import { parseUpdate } from "../boot/updatefile.ts";
import { scratch, until } from "./node.ts";
import { makeRelease } from "./releases.ts";
import { NEW, SlotNode } from "./slotnode.ts";
import { keyHex, trustText } from "./trusts.ts";

/** A node that will try a release of version 5 which anna has signed. */
function trying(more: Partial<Statement> = {}): { node: SlotNode; floor(): Promise<bigint> } {
  const node = new SlotNode();
  const data = join(node.folder.path, "data");
  mkdirSync(join(data, "releases"), { recursive: true });
  const stated = { version: 5n, floor: 3n, ...more };
  const { update } = makeRelease({ stated, info: { piecesRoot: NEW.release.piecesRoot } });
  writeFileSync(join(data, "releases/b.fruit"), update);
  const { trust, floors } = trustPaths(data);
  writeFileSync(trust, trustText(1, { anna: ["release", "trust", "head"] }));
  return { node, floor: async () => (await signerFloors(floors))(keyHex("anna"), "fruitos/stable") };
}
const good = (node: SlotNode) => until("the slot is good", () => node.card.record.slots.b.state === "good");

test("what is confirmed raises the floor of who signed it to its version, and what is not does not", async () => {
  const { node, floor } = trying();
  await using _ = node;
  await node.armed();
  expect(await floor()).toBe(0n);
  await node.start();
  await good(node);
  await until("the floor is raised", async () => (await floor()) === 5n);
  expect(node.card.record.floor).toBe(3n);
});

test("without trust.json a trial is confirmed all the same", async () => {
  const { node, floor } = trying();
  await using _ = node;
  writeFileSync(trustPaths(join(node.folder.path, "data")).trust, "{");
  await node.armed();
  await node.start();
  await good(node);
  await until("it is told", () => node.told.includes("confirmed"));
  expect(await floor()).toBe(0n);
});

test("what a release asks for is added to what the node asks for, and never for other content", async () => {
  using folder = scratch();
  const { boot } = parseConfig("test", { site: "lab", boot: { services: ["sshd", "nginx"] } });
  const health = { services: ["nginx", "mosquitto"], deadlineSeconds: 300 };
  const { update } = makeRelease({ stated: { health } });
  mkdirSync(join(folder.path, "releases"));
  writeFileSync(join(folder.path, "releases/b.fruit"), update);
  const hash = hashPrefix(parseUpdate(update).info.piecesRoot);
  expect(await asAsked(boot, folder.path, "b", hash)).toEqual({
    ...boot,
    services: ["sshd", "nginx", "mosquitto"],
    deadline_seconds: 300,
  });
  expect(await asAsked(boot, folder.path, "b", "5".repeat(32))).toBe(boot);
  expect(await asAsked(boot, folder.path, "a", hash)).toBe(boot);
});

test("a release's own health is asked for in its trial, beyond what the node is configured to ask", async () => {
  const { node } = trying({ health: { services: ["no-such-service"], deadlineSeconds: 3000 } });
  await using _ = node;
  await node.armed();
  const trial = await node.start();
  await until("a trial", () => trial.states.at(-1)?.trial);
  await until("all but the service is good", async () => {
    const checks = (await trial.status()).trial?.checks ?? [];
    const bad = checks.filter(({ state }) => state !== "good").map(({ name }) => name);
    return checks.length > 3 && bad.join() === "services";
  });
  expect((await trial.status()).trial?.left_s).toBeGreaterThan(1000);
  expect(await trial.refusal("boot.confirm")).toMatch(/^on-trial: not good yet: services \(/);
  expect(node.card.record.slots.b.state).toBe("trying");
});
