/** What is believed of an update file: every way it can be wrong has its own refusal. FRUIT_FUZZ=1000000 for more mutations. */
import { expect, test } from "bun:test";
import { isDeepStrictEqual } from "node:util";
import { type Encodable, encodeBencode, type Received } from "../boot/bencode.ts";
import { publicKeyOf, signEd25519 } from "../boot/ed25519.ts";
import { type Situation, verifyRelease } from "../boot/release.ts";
import { turnOf } from "../boot/rollout.ts";
import type { Statement } from "../boot/statement.ts";
import { keyLine, parseTrust, type Trust } from "../boot/trust.ts";
import {
  onlySignedBy,
  parseUpdate,
  ReleaseError,
  type ReleaseProblem,
  readSignature,
  signedBytes,
  UPDATE_MAX_BYTES,
  withSignature,
} from "../boot/updatefile.ts";
import { seeded } from "./fakes.ts";
import { mutated } from "./mutations.ts";
import {
  BOARD,
  believed,
  makePayload,
  makeRelease,
  NODE,
  seedOf,
  signedBy,
  TIMES,
  trustIn,
} from "./releases.ts";

const ROUNDS = Number(process.env.FRUIT_FUZZ ?? 5_000);
const made = makeRelease();
const { update, unsigned, trust } = made;

/** Code and message of the refusal. */
function refusal(
  bytes: Uint8Array,
  by: Trust = trust,
  node: Partial<Situation> = {},
): [ReleaseProblem | "", string] {
  try {
    verifyRelease(bytes, by, { ...NODE, ...node });
  } catch (cause) {
    if (cause instanceof ReleaseError) return [cause.code, cause.message];
    throw cause;
  }
  return ["", "believed"];
}

/** The update file with something at a path replaced, or taken out with `undefined`; not signed anew. */
function edited(bytes: Uint8Array, path: readonly string[], value: Encodable | undefined): Buffer {
  const inner = (
    received: Received | undefined,
    [key = "", ...rest]: readonly string[],
  ): Map<string, Encodable> => {
    const map = new Map<string, Encodable>(received?.value as ReadonlyMap<string, Received>);
    const next = rest.length > 0 ? inner(map.get(key) as Received, rest) : value;
    if (next === undefined) map.delete(key);
    else map.set(key, next);
    return map;
  };
  const root = { value: parseUpdate(bytes).root } as Received;
  return encodeBencode(inner(root, path));
}

const stating = (stated: Partial<Statement>) => makeRelease({ stated }).update;

test("what is signed is what is read", () => {
  const release = believed(made);
  const { payload, area } = makePayload();
  expect(release).toMatchObject({
    name: "fruitos-7",
    size: payload.length,
    target: "fruitos/stable",
    boards: [BOARD],
    channel: "stable",
    version: 7n,
    minFrom: 0n,
    floor: 7n,
    created: TIMES.created,
    expires: TIMES.expires,
    boot: area.boot,
    signers: ["anna"],
  });
  expect(Object.keys(release)).not.toContain("sha512");
});

test("the infohash is that of a plain torrent, and stays when others sign", () => {
  const { infohash } = parseUpdate(unsigned);
  expect(infohash).toMatch(/^[0-9a-f]{40}$/);
  expect(parseUpdate(signedBy("bert", update)).infohash).toBe(infohash);
});

test("versions up to 2^64-1 are exact", () => {
  const version = 2n ** 64n - 1n;
  expect(believed(makeRelease({ stated: { version, floor: version - 1n } }))).toMatchObject({
    version,
    floor: version - 1n,
  });
  expect(refusal(stating({ version }), trust, { floor: 2n ** 64n - 1n })).toEqual(["", "believed"]);
});

