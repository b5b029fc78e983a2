/** A vendor with two offline keys: trust.json and its chain, heads, withdrawals, and all that a release may state, as typed. */
import { afterAll, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { comparedWith } from "../agent/release/difference.ts";
import { parseHead } from "../boot/head.ts";
import { parseChain } from "../boot/rotation.ts";
import { parseUpdate } from "../boot/updatefile.ts";
import { needsModule, python } from "./python.ts";
import { BOARD, makePayload, makeRelease, noise, signedBy, squashfs, TIMES } from "./releases.ts";
import { command } from "./updates.ts";

const dir = mkdtempSync(join(tmpdir(), "fruit-trust-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));
const at = (name: string) => join(dir, name);
const fruit = (...words: string[]) => command(["release", ...words]);

/** Keys that are made once. */
for (const name of ["anna", "bert", "cleo"])
  expect((await fruit("keygen", "--out", at(name), "--roles", "release,trust,head")).exit).toBe(0);
const signer = (name: string, roles = "release,trust,head") => [
  "--signer",
  `org.example.${name}=${at(`${name}.pub`)}=${roles}`,
];
const TWO = ["--threshold", "release=2,trust=2,head=1"];
const init = (out: string, ...words: string[]) => fruit("trust", "init", ...words, "--out", at(out));
await init("1.json", ...signer("anna"), ...signer("bert"), ...TWO);
await init("2.json", ...signer("anna"), ...signer("cleo"), ...TWO, "--version", "2");
writeFileSync(
  at("12.fruit"),
  makeRelease({ payload: makePayload({ version: 12n }), signers: ["anna"] }).update,
);

test("a key's entry for trust.json names the roles it is made for", async () => {
  const { out } = await fruit("keygen", "--out", at("timer"), "--roles", "head");
  expect(JSON.parse(out).roles).toEqual(["head"]);
  expect(await fruit("keygen", "--out", at("boss"), "--roles", "boss")).toMatchObject({
    exit: 2,
    err: expect.stringContaining('--roles: "boss" is no role; there are release, trust, head'),
  });
});

test("a key whose public half would overwrite another's is not made, and nothing is left of it", async () => {
  writeFileSync(at("half.pub"), "another's\n");
  expect(await fruit("keygen", "--out", at("half"))).toMatchObject({
    exit: 2,
    err: expect.stringContaining(`${at("half.pub")}: it exists`),
  });
  expect(existsSync(at("half"))).toBe(false);
  expect(readFileSync(at("half.pub"), "utf8")).toBe("another's\n");
});

test("trust.json is made of public keys, and shown", async () => {
  const { exit, out } = await init(
    "shown.json",
    ...signer("anna"),
    ...signer("bert", "release,trust"),
    ...TWO,
  );
  expect([exit, out]).toEqual([
    0,
    "version  1\nrelease  2 of org.example.anna, org.example.bert\ntrust    2 of org.example.anna, org.example.bert\nhead     1 of org.example.anna\n",
  ]);
  expect(await init("shown.json", ...signer("anna"), ...TWO)).toMatchObject({ exit: 78 });
  expect(await init("1.json", ...signer("anna"), ...signer("bert"), ...TWO)).toMatchObject({
    exit: 2,
    err: expect.stringContaining("is not overwritten"),
  });
});

test("a chain is begun, signed by two, explained, and followed by a node", async () => {
  const chain = at("chain.trust");
  const begun = await fruit("trust", "next", chain, "--to", at("2.json"), "--from", at("1.json"));
  expect(begun.exit).toBe(0);
  expect(begun.out).toMatch(/^change +org.example.bert [0-9a-f]{16}… is revoked$/m);
  expect(begun.out).toMatch(/^change +org.example.cleo [0-9a-f]{16}… is new: head, release, trust$/m);
  expect(await fruit("verify", chain, "--trust", at("1.json"))).toMatchObject({
    exit: 4,
    err: expect.stringContaining(
      "2 different keys of version 1 must sign it (org.example.anna, org.example.bert), 0 have",
    ),
  });
  for (const [key, nth] of [
    ["anna", "first"],
    ["bert", "second"],
    ["cleo", "third"],
  ] as const) {
    const signed = await fruit("trust", "sign", chain, "--key", at(key));
    expect(signed.out).toMatch(new RegExp(`^SHA256:\\S+ has signed version 2, the ${nth} to do so$`, "m"));
    expect(signed.err !== "").toBe(key === "bert");
  }
  const shown = (await fruit("inspect", chain, "--trust", at("1.json"))).out;
  expect(shown).toMatch(/^signed by +org.example.anna, org.example.bert, org.example.cleo$/m);
  expect(shown).not.toContain("missing");
  expect((await fruit("inspect", chain)).out).toMatch(/^signed by +1 whose keys are not known here/m);
  expect(await fruit("verify", chain, "--trust", at("1.json"))).toEqual({
    exit: 0,
    out: "leads from version 1 to 2\n",
    err: "",
  });
  const data = at("node");
  mkdirSync(data);
  writeFileSync(join(data, "trust.json"), readFileSync(at("1.json")));
  const words = ["--data-dir", data, "--hal", "sim"];
  expect(await command(["update", "trust", chain, ...words])).toMatchObject({
    exit: 0,
    out: "trust.json: version 1 -> 2; revoked: org.example.bert\n",
  });
  expect(readFileSync(join(data, "trust.json"))).toEqual(readFileSync(at("2.json")));
});

test("a program is told of a chain what a person is", async () => {
  const chain = at("json.trust");
  await fruit("trust", "next", chain, "--to", at("2.json"), "--from", at("1.json"));
  const signed = await fruit("trust", "sign", chain, "--key", at("anna"), "--json");
  expect(JSON.parse(signed.out)).toMatchObject({
    schema: "fruit.release-trust-sign/1",
    version: 2,
    signatures: 1,
  });
  const shown = await fruit("inspect", chain, "--trust", at("1.json"), "--json");
  expect(JSON.parse(shown.out)).toMatchObject({
    schema: "fruit.trust-chain/1",
    links: [
      {
        version: 2,
        signed_by: ["org.example.anna"],
        missing: [
          "1 more of org.example.bert, as version 1 asks",
          "1 more of org.example.cleo, as version 2 asks",
        ],
      },
    ],
  });
  const judged = await fruit("verify", chain, "--trust", at("1.json"), "--json");
  expect(JSON.parse(judged.out)).toMatchObject({ ok: false, code: "not-enough-signers" });
});

test("a version that does not follow is not put into a chain, and a key without the role does not sign it", async () => {
  const chain = at("strict.trust");
  expect(await fruit("trust", "next", chain, "--to", at("1.json"), "--from", at("1.json"))).toMatchObject({
    exit: 2,
    err: expect.stringContaining("its version is 1; behind version 1 comes 2"),
  });
  expect(await fruit("trust", "next", chain, "--to", at("2.json"))).toMatchObject({
    exit: 2,
    err: expect.stringContaining("--from is missing"),
  });
  await fruit("trust", "next", chain, "--to", at("2.json"), "--from", at("1.json"));
  await init("3.json", ...signer("anna"), ...signer("cleo"), ...TWO, "--version", "3");
  const next = (...words: string[]) => fruit("trust", "next", chain, "--to", at("3.json"), ...words);
  expect(await next("--from", at("2.json"))).toMatchObject({
    exit: 2,
    err: expect.stringContaining("--from begins a chain"),
  });
  expect((await fruit("trust", "sign", chain, "--key", at("anna"))).exit).toBe(0);
  // Nobody could sign it any more: a signer signs the last
  expect(await next()).toMatchObject({
    exit: 2,
    err: expect.stringContaining(
      "version 2 is not signed by all it takes (1 more of org.example.cleo, as version 2 asks)",
    ),
  });
  expect((await fruit("trust", "sign", chain, "--key", at("cleo"))).exit).toBe(0);
  expect((await next()).exit).toBe(0);
  expect(parseChain(readFileSync(chain)).map(({ trust }) => trust.version)).toEqual([2, 3]);
  expect(await fruit("trust", "sign", chain, "--key", at("bert"))).toMatchObject({
    exit: 2,
    err: expect.stringMatching(/neither version 2 nor 3 gives SHA256:\S+ the role "trust"/),
  });
  await init("mute.json", ...signer("anna"), "--threshold", "release=1", "--version", "4");
  expect(await fruit("trust", "next", chain, "--to", at("mute.json"))).toMatchObject({
    exit: 2,
    err: expect.stringContaining("without threshold.trust nobody can sign what comes next"),
  });
});

test.each([
  [["trust"], "expected init, next, sign"],
  [["trust", "burn"], "expected init, next, sign"],
  [["trust", "init", "--threshold", "release=1", "--out", "x"], "--signer is missing"],
  [
    ["trust", "init", "--signer", "anna", "--threshold", "release=1", "--out", "x"],
    '"anna" is not ID=FILE.pub=ROLES',
  ],
  [["trust", "init", ...signer("anna"), "--threshold", "release", "--out", "x"], '"release" is not ROLE=M'],
  [
    ["trust", "init", ...signer("anna"), "--threshold", "release=1", "--version", "two", "--out", "x"],
    '--version: "two" is no integer from 1 to 2^53-1',
  ],
  [
    ["trust", "init", ...signer("anna"), "--threshold", "release=2,release=1", "--out", "x"],
    "--threshold: release stands twice",
  ],
  [
    ["trust", "init", ...signer("anna", "release,release"), "--threshold", "release=1", "--out", "x"],
    "--signer: release stands twice",
  ],
  [
    ["verify", at("12.fruit"), "--trust", at("1.json"), "--target", "x"],
    "--target says nothing about an update file",
  ],
  [["trust", "sign", at("1.json"), "--key", at("anna")], "byte 0: a value cannot begin with"],
  [["trust", "sign"], "expected one chain, FILE.trust"],
  [["head", at("12.fruit")], "--key is missing"],
  [["head", at("12.fruit"), "--key", at("anna"), "--expires", "soon"], '"soon" is no time'],
  [
    ["head", at("12.fruit"), "--key", at("anna"), "--expires", "400d"],
    "is 400 days after issued; at most 366",
  ],
  [["head", at("1.json"), "--key", at("anna")], "byte 0: a value cannot begin with"],
])("%p says: %s", async (words, why) => {
  const { exit, err } = await fruit(...words);
  expect(err).toContain(why);
  expect(err).not.toMatch(/\n\s+at /);
  expect(exit).toBe(2);
});

test("a head says that a release is the newest, is explained, and heard by who trusts its key", async () => {
  const head = at("12.head");
  const made = await fruit("head", at("12.fruit"), "--key", at("anna"), "--issued", `@${TIMES.now}`);
  expect(made.exit).toBe(0);
  expect(made.out).toMatch(/^says +version 12 is the newest$/m);
  const { infohash } = parseUpdate(readFileSync(at("12.fruit")));
  expect(parseHead(readFileSync(head))).toMatchObject({
    ...{ target: "fruitos/stable", channel: "stable", version: 12n, infohash, isWithdrawn: false },
    ...{ issued: TIMES.now, expires: TIMES.now + 7 * 86_400 },
  });
  const shown = await fruit("inspect", head, "--trust", at("1.json"));
  expect(shown.out).toMatch(/^signed by +org.example.anna$/m);
  expect((await fruit("inspect", head)).out).toMatch(/^signed by +SHA256:\S+$/m);
  const json = JSON.parse((await fruit("inspect", head, "--trust", at("1.json"), "--json")).out);
  expect(json).toMatchObject({
    schema: "fruit.head/1",
    version: "12",
    signature: "good",
    signer: "org.example.anna",
    withdrawn: false,
  });
  const verify = (...words: string[]) => fruit("verify", head, "--trust", at("1.json"), ...words);
  expect(await verify("--at", `@${TIMES.now + 5}`)).toEqual({
    exit: 0,
    out: "version 12 of fruitos/stable is the newest, says org.example.anna\n",
    err: "",
  });
  // Late is an alarm, no refusal
  expect(await verify("--at", `@${TIMES.now + 9 * 86_400}`)).toMatchObject({
    exit: 0,
    err: "fruit: it expired 2d ago: an alarm on a node that hears nothing newer\n",
  });
  expect(await verify("--target", "fruitos/beta", "--json")).toMatchObject({
    exit: 4,
    out: expect.stringContaining('"code":"wrong-target"'),
  });
  expect(await verify("--at", `@${TIMES.now - 7200}`)).toMatchObject({ exit: 4 });
  expect(await verify("--payload", at("12.fruit"))).toMatchObject({
    exit: 2,
    err: expect.stringContaining("--payload says nothing about a head"),
  });
  expect(await fruit("inspect", head, "--against", at("12.fruit"))).toMatchObject({
    exit: 2,
    err: expect.stringContaining("--against says nothing about a head"),
  });
});

test("what was withdrawn is not offered again by who only renews its head", async () => {
  const words = [at("12.fruit"), "--key", at("anna"), "--out", at("back.head")];
  await fruit("withdraw", ...words);
  expect(await fruit("head", ...words)).toMatchObject({
    exit: 2,
    err: `fruit: ${at("back.head")}: it says that version 12 is withdrawn; remove it to offer that release again\n`,
  });
  expect(parseHead(readFileSync(at("back.head"))).isWithdrawn).toBe(true);
  expect((await fruit("withdraw", ...words)).exit).toBe(0);
});

test("a signer whom trust.json does not name is told from one whose key is not in hand", async () => {
  const inspect = (...words: string[]) => fruit("inspect", at("12.fruit"), ...words);
  expect((await inspect()).out).toMatch(/^signed by +anna \(not checked: .* give --trust\)$/m);
  expect((await inspect("--trust", at("1.json"))).out).toMatch(
    /^signed by +anna \(trust.json does not name it for releases\)$/m,
  );
});

test("a withdrawal takes the place of the head, even in the same second, and of nobody else's", async () => {
  const words = ["--key", at("anna"), "--issued", `@${TIMES.now}`, "--out", at("w.head")];
  await fruit("head", at("12.fruit"), ...words);
  const made = await fruit("withdraw", at("12.fruit"), ...words);
  expect(made.out).toMatch(/^says +version 12 is WITHDRAWN$/m);
  expect(parseHead(readFileSync(at("w.head")))).toMatchObject({ isWithdrawn: true, issued: TIMES.now + 1 });
  const other = await fruit("head", at("12.fruit"), "--key", at("bert"), "--out", at("w.head"));
  expect(other).toMatchObject({ exit: 2, err: expect.stringContaining("name another file with --out") });
  expect(parseHead(readFileSync(at("w.head"))).isWithdrawn).toBe(true);
});

for (const [name, bytes] of Object.entries({
  root: squashfs(90_000),
  kernel: noise(30_000, 2),
  initramfs: noise(9000, 3),
}))
  writeFileSync(at(name), bytes);
const pack = (out: string, ...more: string[]) =>
  fruit(
    ...["pack", "--root", at("root"), "--kernel", at("kernel"), "--initramfs", at("initramfs")],
    ...["--boards", BOARD, "--channel", "stable", "--target", "fruitos/stable", "--expires", "347d"],
    ...["--version", "13", "--name", "fruitos-13", "--out", at(out), ...more],
  );
const MORE = [
  ...["--prev", at("12.fruit"), "--health-service", "nginx", "--health-deadline", "5m"],
  ...["--rollout", "10%@0h 100%@24h", "--rollout-from", "2d", "--jitter", "30m"],
  ...["--seed", "https://example.org/r/", "--tracker", "udp://t.example.org:6969"],
];

test("all that a release may state is packed to the same bytes every time, and explained", async () => {
  const once = await pack("one", ...MORE);
  expect(once.exit).toBe(0);
  await pack("two", ...MORE);
  expect(readFileSync(at("two/fruitos-13.fruit"))).toEqual(readFileSync(at("one/fruitos-13.fruit")));
  const { infohash } = parseUpdate(readFileSync(at("12.fruit")));
  for (const line of [
    /^a trial asks +service nginx, decided within 5m$/m,
    new RegExp(`^before it +${infohash} \\(swarm\\)$`, "m"),
    /^goes round +from \S+: 10 % after 0 h, 100 % after 24 h; within 30m each$/m,
    /^web seed +https:\/\/example.org\/r\/$/m,
    /^tracker +udp:\/\/t.example.org:6969$/m,
  ])
    expect(once.out).toMatch(line);
  const json = JSON.parse((await fruit("inspect", at("one/fruitos-13.fruit"), "--json")).out);
  expect(json.statement).toMatchObject({
    health: { services: ["nginx"], deadline: 300 },
    prev: infohash,
    rollout: {
      from: TIMES.created + 2 * 86_400,
      jitter: 1800,
      waves: [
        { percent: 10, hours: 0 },
        { percent: 100, hours: 24 },
      ],
    },
    seeds: ["https://example.org/r/"],
    trackers: ["udp://t.example.org:6969"],
  });
});

const libtorrent = needsModule(
  "libtorrent finds the trackers and web seeds of a release",
  "libtorrent",
  "python3-libtorrent",
);
test.skipIf(libtorrent.isSkipped)(libtorrent.title, async () => {
  await pack("torrent", ...MORE, "--tracker", "https://t.example.org/announce");
  const { exit, out, err } = await python(
    "import libtorrent as lt, sys; t = lt.torrent_info(sys.argv[1]); print([x.url for x in t.trackers()], [x['url'] for x in t.web_seeds()])",
    at("torrent/fruitos-13.fruit"),
  );
  expect([exit, err]).toEqual([0, ""]);
  expect(out.trim()).toMatch(
    /\['udp:\/\/t.example.org:6969', 'https:\/\/t.example.org\/announce'\] \['https:\/\/example.org\/r\/(fruitos-13)?'\]/,
  );
});

test.each([
  [
    ["--seed", "http://example.org/"],
    'fruitos-13.fruit: byte 322: the statement.seeds has "http://example.org/", not an address of https',
  ],
  [["--tracker", "ftp://example.org/"], '"ftp://example.org/", not an address of http, https, udp'],
  [["--rollout", "half now"], '"half" is not PERCENT%@HOURSh'],
  [["--rollout", "50%@1h 50%@2h"], "do not rise"],
  [["--jitter", "5m"], "--jitter and --rollout-from go with --rollout"],
  [["--health-deadline", "5s"], "health.deadline is 5, not 60 to 3600"],
  [["--health-service", "a b"], "health.services[0] is"],
  [["--prev", "0123"], "0123: ENOENT"],
])("pack with %p says: %s", async (words, why) => {
  const { exit, err } = await pack("bad", ...words);
  expect([exit, err]).toEqual([2, expect.stringContaining(why)]);
});

test("pack writes nothing beside the folder that is named, nor a name that no node takes", async () => {
  const { exit, err } = await pack("inside", "--name", "../outside");
  expect([exit, err]).toEqual([2, expect.stringContaining('--name: "../outside" is not of the form')]);
  expect([existsSync(at("outside")), existsSync(at("inside"))]).toEqual([false, false]);
});

test("what is new in a release is told beside another, and on a node beside the one that runs", async () => {
  await pack("new");
  const update = at("new/fruitos-13.fruit");
  const beside = await fruit("inspect", update, "--against", at("12.fruit"));
  expect(beside.out).toMatch(/^beside +fruitos-7 \(.*12.fruit\)$/m);
  expect(beside.out).toMatch(/^ +version 12 -> 13, 57344 B more; another kernel, device tree of/m);
  const json = await fruit("inspect", update, "--against", update, "--json");
  expect(JSON.parse(json.out).difference).toEqual({
    against: `fruitos-13 (${update})`,
    version: { from: "13", to: "13" },
    size: { from: expect.any(Number), to: expect.any(Number) },
    is_same_payload: true,
    changed: [],
  });
  const data = at("data");
  mkdirSync(join(data, "releases"), { recursive: true });
  const running = signedBy("anna", readFileSync(update));
  writeFileSync(join(data, "releases/b.fruit"), running);
  const on = (cmdline: string) =>
    comparedWith(
      undefined,
      { read: (path) => (path === "/proc/cmdline" ? Buffer.from(cmdline) : undefined) },
      data,
    );
  expect(await on("console=tty1 fruit.slot=b fruit.try=1")).toMatchObject({
    what: "fruitos-13 (slot b, which runs)",
    stated: { version: 13n },
  });
  expect(await on("fruit.slot=a")).toBeUndefined();
  expect(await on("console=tty1")).toBeUndefined();
});
