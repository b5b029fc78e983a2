import { expect, test } from "bun:test";
import { type Samples, toInflux, toMessages, toProm, toTree } from "../agent/telemetry/formats.ts";
import { GROUPS, METRICS } from "../agent/telemetry/metrics.ts";
import { minutely } from "./paper.ts";

const TS = 1_787_650_332;

/** All groups of the golden machine, the second sample, so with ratios. */
function golden(): Samples {
  const one = minutely();
  for (const group of GROUPS) one.sample(group);
  return Object.fromEntries(GROUPS.map((group) => [group, one.sample(group)]));
}

const SMALL: Samples = {
  net: [{ instance: "eth0", values: { rx_bytes_total: 12, carrier: 1 } }],
  thermal: [{ instance: "main", values: { temp_celsius: 51.121 } }],
  disk: [],
};

test("Prometheus text has help and type before the lines of a name, labels, and no time stamps", () => {
  expect(toProm(SMALL)).toBe(`# HELP fruit_thermal_temp_celsius Temperature of the processor
# TYPE fruit_thermal_temp_celsius gauge
fruit_thermal_temp_celsius 51.121
# HELP fruit_net_rx_bytes_total Bytes received
# TYPE fruit_net_rx_bytes_total counter
fruit_net_rx_bytes_total{interface="eth0"} 12
# HELP fruit_net_carrier 1 while there is a link
# TYPE fruit_net_carrier gauge
fruit_net_carrier{interface="eth0"} 1
`);
});

/** A line of the text format 0.0.4 without a time stamp. */
const PROM_LINE =
  /^([a-z_][a-z0-9_]*)(\{[a-z]+="(?:[^"\\\n]|\\[\\"n])*"\})? (-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)$/;

test("every line of a whole machine is Prometheus text, each name once and in one piece", () => {
  const types = new Map<string, string>();
  const seen = new Set<string>();
  for (const line of toProm(golden()).trimEnd().split("\n")) {
    const type = /^# TYPE (\S+) (gauge|counter)$/.exec(line);
    if (type?.[1] && type[2]) {
      expect(types.has(type[1])).toBe(false);
      types.set(type[1], type[2]);
    } else if (!line.startsWith("# HELP ")) {
      const [, name = "", labels = ""] = PROM_LINE.exec(line) ?? [];
      expect([...types.keys()].at(-1)).toBe(name);
      expect(seen.has(name + labels)).toBe(false);
      seen.add(name + labels);
    }
  }
  expect(seen.size).toBeGreaterThan(60);
});

test("a label value cannot end its quotes", () => {
  const text = toProm({ fs: [{ instance: 'a"b\\c\nd', values: { readonly: 0 } }] });
  expect(text.split("\n")[2]).toBe('fruit_fs_readonly{name="a\\"b\\\\c\\nd"} 0');
});

test("line protocol carries site, node and instance as tags, and nanoseconds", () => {
  expect(toInflux(SMALL, { site: "lab", node: "pi1" }, TS)).toBe(
    `thermal,site=lab,node=pi1,inst=main temp_celsius=51.121 1787650332000000000
net,site=lab,node=pi1,inst=eth0 rx_bytes_total=12,carrier=1 1787650332000000000
`,
  );
  expect(toInflux(SMALL, { node: "pi 1" })).toContain("thermal,node=pi\\ 1,inst=main temp_celsius=51.121\n");
});

test("messages are topic and payload as published, ts first and only with a clock", () => {
  expect(toMessages(SMALL, TS)).toBe(`tele/thermal/main {"ts":1787650332,"temp_celsius":51.121}
tele/net/eth0 {"ts":1787650332,"rx_bytes_total":12,"carrier":1}
`);
  expect(toMessages(SMALL)).not.toContain("ts");
});

test("the tree has group, instance and values, and leaves out groups without any", () => {
  expect(toTree(SMALL)).toEqual({
    thermal: { main: { temp_celsius: 51.121 } },
    net: { eth0: { rx_bytes_total: 12, carrier: 1 } },
  });
});

test("all formats carry the same numbers", () => {
  const samples = golden();
  const numbers = Object.values(toTree(samples)).flatMap((instances) =>
    Object.values(instances).flatMap((values) => Object.values(values)),
  );
  expect(toProm(samples).match(/^fruit_/gm)?.length).toBe(numbers.length);
  expect(toInflux(samples, {}).match(/[ ,][a-z0-9_]+=-?\d/g)?.length).toBe(numbers.length);
  expect(GROUPS.filter((group) => METRICS[group].instance !== "main")).toEqual([
    "disk",
    "fs",
    "net",
    "wifi",
    "power",
    "console",
  ]);
});
