/** Alpine's packages: what is believed, what is refused, and that the same lock makes the same root. */
import { expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { gzipMembers, openIndex, openPackage, readKeys } from "../image/fruitos/alpine/apk.ts";
import { compareVersions, type Listed, parseIndex, resolve } from "../image/fruitos/alpine/index.ts";
import { type AlpineOptions, alpineRoot } from "../image/fruitos/alpine/root.ts";
import { unpackTar } from "../image/fruitos/tar.ts";
import { writeTar } from "../image/fruitos/tarwriter.ts";
import { BuildError } from "../image/fruitos/tools.ts";
import { bytesOf, Tree as Files } from "../image/fruitos/tree.ts";
import {
  KEY,
  Mirror,
  makeApk,
  makeIndex,
  type RawMember,
  type Recipe,
  rawTar,
  STRANGER,
  writeAt,
  writeKeys,
} from "./alpine.ts";
import { seeded } from "./fakes.ts";
import { mutated } from "./mutations.ts";
import { Tree } from "./tree.ts";

const tree = new Tree();

const BUSYBOX: Recipe = {
  name: "busybox",
  version: "1.37.0-r2",
  depends: ["so:libc.musl-aarch64.so.1"],
  provides: ["cmd:sh=1.37.0-r2", "/bin/sh"],
  scripts: [".post-install", ".trigger"],
  files: [
    { path: "bin/", type: "5", mode: 0o755 },
    { path: "bin/busybox", text: "busybox", mode: 0o4755 },
    { path: "bin/bbsuid", type: "1", target: "bin/busybox" },
    { path: "etc/busybox-paths.d/busybox", text: "/bin/cat\n/usr/bin/env\n/bin/busybox\n" },
  ],
};
const MUSL: Recipe = {
  name: "musl",
  version: "1.2.5-r9",
  provides: ["so:libc.musl-aarch64.so.1=1"],
  files: [
    { path: "lib/ld-musl-aarch64.so.1", text: "musl", mode: 0o755 },
    { path: "lib/libc.musl-aarch64.so.1", type: "2", target: "ld-musl-aarch64.so.1" },
  ],
};
const OPENRC: Recipe = {
  name: "openrc",
  version: "0.60-r0",
  depends: ["/bin/sh", "musl>=1.2.5"],
  repository: "community",
  files: [
    { path: "etc/init.d/hostname", text: "#!/sbin/openrc-run\n", mode: 0o755 },
    { path: "dev/tty9", type: "3", device: [4, 9], uid: 5 },
  ],
};
const ALL = [BUSYBOX, MUSL, OPENRC];

function options(mirror: Mirror, more: Partial<AlpineOptions> = {}): AlpineOptions {
  return {
    mirror: { url: mirror.url, cache: tree.at("cache"), arch: "aarch64" },
    keys: writeKeys(tree.at("keys")),
    repositories: ["main", "community"],
    wanted: ["openrc"],
    lock: tree.at("packages.lock"),
    update: { older: false },
    tell: () => {},
    ...more,
  };
}

const work = (name = "work") => join(writeAt(tree.at(`${name}/.keep`), ""), "..");
const dump = (root: Files) => Buffer.concat([...writeTar(root)]);
/** Message of the BuildError that something ends with. */
const refusal = async (what: () => unknown) => {
  const error = await (async () => what())().catch((cause: unknown) => cause);
  if (!(error instanceof BuildError)) throw new Error(`expected a BuildError, got ${error}`);
  return error.message;
};

test("a root has the files of all packages that a list needs, with owners, devices, links, applets and services", async () => {
  await using mirror = new Mirror();
  mirror.offer(ALL);
  const told: string[] = [];
  const root = await alpineRoot(options(mirror, { tell: (line) => void told.push(line) }), work());
  expect(root.at("bin/busybox")).toMatchObject({ type: "file", mode: 0o4755 });
  expect(root.at("bin/bbsuid")).toBe(root.at("bin/busybox"));
  expect(root.at("lib/libc.musl-aarch64.so.1")).toMatchObject({
    type: "symlink",
    target: "ld-musl-aarch64.so.1",
  });
  expect(root.at("dev/tty9")).toMatchObject({ type: "device", major: 4, minor: 9, uid: 5 });
  expect(root.at("usr/bin/env")).toMatchObject({ type: "symlink", target: "/bin/busybox" });
  expect(root.at("etc/runlevels/boot/hostname")).toMatchObject({ target: "/etc/init.d/hostname" });
  expect(told).toContain("install scripts that were not run: busybox");
  expect(readFileSync(tree.at("packages.lock"), "utf8").split("\n").slice(1, 5)).toEqual([
    "wanted openrc",
    expect.stringMatching(/^main busybox 1\.37\.0-r2 [0-9a-f]{64}$/),
    expect.stringMatching(/^main musl 1\.2\.5-r9 [0-9a-f]{64}$/),
    expect.stringMatching(/^community openrc 0\.60-r0 [0-9a-f]{64}$/),
  ]);
});

test("from the lock and the cache alone comes the same root byte for byte, and nothing is asked of a mirror", async () => {
  await using mirror = new Mirror();
  mirror.offer(ALL);
  const { update, ...locked } = options(mirror);
  const first = await alpineRoot({ ...locked, update: { older: false } }, work("one"));
  const before = mirror.asked.length;
  const again = await alpineRoot(
    { ...locked, mirror: { cache: tree.at("cache"), arch: "aarch64" } },
    work("two"),
  );
  expect(dump(again).equals(dump(first))).toBe(true);
  expect(mirror.asked.length).toBe(before);
});

test("without the cache --offline says which file is missing", async () => {
  await using mirror = new Mirror();
  mirror.offer(ALL);
  const { update, ...locked } = options(mirror);
  await alpineRoot({ ...locked, update: { older: false } }, work("one"));
  const offline = { ...locked, mirror: { cache: tree.at("empty"), arch: "aarch64" } };
  expect(await refusal(() => alpineRoot(offline, work("two")))).toMatch(
    /^main\/busybox-1\.37\.0-r2\.apk: not in .*--offline/,
  );
});

test("the keys may come from a minirootfs that has the SHA-256 that was named, and only then", async () => {
  await using mirror = new Mirror();
  mirror.offer(ALL);
  const key = readFileSync(join(writeKeys(tree.at("keys")), KEY), "utf8");
  const database = "C:Q1x\nP:musl\nV:1.2.5-r9\np:so:libc.musl-aarch64.so.1=1\n\n";
  const tar = gzipSync(
    rawTar([
      { path: `./etc/apk/keys/${KEY}`, text: key },
      { path: "./lib/apk/db/installed", text: database },
    ]),
  );
  const file = tree.put("minirootfs.tar.gz", tar);
  const sha256 = createHash("sha256").update(tar).digest("hex");
  const { keys, ...rest } = options(mirror);
  await alpineRoot({ ...rest, minirootfs: { file, sha256 } }, work());
  expect(readFileSync(tree.at("packages.lock"), "utf8")).not.toContain("musl");
  const wrong = "0".repeat(64);
  expect(
    await refusal(() => alpineRoot({ ...rest, minirootfs: { file, sha256: wrong } }, work("two"))),
  ).toContain(sha256);
  expect(await refusal(() => alpineRoot(rest, work("three")))).toContain("--keys");
});

const cutIn = (bytes: Buffer, at: number) =>
  Buffer.concat([bytes.subarray(0, at), Buffer.from([(bytes[at] ?? 0) ^ 1]), bytes.subarray(at + 1)]);
const gz = (members: RawMember[]) => gzipSync(rawTar(members));
const musl = (data: Buffer) => makeApk(MUSL, data).apk;

test.each<[string, (mirror: Mirror) => void, RegExp]>([
  [
    "an index that somebody else signed",
    (m) => m.put("main", "APKINDEX.tar.gz", makeIndex(ALL, undefined, STRANGER)),
    /^main\/APKINDEX.tar.gz: the signature of builder.* does not match/,
  ],
  [
    "an index without a signature",
    (m) => m.put("main", "APKINDEX.tar.gz", gz([{ path: "APKINDEX", text: "P:a\nV:1\n" }])),
    /^main\/APKINDEX.tar.gz: not signed/,
  ],
  [
    "an index that was changed",
    (m) => m.put("main", "APKINDEX.tar.gz", cutIn(makeIndex(ALL), makeIndex(ALL).length - 6)),
    /^main\/APKINDEX.tar.gz: the signature/,
  ],
  [
    "an index that is cut off",
    (m) => m.put("main", "APKINDEX.tar.gz", makeIndex(ALL).subarray(0, -40)),
    /^main\/APKINDEX.tar.gz: cut off/,
  ],
  [
    "a package that somebody else signed",
    (m) => m.put("main", "musl-1.2.5-r9.apk", makeApk(MUSL, undefined, STRANGER).apk),
    /^musl-1.2.5-r9.apk: the signature of builder.* does not match/,
  ],
  [
    "a package signed with a key that is not trusted",
    (m) => m.put("main", "musl-1.2.5-r9.apk", makeApk(MUSL, undefined, STRANGER, "evil.rsa.pub").apk),
    /^musl-1.2.5-r9.apk: signed with evil.rsa.pub, which is not among the keys/,
  ],
  [
    "a package whose files were changed",
    (m) => m.put("main", "musl-1.2.5-r9.apk", cutIn(makeApk(MUSL).apk, makeApk(MUSL).apk.length - 2)),
    /^musl-1.2.5-r9.apk: its files have the SHA-256/,
  ],
  [
    "a package that is cut off",
    (m) => m.put("main", "musl-1.2.5-r9.apk", makeApk(MUSL).apk.subarray(0, -20)),
    /^musl-1.2.5-r9.apk: cut off or damaged/,
  ],
  [
    "a package that ends before its files",
    (m) => m.put("main", "musl-1.2.5-r9.apk", makeApk(MUSL).apk.subarray(0, -makeApk(MUSL).apk.length / 3)),
    /^musl-1.2.5-r9.apk: /,
  ],
  [
    "another package, signed too, under this one's name",
    (m) => m.put("main", "musl-1.2.5-r9.apk", makeApk(BUSYBOX).apk),
    /^musl-1.2.5-r9.apk: .*the index says/,
  ],
  [
    "other files in this version, signed too",
    (m) => m.put("main", "musl-1.2.5-r9.apk", musl(gz([{ path: "lib/evil", text: "x" }]))),
    /^musl-1.2.5-r9.apk: .*the index says/,
  ],
  [
    "a package that the mirror does not have",
    (m) => m.files.delete("/v3/main/aarch64/musl-1.2.5-r9.apk"),
    /musl-1.2.5-r9.apk: the mirror answers 404/,
  ],
])("%s is refused", async (_, attack, message) => {
  await using mirror = new Mirror();
  mirror.offer(ALL);
  attack(mirror);
  expect(await refusal(() => alpineRoot(options(mirror), work()))).toMatch(message);
});

test.each<[string, RawMember[], RegExp]>([
  [
    "leads out of the root",
    [{ path: "../../etc/passwd", text: "x" }],
    /^evil: "..\/..\/etc\/passwd" leads out of the root/,
  ],
  [
    "leads out of it in the middle",
    [{ path: "a/../../b", text: "x" }],
    /^evil: "a\/..\/..\/b" leads out of the root/,
  ],
  ["is absolute", [{ path: "/etc/passwd", text: "x" }], /^evil: "\/etc\/passwd" is absolute/],
  [
    "goes through a link of its own",
    [
      { path: "lib64", type: "2", target: "/etc" },
      { path: "lib64/passwd", text: "x" },
    ],
    /^evil: "lib64\/passwd" would go through "lib64", which is a symlink/,
  ],
  [
    "is a hard link to what is not there",
    [{ path: "a", type: "1", target: "etc/shadow" }],
    /^evil: "a" is a hard link to "etc\/shadow"/,
  ],
  [
    "goes through a link of another package",
    [{ path: "var/run/x", text: "x" }],
    /^evil: "var\/run\/x" would go through "var\/run", which is a symlink/,
  ],
  ["is another package's", [{ path: "etc/own", text: "other" }], /^evil: etc\/own belongs to base already/],
  ["is of no kind", [{ path: "a", type: "S" }], /^evil: "a" is a member of type "S"/],
  ["is longer than the tar", [{ path: "a", size: 4096 }], /^evil: .*cut off/],
])("a signed package is still refused whose file %s", async (_, files, message) => {
  await using mirror = new Mirror();
  const base: Recipe = {
    name: "base",
    version: "1-r0",
    files: [
      { path: "var/run", type: "2", target: "../run" },
      { path: "etc/own", text: "base" },
    ],
  };
  mirror.offer([base, { name: "evil", version: "1-r0", files }]);
  expect(await refusal(() => alpineRoot(options(mirror, { wanted: ["base", "evil"] }), work()))).toMatch(
    message,
  );
});

test("a package may take over a file of one that it replaces", async () => {
  await using mirror = new Mirror();
  const files = (text: string) => [{ path: "etc/own", text }];
  mirror.offer([
    { name: "a", version: "1-r0", files: files("a") },
    { name: "b", version: "1-r0", files: files("b"), replaces: ["a<2"] },
  ]);
  const root = await alpineRoot(options(mirror, { wanted: ["a", "b"] }), work());
  expect(Buffer.from(bytesOf(root.content("etc/own") ?? new Uint8Array())).toString()).toBe("b");
});

test("what unpacks to more than its limit is refused before it is all in memory", async () => {
  const bomb = gzipSync(Buffer.alloc(1 << 20));
  expect(await refusal(() => gzipMembers(bomb, [4096], "bomb"))).toBe(
    "bomb: it unpacks to more than 4096 bytes",
  );
  expect(await refusal(() => gzipMembers(Buffer.concat([bomb, bomb]), [1 << 20], "bomb"))).toContain(
    "more than 1 parts",
  );
});

test("a build with a package that is not the locked one fails by its name", async () => {
  await using mirror = new Mirror();
  mirror.offer(ALL);
  const { update, ...locked } = options(mirror);
  await alpineRoot({ ...locked, update: { older: false } }, work("one"));
  // Signed by the right key, with the right name and version: a rebuild that nobody here has looked at
  mirror.put("main", "musl-1.2.5-r9.apk", musl(gz([{ path: "lib/ld-musl-aarch64.so.1", text: "other" }])));
  const elsewhere = { ...locked, mirror: { ...locked.mirror, cache: tree.at("empty") } };
  expect(await refusal(() => alpineRoot(elsewhere, work("two")))).toMatch(
    /^musl-1\.2\.5-r9\.apk: its SHA-256 is .*packages\.lock says/,
  );
});

test("a mirror that repeats an old index does not take a lock back, unless that is asked for", async () => {
  await using mirror = new Mirror();
  mirror.offer(ALL);
  await alpineRoot(options(mirror), work("one"));
  const before = readFileSync(tree.at("packages.lock"), "utf8");
  mirror.offer([BUSYBOX, { ...MUSL, version: "1.2.5-r8" }, OPENRC]);
  expect(await refusal(() => alpineRoot(options(mirror), work("two")))).toContain("musl 1.2.5-r9 → 1.2.5-r8");
  expect(readFileSync(tree.at("packages.lock"), "utf8")).toBe(before);
  await alpineRoot(options(mirror, { update: { older: true } }), work("three"));
  expect(readFileSync(tree.at("packages.lock"), "utf8")).toContain("musl 1.2.5-r8");
});

test("a package list that the lock was not written for is refused, and so is a lock that somebody has edited badly", async () => {
  await using mirror = new Mirror();
  mirror.offer(ALL);
  const { update, ...locked } = options(mirror);
  await alpineRoot({ ...locked, update: { older: false } }, work("one"));
  expect(await refusal(() => alpineRoot({ ...locked, wanted: ["openrc", "nano"] }, work("two")))).toContain(
    "nano is new",
  );
  writeFileSync(tree.at("packages.lock"), "main ../../evil 1 00\n");
  expect(await refusal(() => alpineRoot(locked, work("three")))).toContain("--update-lock");
});

const listed = (name: string, version: string, more: Partial<Listed> = {}): Listed => ({
  ...{
    name,
    version,
    checksum: "",
    size: 0,
    depends: [],
    provides: new Map(),
    priority: 0,
    repository: "main",
  },
  ...more,
});
const names = (all: readonly Listed[]) => all.map(({ name, version }) => `${name}-${version}`);

test("a need is met by the package of that name, else by the provider with the highest priority, in its newest version", () => {
  const all = [
    listed("sh", "1-r0"),
    listed("sh", "2-r0"),
    listed("dash", "1-r0", { provides: new Map([["cmd:sh", ""]]) }),
    listed("busybox", "1-r0", {
      provides: new Map([
        ["cmd:sh", ""],
        ["sh", "9"],
      ]),
      priority: 100,
    }),
  ];
  expect(names(resolve(["cmd:sh"], all))).toEqual(["busybox-1-r0"]);
  expect(names(resolve(["sh"], all))).toEqual(["sh-2-r0"]);
  expect(names(resolve(["sh<2"], all))).toEqual(["sh-1-r0"]);
  expect(names(resolve(["sh~9"], all))).toEqual(["busybox-1-r0"]);
});

test("what cannot be had is named with the chain that leads to it, and so is a conflict", async () => {
  const all = [
    listed("a", "1-r0", { depends: ["b"] }),
    listed("b", "1-r0", { depends: ["so:libmissing.so.1"] }),
    listed("c", "1-r0", { depends: ["!d"] }),
    listed("d", "1-r0"),
    listed("e", "1-r0", { depends: ["d>1-r0"] }),
  ];
  expect(await refusal(() => resolve(["a"], all))).toBe(
    "nothing provides so:libmissing.so.1, which b ← a ← the package list needs",
  );
  expect(await refusal(() => resolve(["c", "d"], all))).toContain("d 1-r0 must not be there beside c");
  expect(await refusal(() => resolve(["d", "e"], all))).toContain("nothing provides d>1-r0");
});

// apk-tools, test/version.data
test.each([
  ["2.34", "<", "2.35"],
  ["1.2.10", ">", "1.2.9"],
  ["1.05", "<", "1.1"],
  ["1.0", "<", "1.0.1"],
  ["1.0a", ">", "1.0"],
  ["1.0_alpha2", "<", "1.0_beta1"],
  ["1.0_rc1", "<", "1.0"],
  ["1.0_p1", ">", "1.0"],
  ["1.0_git20240101", ">", "1.0_cvs9"],
  ["1.0-r1", ">", "1.0-r0"],
  ["1.0-r10", ">", "1.0-r9"],
  ["1.0", "=", "1.0-r0"],
  ["1.37.0-r2", "=", "1.37.0-r2"],
])("version %s %s %s", (one, order, other) => {
  const sign = { "<": -1, "=": 0, ">": 1 }[order] ?? 9;
  expect(Math.sign(compareVersions(one, other))).toBe(sign);
  expect(Math.sign(compareVersions(other, one))).toBe(sign === 0 ? 0 : -sign);
});

test("an index entry whose name would be a path is none", async () => {
  expect(await refusal(() => parseIndex("P:../evil\nV:1-r0\n", "main"))).toContain('"../evil"');
  expect(await refusal(() => parseIndex("P:evil\nV:1/../../x\n", "main"))).toContain("is no package");
});

const COUNT = Number(process.env.FRUIT_FUZZ ?? 5_000);

/** A signature is checked for each of these, which takes its time. */
const SIGNED = Math.ceil(COUNT / 20);

test(`signed files are refused with a message whatever arrives (${SIGNED} changed files)`, () => {
  const random = seeded(0xa9c);
  const keys = readKeys(writeKeys(tree.at("keys")));
  const [apk, index] = [makeApk(BUSYBOX).apk, makeIndex(ALL)];
  const content = openPackage(apk, keys, "x");
  const text = openIndex(index, keys, "x");
  for (let turn = 0; turn < SIGNED; turn++) {
    const isPackage = turn % 2 === 0;
    const bytes = Buffer.from(mutated(isPackage ? apk : index, random));
    try {
      // What is believed although something was changed says what was signed: only the framing of the signature can differ
      if (isPackage) expect(openPackage(bytes, keys, "x").data.equals(content.data)).toBe(true);
      else expect(openIndex(bytes, keys, "x")).toBe(text);
    } catch (error) {
      if (!(error instanceof BuildError)) throw new Error(`turn ${turn}: ${error}`, { cause: error });
    }
  }
});

test(`an index is read or refused with a message, whatever it says (${COUNT} changed texts)`, () => {
  const random = seeded(0x1d8);
  const text = Buffer.from(
    "C:Q1x=\nP:busybox\nV:1.37.0-r2\nS:12\nD:so:libc.so.1 !x y>=1~2\np:cmd:sh=1 /bin/sh\nk:9\n\nP:b\nV:2_rc1\n",
  );
  for (let turn = 0; turn < COUNT; turn++) {
    try {
      const all = parseIndex(Buffer.from(mutated(text, random)).toString(), "main");
      resolve(["busybox"], all);
    } catch (error) {
      if (!(error instanceof BuildError)) throw new Error(`turn ${turn}: ${error}`, { cause: error });
    }
  }
});

/** Headers whose sum is wrong are refused at once: these are given the right one, to be read. */
function sealed(bytes: Uint8Array): void {
  for (let at = 0; at + 512 <= bytes.length; at += 512) {
    bytes.fill(0x20, at + 148, at + 156);
    let sum = 0;
    for (let index = at; index < at + 512; index++) sum += bytes[index] ?? 0;
    bytes.set(Buffer.from(`${sum.toString(8).padStart(6, "0")}\0 `), at + 148);
  }
}

const leadsOut = (path: string) =>
  path.startsWith("/") || path.split("/").some((part) => ["", ".", ".."].includes(part));

test(`the tar reader refuses with a message whatever arrives, and stays within its tree (${COUNT} changed files)`, () => {
  const random = seeded(0x7a5);
  const further = { path: "x", type: "x", text: "22 path=../../../evil\n" };
  const good = rawTar([...(MUSL.files ?? []), further, { path: "y", text: "y" }, { path: "z", text: "z" }]);
  let taken = 0;
  for (let turn = 0; turn < COUNT; turn++) {
    const below = (n: number) => Math.floor(random() * n);
    const bytes = Buffer.from(good).subarray(0, turn % 8 === 0 ? below(good.length) : good.length);
    for (let changes = below(6); changes >= 0; changes--) bytes[below(bytes.length)] = below(256);
    if (turn % 4 !== 0) sealed(bytes);
    const root = new Files();
    try {
      unpackTar(root, bytes, { name: "fuzz" });
      taken++;
    } catch (error) {
      if (!(error instanceof BuildError)) throw new Error(`turn ${turn}: ${error}`, { cause: error });
    }
    const bad = root.entries().find(([path]) => leadsOut(path));
    if (bad) throw new Error(`turn ${turn}: ${bad[0]}`);
  }
  expect(taken).toBeGreaterThan(0);
});
