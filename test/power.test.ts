import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test";
import { HalError } from "../hal/ports.ts";
import { bench, outletsOf, Rack } from "./rack.ts";

beforeEach(() => {
  jest.useFakeTimers();
  jest.setSystemTime(new Date("2026-08-24T09:00:00Z"));
});
afterEach(() => {
  jest.useRealTimers();
});

const whats = (steps: { what: string }[] = []) => steps.map(({ what }) => what);

describe("off", () => {
  test("asks the Pi, waits until it is down for 2 s, cuts, and reads back", async () => {
    const rack = new Rack(1, ["0.1"]);
    const b = bench(rack, { power: { outlets: { "0.1": { name: "rack1-b" } } } });
    const outcome = await b.run("power.off", { outlets: ["rack1-b"] }, { reason: "cleaning" });
    expect(outcome.state).toBe("done");
    expect(rack.switched).toEqual(["signal 0.1", "off 0.1"]);
    const [asked = { at: 0 }, cut = { at: 0 }] = rack.told;
    expect(cut.at - asked.at).toBeGreaterThanOrEqual(4000 + 2000);
    expect(cut.at - asked.at).toBeLessThan(7000);
    const [result] = outletsOf(outcome);
    expect(result).toMatchObject({
      outlet: "0.1",
      name: "rack1-b",
      verb: "off",
      outcome: "done",
      before: { supply: "on", host: "running" },
      after: { supply: "off", host: "off" },
      by: "local:alice",
      reason: "cleaning",
    });
    expect(whats(result?.steps)).toEqual([
      "asking to shut down ...",
      "power cut (shut down cleanly) ... confirmed by board in 0.0 s",
    ]);
    expect(b.said.get("state/outlet/0.1")).toMatchObject({
      supply: "off",
      host: "off",
      busy: null,
      cause: "operator",
      by: "local:alice",
      reason: "cleaning",
      source: "board",
    });
    expect(b.events).toEqual([
      expect.objectContaining({ type: "power.off", outlet: "0.1", outcome: "done", by: "local:alice" }),
    ]);
    expect(rack.breaches).toEqual([]);
  });

  test("of a Pi that hangs is a cut at the deadline, and never shown as clean", async () => {
    const rack = new Rack(1, ["0.1"]);
    rack.hangs.add("0.1");
    const b = bench(rack);
    const outcome = await b.run("power.off", { outlets: ["0.1"], timeout_seconds: 12 });
    const [asked = { at: 0 }, cut = { at: 0 }] = rack.told;
    expect(cut.at - asked.at).toBeGreaterThanOrEqual(12_000);
    expect(cut.at - asked.at).toBeLessThan(12_500);
    expect(outletsOf(outcome)[0]?.outcome).toBe("forced-after-timeout");
    expect(outcome.state).toBe("done");
    expect(outcome.message).toBe("forced after timeout: 0.1");
    expect(whats(outletsOf(outcome)[0]?.steps)).toContain("no answer after 12 s");
    expect(b.events[0]?.outcome).toBe("forced-after-timeout");
  });

  test("of a Pi whose heartbeat was never there believes only its current", async () => {
    const rack = new Rack(1, ["0.0", "0.1"]);
    rack.hangs.add("0.0");
    rack.blind.add("0.1");
    const b = bench(rack);
    const outcome = await b.run("power.off", { outlets: ["0.0", "0.1"] });
    expect(outletsOf(outcome).map((result) => result.outcome)).toEqual(["forced-after-timeout", "done"]);
  });

  test("of a hung Pi whose current nobody measures is not called clean for its silence", async () => {
    const rack = new Rack(1, ["0.0"]);
    rack.hangs.add("0.0");
    rack.unmeasured.add("0.0");
    const outcome = await bench(rack).run("power.off", { outlets: ["0.0"] });
    expect(outletsOf(outcome)[0]?.outcome).toBe("forced-after-timeout");
  });

  test("by force is at once and goes before everybody else on the bus", async () => {
    const rack = new Rack(4, ["3.1"]);
    const b = bench(rack);
    const looking = b.ask("power.status");
    const cutting = b.ask("power.off", { outlets: ["3.1"], force: true }, { reason: "smoke" });
    await b.pass(60);
    expect(rack.switched).toEqual(["off 3.1"]);
    expect((await b.finish(cutting)).state).toBe("done");
    expect((await b.finish(looking)).state).toBe("done");
    expect(rack.breaches).toEqual([]);
  });

  test("of what is off sends nothing and says unchanged", async () => {
    const rack = new Rack(1);
    const b = bench(rack);
    const outcome = await b.run("power.off", { outlets: ["all"], yes: true });
    expect(outcome.state).toBe("unchanged");
    expect(rack.switched).toEqual([]);
    expect(b.events).toEqual([]);
  });

  test("is done when the board itself cuts a Pi that obeyed", async () => {
    const rack = new Rack(1, ["0.0"]);
    const b = bench(rack);
    const off = b.ask("power.off", { outlets: ["0.0"] });
    await b.pass(1000);
    rack.flip("0.0", "off");
    const outcome = await b.finish(off);
    expect(outletsOf(outcome)[0]?.outcome).toBe("done");
    expect(rack.switched).toEqual(["signal 0.0"]);
    expect(b.said.get("state/outlet/0.0")).toMatchObject({ cause: "operator", by: "local:alice" });
  });
});