test.each([
  [
    "too long",
    Buffer.alloc(UPDATE_MAX_BYTES + 1),
    "too-large",
    "1048577 bytes; an update file has at most 1048576",
  ],
  ["empty", Buffer.alloc(0), "not-canonical", "byte 0: a value is missing"],
  ["cut", update.subarray(0, 300), "not-canonical", /^byte \d+: /],
  [
    "followed by a byte",
    Buffer.concat([update, Buffer.of(0)]),
    "not-canonical",
    `byte ${update.length}: 1 bytes after the end`,
  ],
  ["no dictionary", Buffer.from("le"), "malformed", "byte 0: the file is no dictionary"],
  ["without info", Buffer.from("de"), "malformed", "byte 0: the file.info is missing"],
  [
    "a torrent of many files",
    edited(update, ["info", "files"], []),
    "malformed",
    'byte 15: info has the unknown key "files"',
  ],
  ["not signed", unsigned, "unsigned", "nobody has signed it"],
] as const)("an update file that is %s is refused", (_what, bytes, code, why) => {
  const [found, message] = refusal(bytes);
  expect(found).toBe(code);
  expect(message).toMatch(why);
});

test.each([
  [["info", "length"], 0, "info.length is 0, not 1 to 9007199254740991"],
  [["info", "length"], 2n ** 63n, "info.length is 9223372036854775808"],
  [["info", "length"], "5", "info.length is no integer"],
  [["info", "name"], "../../etc/passwd", 'info.name is "../../etc/passwd", which is not of the form'],
  [["info", "name"], 5, "info.name is no string"],
  [["info", "piece length"], 16_384, 'info."piece length" is 16384, not 65536 to 4194304'],
  [["info", "piece length"], 8_388_608, 'info."piece length" is 8388608, not 65536 to 4194304'],
  [["info", "piece length"], 65_537, 'info."piece length" is 65537, no power of two'],
  [["info", "piece length"], 98_304, 'info."piece length" is 98304, no power of two'],
  [["info", "pieces"], Buffer.alloc(20), "info.pieces has 20 bytes, not 40"],
  [["info", "pieces"], undefined, "info.pieces is missing"],
  [["info", "pieces root"], Buffer.alloc(20), 'info."pieces root" has 20 bytes, not 32'],
  [["info", "private"], 1, 'info has the unknown key "private"'],
  [["signatures"], ["x"], "the file.signatures is no dictionary"],
  [["signatures", "anna", "signature"], Buffer.alloc(63), "signatures.anna.signature has 63 bytes, not 64"],
  [["signatures", "anna", "certificate"], "x", 'signatures.anna has the unknown key "certificate"'],
  [["signatures", "anna", "info"], 1, "the statement is no dictionary"],
  [["signatures", "anna", "info", "++"], 2, "the statement.++ is 2, not 1 to 1"],
  [["signatures", "anna", "info", "alg"], "rsa", 'the statement.alg is "rsa", which is not of the form'],
  [
    ["signatures", "anna", "info", "uuid"],
    "t".repeat(65),
    "which is not of the form /^[\\x21-\\x7e]{1,64}$/",
  ],
  [["signatures", "anna", "info", "boards"], [], "the statement.boards has 0 entries, not 1 to 64"],
  [["signatures", "anna", "info", "boards"], ["a", "a"], 'the statement.boards: "a" stands twice'],
  [
    ["signatures", "anna", "info", "boards"],
    ["a b"],
    'the statement.boards[0] is "a b", which is not of the form',
  ],
  [["signatures", "anna", "info", "channel"], "Stable", 'the statement.channel is "Stable"'],
  [["signatures", "anna", "info", "version"], "7", "the statement.version is no integer"],
  [["signatures", "anna", "info", "version"], undefined, "the statement.version is missing"],
  [["signatures", "anna", "info", "floor"], 8, "the statement.floor is 8, above the version, 7"],
  [["signatures", "anna", "info", "expires"], 5, "the statement.expires is 5, not after created, 1790000000"],
  [
    ["signatures", "anna", "info", "expires"],
    2n ** 40n,
    "the statement.expires is 1099511627776, not 0 to 253402300799",
  ],
  [["signatures", "anna", "info", "size"], 0, "the statement.size is 0"],
  [["signatures", "anna", "info", "sha256"], "x", "the statement.sha256 has 1 bytes, not 32"],
  [["signatures", "anna", "info", "side", "bytes"], 0, "the statement.side.bytes is 0"],
  [["signatures", "anna", "info", "side", "url"], "x", 'the statement.side has the unknown key "url"'],
  [["signatures", "anna", "info", "hook"], "sh", 'the statement has the unknown key "hook"'],
  [["signatures", "anna", "info", "boot", "kernel"], undefined, "the statement.boot.kernel is missing"],
  [
    ["signatures", "anna", "info", "boot", "kernel", "crc32"],
    2 ** 32,
    "the statement.boot.kernel.crc32 is 4294967296",
  ],
  [["signatures", "anna", "info", "boot", "kernel", "bytes"], 0, "the statement.boot.kernel.bytes is 0"],
  [
    ["signatures", "anna", "info", "boot", "dtb"],
    { "a b": {} },
    'the statement.boot.dtb."a b" is not of the form',
  ],
] as const)("%p as %p is named with its place", (path, value, why) => {
  const [code, message] = refusal(edited(update, path, value as Encodable));
  expect(message).toContain(why);
  expect(message).toMatch(/^byte \d+: /);
  expect(code).toBe("malformed");
});

