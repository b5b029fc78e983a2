import { describe, expect, test } from "bun:test";
import { GROUPS, type Group } from "../agent/telemetry/metrics.ts";
import { minutely } from "./paper.ts";

describe("what is missing", () => {
  const MISSING: { path: string; group: Group; keys: string[] }[] = [
    { path: "/proc/pressure/cpu", group: "cpu", keys: ["pressure_some_ratio"] },
    { path: "/proc/vmstat", group: "memory", keys: ["oom_kills_total"] },
    { path: "/proc/loadavg", group: "system", keys: ["load1", "load5", "load15", "processes"] },
    { path: "/proc/stat", group: "system", keys: ["boot_time_seconds", "forks_total"] },
    {
      path: "/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq",
      group: "cpu",
      keys: ["frequency_hertz"],
    },
    { path: "/sys/class/hwmon/hwmon2/fan1_input", group: "fan", keys: ["rpm"] },
    { path: "/proc/self/status", group: "agent", keys: ["rss_bytes", "rss_anon_bytes"] },
  ];
  test.each(MISSING)("without $path only its own keys are gone", ({ path, group, keys }) => {
    const whole = minutely();
    const poor = minutely();
    poor.machine.files.delete(path);
    whole.sample(group);
    poor.sample(group);
    const left = Object.keys(whole.values(group)).filter((key) => !keys.includes(key));
    expect(Object.keys(poor.values(group))).toEqual(left);
  });

  test.each(GROUPS.filter((group) => group !== "system"))(
    "a machine without any files has no %s",
    (group) => {
      const one = minutely();
      one.machine.files.clear();
      one.machine.word = undefined;
      expect(one.sample(group)).toEqual([]);
      expect(one.sample(group)).toEqual([]);
    },
  );

  test("a clock nobody set gives no time of boot and no offset", () => {
    const one = minutely();
    one.machine.time = { synced: false, offsetSeconds: 0 };
    const values = one.values("system");
    expect(values.clock_synced).toBe(0);
    expect(values).not.toHaveProperty("boot_time_seconds");
    expect(values).not.toHaveProperty("clock_offset_seconds");
  });

  test.each(["Raspberry Pi Zero 2 W Rev 1.0", "Raspberry Pi Compute Module 4 Rev 1.1"])(
    "a %s has no undervoltage detector, so no key says that all is well",
    (model) => {
      const one = minutely();
      one.machine.write("/proc/device-tree/model", `${model}\0`);
      const values = one.values("firmware");
      expect(values).toMatchObject({ throttled: 1, throttled_seen: 1 });
      expect(Object.keys(values).filter((key) => key.startsWith("undervoltage"))).toEqual([]);
    },
  );

  test("without the throttle word the voltage sensor still tells of undervoltage, and of nothing else", () => {
    const one = minutely();
    one.machine.word = undefined;
    expect(one.values("firmware")).toEqual({ undervoltage: 1 });
  });
});

describe("instances", () => {
  test("a container's eth0, which has no device, is reported; bridges, tunnels and their ends are not", () => {
    const one = minutely();
    one.machine.links.delete("/sys/class/net/eth0/device");
    expect(one.sample("net").map(({ instance }) => instance)).toEqual(["eth0", "wlan0"]);
  });

  test("an interface that appears later is reported from its first sample on", () => {
    const one = minutely();
    one.sample("net");
    one.machine.links.set("/sys/class/net/enxb827eb000001/device", "../../../1-1.2:1.0");
    one.machine.edit(
      "/proc/net/dev",
      (text) => `${text}enxb827eb000001:12345678901 1 0 0 0 0 0 0 42 1 0 0 0 0 0 0\n`,
    );
    // The kernel prints no blank between a long name's colon and its first number.
    expect(one.values("net", "enxb827eb000001")).toMatchObject({
      rx_bytes_total: 12_345_678_901,
      tx_bytes_total: 42,
    });
  });

  test("the mount that covers another on the same path is the one reported", () => {
    const one = minutely();
    one.machine.edit(
      "/proc/self/mountinfo",
      (text) => `${text}60 31 8:1 / /data ro,relatime - vfat /dev/sda1 ro\n`,
    );
    expect(one.values("fs", "data")).toMatchObject({ readonly: 1 });
    expect(one.values("fs", "data")).not.toHaveProperty("ext4_errors_total");
  });

  test("space is asked for every ten minutes, or when a fresh answer is wanted", () => {
    const one = minutely();
    const avail = (fresh?: boolean) =>
      one.sample("fs", fresh).find(({ instance }) => instance === "data")?.values.avail_bytes;
    expect(avail()).toBe(25_000_000_000);
    one.machine.spaces.set("/data", { sizeBytes: 29_000_000_000, availBytes: 7 });
    expect(avail()).toBe(25_000_000_000);
    expect(avail(true)).toBe(7);
    one.machine.spaces.set("/data", { sizeBytes: 29_000_000_000, availBytes: 5 });
    for (let minute = 0; minute < 9; minute++) expect(avail()).toBe(7);
    expect(avail()).toBe(5);
  });

  test("an eMMC past its life says more than one, and 0x00 says nothing", () => {
    const one = minutely();
    one.machine.write("/sys/block/mmcblk0/device/life_time", "0x00 0x0b\n");
    one.machine.write("/sys/block/mmcblk0/device/pre_eol_info", "0x00\n");
    const values = one.values("disk", "mmcblk0");
    expect(values.life_used_ratio).toBe(1.1);
    expect(values).not.toHaveProperty("pre_eol");
  });
});
