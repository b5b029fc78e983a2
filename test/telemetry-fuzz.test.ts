import { expect, test } from "bun:test";
import { GROUPS, type Group, isSampled } from "../agent/telemetry/metrics.ts";
import { seeded } from "./fakes.ts";
import { expectSound, minutely, PaperMachine } from "./paper.ts";

/** Kept from fuzzing and from thinking like a torn read: each once looked as if it could hurt. */
const NASTY: { path: string; content: string; group: Group }[] = [
  { path: "/proc/stat", content: "cpu  -5 -5 -5 -5\ncpu0", group: "cpu" },
  { path: "/proc/stat", content: `cpu  ${"9".repeat(400)} 1 1 1\n`, group: "cpu" },
  { path: "/proc/stat", content: "cpu ", group: "cpu" },
  { path: "/proc/meminfo", content: "SwapTotal: 1 kB\nSwapFree: 9 kB\nMemTotal:", group: "memory" },
  { path: "/proc/uptime", content: `.${"1".repeat(400)}`, group: "system" },
  { path: "/proc/uptime", content: "-1.5 nan\n", group: "system" },
  { path: "/proc/net/dev", content: "eth0:\nwlan0: -1 -1\n", group: "net" },
  { path: "/proc/net/dev", content: "eth0/../#: 1 1 1 1 1 1 1 1 1 1 1 1 1\n", group: "net" },
  { path: "/proc/diskstats", content: "179 0 mmcblk0\n", group: "disk" },
  { path: "/proc/self/mountinfo", content: "1 1 1:1 / / rw\n1 1 1:1 / /data", group: "fs" },
  { path: "/proc/self/stat", content: ")))", group: "agent" },
  { path: "/sys/class/thermal/thermal_zone1/temp", content: "", group: "thermal" },
  { path: "/sys/class/thermal/thermal_zone1/temp", content: "-", group: "thermal" },
  { path: "/sys/class/hwmon/hwmon2/pwm1", content: "-255\n", group: "fan" },
];

test.each(NASTY.map((row) => ({ ...row, shown: JSON.stringify(row.content).slice(0, 40) })))(
  "$path with $shown gives numbers or nothing",
  ({ path, content, group }) => {
    const one = minutely();
    expectSound(group, one.sample(group));
    one.machine.write(path, content);
    expectSound(group, one.sample(group));
    expectSound(group, one.sample(group));
  },
);

test("files torn, swapped and damaged at random give numbers or nothing, never an error", () => {
  const rounds = Number(process.env.FRUIT_FUZZ ?? 5_000);
  const random = seeded(20_261_123);
  const whole = new PaperMachine();
  const paths = [...whole.files.keys()];
  const pick = <T>(list: readonly T[]) => list[Math.floor(random() * list.length)] as T;
  const one = minutely(whole);
  const groups = GROUPS.filter(isSampled);
  let seen = 0;
  for (let round = 0; round < rounds; round++) {
    const path = pick(paths);
    const before = whole.files.get(path) ?? new Uint8Array();
    whole.files.set(path, damaged(before, random, whole.files.get(pick(paths)) ?? before));
    const group = pick(groups);
    const samples = one.sample(group, round % 7 === 0);
    seen += samples.length;
    expectSound(group, samples);
    whole.files.set(path, before);
  }
  expect(seen).toBeGreaterThan(rounds / 2);
});

function damaged(content: Uint8Array, random: () => number, other: Uint8Array): Uint8Array {
  const bytes = Uint8Array.from(content);
  const at = Math.floor(random() * (bytes.length + 1));
  switch (Math.floor(random() * 5)) {
    case 0:
      return bytes.subarray(0, at);
    case 1:
      return bytes.subarray(at);
    case 2:
      return Uint8Array.from([...bytes.subarray(0, at), ...other]).subarray(0, 60_000);
    case 3:
      for (let hit = 0; hit < 8; hit++)
        bytes[Math.floor(random() * bytes.length)] = Math.floor(random() * 256);
      return bytes;
    default:
      // Digits for digits: still well-formed, but huge, small, backwards.
      return bytes.map((byte) => (byte >= 0x30 && byte <= 0x39 ? 0x30 + Math.floor(random() * 10) : byte));
  }
}
