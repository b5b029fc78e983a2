import { expect, test } from "bun:test";
import { ConfigError, parseConfig } from "../agent/config.ts";
import { seeded } from "./fakes.ts";
import { fruit, scratch } from "./node.ts";
import { FUZZ } from "./sim.ts";

/** What is wrong with a document; nothing when it is good. */
function problems(document: unknown): readonly string[] {
  try {
    parseConfig("node.json", document);
    return [];
  } catch (error) {
    if (error instanceof ConfigError) return error.problems;
    throw error;
  }
}

const bus = (more: object = {}) => ({ driver: "pistack-rs485", device: "/dev/ttyS0", boards: [0], ...more });
const powered = (power: object) => ({ site: "lab", power: { buses: [bus()], ...power } });
const connected = (mqtt: object) => ({ site: "lab", mqtt: { url: "mqtt://broker", ...mqtt } });

test("a site's name is all that must be said", () => {
  const config = parseConfig("node.json", { site: "lab" });
  expect(config).toMatchObject({ data_dir: "/data/fruit", socket: "/run/fruit.sock", log_level: "info" });
  expect(config.power).toMatchObject({
    buses: [],
    off_time_seconds: 3,
    grace_seconds: 30,
    changes_per_hour: 12,
  });
  expect(config.mqtt).toBeUndefined();
});

