import { expect, test } from "bun:test";
import { existsSync, mkdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { shortenLatency } from "../hal/native/serial-latency.ts";
import { listPorts } from "../hal/native/serial-list.ts";
import { scratch } from "./node.ts";

test("the list names each port that is there, with its adapter and its place", async () => {
  using folder = scratch();
  const file = (path: string, content: string) => {
    mkdirSync(dirname(join(folder.path, path)), { recursive: true });
    writeFileSync(join(folder.path, path), `${content}\n`);
  };
  const link = (path: string, target: string) => {
    mkdirSync(dirname(join(folder.path, path)), { recursive: true });
    symlinkSync(target, join(folder.path, path));
  };
  const tty = "sys/class/tty";
  // The PC's classic ports: one with a chip, one without
  for (const [name, type] of [
    ["ttyS0", "4"],
    ["ttyS10", "4"],
    ["ttyS1", "0"],
  ]) {
    file(`${tty}/${name}/type`, type!);
    file(`sys/devices/platform/${name}/uevent`, "");
    link(`${tty}/${name}/device`, `../../../devices/platform/${name}`);
  }
  file(`${tty}/tty0/dev`, "4:0");
  // An Arduino: the port is on the interface itself
  const uno = "sys/devices/pci0/usb1/1-2";
  file(`${uno}/idVendor`, "2341");
  file(`${uno}/idProduct`, "0043");
  file(`${uno}/manufacturer`, "Arduino (www.arduino.cc)");
  file(`${uno}/serial`, "752303138333518011C1");
  file(`${uno}/1-2:1.0/bInterfaceNumber`, "00");
  link(`${tty}/ttyACM0/device`, "../../../devices/pci0/usb1/1-2/1-2:1.0");
  link("dev/serial/by-id/usb-Arduino_0043_752303138333518011C1-if00", "../../ttyACM0");
  link("dev/serial/by-path/pci-0000:00:06.0-usb-0:2:1.0", "../../ttyACM0");
  // An adapter whose driver has a folder of its own, behind a hub, without a serial number, and without udev
  const adapter = "sys/devices/pci0/usb1/1-1/1-1.2";
  file("sys/devices/pci0/usb1/1-1/idVendor", "05e3");
  file(`${adapter}/idVendor`, "1a86");
  file(`${adapter}/idProduct`, "7523");
  file(`${adapter}/serial`, "");
  file(`${adapter}/1-1.2:1.0/ttyUSB0/uevent`, "");
  link(`${tty}/ttyUSB0/device`, "../../../devices/pci0/usb1/1-1/1-1.2/1-1.2:1.0/ttyUSB0");

  const nothing = {
    manufacturer: undefined,
    serialNumber: undefined,
    pnpId: undefined,
    locationId: undefined,
    productId: undefined,
    vendorId: undefined,
  };
  expect(await listPorts(folder.path)).toEqual([
    {
      path: "/dev/ttyACM0",
      manufacturer: "Arduino (www.arduino.cc)",
      serialNumber: "752303138333518011C1",
      pnpId: "usb-Arduino_0043_752303138333518011C1-if00",
      locationId: "pci-0000:00:06.0-usb-0:2:1.0",
      productId: "0043",
      vendorId: "2341",
    },
    { ...nothing, path: "/dev/ttyS0" },
    { ...nothing, path: "/dev/ttyS10" },
    { ...nothing, path: "/dev/ttyUSB0", locationId: "1-1.2:1.0", vendorId: "1a86", productId: "7523" },
  ]);
});

/** A kernel's tree with one adapter, whose latency timer says this; and its file. */
function adapter(folder: ReturnType<typeof scratch>, timer: string | undefined): string {
  const device = join(folder.path, "sys/bus/usb-serial/devices/ttyUSB3");
  mkdirSync(device, { recursive: true });
  mkdirSync(join(folder.path, "dev/serial/by-path"), { recursive: true });
  writeFileSync(join(folder.path, "dev/ttyUSB3"), "");
  symlinkSync("../../ttyUSB3", join(folder.path, "dev/serial/by-path/usb-0:2:1.0"));
  const file = join(device, "latency_timer");
  if (timer !== undefined) writeFileSync(file, timer);
  return file;
}

test.each(["/dev/ttyUSB3", "/dev/serial/by-path/usb-0:2:1.0"])(
  "the adapter behind %s hands on at once what came, where it can be told to",
  async (device) => {
    using folder = scratch();
    const file = adapter(folder, "16\n");
    await shortenLatency(device, folder.path);
    expect(readFileSync(file, "utf8")).toBe("1");
  },
);

test("an adapter that does so already is told nothing, and nothing is made where there is no such thing", async () => {
  using folder = scratch();
  const file = adapter(folder, undefined);
  await shortenLatency("/dev/ttyUSB3", folder.path);
  await shortenLatency("/dev/ttyS0", folder.path);
  expect(existsSync(file)).toBe(false);
  writeFileSync(file, "1\n");
  const { mtimeNs } = statSync(file, { bigint: true });
  await shortenLatency("/dev/ttyUSB3", folder.path);
  expect(statSync(file, { bigint: true }).mtimeNs).toBe(mtimeNs);
});

test("a timer that cannot be set is left as it is", async () => {
  using folder = scratch();
  mkdirSync(adapter(folder, undefined));
  await shortenLatency("/dev/ttyUSB3", folder.path);
});

test("a machine without serial ports has an empty list", async () => {
  using folder = scratch();
  expect(await listPorts(folder.path)).toEqual([]);
});
