import { expect, test } from "bun:test";
import { parseConfig } from "../agent/config.ts";
import { factsOf, nodeIdOf } from "../agent/identity.ts";
import { KINDS } from "../agent/messages.ts";
import { PaperMachine } from "./paper.ts";

const MACHINE_ID = "0123456789abcdef0123456789abcdef";

test.each([
  { serial: "10000000abcdef01", id: "pi10000000abcdef01" },
  { serial: "00000000abcdef01", id: "piabcdef01" },
  { serial: "00000000ABCDEF01", id: "piabcdef01" },
])("serial $serial is node $id", ({ serial, id }) => {
  const machine = new PaperMachine();
  machine.serial = serial;
  expect(nodeIdOf(machine)).toBe(id);
});

test("off a Pi the machine id decides, and cannot be read from the node id", () => {
  const machine = new PaperMachine().write("/etc/machine-id", `${MACHINE_ID}\n`);
  machine.serial = undefined;
  const id = nodeIdOf(machine);
  expect(id).toMatch(/^node-[0-9a-f]{12}$/);
  expect(nodeIdOf(machine)).toBe(id);
  expect(MACHINE_ID).not.toContain(id.slice(5));
  machine.write("/etc/machine-id", `${MACHINE_ID.replace("0", "1")}\n`);
  expect(nodeIdOf(machine)).not.toBe(id);
});

test.each([
  { hostname: "Rack_1.example.org\n", id: "rack-1-example-org" },
  { hostname: `${"x".repeat(63)}\n`, id: "x".repeat(32) },
  { hostname: "...\n", id: "node-unnamed" },
  { hostname: "", id: "node-unnamed" },
])("without a machine id host name $hostname makes $id", ({ hostname, id }) => {
  const machine = new PaperMachine().write("/proc/sys/kernel/hostname", hostname);
  machine.serial = "0000000000000000";
  machine.write("/etc/machine-id", "uninitialized\n");
  expect(nodeIdOf(machine)).toBe(id);
  expect(parseConfig("test", { site: "lab", node: id }).node).toBe(id);
});

test("a Pi 4 tells its facts, and they fit what info may hold", () => {
  const facts = factsOf(
    new PaperMachine()
      .write("/proc/device-tree/chosen/bootloader/build-timestamp", "\x63\xc1\x44\x2c")
      .write("/proc/device-tree/chosen/bootloader/version", "cd866525580337c0aee4b25880e1f5f9f674fb24\0")
      .write("/proc/device-tree/chosen/bootloader/rsts", "\x00\x00\x10\x00"),
  );
  expect(facts).toEqual({
    model: "Raspberry Pi 4 Model B Rev 1.4",
    revision: "c03114",
    serial: "10000000abcdef01",
    kernel: "6.12.31-0-rpi",
    os: "Alpine Linux v3.22",
    arch: "aarch64",
    firmware: "2023-01-13 cd866525",
    reset_reason: "power-on",
    hostname: "rack1-c",
    throttle_source: "mailbox",
  });
  expect(Object.keys(KINDS.info.schema.entries)).toEqual(expect.arrayContaining(Object.keys(facts)));
});

test("a machine that knows nothing of itself tells only its architecture", () => {
  const machine = new PaperMachine();
  machine.files.clear();
  machine.serial = undefined;
  machine.word = undefined;
  expect(Object.keys(factsOf(machine))).toEqual(["arch"]);
});

test("an old kernel's revision is found in cpuinfo, and undervoltage alone comes from the sensor", () => {
  const machine = new PaperMachine();
  machine.files.delete("/proc/device-tree/system/linux,revision");
  machine.word = undefined;
  expect(factsOf(machine)).toMatchObject({ revision: "c03114", throttle_source: "hwmon" });
});

test.each([
  { rsts: "\x00\x00\x10\x00", power: undefined, reason: "power-on" },
  { rsts: "\x00\x00\x00\x20", power: undefined, reason: "reboot-or-watchdog" },
  { rsts: "\x00\x00\x04\x00", power: undefined, reason: "rsts 0x400" },
  { rsts: "\x00\x00\x10\x00", power: "\x00\x00\x00\x02", reason: "power-on, pmic under-voltage" },
  { rsts: undefined, power: "\x00\x00\x00\x11", reason: "pmic over-voltage, pmic watchdog" },
  { rsts: undefined, power: "\x00\x00\x00\x00", reason: undefined },
  { rsts: "\x00", power: undefined, reason: undefined },
])("boot registers say $reason", ({ rsts, power, reason }) => {
  const machine = new PaperMachine();
  if (rsts !== undefined) machine.write("/proc/device-tree/chosen/bootloader/rsts", rsts);
  if (power !== undefined) machine.write("/proc/device-tree/chosen/power/power_reset", power);
  expect(factsOf(machine).reset_reason).toBe(reason as string);
});
