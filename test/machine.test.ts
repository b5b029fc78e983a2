import { expect, test } from "bun:test";
import { GROUPS, type Group, METRICS } from "../agent/telemetry/metrics.ts";
import { createSampler, type Sample } from "../agent/telemetry/sampler.ts";
import { openLinux } from "../hal/linux.ts";
import { activity } from "../hal/sim/activity.ts";
import { simMachine } from "../hal/sim/machine.ts";
import { expectSound } from "./paper.ts";

test("the one these tests run on gives sound numbers, twice", () => {
  const { machine } = openLinux();
  try {
    const real = createSampler(machine, { filesystems: { root: "/" }, nowMs: () => performance.now() });
    for (const group of GROUPS) expectSound(group, real.sample(group));
    for (const group of GROUPS) expectSound(group, real.sample(group, true));
    const [memory] = real.sample("memory");
    expect(memory?.values.total_bytes).toBeGreaterThan(memory?.values.available_bytes ?? Number.NaN);
    expect(real.sample("agent")[0]?.values.rss_bytes).toBeGreaterThan(1e6);
  } finally {
    machine.close();
  }
});

/** A simulated Pi and its clock. */
function pretend(busy: (nowMs: number) => number) {
  const time = { nowMs: 1_787_650_332_000 };
  const nowMs = () => time.nowMs;
  const machine = simMachine({
    serial: "10000000abcdef01",
    seed: 7,
    clockSynced: true,
    activity: busy,
    nowMs,
  });
  return {
    machine,
    real: createSampler(machine, { filesystems: { root: "/", data: "/data" }, nowMs }),
    pass: (seconds: number) => {
      for (let second = 0; second < seconds; second++) {
        time.nowMs += 1000;
        machine.read("/proc/uptime");
      }
    },
  };
}

test("the simulated Pi 4 has every group that a real one without a fan has, and every key", () => {
  const { real, pass } = pretend(activity(7));
  for (const group of GROUPS) real.sample(group);
  pass(60);
  const all = Object.fromEntries(GROUPS.map((group) => [group, real.sample(group)]));
  expect(GROUPS.filter((group) => all[group]?.length === 0)).toEqual(["fan", "power", "console"]);
  const keysOf = (group: Group) => new Set(all[group]?.flatMap(({ values }) => Object.keys(values)));
  const absent = GROUPS.filter((group) => !["fan", "power", "console", "agent"].includes(group)).flatMap(
    (group) =>
      Object.keys(METRICS[group].keys)
        .filter((key) => !keysOf(group).has(key))
        .map((key) => `${group}.${key}`),
  );
  // An SD card keeps no account of its wear.
  expect(absent).toEqual(["disk.life_used_ratio", "disk.pre_eol"]);
});

test("the simulated Pi warms up and reports load when it is busy, and cools down again", () => {
  let busy = 0;
  const { real, pass } = pretend(() => busy);
  const measure = () => {
    real.sample("cpu");
    pass(300);
    return { ...real.sample("cpu")[0]?.values, ...real.sample("thermal")[0]?.values };
  };
  const idle = measure();
  busy = 1;
  const hot = measure();
  busy = 0;
  const cool = measure();
  expect(idle.usage_ratio).toBeLessThan(0.05);
  expect(hot.usage_ratio).toBeGreaterThan(0.9);
  expect(hot.temp_celsius).toBeGreaterThan((idle.temp_celsius ?? 0) + 25);
  expect(cool.temp_celsius).toBeLessThan((idle.temp_celsius ?? 0) + 2);
});

test("the simulated Pi's counters only grow, and its numbers are sound, over an hour and a half", () => {
  const { real, pass } = pretend(activity(7));
  const last = new Map<string, number>();
  for (let minute = 0; minute < 90; minute++) {
    pass(60);
    for (const group of GROUPS) {
      const samples = real.sample(group);
      expectSound(group, samples);
      for (const [name, value] of counters(group, samples)) {
        expect(value).toBeGreaterThanOrEqual(last.get(name) ?? 0);
        last.set(name, value);
      }
    }
  }
  expect(last.size).toBeGreaterThan(20);
});

test("a simulated Pi that starts anew has a new boot and counts from the beginning", () => {
  const first = pretend(() => 0.5);
  first.pass(100);
  const second = pretend(() => 0.5);
  expect(second.machine.bootId).not.toBe(first.machine.bootId);
  expect(second.real.sample("system")[0]?.values.uptime_seconds).toBeLessThan(
    first.real.sample("system")[0]?.values.uptime_seconds ?? 0,
  );
});

function counters(group: Group, samples: Sample[]): [string, number][] {
  return samples.flatMap(({ instance, values }) =>
    Object.entries(values)
      .filter(([key]) => key.endsWith("_total"))
      .map(([key, value]): [string, number] => [`${group}/${instance} ${key}`, value]),
  );
}