/** Everything that a statement may hold and need not. */
const MORE: Partial<Statement> = {
  health: { services: ["nginx", "my-app@1"], deadlineSeconds: 300 },
  prev: "ab".repeat(20),
  rollout: {
    from: TIMES.now,
    jitterSeconds: 600,
    waves: [
      { percent: 10, hours: 0 },
      { percent: 100, hours: 24 },
    ],
  },
  seeds: ["https://example.org/releases/fruitos-7", "https://[2001:db8::1]:8443/"],
  trackers: ["udp://tracker.example.org:6969", "http://t.example.org/announce", "https://t.example.org/"],
};

test("what a statement may hold is read as it was stated, and not there where it was not", () => {
  expect(believed(makeRelease({ stated: MORE }))).toMatchObject(MORE);
  const { health, prev, rollout, seeds, trackers } = believed(made);
  expect({ health, prev, rollout, seeds, trackers }).toEqual({} as never);
});

test("BitTorrent clients find the signed trackers and web seeds where they look", () => {
  const { root } = parseUpdate(makeRelease({ stated: MORE }).update);
  const textOf = (one: Received | undefined) => Buffer.from(one?.bytes ?? []).toString();
  expect(textOf(root.get("announce"))).toBe("30:udp://tracker.example.org:6969");
  expect(textOf(root.get("url-list"))).toStartWith("l38:https://example.org/releases/fruitos-7");
  expect(root.get("announce-list")?.value).toHaveLength(3);
  expect(parseUpdate(update).root.has("announce")).toBe(false);
});

