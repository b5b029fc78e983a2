/** Console sessions through a broker in which somebody meddles: whatever they do, it is noticed before it does harm. */
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { join } from "node:path";
import type { AedesPublishPacket } from "aedes";
import { ephemeral } from "../agent/console/agreement.ts";
import { Sealer } from "../agent/console/frames.ts";
import { openKey } from "../agent/sign/keys.ts";
import { CliError } from "../agent/terminal.ts";
import { aedes, HAS_MOSQUITTO, Mosquitto, NEEDS_MOSQUITTO, Tap } from "./broker.ts";
import { NODE, OPEN, Person, sealed } from "./doors.ts";
import { BASE, CONSOLE, farNode, frames, newHome, TAMPERED, TECH, talk, visit } from "./faraway.ts";
import { scratch, until } from "./node.ts";

setDefaultTimeout(20_000);

const root = scratch();
afterAll(() => root[Symbol.dispose]());

/** What a broker does with what it passes on to one of the two; undefined keeps it. */
type Meddle = (topic: string, payload: Buffer) => Buffer | undefined;
async function meddling(version: 3 | 5 = 3) {
  let meddle: Meddle = (_, bytes) => bytes;
  const broker = await aedes({
    authorizeForward: (client, packet) => {
      if (!client?.id.startsWith(`fruit-${NODE}`)) return packet;
      const bytes = meddle(packet.topic, Buffer.from(packet.payload));
      return bytes === undefined ? null : ({ ...packet, payload: bytes } as AedesPublishPacket);
    },
  });
  const node = await farNode(root.path, broker.port, { version });
  return {
    node,
    port: broker.port,
    broker,
    set meddle(how: Meddle) {
      meddle = how;
    },
    async [Symbol.asyncDispose]() {
      await node[Symbol.asyncDispose]();
      await broker[Symbol.asyncDispose]();
    },
  };
}

const flipped = (bytes: Buffer) => {
  const copy = Buffer.from(bytes);
  copy[copy.length - 1] = (copy.at(-1) ?? 0) ^ 1;
  return copy;
};

for (const way of ["in", "out"] as const)
  test.each([
    { what: "drops one", is: "missing", meddle: () => undefined },
    { what: "changes a bit of one", is: "altered", meddle: flipped },
    {
      what: "gives another instead",
      is: "altered",
      meddle: (bytes: Buffer) => Buffer.alloc(bytes.length, 1),
    },
  ])(
    "who $what on …/%s: it ends on both sides, and each is told which frame".replace("%s", way),
    async ({ is, meddle }) => {
      await using here = await meddling();
      await using stay = await visit(here.node, here.port);
      await talk(here.node, stay, "one");
      let number = 0;
      here.meddle = (topic, bytes) => {
        if (!topic.endsWith(`/${way}`) || number > 0) return bytes;
        number = Number(bytes.readBigUInt64BE());
        const made = meddle(bytes);
        made?.writeBigUInt64BE(BigInt(number));
        return made;
      };
      // The second one shows that one is missing.
      for (const words of ["two\r", "three\r", "four\r"]) {
        if (way === "in") await stay.type(words).catch(() => undefined);
        else here.node.line.say(words);
        await Bun.sleep(30);
      }
      const from = way === "in" ? `key:${TECH}` : `node ${NODE}`;
      const verb = is === "altered" ? "was altered" : "is missing";
      const why = `frame ${await until("it happened", () => number)} ${verb} (from ${from}): ${TAMPERED}`;
      expect(await stay.over()).toBe(why);
      await until("the node knows", async () => (await here.node.ends()).length === 1);
      expect(await here.node.ends()).toEqual([why]);
      expect(here.node.line.text).not.toContain("three");
    },
  );

test("who gives two in another order: it ends on both sides", async () => {
  await using here = await meddling();
  await using tap = await Tap.at(here.port);
  await using stay = await visit(here.node, here.port);
  await talk(here.node, stay, "one");
  let kept: Buffer | undefined;
  here.meddle = (topic, bytes) => {
    if (!topic.endsWith("/in") || kept) return bytes;
    kept = bytes;
    return undefined;
  };
  await stay.type("two\r");
  const late = await until("it was held back", () => kept);
  await stay.type("three\r");
  await tap.client.publishAsync(frames(tap, "in")[0]!.topic, late, { qos: 1 });
  expect(await stay.over()).toMatch(/^frame \d+ is missing \(from key:tech@home\): /);
  await until("the node knows", async () => (await here.node.ends()).length === 1);
  expect(here.node.line.text).not.toContain("three");
});

