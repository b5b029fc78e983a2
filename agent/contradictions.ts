/** What a `node.json` says that no schema refuses and nobody can mean. */
import { BUILT_IN_CHECKS } from "./boot/names.ts";
import type { Config } from "./config.ts";
import { gpioContradictions } from "./gpio/claims.ts";

/** Says what is well-formed and still cannot be meant, in the sections that are there. */
export function contradictions(sections: Partial<Config>): string[] {
  const { mqtt, power, commands, boot, update, consoles = {} } = sections;
  return [
    ...(mqtt ? mqttContradictions(mqtt) : []),
    ...(power ? powerContradictions(power) : []),
    ...samePorts(consoles, power?.rest?.port),
    ...sameDevices(consoles, power?.buses ?? []),
    ...(power
      ? Object.entries(consoles).flatMap(([name, { outlet }]) =>
          outlet === undefined ? [] : noOutlet(power, outlet, `consoles.${name}.outlet`),
        )
      : []),
    ...(power && commands
      ? commands.unsigned_outlets.flatMap((id, index) =>
          noOutlet(power, id, `commands.unsigned_outlets.${index}`),
        )
      : []),
    ...gpioContradictions(sections),
    ...(boot ? bootContradictions(boot) : []),
    ...(update?.policy === "window" && update.window === undefined
      ? ["update.window: missing; with policy window it says when, such as 01:00-05:00"]
      : []),
    ...recordContradictions(consoles),
  ];
}

/** What recordings may take of /run together, bytes: it is memory, and a small node has 512 MB. */
const RECORDED_IN_MEMORY = 134_217_728;

function recordContradictions(consoles: Config["consoles"]): string[] {
  const sizes = Object.values(consoles).flatMap(({ record }) =>
    record?.dir.startsWith("/run/") ? [record.files * record.file_bytes] : [],
  );
  const bytes = sizes.reduce((sum, size) => sum + size, 0);
  if (bytes <= RECORDED_IN_MEMORY) return [];
  return [
    `consoles.*.record: ${sizes.length} recordings may take ${Math.round(bytes / 1_048_576)} MiB of /run, which is memory; no more than ${RECORDED_IN_MEMORY / 1_048_576} MiB together (fewer files, smaller ones, or "dir" on a disk)`,
  ];
}

/** A trial must be able to end well in its time, and a check's name tells which one it is. */
function bootContradictions({ checks, ...boot }: Config["boot"]): string[] {
  const least = boot.agent_seconds + boot.settle_seconds;
  return [
    ...(least >= boot.deadline_seconds
      ? [
          `boot.deadline_seconds: ${boot.deadline_seconds} is over before agent_seconds and settle_seconds are (${least})`,
        ]
      : []),
    ...checks.flatMap(({ name, timeout_seconds }, index) => [
      ...(BUILT_IN_CHECKS.some((known) => known === name)
        ? [`boot.checks.${index}.name: ${name} is built in`]
        : []),
      ...(timeout_seconds >= boot.deadline_seconds
        ? [`boot.checks.${index}.timeout_seconds: ${timeout_seconds} is no less than boot.deadline_seconds`]
        : []),
    ]),
    ...alike(
      checks.map(({ name }, index) => ({
        path: `boot.checks.${index}.name`,
        owner: `boot.checks.${index}`,
        value: name,
      })),
    ),
  ];
}

function powerContradictions(power: Config["power"]): string[] {
  const { buses, outlets, rest, retry_seconds, confirm_seconds } = power;
  return [
    ...busContradictions(buses),
    ...(rest ? restContradictions(rest) : []),
    ...(rest?.outlets ?? []).flatMap((id, index) => noOutlet(power, id, `power.rest.outlets.${index}`)),
    ...Object.keys(outlets).flatMap((id) => noOutlet(power, id, `power.outlets.${id}`)),
    ...twice(power, "name"),
    ...twice(power, "node"),
    ...Object.entries(outlets)
      .filter(([, { name }]) => name === "all")
      .map(([id]) => `power.outlets.${id}.name: all means every outlet`),
    ...(retry_seconds > confirm_seconds
      ? [`power.retry_seconds: ${retry_seconds} is longer than power.confirm_seconds ${confirm_seconds}`]
      : []),
  ];
}