test.each<{ document: unknown; says: string[] }>([
  { document: null, says: ["(top): expected an object, received null"] },
  { document: "lab", says: ['(top): expected an object, received "lab"'] },
  { document: [], says: ["site: is missing"] },
  { document: {}, says: ["site: is missing"] },
  { document: { site: "Lab 1" }, says: ['site: "Lab 1" is no site: 1 to 32 of a-z, 0-9 and -'] },
  { document: { site: "lab", node: "a/b" }, says: ['node: "a/b" is no node: 1 to 32 of a-z, 0-9 and -'] },
  { document: { site: "lab", node: "+" }, says: ['node: "+" is no node: 1 to 32 of a-z, 0-9 and -'] },
  { document: { site: "lab", sokcet: "/x", pwoer: {} }, says: ["sokcet: unknown key", "pwoer: unknown key"] },
  { document: { site: "lab", socket: "run/x" }, says: ['socket: "run/x" is not an absolute path'] },
  {
    document: { site: "lab", telemetry: { interval_seconds: "60" } },
    says: ['telemetry.interval_seconds: expected a number, received "60"'],
  },
  {
    document: { site: "lab", telemetry: { interval_seconds: 1 } },
    says: ["telemetry.interval_seconds: at least 10, not 1"],
  },
  { document: { site: "lab", mqtt: {} }, says: ["mqtt.url: is missing"] },
  {
    document: connected({ url: "http://x" }),
    says: ['mqtt.url: "http://x": expected mqtt://host[:port] or mqtts://host[:port]'],
  },
  {
    document: connected({ url: "mqtt://x:99999" }),
    says: ['mqtt.url: "mqtt://x:99999" names no host and port'],
  },
  {
    document: {
      site: "lab",
      consoles: Object.fromEntries(
        ["a", "b"].map((name) => [
          name,
          { device: `/dev/tty${name}`, record: { file_bytes: 67_108_864, files: 2 } },
        ]),
      ),
    },
    says: [
      'consoles.*.record: 2 recordings may take 256 MiB of /run, which is memory; no more than 128 MiB together (fewer files, smaller ones, or "dir" on a disk)',
    ],
  },
  {
    document: { site: "lab", update: { policy: "window" } },
    says: ["update.window: missing; with policy window it says when, such as 01:00-05:00"],
  },
  {
    document: {
      site: "lab",
      update: { window: "5-6", swarm: { bootstrap: ["router:6881"], up_window: "x" } },
    },
    says: [
      'update.window: "5-6": expected 01:00-05:00 or sat,sun 22:00-04:00',
      'update.swarm.up_window: "x": expected 01:00-05:00',
      'update.swarm.bootstrap.0: "router:6881": expected 192.0.2.1:6881 or [2001:db8::1]:6881',
    ],
  },
  { document: connected({ url: "mqtt://[::1" }), says: ['mqtt.url: "mqtt://[::1" names no host and port'] },
  {
    document: connected({ url: "mqtt://alice:secret@x" }),
    says: ["mqtt.url: a user stands in it; use mqtt.username and mqtt.password_file"],
  },
  {
    document: connected({ ca: "/ca.pem" }),
    says: ["mqtt.url: mqtt://broker is not encrypted, but ca, cert or key is given (mqtts:// is meant?)"],
  },
  {
    document: connected({ url: "mqtts://broker" }),
    says: ["mqtt.ca: missing; mqtts needs the site's CA to pin"],
  },
  {
    document: connected({ url: "mqtts://broker", ca: "/ca.pem", cert: "/c.pem" }),
    says: ["mqtt.cert, mqtt.key: one without the other"],
  },
  { document: connected({ password_file: "/p" }), says: ["mqtt.password_file: without mqtt.username"] },
  {
    document: powered({ rest: { port: 8080, username: "labgrid" } }),
    says: ["power.rest.username, power.rest.password_file: one without the other"],
  },
  {
    document: powered({ rest: { port: 8080, username: "a:b", password_file: "/p" } }),
    says: ['power.rest.username: "a:b" is no name: 1 to 58 letters, digits, _ . @ and -'],
  },
  {
    document: powered({ rest: { port: 8080, outlets: ["0.0", "0.2", "3.0"] } }),
    says: ["power.rest.outlets.1: board 0 has 2 Pis, 0.0 to 0.1", "power.rest.outlets.2: no bus has board 3"],
  },
  {
    document: powered({ buses: [bus(), bus({ device: "/dev/ttyS1", boards: [1, 0] })] }),
    says: ["power.buses.1.boards: board 0 is already on bus 0"],
  },
  {
    document: powered({ buses: [bus({ driver: "pistack-i2c", boards: [16] })] }),
    says: ["power.buses.0.boards: 16 is more than DIP switches can say (15)"],
  },
  {
    document: powered({ buses: [bus({ pis: 2 })] }),
    says: ["power.buses.0.pis: boards of pistack-rs485 have two"],
  },
  {
    document: powered({ outlets: { "1.0": {}, "0.2": {} } }),
    says: ["power.outlets.1.0: no bus has board 1", "power.outlets.0.2: board 0 has 2 Pis, 0.0 to 0.1"],
  },
  {
    document: powered({ outlets: { "00.0": {} } }),
    says: ['power.outlets.00.0: "00.0" is no outlet: <board>.<pi>, such as 3.1'],
  },
  {
    document: powered({ outlets: { "0.0": { name: "a", node: "pi1" }, "0.1": { name: "a", node: "pi1" } } }),
    says: [
      "power.outlets.0.1.name: a is already outlet 0.0",
      "power.outlets.0.1.node: pi1 is already outlet 0.0",
    ],
  },
  // On I²C the kernel lets one speak at a time: only one address for two is wrong.
  {
    document: powered({
      buses: [
        bus({ driver: "pistack-i2c", device: "/dev/i2c-1" }),
        bus({ driver: "clusterctrl", device: "/dev/i2c-1", boards: [1] }),
        bus({ driver: "clusterhat", device: "/dev/i2c-1", boards: [2] }),
        bus({ driver: "pistack-i2c", device: "/dev/i2c-1", boards: [16 - 8], i2c_base: 0x18 }),
      ],
    }),
    says: [
      "power.buses.2.device: /dev/i2c-1 is bus 1 already",
      "power.buses.3.device: /dev/i2c-1 is bus 1 already",
    ],
  },
  {
    document: powered({ buses: [bus(), bus({ boards: [1] }), bus({ driver: "pistack-i2c", boards: [2] })] }),
    says: [
      "power.buses.1.device: /dev/ttyS0 is bus 0 already",
      "power.buses.2.device: /dev/ttyS0 is bus 0 already",
    ],
  },
  {
    document: powered({
      buses: [
        { driver: "sim", boards: [0] },
        { driver: "sim", boards: [1] },
      ],
      outlets: { "0.1": { name: "all" } },
    }),
    says: ["power.outlets.0.1.name: all means every outlet"],
  },
  {
    document: powered({ outlets: { "0.1": { name: "0.0" } } }),
    says: ['power.outlets.0.1.name: "0.0" is no name: 1 to 32 of a-z, 0-9 and -'],
  },
  {
    document: {
      ...powered({ buses: [bus()], rest: { port: 8080 } }),
      consoles: {
        a: { device: "/dev/ttyS0", outlet: "0.1", rfc2217: 2001, raw: 2001 },
        b: { device: "/dev/ttyUSB0", outlet: "7.0", raw: 8080 },
        c: { device: "/dev/ttyUSB0" },
      },
    },
    says: [
      "consoles.a.raw: 2001 is consoles.a.rfc2217 already",
      "consoles.b.raw: 8080 is power.rest already",
      "consoles.a.device: /dev/ttyS0 is a power bus already",
      "consoles.c.device: /dev/ttyUSB0 is consoles.b already",
      "consoles.b.outlet: no bus has board 7",
    ],
  },
  {
    document: {
      ...powered({ buses: [{ driver: "sim", device: "sim", boards: [0] }] }),
      consoles: { "Rack 1": { device: "" }, a: { device: "sim", baud: 10, record: { dir: "here" } } },
    },
    says: [
      'consoles.Rack 1: "Rack 1" is no console name: 1 to 32 of a-z, 0-9 and -',
      "consoles.Rack 1.device: length at least 1, not 0",
      "consoles.a.baud: at least 50, not 10",
      'consoles.a.record.dir: "here" is not an absolute path',
    ],
  },
  {
    document: powered({ rail_volts_min: 6.5 }),
    says: ["power.rail_volts_min: at most 6, not 6.5"],
  },
  {
    document: powered({ rail_volts_min: "5" }),
    says: ['power.rail_volts_min: expected a number, received "5"'],
  },
  {
    document: powered({ off_time_seconds: 1 }),
    says: ["power.off_time_seconds: at least 2, not 1"],
  },
  {
    document: powered({ retry_seconds: 20, confirm_seconds: 10 }),
    says: ["power.retry_seconds: 20 is longer than power.confirm_seconds 10"],
  },
  {
    document: { site: "lab", commands: { unsigned_outlets: ["0.0"] } },
    says: ["commands.unsigned_outlets.0: no bus has board 0"],
  },
])("it is said that $says", ({ document, says }) => {
  expect(problems(document)).toEqual(says);
});

