/** The demo as a stranger meets it, and every message on its broker held against the printed contract. */
import { expect, test } from "bun:test";
import { join } from "node:path";
import Ajv from "ajv/dist/2020";
import { holdFolder } from "../agent/hold.ts";
import { freePort, Tap } from "./broker.ts";
import { FRUIT, fruit, scratch, until } from "./node.ts";

const NODES = ["pi10000100", "pi10010235", "pi1002036a"] as const;
const [CONTROLLER, , VICTIM] = NODES;

/** The schema's name for a topic, or undefined for a topic that is not in the contract. */
function kindOf(names: string[], topic: string): string | undefined {
  const path = topic.split("/").slice(4);
  return names.find((name) => {
    const levels = name.split("/");
    const hasInstance = !["status", "info"].includes(name);
    return (
      path.length === levels.length + (hasInstance ? 1 : 0) && levels.every((level, at) => level === path[at])
    );
  });
}

test.concurrent("the demo's commands work as printed, its nodes come and go with their power, and every message keeps the contract", async () => {
  using folder = scratch();
  const port = await freePort();
  const state = join(folder.path, "demo");
  const demo = Bun.spawn(
    [...FRUIT.command, "demo", "--nodes", "3", "--mqtt-port", String(port), "--state", state],
    {
      env: { PATH: process.env.PATH ?? "", ...FRUIT.env },
      stdout: "pipe",
      stderr: "inherit",
    },
  );
  let said = "";
  const reading = (async () => {
    for await (const chunk of demo.stdout.pipeThrough(new TextDecoderStream())) said += chunk;
  })();
  await until("the introduction", () => said.includes("Ctrl-C ends it"));
  await using tap = await Tap.at(port);
  const status = (node: string) => tap.texts(`fruit/v1/demo/${node}/status`).at(-1);
  await until("all nodes online", () => NODES.every((node) => status(node) === "online"));

  const run = async (line: string) => {
    const child = Bun.spawn(["sh", "-c", line], {
      env: { PATH: process.env.PATH ?? "", ...FRUIT.env },
      stdout: "pipe",
      stderr: "pipe",
    });
    const [out, err, exit] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
      child.exited,
    ]);
    return { out, err, exit };
  };
  const printed = said.split("\n").filter((line) => line.startsWith(`  ${state}/fruit `));
  const line = (words: string) =>
    printed.find((text) => text.includes(words)) ?? `nothing printed with "${words}"`;

  expect((await run(line("power status"))).out).toContain("rack1-c");
  expect((await run(line("power status --broker"))).out).toContain("rack1-c");
  const cycled = run(line("hung in U-Boot"));
  await until("the node is off the air", () => status(VICTIM) === "offline", 30_000);
  await until("the node is back", () => status(VICTIM) === "online", 30_000);
  expect(await cycled).toMatchObject({ exit: 0 });
  // Its console went through the same
  const log = (await run(`${state}/fruit console log rack1-c`)).out.trimEnd();
  const order = [...log.matchAll(/power: \w+ by|going down|Booting Linux|login:$/g)].map(([what]) => what);
  expect(order).toEqual(["going down", "power: off by", "power: on by", "Booting Linux", "login:"]);
  expect((await run(`${state}/fruit console send rack1-c --expect Password root`)).exit).toBe(0);
  expect(said).toContain("fruit console rack1-c");
  expect((await run(line("lock 1.0"))).exit).toBe(0);
  expect(await run(line("power off 0.0"))).toMatchObject({ exit: 4, out: "" });
  const remote = await run(line("from home"));
  expect(remote).toMatchObject({ exit: 3 });
  expect(remote.err).toContain("(kernel test)");
  const audit = await run(line("audit verify"));
  expect(audit.out).toContain("the chain holds");

  demo.kill("SIGINT");
  expect(await demo.exited).toBe(0);
  await reading;
  expect(said).toContain(`${CONTROLLER} online`);

  const schema = JSON.parse((await fruit(["mqtt", "schema", "--jsonschema"])).out);
  const ajv = new Ajv({ strict: false });
  ajv.addFormat("date-time", (text: string) => !Number.isNaN(Date.parse(text)));
  ajv.addSchema(schema);
  const names = Object.keys(schema.$defs);
  const kinds = new Set<string>();
  for (const { topic, text } of tap.heard.filter(
    (message) => message.topic.startsWith("fruit/") && message.text !== "",
  )) {
    if (topic.split("/")[3] === "reply" || topic.split("/")[4] === "cmd") continue;
    const kind = kindOf(names, topic);
    expect(kind ?? `${topic} is not in the contract`).toBe(kind as string);
    kinds.add(kind as string);
    const validate = ajv.getSchema(`urn:fruit:v1#/$defs/${(kind as string).replaceAll("/", "~1")}`);
    const document = kind === "status" ? text : JSON.parse(text);
    const isValid = validate?.(document);
    expect({ topic, text, errors: isValid ? [] : validate?.errors }).toEqual({ topic, text, errors: [] });
    // The contract lets consumers meet new keys; what is said today is all in it.
    const known = Object.keys(schema.$defs[kind as string].properties ?? {});
    if (kind !== "event" && typeof document === "object")
      expect(known).toEqual(expect.arrayContaining(Object.keys(document)));
  }
  expect([...kinds]).toEqual(
    expect.arrayContaining([
      "status",
      "info",
      "tele/thermal",
      "tele/power",
      "state/outlet",
      "state/lock",
      "state/audit",
      "event",
      "res",
    ]),
  );
}, 120_000);

test.concurrent("--for ends the demo with exit 0", async () => {
  const { exit, out } = await fruit(["demo", "--nodes", "2", "--for", "4"]);
  expect(exit).toBe(0);
  expect(out).toContain("demo: over; 2 nodes were online");
}, 30_000);

test.concurrent("agents of a demo that was killed end by themselves", async () => {
  using folder = scratch();
  const demo = Bun.spawn([...FRUIT.command, "demo", "--nodes", "2", "--state", folder.path], {
    env: { PATH: process.env.PATH ?? "", ...FRUIT.env },
    stdout: "ignore",
    stderr: "ignore",
  });
  const socket = join(folder.path, "pi10000100.sock");
  const status = () => fruit(["power", "status"], { env: { FRUIT_SOCKET: socket } });
  await until("the controller answers", async () => (await status()).exit === 0);
  demo.kill("SIGKILL");
  await demo.exited;
  await until("nobody answers", async () => (await status()).err.includes("nobody answers"));
}, 30_000);

test.concurrent("a port that is taken, and a folder with a demo in it, are refused by name, and nothing stays behind", async () => {
  using folder = scratch();
  const port = await freePort();
  const other = Bun.listen({ hostname: "127.0.0.1", port, socket: { data() {} } });
  try {
    const taken = await fruit(["demo", "--mqtt-port", String(port), "--state", folder.path]);
    expect(taken).toMatchObject({
      exit: 1,
      err: `fruit: demo: port ${port} is taken; choose another with --mqtt-port\n`,
    });
  } finally {
    other.stop(true);
  }
  using _held = holdFolder(folder.path);
  const held = await fruit(["demo", "--mqtt-port", String(port), "--state", folder.path]);
  expect(held.err).toContain(`another agent is running there, process ${process.pid}`);
  expect(held.exit).toBe(3);
}, 30_000);