/** Says that nothing switches an outlet, where nothing does. */
function noOutlet({ buses }: Config["power"], id: string, path: string): string[] {
  const [board = 0, pi = 0] = id.split(".").map(Number);
  const bus = buses.find(({ boards }) => boards.includes(board));
  if (!bus) return [`${path}: no bus has board ${board}`];
  const pis = bus.driver === "gpio" ? bus.lines?.length : (PIS[bus.driver] ?? bus.pis);
  return pis === undefined || pi < pis
    ? []
    : [`${path}: board ${board} has ${pis} Pis, ${board}.0 to ${board}.${pis - 1}`];
}

function restContradictions({ username, password_file }: NonNullable<Config["power"]["rest"]>): string[] {
  return [
    ...(Boolean(username) === Boolean(password_file)
      ? []
      : ["power.rest.username, power.rest.password_file: one without the other"]),
    // It is who switches, in the audit log and in locks.
    ...(username === undefined || /^[\w.@-]{1,58}$/.test(username)
      ? []
      : [`power.rest.username: "${username}" is no name: 1 to 58 letters, digits, _ . @ and -`]),
  ];
}

/** Two listeners cannot share a port. */
function samePorts(consoles: Config["consoles"], rest: number | undefined): string[] {
  return alike([
    { path: "power.rest.port", owner: "power.rest", value: rest },
    ...Object.entries(consoles).flatMap(([name, ports]) =>
      (["rfc2217", "raw"] as const).map((door) => {
        const path = `consoles.${name}.${door}`;
        return { path, owner: path, value: ports[door] };
      }),
    ),
  ]);
}

/** Of two readers of one line each gets half of what is said. */
function sameDevices(consoles: Config["consoles"], buses: Config["power"]["buses"]): string[] {
  const serial = buses.filter(({ driver }) => driver === "pistack-rs485");
  return alike([
    // Those that are alike among themselves are said with the buses.
    ...new Map(
      serial.map(({ device }) => [device, { path: "", owner: "a power bus", value: device }]),
    ).values(),
    ...Object.entries(consoles).map(([name, { device }]) => {
      const owner = `consoles.${name}`;
      return { path: `${owner}.device`, owner, value: device };
    }),
  ]);
}

/** Says each value that another has already. */
function alike(all: { path: string; owner: string; value: string | number | undefined }[]): string[] {
  const first = new Map<string | number, string>();
  return all.flatMap(({ path, owner, value }) => {
    if (value === undefined) return [];
    const other = first.get(value);
    if (other) return [`${path}: ${value} is ${other} already`];
    first.set(value, owner);
    return [];
  });
}

function mqttContradictions(mqtt: NonNullable<Config["mqtt"]>): string[] {
  const isTls = mqtt.url.startsWith("mqtts:");
  return [
    ...(!isTls && (mqtt.ca || mqtt.cert || mqtt.key)
      ? [`mqtt.url: ${mqtt.url} is not encrypted, but ca, cert or key is given (mqtts:// is meant?)`]
      : []),
    ...(isTls && !mqtt.ca ? ["mqtt.ca: missing; mqtts needs the site's CA to pin"] : []),
    ...(Boolean(mqtt.cert) === Boolean(mqtt.key) ? [] : ["mqtt.cert, mqtt.key: one without the other"]),
    ...(mqtt.password_file && !mqtt.username ? ["mqtt.password_file: without mqtt.username"] : []),
  ];
}

