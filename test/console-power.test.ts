/** What the power of a console's outlet does is told at its place among the bytes; who has locked the outlet has the console. */
import { afterEach, beforeEach, expect, jest, test } from "bun:test";
import { consoleBench, settle } from "./consoles.ts";
import { bench, Rack } from "./rack.ts";

beforeEach(() => {
  jest.useFakeTimers();
  jest.setSystemTime(new Date("2026-11-23T07:00:00Z"));
});
afterEach(() => {
  jest.useRealTimers();
});

/** A rack with its power service, and consoles behind its first board. */
async function site(rack = new Rack(1, ["0.0", "0.1"])) {
  const power = bench(rack, { power: { poll_seconds: 10 } });
  const consoles = consoleBench({
    consoles: {
      a: { device: "/dev/ttyUSB0", outlet: "1.0" },
      b: { device: "/dev/ttyUSB1", outlet: "1.1" },
    },
    outlets: {
      // The bench's consoles are configured for board 1, the rack has board 0
      lockOf: (outlet) => power.service.lockOf(`0.${Number(outlet.slice(2))}`),
      onChange: (happened) =>
        power.service.onChange((outlet, what) => happened(`1.${Number(outlet.slice(2))}`, what)),
    },
  });
  await consoles.start();
  power.start();
  await power.pass(20_000);
  const alice = consoles.attach("local:alice");
  const bob = consoles.attach("local:bob", { console: "b" });
  await settle();
  alice.shown();
  bob.shown();
  return { rack, power, consoles, alice, bob };
}

test("off and on are marked when they happen, between what the Pi said before and after", async () => {
  const { rack, power, consoles, alice, bob } = await site();
  const cycled = power.ask("power.cycle", { outlets: ["0.0"] }, { who: "local:carol", reason: "hung" });
  for (let ms = 0; ms < 30_000 && rack.supply("0.0") === "on"; ms += 10) await power.pass(10);
  // What a UART says between cut and power is noise, but it has a place
  consoles.line.say("(noise)");
  for (let ms = 0; ms < 30_000 && rack.supply("0.0") === "off"; ms += 10) await power.pass(10);
  await power.pass(10);
  consoles.line.say("U-Boot");
  await power.finish(cycled);
  await settle();
  expect(alice.shown()).toBe(
    "[power: asked to shut down by carol (hung)][power: off by carol (hung)](noise)[power: on by carol (hung)]U-Boot",
  );
  expect(bob.shown()).toBe("");
  await power.stop();
});

test("a hand on the switch is marked when it is seen, and the mains' return with who decided", async () => {
  const { rack, power, alice } = await site();
  rack.flip("0.0", "off");
  await power.pass(10_000);
  await settle();
  expect(alice.shown()).toBe("[power: off by somebody else]");
  rack.bootCount++;
  rack.flip("0.0", "on");
  rack.flip("0.1", "on");
  await power.pass(20_000);
  await settle();
  expect(alice.shown()).toBe("[power: on by board, the mains are back]");
  await power.stop();
});

test("what changes nothing is not marked", async () => {
  const { power, alice } = await site();
  await power.run("power.on", { outlets: ["0.0"] });
  await power.run("power.off", { outlets: ["0.0"], dry_run: true });
  await power.run("power.status", {});
  await power.run("power.identify", { outlets: ["0.0"], on: true });
  await settle();
  expect(alice.shown()).toBe("");
  await power.stop();
});

test("a lock takes the console from who writes there, and its end gives it back to all", async () => {
  const { power, alice, bob } = await site();
  await power.run("lock.set", { outlet: "0.0", for_seconds: 60 }, { who: "local:carol", reason: "mine" });
  await settle();
  expect(alice.shown()).toMatch(
    /^\[0\.0 locked by carol until 07:01 UTC\]\[alice only reads now: outlet 0\.0 is locked by carol \(mine\) since 07:00 UTC until 07:01 UTC; ask carol, wait, or 'fruit unlock 0\.0 --kick --reason TEXT'\]$/,
  );
  expect(alice.attachment.mayWrite).toBe(false);
  expect(bob.attachment.mayWrite).toBe(true);
  await power.pass(80_000);
  await settle();
  expect(alice.shown()).toBe("[the lock of carol on 0.0 has ended]");
  alice.attachment.takeOver("my turn");
  expect(alice.attachment.mayWrite).toBe(true);
  await power.run("lock.set", { outlet: "0.0" }, { who: "local:alice" });
  expect(alice.attachment.mayWrite).toBe(true);
  await power.run("lock.clear", { outlet: "0.0", kick: true }, { who: "local:carol", reason: "urgent" });
  await settle();
  expect(alice.shown()).toEndWith(
    "[carol took the lock of alice on 0.0][alice only reads now: the lock was taken away]",
  );
  await power.stop();
});
