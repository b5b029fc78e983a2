import { expect, test } from "bun:test";
import { type Asked, type Facts, recent, refusals, refuseAll } from "../agent/power/rules.ts";
import type { Ability } from "../hal/ports.ts";

const NOW = Date.parse("2026-08-24T15:30:00Z");
const MINUTE = 60_000;

/** An outlet that is on, on which everything is allowed. */
const facts: Facts = {
  outlet: "0.1",
  supply: "on",
  host: "running",
  abilities: new Set<Ability>(["signal", "identify", "start-policy", "boot-count", "heartbeat", "measure"]),
  isOwnSupply: false,
  isUnsignedAllowed: false,
  onSeconds: 3600,
  changes: [],
  target: { node: "pi2", isTrial: false },
  inputVolts: 12,
  railVolts: 5.05,
  watts: 6,
  committedWatts: 12,
  now: NOW,
  unixNow: NOW,
  limits: {
    changes_per_hour: 12,
    min_on_seconds: 10,
    input_volts_min: 11.5,
    rail_volts_min: 4.75,
    supply_watts: 24,
    off_time_seconds: 3,
  },
};
const asked: Asked = {
  verb: "off",
  door: "socket",
  by: "local:alice",
  force: false,
  self: false,
  offTimeSeconds: 3,
  graceSeconds: 30,
};
const lock = {
  outlet: "0.1",
  owner: "key:bob@rack",
  reason: "kernel test",
  since: "2026-08-24T13:30:00.000Z",
  until: "2026-08-24T17:30:00.000Z",
};
const forced = { force: true, reason: "smoke" } as const;
const times = (count: number) => Array.from({ length: count }, (_, i) => NOW - (i + 1) * MINUTE);
const limits = (more: Partial<Facts["limits"]>) => ({ limits: { ...facts.limits, ...more } });
const without = (...gone: Ability[]) => ({
  abilities: new Set([...facts.abilities].filter((ability) => !gone.includes(ability))),
});