function busContradictions(buses: Config["power"]["buses"]): string[] {
  const owner = new Map<number, number>();
  return buses.flatMap((bus, index) => {
    const first = buses.findIndex((other) => shareLine(other, bus));
    const shared = first < 0 || first >= index ? [] : [`device: ${bus.device} is bus ${first} already`];
    const taken = bus.boards.flatMap((board) => {
      const other = owner.get(board);
      owner.set(board, index);
      return other === undefined ? [] : [`boards: board ${board} is already on bus ${other}`];
    });
    return [...shared, ...taken, ...DRIVER_LIMITS[bus.driver](bus), ...strangeKeys(bus)].map(
      (problem) => `power.buses.${index}.${problem}`,
    );
  });
}

type Bus = Config["power"]["buses"][number];

/** Whether two buses would talk on one line at once, so that nobody understands them. On I²C the kernel lets one speak at a time, and it takes the same address. */
function shareLine(one: Bus, other: Bus): boolean {
  if (one.device !== other.device || !hasDevice(one) || !hasDevice(other)) return false;
  const others = addressesOf(other);
  return !others || (addressesOf(one)?.some((address) => others.includes(address)) ?? true);
}

const hasDevice = ({ driver }: Bus) => driver !== "sim" && driver !== "gpio";

/** Where a bus's boards answer; undefined on a line that knows no addresses of the kernel's. */
function addressesOf({ driver, boards, i2c_base }: Bus): number[] | undefined {
  if (driver === "pistack-i2c") return boards.map((board) => i2c_base + board);
  return driver === "clusterctrl" || driver === "clusterhat" ? [0x20] : undefined;
}

/** Pis on a board, where every board of the driver has as many. */
const PIS: { [D in Bus["driver"]]?: number } = {
  sim: 2,
  "pistack-rs485": 2,
  "pistack-i2c": 2,
  clusterhat: 4,
};

const twoPis = (bus: Bus) => (bus.pis === undefined ? [] : [`pis: boards of ${bus.driver} have two`]);
const alone = (bus: Bus) =>
  bus.boards.length > 1 ? [`boards: a ${bus.driver} board is alone on its bus, always at address 0x20`] : [];

/** What each driver's boards cannot be. */
const DRIVER_LIMITS: Record<Bus["driver"], (bus: Bus) => string[]> = {
  sim: twoPis,
  "pistack-rs485": twoPis,
  "pistack-i2c": (bus) => [
    ...twoPis(bus),
    // The boards' DIP switches have four bits
    ...bus.boards
      .filter((board) => board > 15)
      .map((board) => `boards: ${board} is more than DIP switches can say (15)`),
  ],
  clusterctrl: alone,
  gpio: ({ boards, lines, pis }) => [
    ...(lines === undefined ? ["lines: missing; name the GPIO line of each relay"] : []),
    ...(boards.length > 1 ? ["boards: the relays of a bus are one board"] : []),
    ...(pis === undefined ? [] : ["pis: a gpio bus has as many as it has lines"]),
  ],
  clusterhat: (bus) => [...alone(bus), ...(bus.pis === undefined ? [] : ["pis: a Cluster HAT has four"])],
};

/** Keys that only one driver knows. */
function strangeKeys(bus: Bus): string[] {
  return Object.entries({ rts: "pistack-rs485", lines: "gpio", active_low: "gpio" } as const).flatMap(
    ([key, driver]) =>
      bus[key as "rts"] === undefined || bus.driver === driver ? [] : [`${key}: only with driver ${driver}`],
  );
}

/** Two outlets cannot share a name, nor feed the same node. */
function twice({ outlets }: Config["power"], key: "name" | "node"): string[] {
  const first = new Map<string, string>();
  return Object.entries(outlets).flatMap(([id, outlet]) => {
    const value = outlet[key];
    if (value === undefined) return [];
    const other = first.get(value);
    if (other) return [`power.outlets.${id}.${key}: ${value} is already outlet ${other}`];
    first.set(value, id);
    return [];
  });
}
