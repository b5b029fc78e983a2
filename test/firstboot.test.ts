/** What the image's scripts do with the boot partition and the data partition at the first start, under BusyBox. */
import { expect, test } from "bun:test";
import {
  chmodSync,
  closeSync,
  existsSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { readPartitions } from "../boot/layout.ts";
import { seeded } from "./fakes.ts";
import { scratch } from "./node.ts";
import { BUSYBOX, LIMIT_MS, NEEDS_BUSYBOX, ROOTFS, runScript } from "./shell.ts";

const LIBEXEC = join(ROOTFS, "root/usr/libexec/fruit");
const GROW = join(ROOTFS, "initramfs/lib/fruit/grow");
const check = (title: string, body: () => Promise<void>) =>
  test.skipIf(!BUSYBOX)(`${title}${NEEDS_BUSYBOX}`, body, LIMIT_MS);

/** A boot partition with these files, an empty data partition, and the scripts on them. */
function node(files: Record<string, string | Uint8Array>) {
  const folder = scratch();
  const [p1, data, proc] = ["p1", "data", "proc"].map((name) => join(folder.path, name)) as [
    string,
    string,
    string,
  ];
  for (const path of [p1, data, join(proc, "device-tree")]) mkdirSync(path, { recursive: true });
  writeFileSync(join(proc, "cmdline"), "fruit.slot=a\n");
  writeFileSync(join(proc, "device-tree/serial-number"), "00000000c0ffee00\0");
  for (const [name, content] of Object.entries(files)) writeFileSync(join(p1, name), content);
  const env = {
    FRUIT_NAMES: join(LIBEXEC, "names"),
    FRUIT_P1: p1,
    FRUIT_DATA: data,
    FRUIT_PROC: proc,
    FRUIT_RUN: join(folder.path, "run"),
    FRUIT_ETC: join(folder.path, "etc"),
  };
  return {
    ...{ path: folder.path, p1, data, proc, env },
    firstboot: () => runScript(join(LIBEXEC, "firstboot"), [], env),
    [Symbol.dispose]: () => folder[Symbol.dispose](),
  };
}

const NODE_JSON = `${JSON.stringify({ site: "lab", node: "pi7" }, undefined, 2)}\n`;

check("takes what a person put on the boot partition, and leaves nothing secret there", async () => {
  using it = node({
    "node.json": NODE_JSON,
    "enrolment.token": "secret\n",
    authorized_keys: "ssh-ed25519 AAAA me\n",
    "config.txt": "arm_64bit=1\n",
  });
  expect(await it.firstboot()).toMatchObject({ exit: 0, out: "" });
  expect(readdirSync(it.data).sort()).toEqual(["authorized_keys", "enrolment.token", "node.json"]);
  expect(readFileSync(join(it.data, "node.json"), "utf8")).toBe(NODE_JSON);
  expect(statSync(join(it.data, "enrolment.token")).mode & 0o777).toBe(0o600);
  expect(readdirSync(it.p1).sort()).toEqual(["authorized_keys", "config.txt"]);
  // And then has nothing to do: what was changed since stays
  writeFileSync(join(it.data, "authorized_keys"), "ssh-ed25519 BBBB other\n");
  expect(await it.firstboot()).toEqual({ exit: 0, out: "", err: "" });
  expect(readFileSync(join(it.data, "authorized_keys"), "utf8")).toContain("BBBB");
});

check("blanks the bytes of a file before its name goes", async () => {
  using it = node({ "enrolment.token": "secret\n".repeat(1000) });
  // A second name for the same bytes, as a card reader has it
  const held = openSync(join(it.p1, "enrolment.token"), "r");
  expect((await it.firstboot()).exit).toBe(0);
  expect(readFileSync(held).every((byte) => byte === 0)).toBe(true);
  closeSync(held);
});

check("wherever its blanking was cut short, a file is never taken half", async () => {
  const random = seeded(4);
  const whole = Buffer.from(NODE_JSON.repeat(100));
  for (let round = 0; round < 12; round++) {
    // Any of its sectors are zeros already
    const cut = Buffer.from(whole);
    const gone = Array.from({ length: Math.ceil(cut.length / 512) }, () => random() < 0.3);
    for (const [sector, isGone] of gone.entries())
      if (isGone) cut.subarray(sector * 512, (sector + 1) * 512).fill(0);
    using it = node({ "node.json": cut });
    writeFileSync(join(it.data, "node.json"), whole);
    expect((await it.firstboot()).exit).toBe(0);
    expect(readFileSync(join(it.data, "node.json")).equals(whole)).toBe(true);
    expect(existsSync(join(it.p1, "node.json"))).toBe(false);
  }
});

check("a power cut before a file was whole on the data partition loses nothing", async () => {
  using it = node({ "node.json": NODE_JSON });
  // Left of the start before
  writeFileSync(join(it.data, ".node.json.new"), NODE_JSON.slice(0, 10));
  expect((await it.firstboot()).exit).toBe(0);
  expect(readdirSync(it.data)).toEqual(["node.json"]);
  expect(readFileSync(join(it.data, "node.json"), "utf8")).toBe(NODE_JSON);
});

check("a file that cannot be taken stays where it is", async () => {
  using it = node({ "node.json": NODE_JSON, "trust.json": "{}\n" });
  mkdirSync(join(it.data, "node.json/in/the/way"), { recursive: true });
  const { exit, err } = await it.firstboot();
  expect(exit).toBe(1);
  expect(err).toContain("node.json: not taken");
  expect(readFileSync(join(it.p1, "node.json"), "utf8")).toBe(NODE_JSON);
  expect(readdirSync(it.p1)).toEqual(["node.json"]);
});

check(
  "starts the agent with the node's own configuration, the image's, or one that says nothing",
  async () => {
    using it = node({});
    const fake = join(it.path, "fruit");
    writeFileSync(
      fake,
      `#!/bin/sh\necho "$* $BUN_JSC_useDFGJIT $BUN_GC_TIMER_INTERVAL\${BUN_JSC_useJIT+ no JIT}"; cat "$3"\n`,
    );
    chmodSync(fake, 0o755);
    const start = () => runScript(join(LIBEXEC, "agent"), [], { ...it.env, FRUIT_AGENT: fake });
    const { out, err } = await start();
    expect(out).toBe(`agent --config ${it.env.FRUIT_RUN}/node.json 0 10000\n{ "site": "none" }\n`);
    expect(err).toContain("there is no node.json");
    mkdirSync(it.env.FRUIT_ETC);
    for (const folder of [it.env.FRUIT_ETC, it.data]) {
      writeFileSync(join(folder, "node.json"), NODE_JSON);
      expect((await start()).out).toBe(`agent --config ${join(folder, "node.json")} 0 10000\n${NODE_JSON}`);
    }
  },
);

check("names the machine as the agent names the node", async () => {
  using it = node({});
  const name = async () => {
    const script = join(it.path, "name");
    writeFileSync(script, `. "$FRUIT_NAMES"; node_id\n`);
    return (await runScript(script, [], it.env)).out;
  };
  expect(await name()).toBe("pic0ffee00\n");
  writeFileSync(join(it.data, "node.json"), NODE_JSON);
  expect(await name()).toBe("pi7\n");
  writeFileSync(join(it.data, "node.json"), `{"site":"lab"}`);
  expect(await name()).toBe("pic0ffee00\n");
  writeFileSync(join(it.proc, "device-tree/serial-number"), "");
  expect(await name()).toBe("fruit\n");
});

const MiB = 1 << 20;

/** A card of so many bytes whose partition 4 starts at 8 MiB and has 4. */
function card(path: string, bytes: number): string {
  const sector = Buffer.alloc(512);
  for (let at = 0; at < 446; at++) sector[at] = at & 255;
  for (const [number, type, start, size] of [
    [1, 0x0c, 1, 1],
    [2, 0x83, 2, 1],
    [4, 0x83, 8, 4],
  ] as const) {
    const at = 446 + (number - 1) * 16;
    sector[at + 4] = type;
    sector.writeUInt32LE(start * 2048, at + 8);
    sector.writeUInt32LE(size * 2048, at + 12);
  }
  sector.set([0x55, 0xaa], 510);
  const file = join(path, "card");
  const fd = openSync(file, "w");
  ftruncateSync(fd, bytes);
  writeSync(fd, sector);
  closeSync(fd);
  return file;
}

check("lets the data partition reach to the end of the card, once, and changes nothing else", async () => {
  using folder = scratch();
  const file = card(folder.path, 40 * MiB + 513);
  const before = readFileSync(file);
  expect(await runScript(GROW, ["table", file], {})).toMatchObject({ exit: 0 });
  const after = readFileSync(file);
  expect(after.length).toBe(before.length);
  expect(readPartitions(after.subarray(0, 512))?.at(-1)).toMatchObject({
    ...{ number: 4, offset: 8 * MiB, bytes: 32 * MiB },
  });
  before.set(after.subarray(506, 510), 506);
  expect(after.equals(before)).toBe(true);
  expect(await runScript(GROW, ["table", file], {})).toEqual({ exit: 3, out: "", err: "" });
  // The same card image on a larger card
  truncateSync(file, 60 * MiB);
  expect((await runScript(GROW, ["table", file], {})).exit).toBe(0);
  expect(readPartitions(readFileSync(file).subarray(0, 512))?.at(-1)).toMatchObject({ bytes: 52 * MiB });
});

check("grows no partition of a card that is laid out otherwise", async () => {
  using folder = scratch();
  const file = card(folder.path, 20 * MiB);
  for (const [at, byte] of [
    [498, 0x07],
    [510, 0],
  ] as const) {
    const bytes = readFileSync(file);
    const old = bytes[at] ?? 0;
    bytes[at] = byte;
    writeFileSync(file, bytes);
    const { exit, err } = await runScript(GROW, ["table", file], {});
    expect(exit).toBe(1);
    expect(err).toMatch(/sector 0 is no partition table|partition 4 is no Linux partition/);
    expect(readFileSync(file).equals(bytes)).toBe(true);
    bytes[at] = old;
    writeFileSync(file, bytes);
  }
});
