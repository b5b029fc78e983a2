import { describe, expect, test } from "bun:test";
import { GROUPS, type Group, METRICS } from "../agent/telemetry/metrics.ts";
import { minutely, PaperMachine, strayFiles } from "./paper.ts";

describe("the table of metrics", () => {
  const rows = GROUPS.flatMap((group) =>
    Object.entries(METRICS[group].keys).map(([key, metric]) => ({ group, key, ...metric })),
  );
  test.each(rows)("$group.$key is named as Prometheus asks", ({ key, type, help }) => {
    expect(key).toMatch(/^[a-z][a-z0-9]*(_[a-z0-9]+)*$/);
    expect(key.endsWith("_total")).toBe(type === "counter");
    expect(help).toMatch(/^[A-Z0-9][^\n]*[^.\n]$/);
  });
});

test("every golden file is read by the machine made of them", () => {
  expect(strayFiles()).toEqual([]);
});

describe("a Pi's files", () => {
  const GOLDEN: { group: Group; first: unknown }[] = [
    {
      group: "system",
      first: [
        {
          instance: "main",
          values: {
            uptime_seconds: 350735.47,
            boot_time_seconds: 1787300000,
            load1: 0.2,
            load5: 0.18,
            load15: 0.12,
            processes: 180,
            forks_total: 86031,
            clock_synced: 1,
            clock_offset_seconds: -0.000125,
          },
        },
      ],
    },
    { group: "cpu", first: [{ instance: "main", values: { frequency_hertz: 1_500_000_000, cores: 4 } }] },
    {
      group: "memory",
      first: [
        {
          instance: "main",
          values: {
            total_bytes: 3_977_584_640,
            available_bytes: 3_389_657_088,
            swap_total_bytes: 104_853_504,
            swap_used_bytes: 1_048_576,
            oom_kills_total: 2,
          },
        },
      ],
    },
    { group: "thermal", first: [{ instance: "main", values: { temp_celsius: 51.121 } }] },
    {
      group: "firmware",
      first: [
        {
          instance: "main",
          values: {
            undervoltage: 1,
            undervoltage_seen: 1,
            freq_capped: 0,
            freq_capped_seen: 0,
            throttled: 1,
            throttled_seen: 1,
            soft_temp_limit: 0,
            soft_temp_limit_seen: 0,
          },
        },
      ],
    },
    {
      group: "disk",
      first: [
        {
          instance: "mmcblk0",
          values: {
            reads_total: 21854,
            read_bytes_total: 1_025_624 * 512,
            writes_total: 81200,
            written_bytes_total: 2_823_404 * 512,
            busy_seconds_total: 412.34,
            life_used_ratio: 0.2,
            pre_eol: 1,
          },
        },
        {
          instance: "sda",
          values: {
            reads_total: 101,
            read_bytes_total: 4040 * 512,
            writes_total: 9,
            written_bytes_total: 80 * 512,
            busy_seconds_total: 0.096,
          },
        },
      ],
    },
    {
      group: "fs",
      first: [
        { instance: "root", values: { size_bytes: 188_743_680, avail_bytes: 0, readonly: 1 } },
        {
          instance: "data",
          values: {
            size_bytes: 29_000_000_000,
            avail_bytes: 25_000_000_000,
            readonly: 0,
            ext4_errors_total: 4,
          },
        },
        // The kernel made it read-only after an error: the mount still says rw, the file system ro.
        {
          instance: "usb",
          values: { size_bytes: 8_000_000_000, avail_bytes: 1_000_000_000, readonly: 1 },
        },
        { instance: "tmp", values: { readonly: 0 } },
      ],
    },
    {
      group: "net",
      first: [
        {
          instance: "eth0",
          values: {
            rx_bytes_total: 424_740_081,
            rx_packets_total: 389_021,
            rx_errors_total: 3,
            rx_dropped_total: 7,
            tx_bytes_total: 93_430_199,
            tx_packets_total: 284_443,
            tx_errors_total: 1,
            tx_dropped_total: 2,
            carrier: 1,
            speed_bits: 1_000_000_000,
          },
        },
        {
          instance: "wlan0",
          values: {
            rx_bytes_total: 910_233,
            rx_packets_total: 4021,
            rx_errors_total: 0,
            rx_dropped_total: 1,
            tx_bytes_total: 120_398,
            tx_packets_total: 911,
            tx_errors_total: 0,
            tx_dropped_total: 0,
            carrier: 1,
          },
        },
      ],
    },
    {
      group: "wifi",
      first: [{ instance: "wlan0", values: { signal_dbm: -52, quality_ratio: 0.828571 } }],
    },
    { group: "fan", first: [{ instance: "main", values: { rpm: 2894, pwm_ratio: 0.2 } }] },
    { group: "power", first: [] },
    { group: "console", first: [] },
    {
      group: "agent",
      first: [{ instance: "main", values: { rss_bytes: 55_418_880, rss_anon_bytes: 14_680_064 } }],
    },
  ];
  test.each(GOLDEN)("the first sample of $group is what they say, without ratios", ({ group, first }) => {
    expect<unknown>(minutely().sample(group)).toEqual(first);
  });

  test("every group has a row in the table above", () => {
    expect(GOLDEN.map(({ group }) => group)).toEqual([...GROUPS]);
  });
});

