/** What is typed about GPIO lines, with the service behind it, and once with a whole agent. */
import { expect, test } from "bun:test";
import { type CommandResult, Refusal } from "../agent/commands.ts";
import { GPIO_VERBS } from "../agent/gpio/cli.ts";
import { EXIT, type Exit, type Send, UsageError } from "../agent/terminal.ts";
import { LINES, node } from "./gpio-bench.ts";
import { scratch, startAgent, until } from "./node.ts";

/** Types a line; the service answers as through a door. */
async function type(
  asked: ReturnType<typeof node>,
  line: string,
  json = false,
): Promise<{ exit: Exit; out: string; err: string }> {
  const [, word, ...args] = line.split(" ");
  const verb = GPIO_VERBS.find((row) => row.words === `gpio ${word}`);
  if (!verb) throw new Error(`no verb in "${line}"`);
  let [out, err] = ["", ""];
  const send: Send = async (name, args, { onProgress } = {}) => {
    const from = asked.said.length;
    const result = (more: Partial<CommandResult>): CommandResult => ({
      id: "1",
      verb: name,
      state: "refused",
      ...more,
    });
    try {
      const outcome = await asked.ask(name.slice(5), args);
      for (const message of asked.said.slice(from)) onProgress?.(result({ state: "running", message }));
      return result(outcome);
    } catch (error) {
      if (error instanceof Refusal) return result({ code: error.code, message: error.message });
      throw error;
    }
  };
  const io = {
    out: (text: string) => {
      out += text;
    },
    err: (text: string) => {
      err += text;
    },
    signal: new AbortController().signal,
  };
  const exit = await verb.run({ args, io: io as never, json, send, attach: () => Promise.reject() } as never);
  return { exit, out, err };
}

test("what is typed is answered in a line each", async () => {
  const asked = node({ stack: { heartbeat_gpio: 5 } }, true);
  expect(await type(asked, "gpio set light 1")).toEqual({ exit: EXIT.done, out: "light 1\n", err: "" });
  expect((await type(asked, "gpio get light door")).out).toBe("light 1\ndoor 0\n");
  expect((await type(asked, "gpio pulse light 20ms")).out).toBe("light was 0 for 20 ms and is 1 again\n");
  expect((await type(asked, "gpio watch door --for 1s")).out).toMatch(/^\d{4}-\S+Z door 0\n$/);
  const { out } = await type(asked, "gpio list");
  expect(out.split("\n").slice(0, 2)).toEqual([
    "GPIO    LABEL   DIRECTION  LINE   USED BY",
    "GPIO0   ID_SDA  in         -      HAT ID EEPROM",
  ]);
  expect(out).toContain("GPIO5   GPIO5   in         -      Pi Stack heartbeat\n");
  expect(out).toContain("GPIO25  GPIO25  out        light  fruit\n");
});

test("as JSON each answer is one object, and a watch one a line", async () => {
  const asked = node();
  expect(JSON.parse((await type(asked, "gpio set light 1", true)).out)).toEqual({
    schema: "fruit.gpio.set/1",
    state: "done",
    line: "light",
    gpio: 25,
    value: 1,
  });
  const watch = type(asked, "gpio watch door --for 1s", true);
  await until("the first", () => asked.said.length === 1);
  asked.gpio.outside(24, 0);
  const lines = (await watch).out.trimEnd().split("\n");
  expect(lines.map((line) => JSON.parse(line))).toEqual([
    { schema: "fruit.gpio.watch/1", at: expect.any(String), line: "door", value: 0 },
    { schema: "fruit.gpio.watch/1", at: expect.any(String), line: "door", value: 1 },
  ]);
});

test.each([
  { line: "gpio set light", exit: "usage" },
  { line: "gpio set light 2", exit: "usage" },
  { line: "gpio pulse light soon", exit: "usage" },
  { line: "gpio watch", exit: "usage" },
  { line: "gpio get window", exit: "unknown-gpio" },
])("$line is wrong usage", async ({ line, exit }) => {
  const typed = type(node(), line);
  if (exit === "usage") await expect(typed).rejects.toBeInstanceOf(UsageError);
  else expect((await typed).exit).toBe(EXIT.usage);
});

test("through a whole agent: lines and the place in a stack, and a pulse that SIGTERM cuts short", async () => {
  using folder = scratch();
  await using agent = await startAgent(folder.path, { gpio: LINES, stack: { role: "on" } });
  expect((await agent.cli("gpio", "list")).out).toContain("Pi Stack heartbeat");
  expect(await agent.cli("gpio", "set", "light", "1")).toMatchObject({ exit: 0, out: "light 1\n" });
  expect((await agent.cli("stack", "status")).out).toBe(
    "HAT    none\nrole   heartbeat GPIO5, shutdown GPIO6\nheart  beating\n",
  );
  expect(await agent.cli("gpio", "set", "gpio6", "1")).toMatchObject({
    exit: EXIT.usage,
    err: "fruit: GPIO6 is taken: Pi Stack shutdown line; there are door, light, reset\n",
  });
  const pulse = agent.cli("gpio", "pulse", "light", "4s");
  await until("low", async () => (await agent.cli("gpio", "get", "light")).out === "light 0\n");
  agent.kill("SIGTERM");
  expect((await pulse).err).toContain("light: the agent stopped before 4000 ms were over; it is 1 again");
  expect(await agent.exited).toBe(0);
}, 20_000);