describe("on", () => {
  test("sixteen outlets come on one after the other, a second apart, in rack order", async () => {
    const rack = new Rack(8);
    const b = bench(rack);
    const outcome = await b.run("power.on", { outlets: ["all"], yes: true });
    expect(outcome.state).toBe("done");
    expect(rack.switched).toEqual(rack.outlets.map((id) => `on ${id}`));
    const gaps = rack.told.slice(1).map(({ at }, i) => at - (rack.told[i]?.at ?? 0));
    expect(Math.min(...gaps)).toBeGreaterThanOrEqual(1000);
    expect(rack.breaches).toEqual([]);
  });

  test("stops when the input sags, and says so for each that was left", async () => {
    const rack = new Rack(8);
    rack.inputVolts = () => (rack.told.length < 5 ? 12 : 11);
    const b = bench(rack, { power: { input_volts_min: 11.5 } });
    const outcome = await b.run("power.on", { outlets: ["all"], yes: true });
    expect(rack.switched).toEqual(rack.outlets.slice(0, 5).map((id) => `on ${id}`));
    expect(outcome).toMatchObject({ state: "failed", code: "rule.P10" });
    const left = outletsOf(outcome).slice(5);
    expect(left.map((result) => [result.outcome, result.code, result.after.supply])).toEqual(
      Array(11).fill(["refused", "rule.P10", "off"]),
    );
    // Those behind the first do not wait for the same sag again.
    expect(Math.max(...left.map(({ duration_s }) => duration_s))).toBeLessThan(20);
  });

  test("stops when the 5 V rail sags, and the alarm says so until it is back", async () => {
    const rack = new Rack(4);
    rack.railVolts = () => (rack.told.length < 3 ? 5.05 : 4.6);
    const b = bench(rack, { power: { rail_volts_min: 4.75 } });
    const outcome = await b.run("power.on", { outlets: ["all"], yes: true });
    expect(rack.switched).toEqual(rack.outlets.slice(0, 3).map((id) => `on ${id}`));
    const left = outletsOf(outcome).slice(3);
    expect(left.map((result) => [result.outcome, result.code, result.after.supply])).toEqual(
      Array(5).fill(["refused", "rule.P10", "off"]),
    );
    expect(left[0]?.message).toContain("the 5 V rail stays at 4.60 V (P10: at least 4.75 V");
    b.start();
    await b.pass(11_000);
    expect(b.alarms.get("rail-0")).toBe(
      "warning: board 0: 5 V rail below 4.75 V; nothing is switched on (P10)",
    );
    rack.railVolts = () => 5;
    await b.pass(11_000);
    expect([...b.alarms.keys()]).toEqual([]);
    await b.stop();
  });

  test("goes on when the sag was an inrush", async () => {
    const rack = new Rack(2);
    rack.inputVolts = () => (performance.now() - (rack.told.at(-1)?.at ?? -1e9) < 3000 ? 11 : 12);
    const b = bench(rack, { power: { input_volts_min: 11.5 } });
    const outcome = await b.run("power.on", { outlets: ["all"], yes: true });
    expect(outcome.state).toBe("done");
    const gaps = rack.told.slice(1).map(({ at }, i) => at - (rack.told[i]?.at ?? 0));
    expect(Math.min(...gaps)).toBeGreaterThanOrEqual(3000);
  });

  test("spends the supply's watts once, whoever asks at the same moment", async () => {
    const rack = new Rack(2, ["0.0"]);
    const b = bench(rack, { power: { supply_watts: 18 } });
    await b.run("power.status");
    const two = [b.ask("power.on", { outlets: ["0.1", "1.0"] }), b.ask("power.on", { outlets: ["1.1"] })];
    const [first, second] = [await b.finish(two[0]!), await b.finish(two[1]!)];
    expect(rack.switched).toEqual(["on 0.1", "on 1.0"]);
    expect(first?.state).toBe("done");
    expect(second).toMatchObject({ state: "refused", code: "rule.P10" });
  });

  test("waits out what is left of the off time", async () => {
    const rack = new Rack(1, ["0.0"]);
    const b = bench(rack);
    await b.run("power.off", { outlets: ["0.0"], force: true }, { reason: "x" });
    await b.run("power.on", { outlets: ["0.0"] });
    const [cut = { at: 0 }, on = { at: 0 }] = rack.told;
    expect(on.at - cut.at).toBeGreaterThanOrEqual(3000);
    expect(rack.breaches).toEqual([]);
  });

  test("that the board ignores is sent once more after 30 s and then unconfirmed, never done", async () => {
    const rack = new Rack(1);
    rack.stuck.add("0.0");
    const b = bench(rack);
    const outcome = await b.run("power.on", { outlets: ["0.0"] });
    expect(outcome.state).toBe("unconfirmed");
    expect(outcome.message).toBe(
      "outlet 0.0: on was sent and not confirmed within 60 s: the board says off; look at the board",
    );
    expect(rack.switched).toEqual(["on 0.0", "on 0.0"]);
    const [first = { at: 0 }, again = { at: 0 }] = rack.told;
    expect(again.at - first.at).toBeGreaterThanOrEqual(30_000);
    expect(again.at - first.at).toBeLessThan(30_500);
    expect(outletsOf(outcome)[0]).toMatchObject({ outcome: "unconfirmed", after: { supply: "off" } });
    expect(b.events[0]).toMatchObject({ type: "power.on", outcome: "unconfirmed" });
  });

  test("with wait tells when the heartbeat came, and lets others have the outlet meanwhile", async () => {
    const rack = new Rack(1);
    const b = bench(rack);
    const on = b.ask("power.on", { outlets: ["0.0"], wait: true });
    await b.pass(12_000);
    expect(b.said.get("state/outlet/0.0")).toMatchObject({ supply: "on", host: "starting", busy: null });
    const outcome = await b.finish(on);
    expect(whats(outletsOf(outcome)[0]?.steps).at(-1)).toMatch(/^heartbeat seen after (20|21) s$/);
    expect(outletsOf(outcome)[0]?.after).toEqual({ supply: "on", host: "running" });
  });

  test("with wait does not call a Pi up that never shows itself", async () => {
    const rack = new Rack(1);
    rack.hangs.add("0.0");
    const b = bench(rack, { power: { boot_seconds: 40 } });
    const outcome = await b.run("power.on", { outlets: ["0.0"], wait: true });
    const message = "its supply is on, but it shows no sign of life after 40 s; look at its console";
    expect(outcome).toMatchObject({ state: "unconfirmed", message: `outlet 0.0: ${message}` });
    expect(outletsOf(outcome)[0]).toMatchObject({
      outcome: "unconfirmed",
      message,
      after: { supply: "on", host: "silent" },
    });
  });

  test.each([
    { verb: "power.on", supplies: [], shutdown: undefined, boot: 12 },
    { verb: "power.reset", supplies: ["0.0"], shutdown: undefined, boot: 12 },
    { verb: "power.cycle", supplies: ["0.0"], shutdown: 12, boot: 30 },
  ] as const)("the timeout of $verb limits what it waits for", async ({ verb, supplies, shutdown, boot }) => {
    const rack = new Rack(1, [...supplies]);
    rack.hangs.add("0.0");
    const b = bench(rack, { power: { boot_seconds: 30, grace_seconds: 60, min_on_seconds: 0 } });
    const args = { outlets: ["0.0"], wait: true, timeout_seconds: 12 };
    const [result] = outletsOf(await b.run(verb, args, { reason: "x" }));
    expect(result?.message).toContain(`no sign of life after ${boot} s`);
    expect(whats(result?.steps).find((what) => what.startsWith("no answer"))).toBe(
      shutdown && `no answer after ${shutdown} s`,
    );
  });
});