test("who puts a key of their own into the node's answer is found out, and nothing is sent", async () => {
  await using here = await meddling();
  await using tap = await Tap.at(here.port);
  const other = ephemeral();
  here.meddle = (topic, bytes) => {
    if (!topic.startsWith(`${BASE}/res/`)) return bytes;
    const answer = JSON.parse(bytes.toString());
    if (answer.result?.key) answer.result.key = other.publicKey;
    return Buffer.from(JSON.stringify(answer));
  };
  const home = newHome(root.path);
  const error = await visit(here.node, here.port, { home }).catch((cause) => cause);
  expect(error).toBeInstanceOf(CliError);
  expect(error).toMatchObject({
    exit: 7,
    message: expect.stringMatching(
      /^node pi1 did not prove that it opened the session \(the signature does not match/,
    ),
  });
  expect(frames(tap, "in")).toEqual([]);
  expect(await Bun.file(join(home, ".config/fruit/known_nodes")).exists()).toBe(false);
});

test("who answers in the node's place with a key of their own is refused loudly by whoever knows the node", async () => {
  await using here = await meddling();
  await using tap = await Tap.at(here.port);
  const home = newHome(root.path);
  const said: string[] = [];
  await (await visit(here.node, here.port, { home, said }))[Symbol.asyncDispose]();
  const known = join(home, ".config/fruit/known_nodes");
  const info = JSON.parse(tap.texts(`${BASE}/info`).at(-1) ?? "{}");
  expect(said).toEqual([
    `fruit: lab/pi1 is met for the first time, with key ${info.key} (compare with 'fruit console key' on the node); it is kept in ${known}\n`,
  ]);
  // Known from now on, and no word of it.
  await (await visit(here.node, here.port, { home, said }))[Symbol.asyncDispose]();
  expect(said).toHaveLength(1);

  await here.node.stop();
  await using impostor = await farNode(root.path, here.port, { version: 3 });
  const before = frames(tap, "in").length;
  const { exit, message } = await visit(impostor, here.port, { home, said }).catch((cause) => cause);
  expect(exit).toBe(7);
  expect(message).toContain("lab/pi1 HAS ANOTHER KEY THAN BEFORE");
  expect(message).toContain(`${known}, line 1`);
  expect(frames(tap, "in")).toHaveLength(before);
});

test("the node's connection that breaks ends it on both sides at once, and no frame waits for the next", async () => {
  await using here = await meddling();
  await using stay = await visit(here.node, here.port);
  await talk(here.node, stay, "one");
  here.broker.drop(`fruit-${NODE}`);
  here.node.line.say("said into the void");
  expect(await stay.over()).toBe(`node ${NODE} is offline`);
  await until("the node knows", async () => (await here.node.ends()).length === 1);
  expect(await here.node.ends()).toEqual([expect.stringMatching(/^the node lost its broker: /)]);
  await using tap = await Tap.at(here.port);
  await until("it is back", () => tap.texts(`${BASE}/status`).at(-1) === "online");
  await using again = await visit(here.node, here.port);
  await talk(here.node, again, "two");
  expect(again.text).not.toContain("void");
});

describe.skipIf(!HAS_MOSQUITTO)(`at Mosquitto ${NEEDS_MOSQUITTO}`, () => {
  test("a retained frame ends the session on both sides", async () => {
    await using broker = await Mosquitto.start(OPEN);
    await using node = await farNode(root.path, broker.port);
    await using tap = await Tap.at(broker.port);
    await using stay = await visit(node, broker.port);
    await talk(node, stay, "one");
    const { topic, packet } = frames(tap, "in")[0]!;
    await tap.client.publishAsync(topic, packet.payload, { qos: 1, retain: true });
    expect(await stay.over()).toBe(`a retained frame came (from key:${TECH}): ${TAMPERED}`);
    // One that is stored reaches nobody who comes later.
    await using again = await visit(node, broker.port);
    await talk(node, again, "two");
  });

  test("nobody gets into a session by its id, by its topic, or with a key of their own", async () => {
    await using broker = await Mosquitto.start(OPEN);
    await using node = await farNode(root.path, broker.port, {
      rights: { [TECH]: "roles=console", "bob@desk": "roles=console" },
    });
    await using person = await Person.at(broker.port);
    await using stay = await visit(node, broker.port);
    await talk(node, stay, "one");
    const { topic } = frames(person.tap, "in")[0]!;
    const id = topic.split("/").at(-2) ?? "";
    const bob = await openKey(node.keyFile("bob@desk"));
    const args = { console: CONSOLE, key: ephemeral().publicKey };
    expect(await person.ask("cmd/console.open", await sealed(bob, id, "console.open", args))).toMatchObject({
      state: "refused",
      code: "replay",
    });
    await talk(node, stay, "two");
    expect(await node.who()).toHaveLength(1);
    // A frame of nobody's ends it rather than being heard.
    await person.tap.client.publishAsync(
      topic,
      Buffer.from(new Sealer(new Uint8Array(32)).seal(Buffer.from("x"))),
      { qos: 1 },
    );
    expect(await stay.over()).toContain("what came as frame 1 is no frame of the session");
  });
});