/** Everything at once: unknown keys, wrong types, wrong values, contradictions within a section and between two. */
const WRONG = {
  site: "Lab",
  socekt: "/run/x.sock",
  log: "debug",
  mqtt: { url: "mqtts://broker", username: 7 },
  telemetry: { interval_seconds: 1, gruops: {} },
  power: {
    buses: [bus({ pis: 3 }), bus({ device: "/dev/ttyS1", boards: [0] })],
    outlets: { "0.0": { name: "rack1-a" }, "0.1": { name: "rack1-a" }, "4.0": {} },
    pol_seconds: 3,
  },
  commands: { allowed_signers: "/etc/fruit/allowed_signers", unsigned_outlets: ["5.0"], unsinged: [] },
};

const TOLD = (file: string) => `fruit: ${file}:
  site: "Lab" is no site: 1 to 32 of a-z, 0-9 and -
  mqtt.username: expected text, received 7
  telemetry.interval_seconds: at least 10, not 1
  telemetry.gruops: unknown key
  power.pol_seconds: unknown key
  commands.unsinged: unknown key
  socekt: unknown key
  log: unknown key
  power.buses.0.pis: boards of pistack-rs485 have two
  power.buses.1.boards: board 0 is already on bus 0
  power.outlets.4.0: no bus has board 4
  power.outlets.0.1.name: rack1-a is already outlet 0.0
  commands.unsigned_outlets.0: no bus has board 5
`;

