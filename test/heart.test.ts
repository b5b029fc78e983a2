import { expect, test } from "bun:test";
import { closeSync, constants, openSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { openHeart } from "../hal/heart.ts";
import { IOCTL } from "../hal/native/gpiochip.ts";
import { beatOn } from "../hal/native/threads.ts";
import { failure } from "./fakes.ts";
import { FakeChips, FakeSysfs, kernelOf } from "./gpio.ts";
import { scratch, until } from "./node.ts";

const FAST = { everyMs: 40, highMs: 15, deadMs: 60_000 };

/** A line whose levels another process writes down with the time, so that nothing here can delay it. */
function recorded() {
  const folder = scratch();
  const path = join(folder.path, "line");
  Bun.spawnSync(["mkfifo", path]);
  const file = openSync(path, constants.O_RDWR);
  const log = join(folder.path, "log");
  const code = `const fs = require("fs");
    const [line, byte] = [fs.openSync(${JSON.stringify(path)}, "r"), Buffer.alloc(1)];
    while (fs.readSync(line, byte) === 1) fs.appendFileSync(${JSON.stringify(log)}, byte + " " + Date.now() + "\\n");`;
  const recorder = Bun.spawn([process.execPath, "-e", code], { stdio: ["ignore", "ignore", "inherit"] });
  const levels = () =>
    (Bun.file(log).size > 0 ? readFileSync(log, "utf8") : "")
      .split("\n")
      .filter(Boolean)
      .map((entry) => entry.split(" ").map(Number) as [level: number, at: number]);
  return {
    file,
    levels,
    rises: () => levels().flatMap(([level, at]) => (level === 1 ? [at] : [])),
    async [Symbol.asyncDispose]() {
      closeSync(file);
      recorder.kill();
      await recorder.exited;
      folder[Symbol.dispose]();
    },
  };
}

test("an event loop that does nothing else for three seconds delays no beat by more than a second", async () => {
  await using line = recorded();
  const beat = beatOn(line, { everyMs: 200, highMs: 50, deadMs: 60_000 });
  await until("the first beats", () => line.rises().length >= 2);
  const from = Date.now();
  Bun.sleepSync(3000);
  const to = Date.now();
  await until("a beat after it", () => (line.rises().at(-1) ?? 0) > to);
  await beat.stop();
  const rises = line.rises().filter((at) => at >= from - 1000);
  const gaps = rises.slice(1).map((at, i) => at - (rises[i] ?? 0));
  expect(rises.filter((at) => at > from && at < to).length).toBeGreaterThan(2);
  expect(Math.max(...gaps)).toBeLessThan(200 + 1000);
});

test("a heart that does not hear that the event loop lives rests, low, and beats again when it does", async () => {
  await using line = recorded();
  const beat = beatOn(line, { ...FAST, deadMs: 300 });
  await until("the first beats", () => line.rises().length >= 3);
  let seen = line.levels().length;
  await until("rest", async () => {
    await sleep(300);
    const before = seen;
    seen = line.levels().length;
    return seen === before;
  });
  expect(line.levels().at(-1)?.[0]).toBe(0);
  beat.alive();
  await until("beats again", () => line.levels().length >= seen + 4);
  await beat.stop();
});

test("a heart that hears it goes on", async () => {
  await using line = recorded();
  const beat = beatOn(line, { ...FAST, deadMs: 500 });
  const from = performance.now();
  while (performance.now() - from < 1500) {
    beat.alive();
    await sleep(50);
  }
  const last = Date.now();
  await beat.stop();
  await until("the last beat", () => (line.rises().at(-1) ?? 0) > last - 1000);
});

test("a heart is stopped at once, with its line low", async () => {
  await using line = recorded();
  const beat = beatOn(line, { everyMs: 60_000, highMs: 60_000, deadMs: 60_000 });
  await until("high", () => line.levels().length === 1);
  const from = performance.now();
  await beat.stop();
  expect(performance.now() - from).toBeLessThan(10_000);
  await until("low", () => line.levels().at(-1)?.[0] === 0);
  expect(line.levels().map(([level]) => level)).toEqual([1, 0]);
});

test("through sysfs a heart beats by writing to the line, which is low and an output in the end", async () => {
  await using sysfs = new FakeSysfs();
  const heart = await openHeart(5, FAST, kernelOf({ sysfs }));
  expect(sysfs.line(5, "direction")).toMatch(/low|out/);
  // A file that is no kernel's keeps one level behind the other.
  await until("three beats", () => {
    heart.alive();
    return /(10){3}/.test(sysfs.line(5, "value") ?? "");
  });
  await heart.close();
  await sysfs.settled();
  expect(sysfs.line(5, "value")?.[0]).toBe("0");
  expect(sysfs.line(5, "direction")).toBe("out\n");
});

test("a heart whose line fails says so the next time it is told that all is well", async () => {
  using chips = new FakeChips();
  // Its thread asks the real kernel, to which the line is a pipe: ENOTTY.
  const heart = await openHeart(5, FAST, kernelOf({ chips }));
  const error = await until("the failure", async () => {
    try {
      heart.alive();
    } catch (error) {
      return error as Error;
    }
    return undefined;
  });
  expect(error).toMatchObject({ code: "io" });
  expect(error.message).toMatch(/GPIO5: the heart has stopped: .*ENOTTY/);
  await heart.close();
  expect(chips.line(5).level).toBe(0);
  expect(chips.isHeld(5)).toBe(false);
});

test("a heart does not begin on a line that somebody else has", async () => {
  using chips = new FakeChips();
  chips.line(5).consumer = "spi0 CS1";
  const error = await failure(openHeart(5, FAST, kernelOf({ chips })));
  expect(error).toMatchObject({ code: "busy", message: "GPIO5: is taken by spi0 CS1" });
});

test("the request of a thread that beats is the one that sets levels", async () => {
  using chips = new FakeChips();
  const { openLine } = await import("../hal/gpio.ts");
  const line = await openLine(5, { direction: "out", initial: 0 }, kernelOf({ chips }));
  expect(line.drive).toEqual({ file: chips.line(5).file ?? -1, request: IOCTL.set });
  await line.close();
});