describe("cycle, reset, shutdown", () => {
  test("cycle leaves it off for the off time that was asked for", async () => {
    const rack = new Rack(1, ["0.0"]);
    const b = bench(rack);
    const outcome = await b.run("power.cycle", { outlets: ["0.0"], off_time_seconds: 5 });
    expect(rack.switched).toEqual(["signal 0.0", "off 0.0", "on 0.0"]);
    const [, cut = { at: 0 }, on = { at: 0 }] = rack.told;
    expect(on.at - cut.at).toBeGreaterThanOrEqual(5000);
    expect(outletsOf(outcome)[0]).toMatchObject({ outcome: "done", after: { supply: "on" } });
    expect(b.progress).toEqual([
      "0.0: asking to shut down ...",
      "0.0: power cut (shut down cleanly), off 5 s",
      "0.0: power on ... confirmed by board in 0.0 s",
    ]);
  });

  test("cycle of a Pi that hangs is not shown as clean either", async () => {
    const rack = new Rack(1, ["0.0"]);
    rack.hangs.add("0.0");
    const outcome = await bench(rack).run("power.cycle", { outlets: ["0.0"] });
    expect(outletsOf(outcome)[0]).toMatchObject({ outcome: "forced-after-timeout", after: { supply: "on" } });
    expect(outcome.message).toBe("forced after timeout: 0.0");
  });

  test("cycle says that it is off now when it may not come on again", async () => {
    const rack = new Rack(1, ["0.0"]);
    rack.inputVolts = () => (rack.supply("0.0") === "on" ? 12 : 11);
    const b = bench(rack, { power: { input_volts_min: 11.5 } });
    const outcome = await b.run("power.cycle", { outlets: ["0.0"] });
    expect(outcome).toMatchObject({ state: "failed", code: "rule.P10" });
    expect(outcome.message).toContain("it is off now and was not switched on again");
  });

  test("reset does not ask", async () => {
    const rack = new Rack(1, ["0.0"]);
    const b = bench(rack);
    const outcome = await b.run("power.reset", { outlets: ["0.0"] }, { reason: "hung" });
    expect(outcome.state).toBe("done");
    expect(rack.switched).toEqual(["off 0.0", "on 0.0"]);
    expect(rack.breaches).toEqual([]);
  });

  test("shutdown leaves the supply on, and off after it does not ask again", async () => {
    const rack = new Rack(1, ["0.0"]);
    const b = bench(rack);
    expect((await b.run("power.shutdown", { outlets: ["0.0"] })).state).toBe("done");
    expect(b.said.get("state/outlet/0.0")).toMatchObject({ supply: "on", host: "halted" });
    expect((await b.run("power.shutdown", { outlets: ["0.0"] })).state).toBe("unchanged");
    expect((await b.run("power.off", { outlets: ["0.0"] })).state).toBe("done");
    expect(rack.switched).toEqual(["signal 0.0", "off 0.0"]);
  });

  test("shutdown that is not obeyed is unconfirmed", async () => {
    const rack = new Rack(1, ["0.0"]);
    rack.hangs.add("0.0");
    const outcome = await bench(rack).run("power.shutdown", { outlets: ["0.0"] });
    expect(outcome.state).toBe("unconfirmed");
    expect(outcome.message).toContain("still running 30 s after it was asked");
  });
});