test("everything that is wrong is said at once, by the agent and by config check in the same words", async () => {
  using folder = scratch();
  const file = folder.file("node.json", WRONG);
  const both = await Promise.all([
    fruit(["config", "check", file]),
    fruit(["agent", "--hal", "sim", "--config", file]),
    fruit(["agent", "--hal", "sim"], { env: { FRUIT_CONFIG: file } }),
  ]);
  for (const run of both) expect(run).toEqual({ exit: 78, out: "", err: TOLD(file) });
});

test.each([
  { what: "is not JSON", content: "{", says: /^fruit: .*node\.json:\n {2}is not JSON: / },
  { what: "is empty", content: "", says: /^fruit: .*node\.json:\n {2}is not JSON: / },
])("a file that $what is said with its name, exit 78", async ({ content, says }) => {
  using folder = scratch();
  const { exit, err } = await fruit(["config", "check", folder.file("node.json", content)]);
  expect({ exit, err }).toEqual({ exit: 78, err: expect.stringMatching(says) });
  expect(err).not.toContain("    at ");
});

test("a file that is not there, or is a folder, is said with its name, exit 78", async () => {
  using folder = scratch();
  const missing = await fruit(["config", "check", `${folder.path}/none.json`]);
  expect(missing).toMatchObject({
    exit: 78,
    err: expect.stringContaining("none.json:\n  cannot be read: ENOENT"),
  });
  const place = await fruit(["agent", "--hal", "sim", "--config", folder.path]);
  expect(place).toMatchObject({ exit: 78, err: expect.stringContaining("cannot be read: EISDIR") });
});

test("a good file is summed up in a line, and whole with --json", async () => {
  using folder = scratch();
  const file = folder.file("node.json", powered({}));
  expect(await fruit(["config", "check", file])).toEqual({
    exit: 0,
    out: `${file}: good; site lab, 1 power bus, no broker\n`,
    err: "",
  });
  const { out } = await fruit(["config", "check", file, "--json"]);
  expect(JSON.parse(out)).toMatchObject({
    schema: "fruit.config.check/1",
    problems: [],
    config: { power: { poll_seconds: 10 } },
  });
});

test("what is wrong is an object with --json too", async () => {
  using folder = scratch();
  const file = folder.file("node.json", { site: "Lab", mqtt: {} });
  const { exit, out, err } = await fruit(["config", "check", file, "--json"]);
  expect({ exit, err }).toEqual({ exit: 78, err: "" });
  expect(JSON.parse(out)).toEqual({
    schema: "fruit.config.check/1",
    file,
    problems: ['site: "Lab" is no site: 1 to 32 of a-z, 0-9 and -', "mqtt.url: is missing"],
  });
});

test("whatever a document holds, it is good or its problems are named", () => {
  const random = seeded(3);
  const pick = <T>(all: readonly T[]) => all[Math.floor(random() * all.length)] as T;
  const odd = [
    null,
    true,
    -1,
    Number.POSITIVE_INFINITY,
    "",
    "x",
    [],
    {},
    [[]],
    { __proto__: null },
    "0.0",
    "mqtt://x",
    ["0.0"],
    [256],
  ];
  const mutate = (value: unknown): unknown => {
    if (random() < 0.15) return pick(odd);
    if (Array.isArray(value)) return value.map(mutate);
    if (typeof value !== "object" || value === null) return value;
    return Object.fromEntries(
      Object.entries(value).map(([key, one]) => [
        random() < 0.05 ? pick(["", "x", "0.1", "site"]) : key,
        mutate(one),
      ]),
    );
  };
  for (let n = 0; n < FUZZ / 4; n++)
    for (const problem of problems(mutate(WRONG))) expect(problem).toMatch(/^.*: ./);
});
