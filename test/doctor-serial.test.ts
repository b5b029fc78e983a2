/** What the doctor says of serial lines, on pseudo-terminals and a tree of its own. */
import { expect, test } from "bun:test";
import { realpathSync } from "node:fs";
import { basename } from "node:path";
import { parseConfig } from "../agent/config.ts";
import { checkSerial } from "../agent/doctor/serial.ts";
import { until } from "./node.ts";
import { Pty } from "./pty.ts";
import { Tree } from "./tree.ts";

const tree = new Tree();

const ask = async (device: string, kernelConsole = "") => {
  const machine = { read: () => Buffer.from(`${kernelConsole}\n`) };
  const config = parseConfig("node.json", { site: "lab", consoles: { a: { device } } });
  return tree.lines(await checkSerial(config, machine, tree.root)).replaceAll(device, "DEVICE");
};

test("a line that is there, free and ours to open is well; nothing is said where none is asked for", async () => {
  using pty = new Pty();
  expect(await ask(pty.device)).toBe("ok   console a: DEVICE, 115200 baud\n");
  const none = parseConfig("node.json", { site: "lab" });
  expect(await checkSerial(none, { read: () => undefined }, tree.root)).toEqual([]);
});

test("a line that is missing is told with those that are there, by the names that stay", async () => {
  expect(await ask("/dev/ttyUSB99")).toBe(
    "FAIL console a: DEVICE: does not exist; check the cable: the kernel shows no serial port\n",
  );
  const folder = "sys/devices/usb1/1-1/1-1:1.0/ttyUSB7";
  for (const [file, text] of Object.entries({ "../../idVendor": "0403\n", "tty/ttyUSB7/uevent": "" }))
    tree.put(`${folder}/${file}`.replace("1-1:1.0/ttyUSB7/../../", ""), text);
  tree.link(`${folder}/tty/ttyUSB7/device`, tree.at(folder));
  tree.link("sys/class/tty/ttyUSB7", tree.at(`${folder}/tty/ttyUSB7`));
  expect(await ask("/dev/ttyUSB99")).toBe("FAIL console a: DEVICE: does not exist; there are /dev/ttyUSB7\n");
  tree.link("dev/serial/by-path/usb-0:1:1.0", "../../ttyUSB7");
  tree.put("dev/ttyUSB7", "");
  expect(await ask("/dev/ttyUSB99")).toBe(
    "FAIL console a: DEVICE: does not exist; there are /dev/serial/by-path/usb-0:1:1.0\n",
  );
});

test.each(["/dev/null", "/etc/passwd"])("%s is no serial line", async (device) => {
  expect(await ask(device)).toBe("FAIL console a: DEVICE: is no serial line; name the adapter's device\n");
});

test("a line that another program holds is told with the program's name", async () => {
  using pty = new Pty();
  const holder = Bun.spawn(["sh", "-c", `exec sleep 60 < ${pty.device}`]);
  try {
    const said = await until("held", async () => {
      const text = await ask(pty.device);
      return text.includes("is held by") && text;
    });
    expect(said).toMatch(
      /^FAIL console a: DEVICE: is held by \S+ \(process \d+\); end it, or name another device$/m,
    );
    expect(said).toContain(`process ${holder.pid}`);
  } finally {
    holder.kill();
    await holder.exited;
  }
  expect(await ask(pty.device)).toStartWith("ok ");
});

test("a line on which the kernel talks is no console of ours", async () => {
  using pty = new Pty();
  const name = realpathSync(pty.device).slice("/dev/".length);
  expect(await ask(pty.device, `tty1 ${name}`)).toBe(
    `FAIL console a: DEVICE: the kernel talks on it; take console=${basename(name)} out of cmdline.txt\n`,
  );
});