/** What is asked, of what, and what the refusal says; every row names its rule, the value and the way out. */
const REFUSED: [string, Partial<Asked>, Partial<Facts>, string, ...string[]][] = [
  [
    "cycle of what is off",
    { verb: "cycle" },
    { supply: "off", host: "off" },
    "rule.P3",
    "fruit power on 0.1",
  ],
  [
    "reset of what is off",
    { verb: "reset", reason: "x" },
    { supply: "off" },
    "rule.P3",
    "fruit power on 0.1",
  ],
  ["4.9 s to shut down in", { graceSeconds: 4.9 }, {}, "rule.P4", "4.9 s", "5 s", "--timeout"],
  ["4.9 s with shutdown", { verb: "shutdown", graceSeconds: 4.9 }, {}, "rule.P4", "P4"],
  ["off of what cannot be asked", {}, without("signal"), "rule.P5", "P5", "--force --reason"],
  ["cycle of what cannot be asked", { verb: "cycle" }, without("signal"), "rule.P5", "--force --reason"],
  ["shutdown of what cannot be asked", { verb: "shutdown" }, without("signal"), "rule.P5", "log in"],
  ["shutdown of it by force", { verb: "shutdown", ...forced }, without("signal"), "rule.P5", "log in"],
  ["1.9 s off", { verb: "cycle", offTimeSeconds: 1.9 }, {}, "rule.P6", "1.9 s", "2 s", "--off-time"],
  [
    "1.9 s off by force",
    { verb: "reset", offTimeSeconds: 1.9, ...forced },
    {},
    "rule.P6",
    "even with --force",
  ],
  ["off after 4 s", {}, { onSeconds: 4 }, "rule.P7", "4 s", "10 s", "wait 6 s"],
  ["cycle after 9.5 s", { verb: "cycle" }, { onSeconds: 9.5 }, "rule.P7", "wait 1 s"],
  ["the 13th switch in an hour", {}, { changes: times(12) }, "rule.P8", "12 times", "P8", "wait 48m"],
  ["the 13th, on", { verb: "on" }, { supply: "off", changes: times(12) }, "rule.P8", "12 times"],
  ["a cycle as 12th and 13th", { verb: "cycle" }, { changes: times(11) }, "rule.P8", "needs 2", "wait 49m"],
  [
    "a cycle where one an hour is allowed",
    { verb: "cycle" },
    limits({ changes_per_hour: 1 }),
    "rule.P8",
    "changes_per_hour",
  ],
  [
    "on with a low input",
    { verb: "on" },
    { supply: "off", inputVolts: 11.49 },
    "rule.P10",
    "11.49 V",
    "11.5 V",
    "switch others off",
  ],
  [
    "on with a low rail",
    { verb: "on" },
    { supply: "off", railVolts: 4.74 },
    "rule.P10",
    "5 V rail is at 4.74 V",
    "4.75 V",
  ],
  ["cycle with a low input", { verb: "cycle" }, { inputVolts: 11.49 }, "rule.P10", "11.49 V"],
  ["reset with a low input", { verb: "reset", reason: "x" }, { inputVolts: 11.49 }, "rule.P10", "11.49 V"],
  [
    "on beyond the supply",
    { verb: "on" },
    { supply: "off", committedWatts: 18.1 },
    "rule.P10",
    "18.1 W",
    "24 W",
    "switch others off",
  ],
  ["off of the own supply", {}, { isOwnSupply: true }, "rule.P11", "--self"],
  ["shutdown of the own supply", { verb: "shutdown" }, { isOwnSupply: true }, "rule.P11", "--self"],
  [
    "the own supply over MQTT with --self",
    { door: "mqtt", self: true },
    { isOwnSupply: true },
    "rule.P11",
    "own terminal",
  ],
  [
    "the own supply by force over MQTT",
    { door: "mqtt", self: true, ...forced },
    { isOwnSupply: true },
    "rule.P11",
    "P11",
  ],
  [
    "cycle of the own supply with --self",
    { verb: "cycle", self: true },
    { isOwnSupply: true },
    "rule.P11",
    "reboot it",
  ],
  [
    "reset of the own supply with --self",
    { verb: "reset", self: true, ...forced },
    { isOwnSupply: true },
    "rule.P11",
    "reboot it",
  ],
  [
    "policy off for the own supply",
    { verb: "policy", policy: "off" },
    { isOwnSupply: true },
    "rule.P11",
    '"on"',
  ],
  [
    "off while it updates",
    {},
    { target: { node: "pi2", updating: "writing", isTrial: false } },
    "rule.P12",
    "pi2",
    "writing",
    "--force --reason",
  ],
  [
    "reset while it updates",
    { verb: "reset", reason: "x" },
    { target: { node: "pi2", updating: "writing", isTrial: false } },
    "rule.P12",
    "wait for it",
  ],
  [
    "shutdown on trial",
    { verb: "shutdown" },
    { target: { node: "pi2", isTrial: true } },
    "rule.P12",
    "not confirmed",
    "--force",
  ],
  [
    "off of what bob locked",
    {},
    { lock },
    "locked",
    "bob@rack",
    "kernel test",
    "since 13:30",
    "until 17:30 UTC",
    "fruit unlock 0.1 --kick",
  ],
  ["off of it by force", forced, { lock }, "locked", "bob@rack"],
  ["on of it", { verb: "on" }, { supply: "off", lock }, "locked", "bob@rack"],
  ["policy of it", { verb: "policy", policy: "on" }, { lock }, "locked", "bob@rack"],
  [
    "policy last without a boot count",
    { verb: "policy", policy: "last" },
    without("boot-count"),
    "rule.P17",
    "use on or off",
  ],
  [
    "policy off --once without a boot count",
    { verb: "policy", policy: "off", once: true },
    without("boot-count"),
    "rule.P17",
    "off --once",
  ],
  [
    "policy on without a setting",
    { verb: "policy", policy: "on" },
    without("start-policy"),
    "rule.P17",
    "use last",
  ],
  ["force without a reason", { force: true }, {}, "bad-args", "--reason"],
  ["reset without a reason", { verb: "reset" }, {}, "bad-args", "reset needs a reason", "--reason"],
  ["an unsigned switch", { door: "set" }, {}, "unauthorised", "unsigned_outlets"],
];

test.each(REFUSED)("%s is refused", (_, request, state, code, ...words) => {
  const [first] = refusals({ ...facts, ...state }, { ...asked, ...request });
  expect(first?.code).toBe(code as never);
  for (const word of words) expect(first?.message).toContain(word);
});