describe("ratios", () => {
  test("the processor's are made of what its counters grew by", () => {
    const one = minutely();
    one.sample("cpu");
    // 24,000 ticks in a minute of four cores: 6,000 user, 1,200 kernel, 600 waiting, the rest idle.
    one.machine.edit("/proc/stat", (text) =>
      text.replace(/^cpu .*$/m, "cpu  10138153 290696 3085919 46844683 17283 0 25195 0 0 0"),
    );
    one.machine.edit("/proc/pressure/cpu", (text) => text.replace("15155377", "16655377"));
    expect(one.values("cpu")).toMatchObject({
      usage_ratio: 0.3,
      iowait_ratio: 0.025,
      pressure_some_ratio: 0.025,
    });
  });

  test("waiting for memory and storage is a share of the interval", () => {
    const one = minutely();
    one.sample("memory");
    one.sample("system");
    one.machine.edit("/proc/pressure/memory", (text) => text.replace("41210", "6041210"));
    one.machine.edit("/proc/pressure/io", (text) => text.replace("8087715", "8687715"));
    // Two samples of each lie 120 s apart, because the other group's was in between.
    expect(one.values("memory")).toMatchObject({ pressure_some_ratio: 0.05, pressure_full_ratio: 0 });
    expect(one.values("system")).toMatchObject({ io_pressure_some_ratio: 0.005, io_pressure_full_ratio: 0 });
  });

  test("the agent's is processor time over time, whatever its name looks like", () => {
    const one = minutely();
    one.sample("agent");
    one.machine.edit("/proc/self/stat", (text) => text.replace(" 1250 310 ", " 1380 360 "));
    expect(one.values("agent")).toMatchObject({ cpu_ratio: 0.03 });
  });

  test("a counter that went backwards has no ratio once, and one again afterwards", () => {
    const one = minutely();
    const at = (user: number, idle: number) =>
      one.machine.edit("/proc/stat", (text) =>
        text.replace(/^cpu .*$/m, `cpu  ${user} 0 0 ${idle} 0 0 0 0 0 0`),
      );
    at(500, 500);
    one.sample("cpu");
    at(10, 20);
    expect(one.values("cpu")).not.toHaveProperty("usage_ratio");
    at(110, 320);
    expect(one.values("cpu")).toMatchObject({ usage_ratio: 0.25, iowait_ratio: 0 });
  });

  test("iowait that shrinks, as the kernel's may, never makes usage negative or more than all", () => {
    const one = minutely();
    const at = (idle: number, iowait: number) =>
      one.machine.edit("/proc/stat", (text) =>
        text.replace(/^cpu .*$/m, `cpu  0 0 0 ${idle} ${iowait} 0 0 0 0 0`),
      );
    at(1000, 500);
    one.sample("cpu");
    at(1600, 400);
    const { usage_ratio: usage, iowait_ratio: iowait } = one.values("cpu");
    expect(usage).toBe(0);
    expect(iowait).toBeUndefined();
  });

  test("two samples at the same instant have none", () => {
    const one = minutely(new PaperMachine(), 0);
    for (const group of GROUPS) one.sample(group);
    for (const group of ["system", "cpu", "memory", "agent"] as const)
      expect(Object.keys(one.values(group)).filter((key) => key.endsWith("_ratio"))).toEqual([]);
  });
});
