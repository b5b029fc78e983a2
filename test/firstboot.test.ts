/** What the image's scripts do with the boot partition and the data partition at the first start, under BusyBox. */
import { expect, test } from "bun:test";
import {
  chmodSync,
  closeSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { readPartitions } from "../boot/layout.ts";
import { FileCard } from "./card.ts";
import { type Medium, start } from "./crash/model.ts";
import { seeded } from "./fakes.ts";
import { scratch } from "./node.ts";
import { BUSYBOX, LIMIT_MS, NEEDS_BUSYBOX, ROOTFS, runScript } from "./shell.ts";

const LIBEXEC = join(ROOTFS, "root/usr/libexec/fruit");
const GROW = join(ROOTFS, "initramfs/lib/fruit/grow");
const check = (title: string, body: () => Promise<void>) =>
  test.skipIf(!BUSYBOX)(`${title}${NEEDS_BUSYBOX}`, body, LIMIT_MS);

/** Whether everything is wanted, not only a sample: test/proof/fuzz.proof.ts runs this file so. */
const IS_PROOF = process.env.FRUIT_FUZZ !== undefined;

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
  const env: Record<string, string> &
    Record<"FRUIT_NAMES" | "FRUIT_RUN" | "FRUIT_ETC" | "FRUIT_KMSG", string> = {
    FRUIT_NAMES: join(LIBEXEC, "names"),
    FRUIT_P1: p1,
    FRUIT_DATA: data,
    FRUIT_PROC: proc,
    FRUIT_RUN: join(folder.path, "run"),
    FRUIT_ETC: join(folder.path, "etc"),
    FRUIT_KMSG: join(folder.path, "kmsg"),
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

check(
  "wherever its blanking was cut short, the next start does the rest and takes nothing half",
  async () => {
    const random = seeded(4);
    const whole = Buffer.from(NODE_JSON.repeat(100));
    for (let round = 0; round < (IS_PROOF ? 12 : 4); round++) {
      // Any of its sectors are zeros already
      const cut = Buffer.from(whole);
      const gone = Array.from({ length: Math.ceil(cut.length / 512) }, () => random() < 0.3);
      for (const [sector, isGone] of gone.entries())
        if (isGone) cut.subarray(sector * 512, (sector + 1) * 512).fill(0);
      using it = node({ "node.json": cut });
      writeFileSync(join(it.data, "node.json"), NODE_JSON);
      writeFileSync(join(it.data, ".node.json.blanking"), whole);
      expect((await it.firstboot()).exit).toBe(0);
      expect(readFileSync(join(it.data, "node.json"), "utf8")).toBe(NODE_JSON);
      expect([readdirSync(it.p1), readdirSync(it.data)]).toEqual([[], ["node.json"]]);
    }
  },
);

check("what a person put there after a blanking was cut short is taken, and not the rest of it", async () => {
  // As long as what was taken before, so that only the bytes tell
  const other = NODE_JSON.replace("pi7", "pi8");
  using it = node({ "node.json": other });
  writeFileSync(join(it.data, "node.json"), NODE_JSON);
  writeFileSync(join(it.data, ".node.json.blanking"), NODE_JSON);
  expect((await it.firstboot()).exit).toBe(0);
  expect(readFileSync(join(it.data, "node.json"), "utf8")).toBe(other);
  expect([readdirSync(it.p1), readdirSync(it.data).sort()]).toEqual([[], ["node.json", "node.json.old"]]);
});

/** What stands in a `names` of its own: the start is killed before the step that `STOP` counts; a `dd` gets half of its way. */
const KILLS = ["rm", "cp", "cmp", "chmod", "sync", "ln", "mv", "dd"]
  .map((name) => `${name}() { step ${name} "$@"; command ${name} "$@"; }`)
  .join("\n");
const STEPS = `. "$REAL_NAMES"
step() {
  echo "$*" >>"$COUNT"
  [ "$(wc -l <"$COUNT")" = "$STOP" ] || return 0
  if [ "$1" = dd ]; then command dd if=/dev/zero of="\${3#of=}" bs=1 count=20 seek=7 conv=notrunc 2>/dev/null; fi
  kill -9 $$
}
${KILLS}
`;

check(
  `killed before ${IS_PROOF ? "any" : "every third"} of its steps, the next start ends with the same and nothing is lost`,
  async () => {
    const old = NODE_JSON.replace("pi7", "pi6");
    const killed: string[] = [];
    for (let stop = 1; ; stop += IS_PROOF ? 1 : 3) {
      using it = node({ "node.json": NODE_JSON });
      writeFileSync(join(it.data, "node.json"), old);
      const [names, count] = [join(it.path, "names"), join(it.path, "count")];
      writeFileSync(names, STEPS);
      const env = { FRUIT_NAMES: names, REAL_NAMES: it.env.FRUIT_NAMES, COUNT: count, STOP: `${stop}` };
      const { exit } = await runScript(join(LIBEXEC, "firstboot"), [], { ...it.env, ...env });
      if (exit !== 0) {
        killed.push(readFileSync(count, "utf8").trimEnd().split("\n").at(-1) ?? "");
        // At no moment is there a node.json that is half, or none
        expect([old, NODE_JSON]).toContain(readFileSync(join(it.data, "node.json"), "utf8"));
        expect((await it.firstboot()).exit).toBe(0);
      }
      const at = (name: string) => readFileSync(join(it.data, name), "utf8");
      expect([at("node.json"), at("node.json.old")]).toEqual([NODE_JSON, old]);
      expect(readdirSync(it.p1)).toEqual([]);
      expect(readdirSync(it.data).sort()).toEqual(["node.json", "node.json.old"]);
      if (exit === 0) break;
    }
    if (IS_PROOF) expect(killed.filter((step) => step.startsWith("dd ")).length).toBe(1);
    expect(killed.length).toBeGreaterThan(IS_PROOF ? 12 : 4);
  },
);

check(
  "nothing on the boot partition is touched before all that was on it lasts on the data partition",
  async () => {
    using it = node({
      "node.json": NODE_JSON,
      "enrolment.token": "secret\n",
      authorized_keys: "ssh-ed25519 AAAA me\n",
    });
    const [names, count] = [join(it.path, "names"), join(it.path, "count")];
    writeFileSync(names, STEPS);
    const env = { FRUIT_NAMES: names, REAL_NAMES: it.env.FRUIT_NAMES, COUNT: count, STOP: "0" };
    expect((await runScript(join(LIBEXEC, "firstboot"), [], { ...it.env, ...env })).exit).toBe(0);
    const steps = readFileSync(count, "utf8").trimEnd().split("\n");
    const first = steps.findIndex((step) => step.startsWith("dd ") || step.startsWith(`rm ${it.p1}`));
    expect(steps.slice(0, first).filter((step) => step.startsWith("mv "))).toHaveLength(3);
    expect(steps.slice(0, first).findLast((step) => !/^(cmp|rm -f) /.test(step))).toBe(`sync -f ${it.data}`);
    expect(steps.slice(first).filter((step) => /^(cp|mv|ln) /.test(step))).toEqual([]);
    expect(steps.slice(first).filter((step) => step.startsWith("dd "))).toHaveLength(2);
  },
);

check(
  "while the data is in memory a file is taken for this start and stays on the boot partition",
  async () => {
    const files = {
      "node.json": NODE_JSON,
      "node.key": "-----BEGIN\n",
      authorized_keys: "ssh-ed25519 AAAA me\n",
    };
    using it = node(files);
    mkdirSync(it.env.FRUIT_RUN);
    writeFileSync(join(it.env.FRUIT_RUN, "data-lost"), "/dev/mmcblk0p4 cannot be used\n");
    const { exit, err } = await it.firstboot();
    expect(exit).toBe(0);
    expect(err).toContain("node.json: taken for this start; it stays on the boot partition");
    for (const folder of [it.p1, it.data])
      for (const [name, content] of Object.entries(files))
        expect(readFileSync(join(folder, name), "utf8")).toBe(content);
    // And once the data lasts again, it goes there
    rmSync(join(it.env.FRUIT_RUN, "data-lost"));
    for (const name of readdirSync(it.data)) rmSync(join(it.data, name));
    expect((await it.firstboot()).exit).toBe(0);
    expect(readdirSync(it.data).sort()).toEqual(Object.keys(files).sort());
    expect(readdirSync(it.p1)).toEqual(["authorized_keys"]);
  },
);

const utf16 = (text: string) => Buffer.from(`\ufeff${text}`, "utf16le");

for (const [what, name, content, why] of [
  ["a node.json in UTF-16, as Windows saves it,", "node.json", utf16(NODE_JSON), "byte order mark"],
  ["one in UTF-16 without a mark", "node.json", utf16(NODE_JSON).subarray(2), "zero bytes"],
  ["one in UTF-8 with a mark", "node.json", Buffer.from(`\ufeff${NODE_JSON}`), "byte order mark"],
  ["an empty node.json", "node.json", Buffer.alloc(0), "it is empty"],
  ["a node.json of zeros", "node.json", Buffer.alloc(512), "zero bytes"],
  ["a node.json that is cut off", "node.json", Buffer.from(NODE_JSON.slice(0, -3)), "not JSON"],
  ["a token with zeros in it", "enrolment.token", Buffer.from("sec\0ret\n"), "zero bytes"],
  ["a file too large for what it should be", "ca.pem", Buffer.alloc(1_048_577, "x"), "1048577 bytes"],
] as const)
  check(`${what} is left where it is, with the reason, and what the node has stays`, async () => {
    using it = node({ [name]: content });
    writeFileSync(join(it.data, name), "what it has\n");
    const { exit, err } = await it.firstboot();
    expect(exit).toBe(1);
    expect(err).toContain(`${name} is left on the boot partition and not taken: `);
    expect(err).toContain(why);
    expect(readFileSync(it.env.FRUIT_KMSG, "utf8")).toContain(why);
    expect(readFileSync(join(it.p1, name)).equals(content)).toBe(true);
    expect(readFileSync(join(it.data, name), "utf8")).toBe("what it has\n");
    expect(readdirSync(it.data)).toEqual([name]);
  });

check("authorized_keys that are no text lock nobody out: they are not taken", async () => {
  using it = node({ authorized_keys: utf16("ssh-ed25519 AAAA me\n") });
  expect(await it.firstboot()).toMatchObject({ exit: 1 });
  expect(readdirSync(it.data)).toEqual([]);
});

/** A program in the place of the agent. */
function agentOf(it: { path: string; env: Record<string, string> }, script: string): void {
  const path = join(it.path, "fruit");
  writeFileSync(path, `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  it.env.FRUIT_AGENT = path;
}
const AGENT = `exec "${process.execPath}" "${join(import.meta.dir, "../agent/main.ts")}" "$@"`;

check("the agent judges a node.json before it is taken; what the node had becomes .old", async () => {
  using it = node({ "node.json": `{ "site": "lab", "nodde": "pi7" }\n`, "fruit.json": `{ "name": ` });
  agentOf(it, AGENT);
  writeFileSync(join(it.data, "node.json"), `{ "site": "old" }\n`);
  const { exit, err } = await it.firstboot();
  expect(exit).toBe(1);
  expect(err).toContain("nodde: unknown key");
  expect(err).toMatch(/fruit\.json is left .*is not JSON/);
  expect([readdirSync(it.p1).sort(), readdirSync(it.data)]).toEqual([
    ["fruit.json", "node.json"],
    ["node.json"],
  ]);
  writeFileSync(join(it.p1, "node.json"), NODE_JSON);
  // Other keys than a node.json has
  writeFileSync(join(it.p1, "fruit.json"), `{ "name": "n" }\n`);
  expect((await it.firstboot()).exit).toBe(0);
  expect([readdirSync(it.p1), readdirSync(it.data).sort()]).toEqual([
    [],
    ["fruit.json", "node.json", "node.json.old"],
  ]);
  expect(readFileSync(join(it.data, "node.json"), "utf8")).toBe(NODE_JSON);
  expect(readFileSync(join(it.data, "node.json.old"), "utf8")).toBe(`{ "site": "old" }\n`);
});

check("an agent that gives no verdict in time puts nothing in the place of what the node has", async () => {
  using it = node({ "node.json": NODE_JSON });
  agentOf(it, "exec sleep 300");
  it.env.FRUIT_CHECK_LIMIT = "1";
  writeFileSync(join(it.data, "node.json"), `{ "site": "old" }\n`);
  expect((await it.firstboot()).err).toContain("gave no verdict (exit 137)");
  expect(readdirSync(it.p1)).toEqual(["node.json"]);
  expect(readFileSync(join(it.data, "node.json"), "utf8")).toBe(`{ "site": "old" }\n`);
  // A node that has none is better off with one that looks like JSON
  rmSync(join(it.data, "node.json"));
  expect((await it.firstboot()).exit).toBe(0);
  expect(readFileSync(join(it.data, "node.json"), "utf8")).toBe(NODE_JSON);
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
  "what a full data partition has no room for stays, though nothing can be told to the kernel",
  async () => {
    using it = node({ "node.json": NODE_JSON });
    writeFileSync(join(it.data, "node.json"), "{}\n");
    const names = join(it.path, "names");
    writeFileSync(names, `. ${it.env.FRUIT_NAMES}\ncp() { return 1; }\n`);
    it.env.FRUIT_NAMES = names;
    it.env.FRUIT_KMSG = join(it.path, "nowhere/kmsg");
    expect((await it.firstboot()).exit).toBe(1);
    expect(readFileSync(join(it.p1, "node.json"), "utf8")).toBe(NODE_JSON);
    expect(readFileSync(join(it.data, "node.json"), "utf8")).toBe("{}\n");
  },
);

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

/** A card in a file as a boot loader sees it. */
const mediumOf = (path: string): Medium => ({
  read: (offset, length) => {
    const [fd, bytes] = [openSync(path, "r"), new Uint8Array(length)];
    readSync(fd, bytes, 0, length, offset);
    closeSync(fd);
    return bytes;
  },
  write: () => false,
});

// Beyond this is a card that makes zeros of the sector, or somebody else's: nothing starts then, and the card is written anew
check(
  "a power cut anywhere in sector 0 leaves a card that starts, and the next start lets the partition grow",
  async () => {
    using folder = scratch();
    const file = join(folder.path, "card");
    for (const bytes of [80 * MiB, 12_000 * MiB]) {
      const { path } = new FileCard(file);
      truncateSync(path, bytes);
      const sector = () => Buffer.from(mediumOf(path).read(0, 512) ?? []);
      const put = (table: Uint8Array) => {
        const fd = openSync(path, "r+");
        writeSync(fd, table, 0, 512, 0);
        closeSync(fd);
      };
      const [old, loader] = [sector(), start(mediumOf(path))];
      expect((await runScript(GROW, ["table", path], {})).exit).toBe(0);
      const grown = sector();
      const torn = new Map<string, Buffer>();
      for (let at = 0; at <= 512; at++)
        for (const [from, to] of [
          [grown, old],
          [old, grown],
        ] as const) {
          const table = Buffer.concat([from.subarray(0, at), to.subarray(at)]);
          torn.set(table.toString("hex"), table);
        }
      expect(torn.size).toBeGreaterThanOrEqual(4);
      for (const table of torn.values()) {
        put(table);
        // All but the length of partition 4 is as it was
        expect([
          table.subarray(0, 506).equals(old.subarray(0, 506)),
          table.subarray(510).equals(old.subarray(510)),
        ]).toEqual([true, true]);
        expect(start(mediumOf(path))).toEqual(loader);
        await runScript(GROW, ["table", path], {});
        expect([table.readUInt32LE(506), sector().equals(grown)]).toEqual([table.readUInt32LE(506), true]);
      }
    }
  },
);

check(
  "a card copied to a smaller one keeps the length of a partition whose file system would be cut off",
  async () => {
    using folder = scratch();
    const file = card(folder.path, 10 * MiB);
    const before = readFileSync(file);
    // ext4: 4096 blocks of 1024 bytes, more than the 2 MiB that are left
    before.writeUInt32LE(4096, 8 * MiB + 1028);
    writeFileSync(file, before);
    expect((await runScript(GROW, ["table", file], {})).exit).toBe(3);
    expect(readFileSync(file).equals(before)).toBe(true);
    before.writeUInt32LE(2048, 8 * MiB + 1028);
    writeFileSync(file, before);
    expect((await runScript(GROW, ["table", file], {})).exit).toBe(0);
    expect(readPartitions(readFileSync(file).subarray(0, 512))?.at(-1)).toMatchObject({ bytes: 2 * MiB });
  },
);

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