const wave = (percent: unknown, hours: unknown) => ({ hours, percent }) as Encodable;
test.each<[key: string, value: Encodable, why: string]>([
  ["health", {}, "the statement.health.services is missing, and so is deadline"],
  ["health", { script: "x" }, 'the statement.health has the unknown key "script"'],
  ["health", { services: ["../sh"] }, 'the statement.health.services[0] is "../sh"'],
  ["health", { deadline: 59 }, "the statement.health.deadline is 59, not 60 to 3600"],
  ["health", ["nginx"], "the statement.health is no dictionary"],
  ["prev", "ab".repeat(20), "the statement.prev has 40 bytes, not 20"],
  ["rollout", { from: 0, jitter: 0, waves: [] }, "the statement.rollout.waves has 0 entries, not 1 to 16"],
  ["rollout", { from: 0, jitter: 86_401, waves: [wave(1, 0)] }, "rollout.jitter is 86401, not 0 to 86400"],
  ["rollout", { from: 0, jitter: 0, waves: [wave(101, 0)] }, "rollout.waves[0].percent is 101, not 1 to 100"],
  ["rollout", { from: 0, jitter: 0, waves: [wave(0, 0)] }, "rollout.waves[0].percent is 0, not 1 to 100"],
  ["rollout", { from: 0, jitter: 0, waves: [{ percent: 1 }] }, "rollout.waves[0].hours is missing"],
  [
    "rollout",
    { from: 0, jitter: 0, waves: [wave(50, 0), wave(50, 1)] },
    "do not rise: 50 % after 1 h stands behind 50 % after 0 h",
  ],
  [
    "rollout",
    { from: 0, jitter: 0, waves: [wave(10, 5), wave(50, 5)] },
    "do not rise: 50 % after 5 h stands behind 10 % after 5 h",
  ],
  ["seeds", [], "the statement.seeds has 0 entries, not 1 to 16"],
  ["seeds", Array.from({ length: 17 }, (_, n) => `https://x/${n}`), "seeds has 17 entries, not 1 to 16"],
  ["seeds", ["http://example.org/"], 'has "http://example.org/", not an address of https'],
  ["seeds", ["https://anna:geheim@example.org/"], "not an address of https without user and fragment"],
  ["seeds", ["https://anna@example.org/"], "not an address of https without user and fragment"],
  ["seeds", ["https://:geheim@example.org/"], "not an address of https without user and fragment"],
  ["seeds", ["https://example.org/#x"], "not an address of https without user and fragment"],
  ["seeds", ["file:///etc/passwd"], "not an address of https"],
  ["seeds", ["https://example.org/ x"], "which is not of the form"],
  ["seeds", ["https://x/", "https://x/"], "stands twice"],
  ["seeds", [`https://x/${"y".repeat(300)}`], "which is not of the form"],
  ["seeds", ["https://:99/"], "not an address of https"],
  ["trackers", ["wss://example.org/"], "not an address of http, https, udp"],
  ["trackers", "udp://example.org:1", "the statement.trackers is no list"],
])("a statement whose %s is %j is malformed: %s", (key, value, why) => {
  const { proposal } = parseUpdate(unsigned);
  const statement = new Map<string, Encodable>(proposal?.value as ReadonlyMap<string, Received>).set(
    key,
    value,
  );
  const [code, message] = refusal(signedBy("anna", edited(unsigned, ["++"], statement)));
  expect(message).toContain(why);
  expect(code).toBe("malformed");
});

test("a node's turn is the same whenever it asks, in shares that were stated, and another with another release", () => {
  const rollout = {
    from: 1000,
    jitterSeconds: 600,
    waves: [
      { percent: 10, hours: 0 },
      { percent: 60, hours: 24 },
    ],
  };
  const turns = (infohash: string) =>
    Array.from({ length: 2000 }, (_, n) => turnOf({ infohash, rollout }, `pi${n}`));
  const first = turns("a");
  expect(turns("a")).toEqual(first);
  const within = (from: number) =>
    first.filter((turn) => turn !== undefined && turn >= from && turn < from + 600);
  const shares = [within(1000), within(1000 + 86_400), first.filter((turn) => turn === undefined)];
  expect(shares.reduce((sum, { length }) => sum + length, 0)).toBe(2000);
  for (const [index, share] of [200, 1000, 800].entries())
    expect(Math.abs((shares[index]?.length ?? 0) - share)).toBeLessThan(80);
  const early = (all: typeof first) => all.map((turn) => turn !== undefined && turn < 2000);
  const both = early(turns("b")).filter((isEarly, index) => isEarly && early(first)[index]).length;
  expect(both).toBeLessThan(60);
  expect(turnOf({ infohash: "a" }, "pi1")).toBe(0);
});

test("hints that nobody signed change nothing", () => {
  const hinted = edited(
    edited(update, ["announce"], "http://evil.example/"),
    ["url-list"],
    ["http://evil.example/"],
  );
  expect(verifyRelease(hinted, trust, NODE)).toEqual(believed(made));
});

test("a proposal that stands beside a signature is not believed", () => {
  const other = parseUpdate(makeRelease({ stated: { version: 9n } }).unsigned).proposal;
  expect(verifyRelease(edited(update, ["++"], other), trust, NODE)).toEqual(believed(made));
});

