/** Console sessions through a broker that can read nothing of them, and in which nobody can meddle unnoticed. */
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { ephemeral } from "../agent/console/agreement.ts";
import { openKey } from "../agent/sign/keys.ts";
import { publicKeyBlob } from "../agent/sign/wire.ts";
import { UsageError } from "../agent/terminal.ts";
import { aedes, HAS_MOSQUITTO, Mosquitto, NEEDS_MOSQUITTO, Tap } from "./broker.ts";
import { askSocket, NODE, OPEN, Person, payload, SITE, sealed } from "./doors.ts";
import {
  attach,
  BASE,
  CONSOLE,
  type FarNode,
  farNode,
  frames,
  knows,
  newHome,
  type Stay,
  TAMPERED,
  TECH,
  talk,
  visit,
  wiretapped,
} from "./faraway.ts";
import { fruit, SOURCES, scratch, until } from "./node.ts";

setDefaultTimeout(20_000);

const root = scratch();
afterAll(() => root[Symbol.dispose]());

const LOGGED = (dir: string) => [
  ...OPEN,
  "log_type all",
  `log_dest file ${join(dir, "log")}`,
  "log_dest stderr",
];

for (const { name, start, version, isSkipped } of [
  {
    name: `Mosquitto, MQTT 5 ${NEEDS_MOSQUITTO}`,
    start: () => Mosquitto.start(LOGGED),
    version: 5 as const,
    isSkipped: !HAS_MOSQUITTO,
  },
  { name: "aedes, MQTT 3.1.1", start: aedes, version: 3 as const, isSkipped: false },
])
  describe.skipIf(isSkipped)(`through ${name}`, () => {
    test("a person types and reads, is seen by name, and no packet nor log of the broker has a word of it", async () => {
      const broker = await start();
      await using wire = await wiretapped(broker);
      await using tap = await Tap.at(broker.port);
      await using node = await farNode(root.path, wire.port, { version });
      await using stay = await visit(node, wire.port);
      await talk(node, stay, "correct-horse-battery");
      expect(await node.who()).toEqual([
        expect.objectContaining({ who: `key:${TECH}`, door: "mqtt", writes: true, console: CONSOLE }),
      ]);
      await stay.channel.send({ kind: "ask", n: 7, ask: { do: "break" } });
      await until("it was answered", () => stay.heard.some((one) => one.kind === "answer" && one.n === 7));
      expect(node.line.text).toEndWith("<break>");
      stay.channel.close("left");
      await until("nobody is there", async () => (await node.who()).length === 0);
      expect(await node.ends()).toEqual(["left"]);

      expect(frames(tap, "in").length).toBeGreaterThan(2);
      expect(frames(tap, "out").length).toBeGreaterThan(2);
      const log = "dir" in broker ? readFileSync(join(broker.dir as string, "log")) : Buffer.alloc(0);
      if ("dir" in broker) expect(log.toString()).toContain(`${BASE}/console/`);
      const everything = [wire.bytes(), ...tap.heard.map(({ packet }) => Buffer.from(packet.payload)), log];
      // What does travel in the clear is found this way: the search would find the rest, too.
      expect(everything.some((bytes) => bytes.includes(`key:${TECH}`))).toBe(true);
      for (const secret of ["correct-horse", "battery", "printed ", "typed "])
        expect(everything.filter((bytes) => bytes.includes(secret)).length).toBe(0);
    });

    test.each(["in", "out"] as const)(
      "a frame that somebody sends again on …/%s ends it on both sides",
      async (way) => {
        await using broker = await start();
        await using tap = await Tap.at(broker.port);
        await using node = await farNode(root.path, broker.port, { version });
        await using stay = await visit(node, broker.port);
        await talk(node, stay, "one");
        const [, second] = await until("two frames", () =>
          frames(tap, way)[1] ? frames(tap, way) : undefined,
        );
        await tap.client.publishAsync(second!.topic, second!.packet.payload, { qos: 1 });
        const from = way === "in" ? `key:${TECH}` : `node ${NODE}`;
        expect(await stay.over()).toBe(`frame 2 came again (from ${from}): ${TAMPERED}`);
        await until("the node knows", async () => (await node.ends()).length === 1);
        expect(await node.ends()).toEqual([`frame 2 came again (from ${from}): ${TAMPERED}`]);
        await expect(stay.type("rm -rf /\r")).rejects.toThrow("frame 2 came again");
        expect(await node.who()).toEqual([]);
      },
    );

    test("four times 115200 baud in both directions arrive whole, and nothing is skipped", async () => {
      await using broker = await start();
      await using node = await farNode(root.path, broker.port, { version });
      await using stay = await visit(node, broker.port);
      // 8N1: ten bits a byte. A second and a half of it is more than fits on the way; a little at a time, as UARTs give it.
      const rate = (4 * 115_200) / 10;
      const total = 1.5 * rate;
      const pattern = (seed: number) =>
        Buffer.from(Array.from({ length: total }, (_, at) => (at * seed + (at >> 8)) & 0xff));
      const [down, up] = [pattern(7), pattern(13)];
      const begun = performance.now();
      let sent = 0;
      while (sent < total) {
        const due = Math.min(total, Math.ceil(((performance.now() - begun) / 1000) * rate));
        if (due > sent) {
          node.line.say(down.subarray(sent, due));
          await stay.type(up.subarray(sent, due));
          sent = due;
        }
        await Bun.sleep(5);
      }
      await until("all was read", () => stay.bytes.length >= total);
      await until("all was typed", () => Buffer.concat(node.line.typed).length >= total);
      expect(stay.bytes.equals(down)).toBe(true);
      expect(Buffer.concat(node.line.typed).equals(up)).toBe(true);
      expect(stay.marks.filter((mark) => mark.includes("skipped"))).toEqual([]);
    });
  });

