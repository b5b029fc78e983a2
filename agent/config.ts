/**
 * How this agent runs: the schema, the defaults, and the only reader of `node.json`.
 * Local only: what the node should *be* is declared elsewhere and may come from the site.
 */
import { readFileSync } from "node:fs";
import * as v from "valibot";
import { BootSection } from "./boot/section.ts";
import { contradictions } from "./contradictions.ts";
import { problemsOf } from "./issues.ts";
import { reasonOf } from "./record/lines.ts";
import { bounded, gpioNumber, level, outletId, path, port, strict, whole } from "./shapes.ts";
import { GROUPS } from "./telemetry/metrics.ts";
import { UpdateSection } from "./update/section.ts";

/** Where the configuration is when neither a flag nor `FRUIT_CONFIG` says so. */
export const CONFIG_PATH = "/etc/fruit/node.json";

/** A configuration nobody can run with: every problem at once, each with its path and the value. Exit 78. */
export class ConfigError extends Error {
  readonly problems: readonly string[];
  constructor(file: string, problems: readonly string[]) {
    super(`${file}:\n${problems.map((problem) => `  ${problem}`).join("\n")}`);
    this.name = "ConfigError";
    this.problems = problems;
  }
}

const Mqtt = strict({
  /** mqtt://host:1883 or mqtts://host:8883 */
  url: v.pipe(
    v.string(),
    v.regex(
      /^mqtts?:\/\/[^/?#\s]+$/,
      (i) => `${i.received}: expected mqtt://host[:port] or mqtts://host[:port]`,
    ),
    v.check(
      (url: string) => URL.canParse(url),
      (i) => `${i.received} names no host and port`,
    ),
    // Without the value, which would be logged.
    v.check(
      (url: string) => !url.includes("@"),
      "a user stands in it; use mqtt.username and mqtt.password_file",
    ),
  ),
  /** The site's CA, PEM: with mqtts nothing else is trusted. */
  ca: v.optional(path),
  cert: v.optional(path),
  key: v.optional(path),
  username: v.optional(v.string()),
  password_file: v.optional(path),
  /** 5 falls back to 3.1.1 by itself; 3 never tries 5. */
  version: v.optional(v.picklist([5, 3]), 5),
  keepalive_seconds: whole(5, 1200, 60),
  will_delay_seconds: whole(0, 300, 10),
  connect_timeout_seconds: bounded(1, 120, 20),
  backoff_max_seconds: bounded(1, 3600, 300),
  buffer_bytes: whole(16_384, 16_777_216, 262_144),
  /** Home Assistant discovery. */
  discovery: v.optional(v.boolean(), true),
  discovery_prefix: v.optional(v.string(), "homeassistant"),
});

const Telemetry = strict({
  interval_seconds: bounded(10, 86_400, 60),
  /** Seconds, for groups that need another interval; 0 turns a group off. */
  groups: v.optional(
    v.record(v.picklist(GROUPS), v.union([v.literal(0), v.pipe(v.number(), v.minValue(10))])),
    {},
  ),
  /** Name of the metric instance to mount point. */
  filesystems: v.optional(v.record(level("name"), path), { root: "/" }),
});

const BusSchema = strict({
  driver: v.picklist(["pistack-rs485", "pistack-i2c", "clusterctrl", "clusterhat", "gpio", "sim"]),
  device: v.optional(v.string(), "sim"),
  boards: v.pipe(v.array(v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(254))), v.minLength(1)),
  hardware: v.optional(v.picklist([2, 3]), 3),
  i2c_base: whole(0x08, 0x77, 0x10),
  /** Pis on a ClusterCTRL board; a Cluster HAT has four, other boards have two. */
  pis: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(32))),
  /** pistack-rs485: what RTS is while we send, for adapters that do not turn the bus around by themselves. */
  rts: v.optional(v.picklist(["high", "low"])),
  /** gpio: the BCM line of each relay; the n-th is outlet `<board>.<n>`. */
  lines: v.optional(v.pipe(v.array(gpioNumber), v.minLength(1))),
  /** gpio: a low level switches on. */
  active_low: v.optional(v.boolean()),
});