const ALLOWED: [string, Partial<Asked>, Partial<Facts>][] = [
  ["off", {}, {}],
  ["on", { verb: "on" }, { supply: "off", host: "off" }],
  ["cycle", { verb: "cycle" }, {}],
  ["reset with a reason", { verb: "reset", reason: "x" }, {}],
  ["5 s to shut down in", { graceSeconds: 5 }, {}],
  ["2 s off", { verb: "cycle", offTimeSeconds: 2 }, {}],
  ["off of what cannot be asked, by force", forced, without("signal")],
  [
    "off of what cannot be asked and is halted",
    { host: "halted" } as never,
    { ...without("signal"), host: "halted" },
  ],
  ["off after 10 s", {}, { onSeconds: 10 }],
  ["off after 4 s by force", forced, { onSeconds: 4 }],
  ["off where nobody knows since when it is on", {}, { onSeconds: undefined }],
  ["the 12th switch in an hour", {}, { changes: times(11) }],
  ["an emergency after 12", forced, { changes: times(12) }],
  ["shutdown after 12: it switches nothing", { verb: "shutdown" }, { changes: times(12) }],
  ["off with a low input", {}, { inputVolts: 9, railVolts: 4 }],
  ["on with an input nobody measures", { verb: "on" }, { supply: "off", inputVolts: undefined }],
  ["on within the supply", { verb: "on" }, { supply: "off", committedWatts: 18 }],
  [
    "on where no rating is configured",
    { verb: "on" },
    { supply: "off", committedWatts: 999, ...limits({ supply_watts: undefined }) },
  ],
  ["cycle within a supply that is full: it is on already", { verb: "cycle" }, { committedWatts: 24 }],
  ["off of the own supply with --self", { self: true }, { isOwnSupply: true }],
  ["on of the own supply", { verb: "on", door: "mqtt" }, { isOwnSupply: true, supply: "off" }],
  ["policy on for the own supply", { verb: "policy", policy: "on" }, { isOwnSupply: true }],
  [
    "off while it updates, by force with a reason",
    forced,
    { target: { node: "pi2", updating: "writing", isTrial: true } },
  ],
  [
    "on while it updates",
    { verb: "on" },
    { supply: "off", target: { node: "pi2", updating: "writing", isTrial: true } },
  ],
  ["off of what the asker locked", { by: "key:bob@rack" }, { lock }],
  ["on of what is locked when the mains return", { verb: "on", door: "policy" }, { supply: "off", lock }],
  ["an unsigned switch that is listed", { door: "set" }, { isUnsignedAllowed: true }],
  ["policy last", { verb: "policy", policy: "last" }, {}],
  ["policy last without a setting in the board", { verb: "policy", policy: "last" }, without("start-policy")],
];

test.each(ALLOWED)("%s is allowed", (_, request, state) => {
  expect(refusals({ ...facts, ...state }, { ...asked, ...request }).map(({ message }) => message)).toEqual(
    [],
  );
});

test("every reason to refuse is listed, in one order", () => {
  const all = refusals(
    { ...facts, lock, onSeconds: 1, changes: times(12), isOwnSupply: true },
    { ...asked, graceSeconds: 1 },
  );
  expect(all.map(({ code }) => code)).toEqual(["rule.P11", "locked", "rule.P4", "rule.P7", "rule.P8"]);
});

test("all needs a second word, also where there is one outlet only", () => {
  expect(() => refuseAll(["all"], "off", false)).toThrow(expect.objectContaining({ code: "rule.P19" }));
  expect(() => refuseAll(["0.0", "all"], "off", false)).toThrow("fruit power off all --yes");
  expect(() => refuseAll(["all"], "off", true)).not.toThrow();
  expect(() => refuseAll(["0.0", "0.1"], "off", false)).not.toThrow();
});

test("switch commands count for an hour, and a clock that jumped makes none count for ever", () => {
  const years = 10 * 365 * 24 * 60 * MINUTE;
  expect(recent([NOW - 61 * MINUTE, NOW - 59 * MINUTE, NOW + years], NOW)).toEqual([NOW - 59 * MINUTE]);
});