describe.skipIf(!HAS_MOSQUITTO)(`a node at Mosquitto ${NEEDS_MOSQUITTO}`, () => {
  const start = () => Mosquitto.start(OPEN);
  /** Sends a signed command as it is, and waits for what is said of it. */
  const command = async (person: Person, node: FarNode, id: string, args: Record<string, unknown>) => {
    const text = await sealed(await openKey(node.keyFile(TECH)), id, "console.open", {
      console: CONSOLE,
      ...args,
    });
    return person.ask("cmd/console.open", text);
  };

  test("frames for sessions that are not open cost nothing and are not answered", async () => {
    await using broker = await start();
    await using node = await farNode(root.path, broker.port);
    await using tap = await Tap.at(broker.port);
    await using stay = await visit(node, broker.port);
    const logged = node.log.length;
    for (let n = 0; n < 2000; n++)
      tap.client.publish(
        `${BASE}/console/${n % 2 ? "nobody" : crypto.randomUUID()}/in`,
        Buffer.alloc(200, n),
        { qos: 1 },
      );
    await talk(node, stay, "through it all");
    expect(node.log.slice(logged)).toEqual([]);
    expect(frames(tap, "out").every(({ topic }) => !topic.includes("nobody"))).toBe(true);
  });

  test.each([
    {
      what: "no signature",
      key: () => ephemeral().publicKey,
      isSigned: false,
      code: "unauthorised",
      says: 'the role "console" is needed',
    },
    { what: "no key", key: () => undefined, isSigned: true, code: "bad-args", says: "args.key" },
    {
      what: "a key of small order",
      key: () => Buffer.alloc(32).toString("base64"),
      isSigned: true,
      code: "bad-args",
      says: "args.key: the key is of small order",
    },
    {
      what: "a key that is too short",
      key: () => Buffer.alloc(31).toString("base64"),
      isSigned: true,
      code: "bad-args",
      says: "args.key",
    },
  ])(
    "console.open with $what is refused as $code, and nobody is attached",
    async ({ key, isSigned, code, says }) => {
      await using broker = await start();
      await using node = await farNode(root.path, broker.port);
      await using person = await Person.at(broker.port);
      const args = { ...(key() === undefined ? {} : { key: key() }), mode: "read" };
      const result = isSigned
        ? await command(person, node, "c1", args)
        : await person.ask(
            "cmd/console.open",
            JSON.stringify(payload("c1", "console.open", { console: CONSOLE, ...args })),
          );
      expect(result).toMatchObject({ state: "refused", code, message: expect.stringContaining(says) });
      expect(await node.who()).toEqual([]);
    },
  );

  test("over the socket, where nothing is signed, no sealed session is opened", async () => {
    await using broker = await start();
    await using node = await farNode(root.path, broker.port);
    const args = { console: CONSOLE, key: ephemeral().publicKey };
    const answers = await askSocket(join(node.folder, "fruit.sock"), "console.open", args);
    expect(answers.at(-1)).toMatchObject({
      state: "refused",
      code: "unauthorised",
      message: "a console session over MQTT needs a signed command",
    });
    expect(await node.who()).toEqual([]);
  });

  test("a node whose key is damaged goes on without sealed sessions, and says why", async () => {
    await using broker = await start();
    const dataDir = newHome(root.path);
    mkdirSync(dataDir);
    writeFileSync(join(dataDir, "node_key"), "half a key", { mode: 0o600 });
    await using node = await farNode(root.path, broker.port, { dataDir });
    expect(node.log.join("\n")).toMatch(
      /error console\.no-key .*node_key: neither a private nor a public SSH key/,
    );
    const error = await visit(node, broker.port).catch((cause) => cause);
    expect(error).toMatchObject({ exit: 1, message: expect.stringContaining("this node has no key") });
    expect(readFileSync(join(dataDir, "node_key"), "utf8")).toBe("half a key");
  });

  test("'fruit console send --expect' does its errand from anywhere", async () => {
    await using broker = await start();
    await using node = await farNode(root.path, broker.port);
    const door = ["--broker", `mqtt://127.0.0.1:${broker.port}`, "--site", SITE, "--node", NODE];
    const words = ["console", "send", CONSOLE, "uname", "--expect", "Linux \\d", ...door];
    const running = fruit([...words, "--key", node.keyFile(TECH)], {
      executable: SOURCES,
      env: { HOME: newHome(root.path) },
    });
    await until("it was typed", () => node.line.text === "uname\r");
    node.line.say("Linux 6\r\n");
    const { exit, out } = await running;
    expect({ exit, out }).toEqual({ exit: 0, out: "Linux 6\r\n" });
  });

  test("a person whose key is taken away types no more, within seconds, and is told why", async () => {
    await using broker = await start();
    await using node = await farNode(root.path, broker.port);
    await using stay = await visit(node, broker.port);
    await talk(node, stay, "one");
    writeFileSync(join(node.folder, "allowed_signers"), "");
    expect(await stay.over()).toBe("the key is no longer among the allowed signers");
    await until("nobody is there", async () => (await node.who()).length === 0);
    expect(await node.ends()).toEqual(["the key is no longer among the allowed signers"]);
  });

  test("a ninth session is refused until one of the eight is over", async () => {
    await using broker = await start();
    await using node = await farNode(root.path, broker.port);
    const stays: Stay[] = [];
    for (let n = 0; n < 8; n++) stays.push(await visit(node, broker.port, { mode: "read" }));
    const ninth = () => visit(node, broker.port, { mode: "read" }).catch((error) => error);
    expect(await ninth()).toMatchObject({
      exit: 3,
      message: "8 console sessions over MQTT are open; try again later",
    });
    await stays.pop()?.[Symbol.asyncDispose]();
    await until("there is room", async () => (await node.who()).length === 7);
    stays.push(await ninth());
    for (const stay of stays) await stay[Symbol.asyncDispose]();
  });

  test("a person who reads no more costs the broker 64 KiB, and goes on where the line is now", async () => {
    await using broker = await start();
    await using node = await farNode(root.path, broker.port);
    await using tap = await Tap.at(broker.port);
    await using stay = await visit(node, broker.port);
    await talk(node, stay, "one");
    const going = Promise.withResolvers<void>();
    stay.held = going.promise;
    const before = frames(tap, "out").length;
    for (let n = 0; n < 100; n++) {
      node.line.say(Buffer.alloc(10_000, 0x41 + (n % 26)));
      await Bun.sleep(2);
    }
    node.line.say("the end\r\n");
    const travelled = () =>
      frames(tap, "out")
        .slice(before)
        .reduce((sum, { packet }) => sum + packet.payload.length, 0);
    await until("it is full", () => travelled() > 60_000);
    await Bun.sleep(200);
    expect(travelled()).toBeLessThan(65_536 + 8192);
    expect(stay.text).not.toContain("the end");
    // Nobody else is held up by that.
    await using other = await visit(node, broker.port, { mode: "read" });
    node.line.say("still alive\r\n");
    await until("the other reads", () => other.text.includes("still alive"));
    stay.held = undefined;
    going.resolve();
    await until("they are back", () => stay.text.includes("still alive"));
    expect(stay.marks.some((mark) => /skipped|bytes/.test(mark))).toBe(true);
    await talk(node, stay, "two");
  });

  test("whoever types faster than the line takes it is slowed, and loses nothing", async () => {
    await using broker = await start();
    await using node = await farNode(root.path, broker.port);
    await using stay = await visit(node, broker.port);
    await talk(node, stay, "one");
    const going = Promise.withResolvers<void>();
    node.line.held = going.promise;
    const all = Buffer.from(Array.from({ length: 300_000 }, (_, at) => at % 251));
    let isSent = false;
    const sending = stay.type(all).then(() => {
      isSent = true;
    });
    await Bun.sleep(300);
    expect(isSent).toBe(false);
    node.line.held = undefined;
    going.resolve();
    await sending;
    const typed = () => Buffer.concat(node.line.typed);
    await until("all was typed", () => typed().length >= "typed one\r".length + all.length);
    expect(typed().subarray("typed one\r".length).equals(all)).toBe(true);
  });

  test("a node that stops says so to everybody, and soon", async () => {
    await using broker = await start();
    await using node = await farNode(root.path, broker.port);
    await using stay = await visit(node, broker.port);
    await talk(node, stay, "one");
    const before = performance.now();
    await node.stop();
    expect(performance.now() - before).toBeLessThan(10_000);
    expect(await stay.over()).toBe("the agent stops");
  });

  test("a broker that dies ends it on both sides with why", async () => {
    await using broker = await start();
    await using node = await farNode(root.path, broker.port);
    await using stay = await visit(node, broker.port);
    await talk(node, stay, "one");
    await broker.go();
    expect(await stay.over()).toMatch(/^the connection to the broker ended: /);
    await until("the node knows", async () => (await node.ends()).length === 1);
    expect(await node.ends()).toEqual([expect.stringMatching(/^the node lost its broker: /)]);
    await broker.come();
    await using tap = await Tap.at(broker.port);
    await until("the node is back", () => tap.texts(`${BASE}/status`).at(-1) === "online");
    expect(frames(tap, "out")).toEqual([]);
  });

  test("a broker whose ACL knows no console topics is named, with the topic", async () => {
    await using broker = await Mosquitto.start((dir) => {
      writeFileSync(join(dir, "acl"), `topic readwrite ${BASE}/+/#\ntopic deny ${BASE}/console/+/in\n`, {
        mode: 0o600,
      });
      return [...OPEN, `acl_file ${join(dir, "acl")}`];
    });
    await using node = await farNode(root.path, broker.port);
    await using stay = await visit(node, broker.port);
    expect(await stay.over()).toMatch(
      new RegExp(`^the broker does not take ${BASE}/console/[0-9a-f-]+/in: .*[Nn]ot authori[sz]ed`),
    );
  });

  test("--node-key decides over the nodes that are known", async () => {
    await using broker = await start();
    await using node = await farNode(root.path, broker.port);
    await using person = await Person.at(broker.port);
    await until("info", () => person.heard("info").at(-1));
    const { key } = person.heard("info").at(-1) as { key: string };
    const home = newHome(root.path);
    const { publicKey } = await openKey(node.keyFile(TECH));
    knows(home, `lab/pi1 ssh-ed25519 ${publicKeyBlob(publicKey).toString("base64")}\n`);
    const refusal = async (...words: string[]) => {
      const error = await visit(node, broker.port, { home, words, mode: "read" }).catch((cause) => cause);
      return `${error.exit} ${error.message}`;
    };
    expect(await refusal()).toContain("7 lab/pi1 HAS ANOTHER KEY THAN BEFORE");
    const wrong = `SHA256:${"a".repeat(43)}`;
    expect(await refusal("--node-key", wrong)).toContain(`not with that of --node-key (${wrong})`);
    await using stay = await visit(node, broker.port, { home, words: ["--node-key", key] });
    await talk(node, stay, "one");
  });

  test("without --key it is a usage error, before anything is sent", async () => {
    await using broker = await start();
    await using node = await farNode(root.path, broker.port);
    await using tap = await Tap.at(broker.port);
    const error = await attach({ port: broker.port, home: newHome(root.path) }).catch((cause) => cause);
    expect(error).toBeInstanceOf(UsageError);
    expect(error.message).toBe("a console over MQTT needs a key: --key FILE");
    expect(tap.heard.filter(({ topic }) => topic.includes("/cmd/"))).toEqual([]);
    expect(await node.who()).toEqual([]);
  });
});