test.each([
  [
    "another board",
    { boards: ["raspberrypi,4-model-b"] },
    "wrong-board",
    `it is for ${BOARD}; this node is raspberrypi,4-model-b`,
  ],
  ["no board", { boards: [] }, "wrong-board", `it is for ${BOARD}; this node is of no known kind`],
  ["a higher floor", { floor: 8n }, "below-floor", "its version is 7; this node takes 8 and higher"],
  [
    "its time over",
    { now: TIMES.expires },
    "expired",
    "it expired at 2027-09-03T19:33:20Z; it is now 2027-09-03T19:33:20Z",
  ],
  ["its time far over", { now: 4_294_967_296 }, "expired", "it is now 2106-02-07T06:28:16Z"],
  [
    "the clock set back behind what is known",
    { now: 1000, atLeast: TIMES.expires },
    "expired",
    "it is now 2027-09-03",
  ],
  [
    "no clock, but what is known is too late",
    { now: undefined, atLeast: TIMES.expires },
    "expired",
    "the clock is not set, but it is at least 2027-09-03T19:33:20Z",
  ],
  [
    "a clock before it was made",
    { now: TIMES.created - 3601 },
    "not-yet",
    "it was made at 2026-09-21T14:13:20Z; it is now 2026-09-21T13:13:19Z",
  ],
  ["the clock of 1970", { now: 0 }, "not-yet", "it is now 1970-01-01T00:00:00Z"],
] as const)("a node with %s refuses it", (_what, node, code, why) => {
  const [found, message] = refusal(update, trust, node as Partial<Situation>);
  expect(found).toBe(code);
  expect(message).toContain(why);
});

test.each([
  ["the second before it expires", { now: TIMES.expires - 1 }],
  ["a clock a little behind", { now: TIMES.created - 3600 }],
  ["no clock at all", { now: undefined }],
  ["no clock, and something known", { now: undefined, atLeast: TIMES.expires - 1 }],
  ["one of several boards", { boards: ["raspberrypi,4-model-b", BOARD] }],
  ["just its floor", { floor: 7n }],
  ["nothing running", { running: undefined }],
] as const)("a node with %s takes it", (_what, node) => {
  expect(refusal(update, trust, node as Partial<Situation>)).toEqual(["", "believed"]);
});

test("a node that is too old for it is told what to do", () => {
  const [code, why] = refusal(stating({ minFrom: 5n }), trust, { running: 4n });
  expect(code).toBe("below-min-from");
  expect(why).toBe("it installs from version 5 on; this node runs 4: install a release between them first");
  expect(refusal(stating({ minFrom: 5n }), trust, { running: 5n })).toEqual(["", "believed"]);
});

const kernel = makePayload().area.boot.kernel;
const withKernel = (change: object) => ({
  boot: { ...makePayload().area.boot, kernel: { ...kernel, ...change } },
});

test.each([
  [
    "a size that is not the torrent's",
    { size: 5 },
    "content-disagrees",
    "its size is 5, but info.length is 81920",
  ],
  [
    "a kernel outside",
    withKernel({ offset: 81_920 }),
    "boot-files",
    "the kernel ends at byte 101920, outside the payload of 81920",
  ],
  [
    "a kernel over the initramfs",
    withKernel({ offset: 61_440, bytes: 8192 }),
    "boot-files",
    "the initramfs begins at byte 65536, inside the kernel",
  ],
  [
    "a kernel off its place",
    withKernel({ offset: 45_057 }),
    "boot-files",
    "the kernel is at byte 45057, which is no multiple of 4096",
  ],
  [
    "a kernel in the superblock",
    withKernel({ offset: 0 }),
    "boot-files",
    "the kernel begins at byte 0, inside the root",
  ],
  ["a kernel far out", withKernel({ offset: 2 ** 52 }), "boot-files", "outside the payload"],
] as const)("%s is refused however well it is signed", (_what, stated, code, why) => {
  const [found, message] = refusal(stating(stated as Partial<Statement>));
  expect(found).toBe(code);
  expect(message).toContain(why);
});