const Outlet = strict({
  name: v.optional(level("name")),
  /** The node this outlet feeds: its status, update and trial are heeded. */
  node: v.optional(level("node")),
  /** Watts to reckon with when it is switched on, for `supply_watts`. */
  watts: bounded(0.1, 1000, 6),
});

/** labgrid's `rest` power port: GET and PUT of `0` or `1` on /outlet/<id>, on loopback only. */
const Rest = strict({
  port,
  /** Those that may be switched this way; reading is for all. */
  outlets: v.optional(v.array(outletId), []),
  /** HTTP Basic; whoever asks must know both. Without them any program of this machine may ask. */
  username: v.optional(v.string()),
  password_file: v.optional(path),
});

const Record = strict({
  /** A folder of its own; in memory unless said otherwise, to spare the SD card. */
  dir: v.optional(path, "/run/fruit/console"),
  file_bytes: whole(16_384, 67_108_864, 1_048_576),
  files: whole(1, 64, 4),
  /** Control sequences and all, instead of time-stamped lines of text. */
  raw: v.optional(v.boolean(), false),
});

const Console = strict({
  /** `/dev/ttyUSB0`, or its name in /dev/serial/by-path, which does not change with the order of plugging. */
  device: v.pipe(v.string(), v.minLength(1)),
  /** The outlet whose host talks here: its power events are marked, its lock is respected. */
  outlet: v.optional(outletId),
  baud: whole(50, 4_000_000, 115_200),
  data_bits: v.optional(v.picklist([5, 6, 7, 8]), 8),
  parity: v.optional(v.picklist(["none", "even", "odd"]), "none"),
  stop_bits: v.optional(v.picklist([1, 2]), 1),
  flow: v.optional(v.picklist(["none", "rtscts", "xonxoff"]), "none"),
  /** Recording to files as well; the ring in memory is always kept. */
  record: v.optional(Record),
  /** A writer who says nothing for so long becomes a reader; 0: never. */
  writer_idle_seconds: bounded(0, 86_400, 3600),
  /** Ports on loopback, off unless named. Whoever connects may write. */
  rfc2217: v.optional(port),
  raw: v.optional(port),
});

/** This node's own place in a Pi Stack: the heartbeat and the shutdown line. */
const StackRole = strict({
  /** `auto`: on where the HAT says that it is a Pi stack. */
  role: v.optional(v.picklist(["auto", "on", "off"]), "auto"),
  heartbeat_gpio: v.optional(gpioNumber, 5),
  shutdown_gpio: v.optional(gpioNumber, 6),
  /** What ends this node when the board asks for it. */
  shutdown_command: v.optional(v.pipe(v.array(v.string()), v.minLength(1)), ["/sbin/poweroff"]),
});

const GpioName = strict({
  gpio: gpioNumber,
  /** `out` may be set and pulsed; anything else is only read and watched. */
  direction: v.optional(v.picklist(["in", "out"]), "in"),
  active_low: v.optional(v.boolean(), false),
  bias: v.optional(v.picklist(["pull-up", "pull-down", "none"])),
  pulse_min_ms: whole(1, 60_000, 10),
  pulse_max_ms: whole(1, 60_000, 5000),
});

const Power = strict({
  rest: v.optional(Rest),
  buses: v.optional(v.array(BusSchema), []),
  outlets: v.optional(v.record(outletId, Outlet), {}),
  poll_seconds: bounded(1, 3600, 10),
  /** Off before on in a cycle. The floor protects boards from half-discharged rails. */
  off_time_seconds: bounded(2, 600, 3),
  /** How long a Pi may take to shut down before its supply is cut. */
  grace_seconds: bounded(5, 600, 30),
  /** How long a Pi may take to show a heartbeat after power on before it is `silent`. */
  boot_seconds: bounded(5, 3600, 120),
  /** Below this a Pi that stopped is believed to be down. */
  halted_amperes: bounded(0, 5, 0.15),
  min_on_seconds: bounded(0, 3600, 10),
  changes_per_hour: whole(1, 1000, 12),
  stagger_seconds: bounded(0.2, 600, 1),
  /** Input voltage below which nothing is switched on. */
  input_volts_min: v.optional(v.pipe(v.number(), v.minValue(0), v.maxValue(60))),
  /** The same for the 5 V rail of an outlet's board, where the board measures it. */
  rail_volts_min: v.optional(v.pipe(v.number(), v.minValue(0), v.maxValue(6))),
  /** What the supply can give; summed over outlets before switching on. Absent: not checked. */
  supply_watts: v.optional(v.pipe(v.number(), v.minValue(1))),
  confirm_seconds: bounded(5, 600, 60),
  retry_seconds: bounded(1, 300, 30),
  /** Longest lock anybody can take. */
  lock_max_seconds: whole(60, 604_800, 604_800),
});

