import { expect, test } from "bun:test";
import { ConfigError, parseConfig } from "../agent/config.ts";
import { checkGpio } from "../agent/doctor/gpio.ts";
import type { GpioFacts } from "../hal/ports.ts";
import { not, Tree } from "./tree.ts";

const tree = new Tree();

/** What is wrong with a configuration; nothing when it is good. */
function problems(more: object): readonly string[] {
  try {
    parseConfig("node.json", { site: "lab", ...more });
    return [];
  } catch (error) {
    if (error instanceof ConfigError) return error.problems;
    throw error;
  }
}

const relays = (more: object = {}) => ({
  buses: [{ driver: "gpio", boards: [9], lines: [17, 27], ...more }],
});
const serial = (more: object = {}) => ({
  driver: "pistack-rs485",
  device: "/dev/ttyUSB0",
  boards: [0],
  ...more,
});
const AUTO = '(say "stack": { "role": "off" } where this node is in no Pi Stack)';

test.each<{ config: object; says: string[] }>([
  { config: { power: relays() }, says: [] },
  { config: { power: relays(), gpio: { door: { gpio: 22 } } }, says: [] },
  {
    config: { power: relays({ lines: undefined }) },
    says: ["power.buses.0.lines: missing; name the GPIO line of each relay"],
  },
  {
    config: { power: relays({ boards: [9, 10] }) },
    says: ["power.buses.0.boards: the relays of a bus are one board"],
  },
  {
    config: { power: relays({ pis: 2 }) },
    says: ["power.buses.0.pis: a gpio bus has as many as it has lines"],
  },
  {
    config: { power: relays({ lines: [17, 17] }) },
    says: ["power.buses.0.lines.1: GPIO17 is taken: relay of outlet 9.0"],
  },
  {
    config: { power: { ...relays(), outlets: { "9.2": {} } } },
    says: ["power.outlets.9.2: board 9 has 2 Pis, 9.0 to 9.1"],
  },
  {
    config: { power: { buses: [...relays().buses, ...relays({ boards: [8], lines: [22] }).buses] } },
    says: [],
  },
  {
    config: { power: relays({ lines: [5, 17] }) },
    says: [`power.buses.0.lines.0: GPIO5 is taken: Pi Stack heartbeat ${AUTO}`],
  },
  {
    config: { power: relays({ lines: [6] }), stack: { role: "on" } },
    says: ["power.buses.0.lines.0: GPIO6 is taken: Pi Stack shutdown line"],
  },
  { config: { power: relays({ lines: [5, 6] }), stack: { role: "off" } }, says: [] },
  {
    config: { stack: { heartbeat_gpio: 6 } },
    says: [`stack.shutdown_gpio: GPIO6 is taken: Pi Stack heartbeat ${AUTO}`],
  },
  {
    config: { power: relays(), gpio: { door: { gpio: 27 } } },
    says: ["gpio.door.gpio: GPIO27 is taken: relay of outlet 9.1"],
  },
  {
    config: { gpio: { a: { gpio: 22 }, b: { gpio: 22 } } },
    says: ["gpio.b.gpio: GPIO22 is taken: gpio a"],
  },
  { config: { gpio: { a: { gpio: 1 } } }, says: ["gpio.a.gpio: GPIO1 is taken: HAT ID EEPROM"] },
  ...["/dev/serial0", "/dev/ttyAMA0", "/dev/ttyS0"].map((device) => ({
    config: { consoles: { "rack1-a": { device } }, gpio: { tx: { gpio: 14 }, rx: { gpio: 15 } } },
    says: [
      "gpio.tx.gpio: GPIO14 is taken: console rack1-a",
      "gpio.rx.gpio: GPIO15 is taken: console rack1-a",
    ],
  })),
  { config: { consoles: { a: { device: "/dev/ttyUSB0" } }, gpio: { tx: { gpio: 14 } } }, says: [] },
  {
    config: { power: { buses: [serial({ device: "/dev/ttyAMA0" })] }, gpio: { tx: { gpio: 14 } } },
    says: ["gpio.tx.gpio: GPIO14 is taken: power bus /dev/ttyAMA0"],
  },
  {
    config: {
      power: { buses: [{ driver: "pistack-i2c", device: "/dev/i2c-1", boards: [0] }] },
      gpio: { sda: { gpio: 2 } },
    },
    says: ["gpio.sda.gpio: GPIO2 is taken: I2C bus 1"],
  },
  {
    config: { power: { buses: [serial({ lines: [17], active_low: false })] } },
    says: ["power.buses.0.lines: only with driver gpio", "power.buses.0.active_low: only with driver gpio"],
  },
  {
    config: { power: relays({ rts: "high" }) },
    says: ["power.buses.0.rts: only with driver pistack-rs485"],
  },
  { config: { power: { buses: [serial({ rts: "high" })] } }, says: [] },
  {
    config: {
      gpio: { door: { gpio: 22, direction: "out", bias: "pull-up", pulse_min_ms: 100, pulse_max_ms: 50 } },
    },
    says: [
      "gpio.door.bias: only for a line that is read",
      "gpio.door.pulse_min_ms: 100 is longer than pulse_max_ms 50",
    ],
  },
])("of lines it is said that $says (row $#)", ({ config, says }) => {
  expect(problems(config)).toEqual(says);
});

