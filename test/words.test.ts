import { expect, test } from "bun:test";
import type { Command } from "../agent/commands.ts";
import { nodeCommands } from "../agent/node.ts";
import { POWER_VERBS } from "../agent/power/cli.ts";
import { asTyped, isRead, KNOWN_VERBS } from "../agent/words.ts";
import { bench, Rack } from "./rack.ts";

/** The command table as the agent puts it together. */
function table(): Command[] {
  const parts = { machine: {}, journal: {}, boost: () => undefined };
  return [
    ...bench(new Rack(1)).service.commands,
    ...nodeCommands(parts as unknown as Parameters<typeof nodeCommands>[0]),
  ];
}

test("the words are those of the command table, and what only looks is of tier 0", () => {
  const rows = table().sort((a, b) => (a.verb < b.verb ? -1 : 1));
  expect(KNOWN_VERBS).toEqual(rows.map(({ verb }) => verb));
  expect(KNOWN_VERBS.filter(isRead)).toEqual(rows.filter(({ tier }) => tier === 0).map(({ verb }) => verb));
});

test("what is typed for a command about power is a verb of the command line", () => {
  const typed = KNOWN_VERBS.filter((verb) => /^(power|lock)\./.test(verb)).map((verb) => asTyped(verb));
  const words = POWER_VERBS.map((verb) => verb.words);
  expect(typed.filter((one) => !words.includes(one))).toEqual([]);
});

test.each([
  { verb: "lock.clear", args: { outlet: "0.0", kick: true }, typed: "unlock --kick" },
  { verb: "power.off", args: { force: true, yes: true }, typed: "power off --force" },
  { verb: "power.reset", args: { force: false }, typed: "power reset" },
  { verb: "lock.set", args: {}, typed: "lock" },
  { verb: "odd", args: {}, typed: "odd" },
])("$verb with $args is typed as $typed", ({ verb, args, typed }) => {
  expect(asTyped(verb, args)).toBe(typed);
});