const Commands = strict({
  /** Who may command over MQTT; without the file every signed command is refused. */
  allowed_signers: v.optional(path),
  /** Outlets that plain `set/outlet/<id>` may switch without a signature (Home Assistant's switch). */
  unsigned_outlets: v.optional(v.array(outletId), []),
});

const Sim = strict({
  seed: whole(0, 2 ** 31, 1),
  boards: whole(1, 16, 1),
  /** True wire times on the simulated buses. */
  wire_time: v.optional(v.boolean(), true),
  /** Faults that are on from the start, by name: `fruit demo --help` lists them. */
  faults: v.optional(v.array(v.string()), []),
  serial: v.optional(v.pipe(v.string(), v.regex(/^[0-9a-f]{1,16}$/))),
  /** Where the simulated boards keep what survives a power cut; absent: nowhere. */
  state: v.optional(path),
  /** The clock nobody has set. */
  clock_synced: v.optional(v.boolean(), true),
  /** The file that stands for the card, and where on it the partition is that the root is mounted from, bytes. */
  root: v.optional(strict({ disk: path, offset: v.pipe(v.number(), v.integer(), v.minValue(0)) })),
});

const Schema = strict({
  site: level("site"),
  /** `pi` and the serial number without leading zeros, unless said otherwise. */
  node: v.optional(level("node")),
  name: v.optional(v.pipe(v.string(), v.maxLength(64))),
  data_dir: v.optional(path, "/data/fruit"),
  socket: v.optional(path, "/run/fruit.sock"),
  log_level: v.optional(v.picklist(["debug", "info", "warn", "error"]), "info"),
  mqtt: v.optional(Mqtt),
  telemetry: v.optional(Telemetry, {}),
  power: v.optional(Power, {}),
  consoles: v.optional(v.record(level("console name"), Console), {}),
  stack: v.optional(StackRole, {}),
  /** Lines that `fruit gpio` may touch, by name. */
  gpio: v.optional(v.record(level("line name"), GpioName), {}),
  commands: v.optional(Commands, {}),
  boot: v.optional(BootSection, {}),
  update: v.optional(UpdateSection, {}),
  sim: v.optional(Sim, {}),
});
export type Config = v.InferOutput<typeof Schema>;

/** Makes a configuration of a parsed document. Throws `ConfigError` with all problems. `file` is for the message. */
export function parseConfig(file: string, document: unknown): Config {
  const parsed = v.safeParse(Schema, document);
  const problems = problemsOf(parsed.issues ?? []);
  problems.push(...contradictions(sound(parsed)));
  if (!parsed.success || problems.length > 0) throw new ConfigError(file, problems);
  return parsed.output;
}

/** The sections without a mistake of their own, unknown keys aside: what they contradict is said together with the rest. */
function sound({ output, issues }: v.SafeParseResult<typeof Schema>): Partial<Config> {
  if (typeof output !== "object" || output === null) return {};
  const bad = new Set(
    (issues ?? []).filter(({ expected }) => expected !== "never").map(({ path }) => path?.[0].key),
  );
  return Object.fromEntries(Object.entries(output).filter(([section]) => !bad.has(section)));
}

/** Reads and checks a configuration file. Throws `ConfigError`; never returns half of one. */
export function readConfig(file: string): Config {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (cause) {
    throw new ConfigError(file, [`cannot be read: ${reasonOf(cause)}`]);
  }
  let document: unknown;
  try {
    document = JSON.parse(text);
  } catch (cause) {
    throw new ConfigError(file, [`is not JSON: ${reasonOf(cause)}`]);
  }
  return parseConfig(file, document);
}
