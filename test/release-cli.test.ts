/** `fruit release` as a person types it: from files to a release that a node would take, and every way it may go wrong. */
import { afterAll, expect, test } from "bun:test";
import {
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { crc32 } from "node:zlib";
import { run } from "../agent/cli.ts";
import { EXIT, type Io } from "../agent/terminal.ts";
import { encodeArea, findArea, layOut } from "../boot/area.ts";
import { LOADS } from "../boot/uboot/switch.ts";
import { parseUpdate } from "../boot/updatefile.ts";
import { needs, until } from "./node.ts";
import { BOARD, inMemory, noise, signedBy, squashfs, TIMES } from "./releases.ts";

const dir = mkdtempSync(join(tmpdir(), "fruit-release-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));
const at = (name: string) => join(dir, name);

/** The command line as a function. */
async function fruit(args: string[], env: Io["env"] = {}) {
  const said = { out: "", err: "" };
  const io: Io = {
    out: (text) => {
      said.out += text;
    },
    err: (text) => {
      said.err += text;
    },
    env,
    isTerminal: false,
    stdin: async () => Buffer.alloc(0),
    signal: new AbortController().signal,
  };
  return { exit: await run(["release", ...args], io), ...said };
}

writeFileSync(at("root.squashfs"), squashfs(300_000));
writeFileSync(at("kernel"), noise(60_000, 2));
writeFileSync(at("initramfs"), noise(40_000, 3));
writeFileSync(at("dtb"), noise(700, 4));
const parts = [
  "--root",
  at("root.squashfs"),
  "--kernel",
  at("kernel"),
  "--initramfs",
  at("initramfs"),
  "--dtb",
  `${BOARD}=${at("dtb")}`,
];
const claims = [
  "--boards",
  `${BOARD} raspberrypi,3-model-b-plus`,
  "--channel",
  "stable",
  "--target",
  "fruitos/stable",
  "--expires",
  "27000d",
];
const pack = (out: string, ...more: string[]) =>
  fruit(["pack", ...parts, ...claims, "--version", "12", "--name", "fruitos-12", "--out", out, ...more]);
const bytesIn = (folder: string) =>
  ["fruitos-12", "fruitos-12.side", "fruitos-12.fruit"].map((name) => readFileSync(join(folder, name)));

/** A signed release in a folder of its own, and the trust.json for it. */
async function signedRelease(name: string, signers = ["anna"], threshold = signers.length) {
  const folder = at(name);
  await pack(folder);
  const entries = [];
  const update = join(folder, "fruitos-12.fruit");
  for (const signer of signers) {
    const made = await fruit(["keygen", "--out", join(folder, signer), "--id", `org.example.${signer}`]);
    entries.push(JSON.parse(made.out));
    expect(
      await fruit(["sign", update, "--key", join(folder, signer), "--id", `org.example.${signer}`]),
    ).toMatchObject({ exit: EXIT.done });
  }
  const trust = join(folder, "trust.json");
  writeFileSync(
    trust,
    JSON.stringify({
      schema: "fruit.trust/1",
      version: 1,
      threshold: { release: threshold },
      signers: entries,
    }),
  );
  return {
    folder,
    update,
    trust,
    payload: join(folder, "fruitos-12"),
    side: join(folder, "fruitos-12.side"),
  };
}
const IN_TIME = ["--at", "2027-01-15"];

test("the same input makes the same three files, at another time and in another place", async () => {
  expect((await pack(at("one"))).exit).toBe(EXIT.done);
  for (const name of ["root.squashfs", "kernel", "dtb"]) {
    copyFileSync(at(name), at(`${name}.again`));
    writeFileSync(at(name), readFileSync(at(`${name}.again`)));
  }
  expect((await pack(at("deep/er/two"))).exit).toBe(EXIT.done);
  expect(bytesIn(at("deep/er/two"))).toEqual(bytesIn(at("one")));
});

test("a payload that is laid out already makes the same release, and is not touched", async () => {
  await pack(at("laid"));
  const { mtimeMs } = statSync(at("laid/fruitos-12"));
  const again = await fruit(["pack", "--payload", at("laid/fruitos-12"), ...claims, "--out", at("beside")]);
  expect(again.exit).toBe(EXIT.done);
  expect(readFileSync(at("beside/fruitos-12.fruit"))).toEqual(readFileSync(at("laid/fruitos-12.fruit")));
  expect(readFileSync(at("beside/fruitos-12.side"))).toEqual(readFileSync(at("laid/fruitos-12.side")));
  expect(statSync(at("laid/fruitos-12")).mtimeMs).toBe(mtimeMs);
});

test("what stands in a payload is what it was made of, with zeros between", async () => {
  await pack(at("layout"));
  const payload = readFileSync(at("layout/fruitos-12"));
  const { boot, payloadBytes, version, name, offset } = await findArea(inMemory(payload));
  expect([payloadBytes, version, name]).toEqual([payload.length, 12n, "fruitos-12"]);
  const slice = ({ offset: from, bytes }: { offset: number; bytes: number }) =>
    payload.subarray(from, from + bytes);
  expect(payload.subarray(0, 300_000)).toEqual(readFileSync(at("root.squashfs")));
  expect(slice(boot.kernel)).toEqual(readFileSync(at("kernel")));
  expect(slice(boot.initramfs)).toEqual(readFileSync(at("initramfs")));
  expect(slice(boot.deviceTrees[BOARD] ?? { offset: 0, bytes: 0 })).toEqual(readFileSync(at("dtb")));
  expect(payload.subarray(300_000, offset).every((byte) => byte === 0)).toBe(true);
});

test("two signers sign, and a node that asks for both takes it", async () => {
  const { update, trust, payload, side } = await signedRelease("two-signers", ["anna", "bert"]);
  const verified = await fruit([
    "verify",
    update,
    "--trust",
    trust,
    "--payload",
    payload,
    "--side",
    side,
    "--board",
    BOARD,
    ...IN_TIME,
  ]);
  expect(verified).toEqual({
    exit: EXIT.done,
    out: "fruitos-12, version 12: signed by org.example.anna, org.example.bert; checked: signatures, side file, payload\n",
    err: "",
  });
  const json = await fruit(["verify", update, "--trust", trust, ...IN_TIME, "--json"]);
  expect(JSON.parse(json.out)).toEqual({
    schema: "fruit.release-verify/1",
    ok: true,
    name: "fruitos-12",
    version: "12",
    signers: ["org.example.anna", "org.example.bert"],
    checked: ["signatures"],
  });
});

test("signing leaves the other signatures and the torrent as they are", async () => {
  const { update, folder } = await signedRelease("kept", ["anna"]);
  const before = parseUpdate(readFileSync(update));
  await fruit(["keygen", "--out", join(folder, "bert")]);
  expect((await fruit(["sign", update, "--key", join(folder, "bert")])).exit).toBe(EXIT.done);
  const after = parseUpdate(readFileSync(update));
  expect(after.infohash).toBe(before.infohash);
  expect([...after.signatures.keys()]).toEqual([
    expect.stringMatching(/^key-[0-9a-f]{16}$/),
    "org.example.anna",
  ]);
  expect(after.signatures.get("org.example.anna")?.bytes).toEqual(
    before.signatures.get("org.example.anna")?.bytes ?? Buffer.of(),
  );
  const twice = await fruit(["sign", update, "--key", join(folder, "bert")]);
  expect(twice).toMatchObject({ exit: EXIT.usage, err: expect.stringContaining("has signed it already") });
});

test("a person is told what a release is, for whom, who signed it and what is missing", async () => {
  const { update, trust } = await signedRelease("explained", ["anna", "bert"], 2);
  const only = await signedRelease("explained-by-one", ["anna"]);
  writeFileSync(only.trust, readFileSync(trust));
  rmSync(only.side);
  truncateSync(only.payload, 5);
  const shown = (await fruit(["inspect", update, "--trust", trust])).out;
  for (const fact of [/^release +fruitos-12$/m, /^version +12 \(channel stable, for fruitos\/stable\)$/m])
    expect(shown).toMatch(fact);
  expect(shown).toMatch(new RegExp(`^boards +${BOARD}, raspberrypi,3-model-b-plus$`, "m"));
  expect(shown).toMatch(/^installs on +version 0 and higher; then nothing below 12$/m);
  expect(shown).toMatch(/^signed by +org.example.anna$/m);
  expect(shown).not.toContain("missing");
  const lacking = (await fruit(["inspect", only.update, "--trust", trust])).out;
  expect(lacking).toMatch(/^signed by +org.example.anna: NOT its signature$/m); // another key with the same id
  expect(lacking).toMatch(
    /^missing +2 signatures more of org.example.anna, org.example.bert \(0 of 2 hold\)$/m,
  );
  expect(lacking).toMatch(/^missing +the payload .*fruitos-12 has 5 bytes, not 413696$/m);
  expect(lacking).toMatch(/^missing +the side file is not beside it: .*fruitos-12.side$/m);
});

test("a program is told the same, versions and hashes as text", async () => {
  const { update } = await signedRelease("for-programs");
  const facts = JSON.parse((await fruit(["inspect", update, "--json"])).out);
  expect(facts).toMatchObject({
    schema: "fruit.release/1",
    name: "fruitos-12",
    size: 413_696,
    piece_length: 262_144,
    infohash: expect.stringMatching(/^[0-9a-f]{40}$/),
    pieces_root: expect.stringMatching(/^[0-9a-f]{64}$/),
    statement: {
      uuid: "fruitos/stable",
      version: "12",
      min_from: "0",
      floor: "12",
      created: TIMES.created,
      expires: TIMES.created + 27_000 * 86_400,
      boot: { kernel: { bytes: 60_000 }, dtb: { [BOARD]: { bytes: 700 } } },
    },
    signers: [{ id: "org.example.anna", signature: "unknown" }],
    missing: [],
  });
});

test.each([
  [
    "a changed byte",
    (file: string) => patch(file, 200_000),
    /piece 0 \(from byte 0\) is not that of the release$/,
  ],
  [
    "a changed byte further on",
    (file: string) => patch(file, 300_100),
    /piece 1 \(from byte 262144\) is not/,
  ],
  ["a cut end", (file: string) => truncateSync(file, 400_000), /400000 bytes; the release has 413696$/],
  ["more at its end", (file: string) => truncateSync(file, 500_000), /500000 bytes; the release has 413696$/],
])("a payload with %s is refused", async (what, change, why) => {
  const { update, trust, payload } = await signedRelease(`payload ${what}`);
  change(payload);
  const { exit, err } = await fruit(["verify", update, "--trust", trust, "--payload", payload, ...IN_TIME]);
  expect(exit).toBe(EXIT.refused);
  expect(err.trim()).toMatch(why);
});

function patch(file: string, offset: number): void {
  const bytes = readFileSync(file);
  bytes.writeUInt8(bytes.readUInt8(offset) ^ 1, offset);
  writeFileSync(file, bytes);
}

test("a changed side file is refused", async () => {
  const { update, trust, side } = await signedRelease("side-changed");
  patch(side, 100);
  const { exit, err } = await fruit(["verify", update, "--trust", trust, "--side", side, ...IN_TIME]);
  expect([exit, err]).toEqual([
    EXIT.refused,
    expect.stringMatching(/^fruit: refused: .*its SHA-256 is [0-9a-f]{64}; the release names/),
  ]);
});

test.each([
  [["--board", "raspberrypi,4-model-b"], "wrong-board", "this node is raspberrypi,4-model-b"],
  [["--floor", "13"], "below-floor", "its version is 12; this node takes 13 and higher"],
  [["--at", "2101-01-01T00:00:00Z"], "expired", "it is now 2101-01-01T00:00:00Z"],
  [["--at", "2026-01-01"], "not-yet", "it is now 2026-01-01T00:00:00Z"],
])("a node with %p would refuse it: exit 4 and the code", async (words, code, why) => {
  const { update, trust } = await signedRelease(`refused-${code}`);
  const { exit, out, err } = await fruit([
    "verify",
    update,
    "--trust",
    trust,
    ...IN_TIME,
    ...words,
    "--json",
  ]);
  expect(exit).toBe(EXIT.refused);
  expect(JSON.parse(out)).toMatchObject({ ok: false, code, why: expect.stringContaining(why) });
  expect(err).toContain(why);
});

test("a key that is already there is not overwritten", async () => {
  writeFileSync(at("mine"), "precious");
  const { exit, err } = await fruit(["keygen", "--out", at("mine")]);
  expect([exit, err]).toEqual([EXIT.usage, expect.stringContaining("already and is not overwritten")]);
  expect(readFileSync(at("mine"), "utf8")).toBe("precious");
});

test("a new key is its owner's alone", async () => {
  await fruit(["keygen", "--out", at("private")]);
  expect(statSync(at("private")).mode & 0o777).toBe(0o600);
  expect(readFileSync(at("private.pub"), "utf8")).toMatch(/^ssh-ed25519 AAAA\S+ private\n$/);
});

test.each([
  ["no squashfs", ["--root", "KERNEL"], "it is no squashfs"],
  ["an empty kernel", ["--kernel", "EMPTY"], "it is empty"],
  [
    "a kernel too long",
    ["--kernel", "LONG"],
    "LONG: 83886081 bytes; U-Boot is made to load 83886080 at most",
  ],
  [
    "an initramfs too long",
    ["--initramfs", "LONGER"],
    "LONGER: 100663297 bytes; U-Boot is made to load 100663296",
  ],
  [
    "a device tree too long",
    ["--dtb", "x=LONG"],
    "LONG: 83886081 bytes; U-Boot is made to load 1048576 at most",
  ],
  ["a file that is not there", ["--initramfs", "NOWHERE"], "ENOENT"],
  ["a device tree without a board", ["--dtb", "FILE"], '--dtb: "FILE" is not BOARD=FILE'],
  ["a device tree twice", ["--dtb", `${BOARD}=x`], `--dtb: ${BOARD} stands twice`],
  ["a version that is none", ["--version", "1.2"], '--version: "1.2" is no integer from 0 to 2^64-1'],
  ["a version that is too high", ["--version", "18446744073709551616"], "is no integer from 0 to 2^64-1"],
  ["a floor above its version", ["--floor", "13"], "floor is 13, above the version, 12"],
  ["an end before its beginning", ["--expires", "2001-01-01"], "expires is 978307200, not after created"],
  ["a day that does not exist", ["--expires", "2027-02-30"], '--expires: "2027-02-30" is no time'],
  ["a name with a slash", ["--name", "a/b"], '"a/b" is not of the form'],
  ["a channel that is none", ["--channel", "Stable!"], 'channel is "Stable!"'],
])("pack with %s says so, without a stack trace, and leaves nothing half done", async (what, words, why) => {
  for (const [name, bytes] of Object.entries({
    EMPTY: 0,
    LONG: LOADS.kernel + 1,
    LONGER: LOADS.initramfs + 1,
  })) {
    writeFileSync(at(name), "");
    truncateSync(at(name), bytes); // a hole
  }
  const out = at(`bad-${what}`);
  const files: Record<string, string> = {
    KERNEL: at("kernel"),
    EMPTY: at("EMPTY"),
    LONG: at("LONG"),
    "x=LONG": `x=${at("LONG")}`,
    LONGER: at("LONGER"),
    NOWHERE: at("nowhere"),
  };
  const { exit, err } = await pack(out, ...words.map((word) => files[word] ?? word));
  expect(err).toContain(why);
  expect(err).not.toMatch(/\n\s+at /);
  expect(exit).toBe(EXIT.usage);
  expect(statSync(join(out, "fruitos-12.fruit"), { throwIfNoEntry: false })).toBeUndefined();
  expect(statSync(join(out, "fruitos-12.side.part"), { throwIfNoEntry: false })).toBeUndefined();
});

test.each(["kernel", "initramfs", "deviceTree"] as const)(
  "a payload whose %s U-Boot would not load is refused, and one at the limit is not",
  async (what) => {
    const root = squashfs(5000);
    const describe = async (more: number) => {
      const facts = { kernel: 512, initramfs: 512, deviceTree: 512, [what]: LOADS[what] + more };
      const zeros = (bytes: number) => ({ bytes, crc32: crc32(Buffer.alloc(bytes)) });
      const { headerAt, payloadBytes, boot } = layOut(root.length, {
        kernel: zeros(facts.kernel),
        initramfs: zeros(facts.initramfs),
        deviceTrees: { [BOARD]: zeros(facts.deviceTree) },
      });
      const payload = at(`long-${what}`);
      const header = encodeArea({ version: 12n, name: "long", payloadBytes, boot });
      writeFileSync(payload, Buffer.concat([root, Buffer.alloc(headerAt - root.length), header]));
      truncateSync(payload, payloadBytes); // a hole
      return fruit(["pack", "--payload", payload, ...claims, "--out", at("long")]);
    };
    expect((await describe(0)).exit).toBe(EXIT.done);
    const { exit, err } = await describe(1);
    expect([exit, err]).toEqual([
      EXIT.refused,
      expect.stringContaining(`${LOADS[what] + 1} bytes; U-Boot is made to load ${LOADS[what]} at most`),
    ]);
  },
);

test.each(["boards", "channel", "target", "expires"])("a release without --%s is not made", async (flag) => {
  const words = claims.filter((_word, index) => claims[index - (index % 2)] !== `--${flag}`);
  const { exit, err } = await fruit(["pack", "--payload", at("kernel"), ...words, "--out", at("lacking")]);
  expect([exit, err]).toEqual([EXIT.usage, expect.stringContaining(`--${flag} is missing`)]);
});

test("a root that is shorter than its superblock says is not packed", async () => {
  writeFileSync(at("short"), squashfs(300_000).subarray(0, 200_000));
  const { exit, err } = await pack(at("from-short"), "--root", at("short"));
  expect([exit, err]).toEqual([
    EXIT.usage,
    expect.stringContaining("short: 200000 bytes; 300000 are expected"),
  ]);
});

test("a payload whose kernel is damaged is not described", async () => {
  await pack(at("damaged"));
  const { boot } = await findArea(inMemory(readFileSync(at("damaged/fruitos-12"))));
  patch(at("damaged/fruitos-12"), boot.kernel.offset + 7);
  const { exit, err } = await fruit([
    "pack",
    "--payload",
    at("damaged/fruitos-12"),
    ...claims,
    "--out",
    at("x"),
  ]);
  expect([exit, err]).toEqual([
    EXIT.refused,
    expect.stringMatching(/the kernel at byte \d+ has CRC-32 [0-9a-f]+, not/),
  ]);
});

test("a payload is not written over what it is made of", async () => {
  mkdirSync(at("same"));
  copyFileSync(at("root.squashfs"), at("same/fruitos-12"));
  const { exit, err } = await pack(at("same"), "--root", at("same/fruitos-12"));
  expect([exit, err]).toEqual([EXIT.usage, expect.stringContaining("would overwrite what it is made of")]);
  expect(readFileSync(at("same/fruitos-12"))).toEqual(readFileSync(at("root.squashfs")));
});

test.each([
  ["sign", ["--key", "KEY"]],
  ["inspect", []],
  ["verify", ["--trust", "TRUST"]],
])("%s of something that is no update file says what and where", async (verb, words) => {
  const { trust, folder } = await signedRelease(`no-update-${verb}`);
  writeFileSync(at("no-update"), "d4:infoi5ee");
  const given = words.map((word) => ({ KEY: join(folder, "anna"), TRUST: trust })[word] ?? word);
  const { exit, err } = await fruit([verb, at("no-update"), ...given]);
  expect(err).toContain(`${at("no-update")}: byte 7: info is no dictionary`);
  expect(exit).toBe(verb === "verify" ? EXIT.refused : EXIT.usage);
});

test("a trust.json that is wrong is explained line by line", async () => {
  const { update, trust } = await signedRelease("wrong-trust");
  writeFileSync(trust, JSON.stringify({ schema: "fruit.trust/1", version: 0, threshold: {}, signers: [] }));
  const { exit, err } = await fruit(["verify", update, "--trust", trust]);
  expect(exit).toBe(EXIT.config);
  expect(err).toContain(`${trust}: version: 0 is not >=1\n${trust}: threshold.release: is missing`);
});

test("signers who state different things are shown, and nobody can sign on top", async () => {
  const { update, folder } = await signedRelease("differ");
  await pack(at("differ-later"), "--expires", "400d");
  const other = parseUpdate(signedBy("bert", readFileSync(at("differ-later/fruitos-12.fruit"))));
  const { encodeBencode } = await import("../boot/bencode.ts");
  const file = parseUpdate(readFileSync(update));
  const signatures = new Map([...file.signatures, ...other.signatures]);
  writeFileSync(
    update,
    encodeBencode(
      new Map<string, Parameters<typeof encodeBencode>[0]>(file.root).set("signatures", signatures),
    ),
  );
  const inspected = await fruit(["inspect", update]);
  expect(inspected.out).toMatch(/^missing +its signers do not all state the same/m);
  const signed = await fruit(["sign", update, "--key", join(folder, "anna"), "--id", "third"]);
  expect(signed).toMatchObject({
    exit: EXIT.usage,
    err: expect.stringContaining("do not all state the same"),
  });
});

const openssh = needs(
  "a key with a passphrase signs through ssh-agent, and its absence there is explained",
  { name: "ssh-agent", install: "openssh-client" },
  { name: "ssh-keygen", install: "openssh-client" },
);
test.skipIf(openssh.isSkipped)(openssh.title, async () => {
  const { update, trust, folder } = await signedRelease("by-ssh-agent", ["anna"]);
  const key = join(folder, "anna");
  await pack(folder);
  const socket = at("agent.sock");
  const agent = Bun.spawn(["ssh-agent", "-D", "-a", socket], { stdout: "ignore", stderr: "ignore" });
  try {
    const env = { PATH: process.env.PATH ?? "", SSH_AUTH_SOCK: socket };
    await until("ssh-agent answers", () => statSync(socket, { throwIfNoEntry: false }) !== undefined);
    const sign = (env: Io["env"]) =>
      fruit(["sign", update, "--key", `${key}.pub`, "--id", "org.example.anna"], env);
    expect(await sign({})).toMatchObject({
      exit: EXIT.usage,
      err: expect.stringContaining("start ssh-agent and add it"),
    });
    expect(await sign(env)).toMatchObject({
      exit: EXIT.failed,
      err: expect.stringContaining("it does not have this key"),
    });
    expect(Bun.spawnSync(["ssh-add", "-q", key], { env }).exitCode).toBe(0);
    expect(await sign(env)).toMatchObject({ exit: EXIT.done });
    expect((await fruit(["verify", update, "--trust", trust, ...IN_TIME])).exit).toBe(EXIT.done);
  } finally {
    agent.kill();
    await agent.exited;
  }
});