/** A machine whose files are those of a folder, and whose kernel shows these lines. */
function machine(files: Record<string, string>, lines: readonly Partial<GpioFacts>[] = Array(28).fill({})) {
  return {
    machine: {
      read: (path: string) => (path in files ? new TextEncoder().encode(files[path]) : undefined),
      list: (path: string) =>
        Object.keys(files)
          .filter((file) => file.startsWith(`${path}/`))
          .map((file) => file.slice(path.length + 1).split("/")[0] ?? ""),
    } as never,
    listGpio: async () => lines.map((line, gpio) => ({ gpio, direction: "in" as const, ...line })),
  };
}

const SYSFS = { "/sys/class/gpio/gpiochip512/base": "512" };
const HAT = { "/proc/device-tree/hat/product": "Pi stack\0" };
const PERSIST = "/sys/module/pinctrl_bcm2835/parameters/persist_gpio_outputs";
const doctor = async (config: object, ...of: Parameters<typeof machine>) =>
  tree.lines(await checkGpio(parseConfig("node.json", { site: "lab", ...config }), machine(...of)));

test("the doctor says nothing of lines where none are asked for", async () => {
  expect(await doctor({}, {})).toBe("");
});

test("the doctor is content with relays on sysfs, and with a place in a Pi Stack", async () => {
  const config = { power: relays(), gpio: { door: { gpio: 22 } } };
  expect(await doctor(config, { ...SYSFS, ...HAT })).toBe(
    "ok   stack: Pi stack: heartbeat on GPIO5, shutdown line GPIO6\n" +
      "ok   gpio: 5 lines, none of them taken\n" +
      "ok   gpio outputs: through /sys/class/gpio: they keep their levels when the agent ends\n",
  );
  const checks = await checkGpio(parseConfig("node.json", { site: "lab", ...config }), machine(SYSFS));
  expect(not("ok", checks)).toEqual([]);
});

test("where relays fall back when the agent ends, the doctor says so, unless the kernel was told to keep them", async () => {
  expect(await doctor({ power: relays() }, {})).toContain(
    "warn gpio outputs: no /sys/class/gpio, and the kernel lets go of outputs when the agent ends: relays fall back; ",
  );
  expect(await doctor({ power: relays() }, { [PERSIST]: "N\n" })).toContain("warn gpio outputs");
  expect(await doctor({ power: relays() }, { [PERSIST]: "Y\n" })).toContain("ok   gpio outputs");
  expect(await doctor({ gpio: { door: { gpio: 22 } } }, {})).not.toContain("outputs");
});

test("a Pi 5 is not told of a parameter that its lines do not know", async () => {
  const model = (name: string) => ({ "/proc/device-tree/model": `Raspberry Pi ${name} Rev 1.0\0` });
  expect(await doctor({ power: relays() }, model("4 Model B"))).toContain("persist_gpio_outputs=1");
  for (const name of ["5 Model B", "500", "Compute Module 5"])
    expect(await doctor({ power: relays() }, model(name))).not.toContain("persist_gpio_outputs");
});

test("the doctor says who has a line that is asked for; what the agent itself has is no fault", async () => {
  const lines: Partial<GpioFacts>[] = Array(28).fill({});
  lines[17] = { consumer: "spi0 CS2" };
  lines[27] = { consumer: "sysfs" };
  lines[22] = { consumer: "fruit" };
  expect(await doctor({ power: relays(), gpio: { a: { gpio: 22 }, b: { gpio: 40 } } }, SYSFS, lines)).toBe(
    "FAIL gpio: GPIO17 (relay of outlet 9.0): is taken by spi0 CS2; remove its overlay from config.txt, or choose another line\n" +
      "FAIL gpio: GPIO40 (gpio b): there is no such line; there are GPIO0 to GPIO27\n" +
      "ok   gpio outputs: through /sys/class/gpio: they keep their levels when the agent ends\n",
  );
  expect(await doctor({ power: relays() }, {}, [])).toContain("FAIL gpio: the kernel shows no GPIO lines");
});

test("a Pi Stack whose role is off is worth a word", async () => {
  expect(await doctor({ stack: { role: "off" } }, HAT)).toStartWith('warn stack: the HAT says "Pi stack"');
});

test("the doctor says where the machine itself uses a line that is asked for, of the relays as of others", async () => {
  const files = {
    ...SYSFS,
    "/sys/class/tty/console/active": "tty1 ttyS0\n",
    "/sys/class/i2c-dev/i2c-1/name": "",
  };
  const config = { power: relays({ lines: [14] }), gpio: { lamp: { gpio: 2 } } };
  expect(await doctor(config, files)).toContain(
    "FAIL gpio: GPIO14 (relay of outlet 9.0): is taken by the kernel's console; remove its overlay from config.txt, or choose another line\n" +
      "FAIL gpio: GPIO2 (gpio lamp): is taken by I2C bus 1; remove its overlay from config.txt, or choose another line\n",
  );
});