test("a changed bit in info or statement is noticed by the signature", () => {
  const bytes = Buffer.from(update);
  const at = bytes.indexOf(parseUpdate(update).info.pieces);
  bytes.writeUInt8(bytes.readUInt8(at) ^ 1, at);
  expect(refusal(bytes)).toEqual([
    "bad-signature",
    "the signature of anna does not match what it stands with; 0 of the 1 needed hold",
  ]);
  expect(refusal(edited(update, ["signatures", "anna", "info", "version"], 8))[0]).toBe("bad-signature");
});

test("a signature over the same bytes for another purpose does not hold", () => {
  const file = parseUpdate(unsigned);
  const message = signedBytes(file.infoBytes, file.proposal?.bytes ?? new Uint8Array());
  const elsewhere = withSignature(file, "anna", signEd25519(seedOf("anna"), message.subarray(19)));
  expect(refusal(elsewhere)[0]).toBe("bad-signature");
  expect(message.toString("latin1", 0, 19)).toBe("FRUIT-TORRENT++-v1\0");
});

test("a copy of a signature with L added to S is refused", () => {
  const L = 2n ** 252n + 27742317777372353535851937790883648493n;
  const { signature } = readSignature("anna", parseUpdate(update).signatures.get("anna") as Received);
  const s = BigInt(`0x${Buffer.from(signature.subarray(32)).reverse().toString("hex")}`) + L;
  const malleable = Buffer.concat([
    signature.subarray(0, 32),
    Buffer.from(s.toString(16).padStart(64, "0"), "hex").reverse(),
  ]);
  const [code, why] = refusal(edited(update, ["signatures", "anna", "signature"], malleable));
  expect(code).toBe("bad-signature");
  expect(why).toContain("has an S that is not below the order of the curve");
});

test("a signer whom nobody trusts does not count, and is named", () => {
  expect(refusal(signedBy("mallory", unsigned))).toEqual([
    "unknown-signer",
    'signed by "mallory", whom trust.json version 1 does not name for releases (it names anna)',
  ]);
  expect(refusal(signedBy("mallory", update))).toEqual(["", "believed"]);
  expect(refusal(edited(update, ["signatures", "old.rsa"], { certificate: "…", signature: "x" }))).toEqual([
    "",
    "believed",
  ]);
});

test("a trusted id with somebody else's key does not count", () => {
  expect(refusal(signedBy("anna", unsigned, seedOf("mallory")))[0]).toBe("bad-signature");
});

test("two of three must sign, in any order, and a third that is bad does no harm", () => {
  const three = trustIn(["anna", "bert", "cleo"], 2);
  expect(refusal(update, three)).toEqual([
    "not-enough-signers",
    "2 different keys must sign it, 1 have (anna); missing: bert, cleo",
  ]);
  const two = signedBy("cleo", signedBy("anna", unsigned));
  expect(refusal(two, three)).toEqual(["", "believed"]);
  expect(signedBy("anna", signedBy("cleo", unsigned))).toEqual(two);
  const spoilt = signedBy("bert", two, seedOf("mallory"));
  expect(verifyRelease(spoilt, three, NODE).signers).toEqual(["anna", "cleo"]);
  expect(refusal(signedBy("bert", update, seedOf("mallory")), three)).toEqual([
    "bad-signature",
    "the signature of bert does not match what it stands with; 1 of the 2 needed hold",
  ]);
});

test("one key under two ids is one signer", () => {
  const keys = [
    ["anna", "anna"],
    ["twin", "anna"],
    ["bert", "bert"],
  ] as const;
  const twins = parseTrust(
    JSON.stringify({
      schema: "fruit.trust/1",
      version: 1,
      threshold: { release: 2 },
      signers: keys.map(([id, of]) => ({ id, key: keyLine(publicKeyOf(seedOf(of))), roles: ["release"] })),
    }),
  );
  const twice = signedBy("twin", signedBy("anna", unsigned), seedOf("anna"));
  expect(refusal(twice, twins)[0]).toBe("not-enough-signers");
  expect(refusal(signedBy("bert", twice), twins)).toEqual(["", "believed"]);
  // Two ids hold and a third does not: still one key
  expect(refusal(signedBy("bert", twice, seedOf("mallory")), twins)[0]).toBe("bad-signature");
});