describe("many outlets", () => {
  test("partial success is failed, with the code of the first problem", async () => {
    const rack = new Rack(1, ["0.0"]);
    const b = bench(rack);
    await b.run("lock.set", { outlet: "0.1" }, { who: "key:bob", reason: "kernel test" });
    const outcome = await b.run("power.on", { outlets: ["0.0", "0.1"] });
    expect(outletsOf(outcome).map((result) => result.outcome)).toEqual(["unchanged", "refused"]);
    expect(outcome).toMatchObject({ state: "failed", code: "locked" });
  });

  test.each([
    [["0.1-1.0"], ["0.1", "1.0"]],
    [
      ["rack1-c", "0.0", "0.0-0.0"],
      ["0.0", "1.0"],
    ],
    [["all"], ["0.0", "0.1", "1.0", "1.1"]],
  ])("%j means %j", async (words, ids) => {
    const b = bench(new Rack(2), { power: { outlets: { "1.0": { name: "rack1-c" } } } });
    const outcome = await b.run("power.status", { outlets: words });
    const { outlets } = outcome.result as { outlets: { outlet: string }[] };
    expect(outlets.map(({ outlet }) => outlet)).toEqual(ids);
  });

  test.each([
    ["9.9", "unknown-outlet", 'no outlet "9.9"; there are 0.0, 0.1, 1.0 rack1-c, 1.1'],
    ["0.0-7.1", "unknown-outlet", 'no outlet "7.1"'],
    ["1.1-0.0", "bad-args", "runs backwards"],
  ])("%s is refused as %s", async (word, code, message) => {
    const b = bench(new Rack(2), { power: { outlets: { "1.0": { name: "rack1-c" } } } });
    const asking = b.ask("power.on", { outlets: [word] });
    await expect(asking).rejects.toMatchObject({ code, message: expect.stringContaining(message) });
  });

  test.each([
    ["power.on", { outlets: ["rack1-c", "0.0"] }, ["0.0", "1.0"]],
    ["power.reset", { outlets: ["all"] }, ["0.0", "0.1", "1.0", "1.1"]],
    ["power.policy", { outlets: ["rack1-c"] }, ["1.0"]],
    ["power.identify", { outlets: ["rack1-c"] }, ["1.0"]],
    ["lock.set", { outlet: "rack1-c" }, ["1.0"]],
    ["lock.clear", { outlet: "1.0" }, ["1.0"]],
  ])("%s %j tells the outlets a signer must be allowed", (verb, args, ids) => {
    const { service } = bench(new Rack(2), { power: { outlets: { "1.0": { name: "rack1-c" } } } });
    const row = service.commands.find((command) => command.verb === verb);
    expect(row?.outlets?.(args)).toEqual(ids as never);
  });

  test("a node without boards names no outlets", async () => {
    const b = bench([]);
    await expect(b.ask("power.on", { outlets: ["0.0"] })).rejects.toMatchObject({ code: "unknown-outlet" });
  });

  test("a second command on the same outlet is told who is first", async () => {
    const rack = new Rack(1, ["0.0"]);
    const b = bench(rack);
    const first = b.ask("power.off", { outlets: ["0.0"] }, { who: "key:bob@rack" });
    await b.pass(3000);
    const second = await b.run("power.cycle", { outlets: ["0.0"] });
    expect(second).toMatchObject({ state: "refused", code: "busy" });
    expect(second.message).toBe(
      "outlet 0.0: bob@rack asked for off 3 s ago and it is under way; wait for it",
    );
    expect((await b.finish(first)).state).toBe("done");
    expect(rack.switched).toEqual(["signal 0.0", "off 0.0"]);
  });

  test("a thirteenth switch within the hour is refused, also by the next process", async () => {
    const rack = new Rack(1);
    const power = { min_on_seconds: 0, changes_per_hour: 3 };
    const first = bench(rack, { power });
    for (const verb of ["on", "off", "on"])
      await first.run(`power.${verb}`, { outlets: ["0.0"], force: verb === "off" }, { reason: "x" });
    const next = bench(rack, { power, dir: first.dir });
    const outcome = await next.run("power.off", { outlets: ["0.0"] });
    expect(outcome).toMatchObject({ state: "refused", code: "rule.P8" });
    const emergency = { outlets: ["0.0"], force: true };
    expect((await next.run("power.off", emergency, { reason: "smoke" })).state).toBe("done");
    expect(await next.run("power.on", { outlets: ["0.0"] })).toMatchObject({ code: "rule.P8" });
    next.skip(61 * 60_000);
    expect((await next.run("power.on", { outlets: ["0.0"] })).state).toBe("done");
  });

  test("a refusal is an event and switches nothing", async () => {
    const rack = new Rack(1, ["0.0"]);
    const b = bench(rack, { power: { outlets: { "0.0": { node: "pi1" } } } });
    const outcome = await b.run("power.off", { outlets: ["0.0"] }, { door: "mqtt", who: "key:bob" });
    expect(outcome).toMatchObject({ state: "refused", code: "rule.P11" });
    expect(rack.switched).toEqual([]);
    expect(b.events).toEqual([
      expect.objectContaining({ type: "power.refused", verb: "off", code: "rule.P11", by: "key:bob" }),
    ]);
  });

  test("a dry run tells every step and every rule, and sends nothing", async () => {
    const rack = new Rack(1, ["0.0"]);
    const b = bench(rack);
    await b.run("lock.set", { outlet: "0.0" }, { who: "key:bob", reason: "kernel test" });
    const outcome = await b.run("power.cycle", {
      outlets: ["0.0", "0.1"],
      dry_run: true,
      off_time_seconds: 1,
    });
    const [refused, second] = outletsOf(outcome);
    expect(whats(refused?.steps).slice(0, 5)).toEqual([
      "would ask it to shut down and wait up to 30 s (P4)",
      "would cut the supply",
      "would confirm by read-back, send once more after 30 s, end unconfirmed after 60 s (P14)",
      "would leave it off for 1 s (P6)",
      "would wait for its turn, 1 s after any other (P9)",
    ]);
    expect(refused?.refusals?.map(({ code }) => code)).toEqual(["locked", "rule.P6"]);
    expect(second?.refusals?.map(({ code }) => code)).toEqual(["rule.P3", "rule.P6"]);
    expect(outcome).toMatchObject({ state: "refused", code: "locked" });
    expect(rack.switched).toEqual([]);
    expect(b.events.map(({ type }) => type)).toEqual(["lock.set"]);
  });

  test("identify lights the board and lets it go dark by itself", async () => {
    const rack = new Rack(1);
    const b = bench(rack);
    expect((await b.run("power.identify", { outlets: ["0.0"], seconds: 5 })).state).toBe("done");
    await b.pass(4000);
    expect(rack.switched).toEqual(["lit 0.0"]);
    await b.pass(2000);
    expect(rack.switched).toEqual(["lit 0.0", "dark 0.0"]);
    await b.run("power.identify", { outlets: ["0.0"], seconds: 5 });
    await b.pass(3000);
    await b.run("power.identify", { outlets: ["0.0"], on: true });
    await b.pass(60_000);
    expect(rack.switched.slice(2)).toEqual(["lit 0.0", "lit 0.0"]);
    rack.abilities.delete("identify");
    expect(await b.run("power.identify", { outlets: ["0.0"] })).toMatchObject({ state: "refused" });
  });

  test("scan tells boards apart that nobody configured", async () => {
    const outcome = await bench(new Rack(1)).run("power.scan");
    const { boards } = outcome.result as { boards: { board: number; configured: boolean }[] };
    expect(boards.map(({ board, configured }) => [board, configured])).toEqual([
      [0, true],
      [9, false],
    ]);
  });

  test("scan lists what the healthy bus has, and names the one that is missing", async () => {
    const missing = new Rack(1);
    missing.failing = new HalError("io", "/dev/i2c-7: does not exist");
    Object.defineProperty(missing, "outlets", { value: ["1.0", "1.1"] });
    expect(await bench([new Rack(1), missing]).run("power.scan")).toMatchObject({
      state: "failed",
      code: "bus",
      message: "bus 1 (scripted): /dev/i2c-7: does not exist",
      result: {
        boards: [{ board: 0 }, { board: 9 }],
        errors: [{ bus: "bus 1 (scripted)", message: "/dev/i2c-7: does not exist" }],
      },
    });
  });
});
