import { expect, test } from "bun:test";
import { BOOT_VERBS } from "../agent/boot/cli.ts";
import { createBootService } from "../agent/boot/service.ts";
import type { Command } from "../agent/commands.ts";
import { parseConfig } from "../agent/config.ts";
import { CONSOLE_VERBS } from "../agent/console/cli.ts";
import { GPIO_VERBS } from "../agent/gpio/cli.ts";
import { createGpioService } from "../agent/gpio/service.ts";
import { nodeCommands } from "../agent/node.ts";
import { POWER_VERBS } from "../agent/power/cli.ts";
import { STACK_VERBS } from "../agent/stack/cli.ts";
import { createStackRole } from "../agent/stack/service.ts";
import { UPDATE_VERBS } from "../agent/update/cli.ts";
import { createUpdateService } from "../agent/update/service.ts";
import { asTyped, isRead, KNOWN_VERBS } from "../agent/words.ts";
import { consoleBench } from "./consoles.ts";
import { bench, Rack } from "./rack.ts";

/** The command table as the agent puts it together. */
function table(): Command[] {
  const parts = { machine: {}, journal: {}, boost: () => undefined };
  const config = parseConfig("node.json", { site: "lab" });
  const hal = { machine: { read: () => undefined } };
  const gpio = { config, hal, hasStackRole: false };
  const stack = { config: config.stack, hal };
  const slots = { config: config.boot, dataDir: "/nowhere", hal };
  return [
    ...createBootService(slots as unknown as Parameters<typeof createBootService>[0]).commands,
    ...bench(new Rack(1)).service.commands,
    ...consoleBench().service.commands,
    ...createGpioService(gpio as unknown as Parameters<typeof createGpioService>[0]).commands,
    ...createStackRole(stack as unknown as Parameters<typeof createStackRole>[0]).commands,
    ...createUpdateService({ config } as unknown as Parameters<typeof createUpdateService>[0]).commands,
    ...nodeCommands(parts as unknown as Parameters<typeof nodeCommands>[0]),
  ];
}

test("the words are those of the command table, and what only looks is of tier 0", () => {
  const rows = table().sort((a, b) => (a.verb < b.verb ? -1 : 1));
  expect(KNOWN_VERBS).toEqual(rows.map(({ verb }) => verb));
  expect(KNOWN_VERBS.filter(isRead)).toEqual(rows.filter(({ tier }) => tier === 0).map(({ verb }) => verb));
});

test("what is typed for a command about power, consoles, lines, slots, updates or the stack is a verb of the command line", () => {
  const typed = KNOWN_VERBS.filter((verb) => /^(boot|power|lock|console|gpio|stack|update)\./.test(verb)).map(
    (verb) => asTyped(verb),
  );
  const words = [
    ...POWER_VERBS,
    ...CONSOLE_VERBS,
    ...GPIO_VERBS,
    ...STACK_VERBS,
    ...BOOT_VERBS,
    ...UPDATE_VERBS,
  ].map((verb) => verb.words);
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