test("a signer without the role for releases does not count", () => {
  const other = parseTrust(
    JSON.stringify({
      schema: "fruit.trust/1",
      version: 1,
      threshold: { release: 1 },
      signers: [
        { id: "anna", key: keyLine(publicKeyOf(seedOf("anna"))), roles: ["head"] },
        { id: "bert", key: keyLine(publicKeyOf(seedOf("bert"))), roles: ["release"] },
      ],
    }),
  );
  expect(refusal(update, other)[0]).toBe("unknown-signer");
});

test("signers that state different things are never put together", () => {
  const later = makeRelease({ stated: { expires: TIMES.expires + 1 }, signers: ["bert"] }).update;
  const mixed = edited(update, ["signatures", "bert"], parseUpdate(later).signatures.get("bert"));
  const both = trustIn(["anna", "bert"], 2);
  expect(refusal(mixed, both)).toEqual([
    "signers-disagree",
    "its signers do not state the same: anna against bert",
  ]);
  // Either of them alone would do: then it is not clear which is meant
  expect(refusal(mixed, trustIn(["anna", "bert"], 1))[0]).toBe("signers-disagree");
  // Two agree, the third has no say
  const agreed = trustIn(["anna", "bert", "cleo"], 2);
  expect(verifyRelease(signedByAnyway("cleo", mixed, update), agreed, NODE).signers).toEqual([
    "anna",
    "cleo",
  ]);
});

/** `mixed` with the signature that a signer gave to another copy of it. */
function signedByAnyway(signer: string, mixed: Uint8Array, to: Uint8Array): Buffer {
  return edited(mixed, ["signatures", signer], parseUpdate(signedBy(signer, to)).signatures.get(signer));
}

test("what is kept of a release is what was believed, byte for byte where nobody else has signed", () => {
  expect(onlySignedBy(parseUpdate(update), ["anna"])).toEqual(update);
  const crowded = edited(signedBy("mallory", update), ["signatures", "old.rsa"], { signature: "x" });
  expect(onlySignedBy(parseUpdate(crowded), ["anna"])).toEqual(update);
});

test("a signature from another release does not hold here", () => {
  const other = makeRelease({ payload: makePayload({ seed: 50, version: 8n }) }).update;
  const grafted = edited(update, ["signatures"], parseUpdate(other).root.get("signatures"));
  expect(refusal(grafted)[0]).toBe("bad-signature");
});

test("a wrong board costs no look at a signature", () => {
  const spoilt = edited(update, ["signatures", "anna", "signature"], Buffer.alloc(64));
  expect(refusal(spoilt, trust, { boards: ["x"] })[0]).toBe("wrong-board");
  expect(refusal(spoilt)[0]).toBe("bad-signature");
});

test("the release that is believed does not change with the bytes it was read from", () => {
  const bytes = Buffer.from(update);
  const release = verifyRelease(bytes, trust, NODE);
  bytes.fill(0);
  expect(release).toEqual(believed(made));
});

test(
  `mutated update files are refused, or say what was signed (${ROUNDS})`,
  () => {
    const random = seeded(0x5160);
    const right = believed(made);
    const parts = ["i", "e", "1:", "0:", "d", "8:announce3:abc"].map((text) => Buffer.from(text));
    const codes = new Map<string, number>();
    for (let round = 0; round < ROUNDS; round++) {
      const bytes = mutated(update, random, parts);
      let code: string = "believed";
      try {
        if (!isDeepStrictEqual(verifyRelease(bytes, trust, NODE), right))
          throw new Error(`believed, but it says something else: ${Buffer.from(bytes).toString("base64")}`);
      } catch (cause) {
        if (!(cause instanceof ReleaseError)) throw cause;
        code = cause.code;
      }
      codes.set(code, (codes.get(code) ?? 0) + 1);
    }
    for (const code of ["not-canonical", "malformed", "bad-signature", "believed"])
      expect([code, codes.get(code)]).not.toEqual([code, undefined]);
  },
  30_000 + ROUNDS,
);
