/** Heads: read strictly, believed by key, remembered by key. FRUIT_FUZZ=1000000 for more mutations. */
import { expect, test } from "bun:test";
import { createHash, createPublicKey, verify } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";
import { type Encodable, encodeBencode } from "../boot/bencode.ts";
import { publicKeyOf, signEd25519 } from "../boot/ed25519.ts";
import {
  type Announced,
  encodeHead,
  encodeV,
  HEAD_MAX_BYTES,
  type Head,
  HeadError,
  headBytes,
  headId,
  newestOf,
  overdue,
  parseHead,
  verifyHead,
} from "../boot/head.ts";
import { Heads } from "../boot/heads.ts";
import { seeded } from "./fakes.ts";
import { mutated } from "./mutations.ts";
import { scratch } from "./node.ts";
import { needsModule, python } from "./python.ts";
import { seedOf, TIMES } from "./releases.ts";
import { FOLLOWING, headOf, keyHex, malleable, SAID, trustOf } from "./trusts.ts";

const ROUNDS = Number(process.env.FRUIT_FUZZ ?? 5_000);
const HEAD = headOf("anna");
const TRUST = trustOf(1, { anna: ["head"], bert: ["head"], cleo: ["release", "trust"] });
const WHEN = { now: TIMES.now };

function refusal(
  bytes: Uint8Array,
  when: { now: number | undefined } = WHEN,
  trust = TRUST,
): [string, string] {
  try {
    verifyHead(bytes, trust, FOLLOWING, when);
  } catch (cause) {
    if (cause instanceof HeadError) return [cause.code, cause.message];
    throw cause;
  }
  return ["", "heard"];
}

/** An item with some of its fields replaced, not signed anew. */
function item(change: Record<string, Encodable | undefined>, v: Record<string, Encodable | undefined> = {}) {
  const { infohash: _, isWithdrawn: __, target: ___, ...said } = SAID;
  return encodeBencode({
    k: publicKeyOf(seedOf("anna")),
    salt: SAID.target,
    seq: SAID.version,
    sig: parseHead(HEAD).signature,
    v: { ...said, ih: Buffer.from(SAID.infohash, "hex"), ...v },
    ...change,
  });
}

test("what is said is what is heard", () => {
  const { bytes, v, signature, key, ...said } = verifyHead(HEAD, TRUST, FOLLOWING, WHEN);
  expect(said).toEqual(SAID);
  expect(key).toBe(keyHex("anna"));
  expect(HEAD.equals(bytes)).toBe(true);
  expect(item({}).equals(HEAD)).toBe(true);
  expect(parseHead(headOf("anna", { isWithdrawn: true })).isWithdrawn).toBe(true);
});

test("a head is a BEP 44 item: its bytes are signed as that says, and found where that says", () => {
  // Test vector 2 of BEP 44 (mutable with salt)
  expect(headBytes("foobar", 1n, encodeBencode("Hello World!")).toString()).toBe(
    "4:salt6:foobar3:seqi1e1:v12:Hello World!",
  );
  const k = Buffer.from("77ff84905a91936367c01360803104f92432fcd904a43511876df5cdf3e7e548", "hex");
  expect(headId(k, "foobar")).toBe("411eba73b6f087ca51a3795d9c8c938d365e32c1");
  // By hand, with nothing of ours
  const text = HEAD.toString("latin1");
  const v = text.slice(text.indexOf("1:vd") + 3, -1);
  const signed = Buffer.from(`4:salt14:fruitos/stable3:seqi7e1:v${v}`, "latin1");
  const at = text.indexOf("3:sig64:") + 8;
  const spki = Buffer.concat([
    Buffer.from("302a300506032b6570032100", "hex"),
    Buffer.from(text.slice(7, 39), "latin1"),
  ]);
  const key = createPublicKey({ key: spki, format: "der", type: "spki" });
  expect(verify(null, signed, key, Buffer.from(text.slice(at, at + 64), "latin1"))).toBe(true);
  expect(headId(publicKeyOf(seedOf("anna")), "x")).toBe(
    createHash("sha1")
      .update(publicKeyOf(seedOf("anna")))
      .update("x")
      .digest("hex"),
  );
});

const libtorrent = needsModule(
  "libtorrent reads a head's value and writes the same",
  "libtorrent",
  "python3-libtorrent",
);
test.skipIf(libtorrent.isSkipped)(libtorrent.title, async () => {
  const { exit, out, err } = await python(
    "import libtorrent as lt, sys; item = lt.bdecode(bytes.fromhex(sys.argv[1])); print(lt.bencode(item).hex()); print(item[b'v'][b'ih'].hex(), item[b'seq'])",
    HEAD.toString("hex"),
  );
  expect([exit, err]).toEqual([0, ""]);
  expect(out.trim().split("\n")).toEqual([HEAD.toString("hex"), `${SAID.infohash} 7`]);
});

test("the longest head fits into a datagram", () => {
  const longest = headOf("anna", {
    target: "t".repeat(64),
    channel: "c".repeat(32),
    version: 2n ** 63n - 1n,
    issued: 253_402_300_000,
    expires: 253_402_300_799,
    isWithdrawn: true,
  });
  expect(longest.length).toBeLessThan(HEAD_MAX_BYTES);
  expect(encodeV(SAID).length).toBeLessThan(1000);
});

test.each<[what: string, bytes: Uint8Array, code: string, why: string]>([
  ["too long", Buffer.alloc(HEAD_MAX_BYTES + 1), "too-large", "1401 bytes; a head has at most 1400"],
  ["empty", Buffer.alloc(0), "not-canonical", "byte 0: a value is missing"],
  ["followed by a byte", Buffer.concat([HEAD, Buffer.of(0)]), "not-canonical", "1 bytes after the end"],
  ["with its keys in another order", Buffer.from("d1:v0:1:k0:e"), "not-canonical", 'key "k" comes after "v"'],
  ["with a key twice", Buffer.from("d1:k0:1:k0:e"), "not-canonical", 'key "k" stands twice'],
  ["with a negative number", Buffer.from("d3:seqi-1ee"), "not-canonical", "an integer cannot hold"],
  ["a list", Buffer.from("le"), "malformed", "the head is no dictionary"],
  ["with another key", item({ cas: 1 }), "malformed", 'the head has the unknown key "cas"'],
  ["with another key in v", item({}, { m: "x" }), "malformed", 'the head.v has the unknown key "m"'],
  ["with a short key", item({ k: Buffer.alloc(31) }), "malformed", "the head.k has 31 bytes, not 32"],
  [
    "with a short signature",
    item({ sig: Buffer.alloc(63) }),
    "malformed",
    "the head.sig has 63 bytes, not 64",
  ],
  ["with a text for a number", item({ seq: "7" }), "malformed", "the head.seq is no integer"],
  ["without a salt", item({ salt: undefined }), "malformed", "the head.salt is missing"],
  [
    "with too long a salt",
    item({ salt: "s".repeat(65) }),
    "malformed",
    "which is not of the form /^[\\x21-\\x7e]{1,64}$/",
  ],
  ["with bad UTF-8 for a salt", item({ salt: Buffer.of(0xff) }), "malformed", "which is not of the form"],
  ["with a text for v", item({ v: "x" }), "malformed", "the head.v is no dictionary"],
  ["with too long a v", item({ v: { channel: "x".repeat(1000) } }), "malformed", "it has fewer than 1000"],
  ["with two versions", item({ seq: 8 }), "malformed", "the head.seq is 8, but v.version is 7"],
  [
    "with a version that BEP 44 cannot say",
    item({ seq: 2n ** 63n }, { version: 2n ** 63n }),
    "malformed",
    "the head.v.version is 9223372036854775808; a head can say 2^63-1 at most",
  ],
  [
    "with a number of 21 digits",
    Buffer.from(`d3:seqi${"9".repeat(21)}ee`),
    "not-canonical",
    "more than 20 digits",
  ],
  [
    "with a short infohash",
    item({}, { ih: Buffer.alloc(19) }),
    "malformed",
    "the head.v.ih has 19 bytes, not 20",
  ],
  ["with a strange channel", item({}, { channel: "Stable" }), "malformed", 'the head.v.channel is "Stable"'],
  ["that ends before it begins", item({}, { expires: SAID.issued }), "malformed", "not after issued"],
  [
    "that holds for ever",
    item({}, { expires: SAID.issued + 367 * 86_400 }),
    "malformed",
    "the head.v.expires is 367 days after issued; at most 366",
  ],
  ["withdrawn by 0", item({}, { withdrawn: 0 }), "malformed", "the head.v.withdrawn is 0, not 1 to 1"],
  [
    "for another target",
    headOf("anna", { target: "fruitos/beta" }),
    "wrong-target",
    "it is for fruitos/beta; this node follows fruitos/stable",
  ],
  [
    "of another channel",
    headOf("anna", { channel: "beta" }),
    "wrong-channel",
    "it is of channel beta; this node follows stable",
  ],
  ["by a stranger", headOf("mallory"), "unknown-signer", 'has not the role "head" in trust.json version 1'],
  [
    "by a signer of releases",
    headOf("cleo"),
    "unknown-signer",
    'has not the role "head" in trust.json version 1',
  ],
  [
    "with another's signature",
    item({ k: publicKeyOf(seedOf("bert")) }),
    "bad-signature",
    "the signature of bert does not match it",
  ],
  [
    "with a changed infohash",
    item({}, { ih: Buffer.alloc(20) }),
    "bad-signature",
    "the signature of anna does not match it",
  ],
  [
    "with a changed salt",
    item({ salt: "fruitos/stable" }, { expires: SAID.expires + 1 }),
    "bad-signature",
    "does not match it",
  ],
  [
    "with a signature of S + L",
    item({ sig: malleable(parseHead(HEAD).signature) }),
    "bad-signature",
    "the signature of anna has an S that is not below the order of the curve: it is a changed copy",
  ],
  [
    "from the future",
    headOf("anna", { issued: TIMES.now + 3601, expires: TIMES.now + 7200 }),
    "not-yet",
    "it was issued at 2027-01-15T09:00:01Z; it is now 2027-01-15T08:00:00Z",
  ],
])("a head %s is refused", (_what, bytes, code, why) => {
  const [found, message] = refusal(bytes);
  expect(message).toContain(why);
  expect(found).toBe(code);
});

test("a signature over another salt is none over this", () => {
  const v = encodeV(SAID);
  const signature = signEd25519(seedOf("anna"), headBytes("fruitos/beta", SAID.version, v));
  expect(refusal(item({ sig: signature }))[0]).toBe("bad-signature");
});

test.each<[what: string, said: Partial<Announced>]>([
  ["a version beyond BEP 44", { version: 2n ** 63n }],
  ["a strange channel", { channel: "Stable" }],
  ["an end before its beginning", { expires: 5 }],
  ["a target longer than a salt", { target: "t".repeat(65) }],
])("%s cannot be said", (_what, said) => {
  expect(() => headOf("anna", said)).toThrow(HeadError);
});

test.each([
  ["in time", TIMES.now, 0, 0],
  ["long ago", TIMES.now + 8 * 86_400, 0, 2 * 86_400],
  ["by what is certainly past, with no clock", undefined, TIMES.now + 7 * 86_400, 86_400],
  ["not, with no clock and nothing known", undefined, 0, 0],
  ["not, by a clock at 1970", 0, 0, 0],
  ["by a clock at 1970 that is known to be wrong", 0, TIMES.now + 7 * 86_400, 86_400],
  ["in 2038", 2_147_483_648, 0, 2_147_483_648 - SAID.expires],
  ["in 2106", 4_294_967_296, 0, 4_294_967_296 - SAID.expires],
])("a head has expired %s: that is a number, no refusal", (_what, now, atLeast, late) => {
  expect(overdue(SAID, { now, atLeast })).toBe(late);
  expect(refusal(HEAD, { now: now === 0 ? undefined : now })).toEqual(["", "heard"]);
});

const heads = (...all: Uint8Array[]): Head[] => all.map((one) => parseHead(one));

test("heads are counted by keys that agree, and by the times that enough of them vouch for", () => {
  const trust = trustOf(
    1,
    { anna: ["head", "release"], bert: ["head"], cleo: ["head"] },
    { release: 1, head: 2 },
  );
  const [a, b, c] = [
    headOf("anna", { issued: SAID.issued + 50, expires: SAID.expires + 50 }),
    headOf("bert"),
    headOf("cleo", { version: 9n }),
  ];
  expect(newestOf(heads(a, c), trust)).toEqual([]);
  expect(newestOf(heads(a, a), trust)).toEqual([]);
  expect(newestOf(heads(a, headOf("mallory")), trust)).toEqual([]);
  expect(newestOf(heads(a, b, c), trust)).toEqual([{ ...SAID, signers: ["anna", "bert"] }]);
  const withdrawn = headOf("anna", { isWithdrawn: true, issued: SAID.issued + 60 });
  expect(newestOf(heads(withdrawn, b), trust)).toEqual([]);
  expect(newestOf(heads(a, headOf("bert", { infohash: "6".repeat(40) })), trust)).toEqual([]);
});

test("what one key has withdrawn no other key offers again, and the order of hearing decides nothing", () => {
  const withdrawn = headOf("bert", { isWithdrawn: true });
  const renewed = headOf("anna", { issued: SAID.issued + 3600 });
  const other = headOf("anna", { infohash: "6".repeat(40) });
  for (const all of [
    [withdrawn, renewed],
    [renewed, withdrawn],
  ])
    expect(newestOf(heads(...all), TRUST).map(({ isWithdrawn }) => isWithdrawn)).toEqual([true, false]);
  const one = newestOf(heads(other, headOf("bert")), TRUST).map(({ infohash }) => infohash);
  expect(newestOf(heads(headOf("bert"), other), TRUST).map(({ infohash }) => infohash)).toEqual(one);
  expect(newestOf(heads(withdrawn, headOf("anna", { version: 8n })), TRUST)[0]?.version).toBe(8n);
});

test("what one key says too much stands before what others say, and not in its stead", () => {
  const all = newestOf(heads(headOf("bert", { version: 2n ** 62n }), HEAD), TRUST);
  expect(all.map(({ version, signers }) => [version, signers])).toEqual([
    [2n ** 62n, ["bert"]],
    [7n, ["anna"]],
  ]);
});

test("nobody's word counts where trust.json has no threshold for heads", () => {
  expect(newestOf(heads(HEAD), trustOf(1, { anna: ["head", "release"] }, { release: 1 }))).toEqual([]);
});

async function memory(folder: string) {
  const path = join(folder, "heads.json");
  const open = await Heads.open(path);
  const take = async (bytes: Uint8Array, trust = TRUST, following = FOLLOWING) => {
    try {
      return (await open.take(bytes, trust, following, WHEN)) ? "new" : "known";
    } catch (cause) {
      if (cause instanceof HeadError) return cause.code;
      throw cause;
    }
  };
  return { open, take, path };
}

test("of one key nothing older counts again, after a start neither", async () => {
  using folder = scratch();
  const { take } = await memory(folder.path);
  const newer = headOf("anna", { issued: SAID.issued + 1 });
  expect(await take(HEAD)).toBe("new");
  expect(await take(HEAD)).toBe("known");
  expect(await take(newer)).toBe("new");
  expect(await take(HEAD)).toBe("older");
  expect(await take(headOf("anna", { version: 6n, issued: SAID.issued + 99 }))).toBe("older");
  expect(await take(headOf("anna", { issued: SAID.issued + 1, infohash: "6".repeat(40) }))).toBe(
    "contradicts",
  );
  expect(await take(headOf("bert", { version: 6n }))).toBe("new");
  const again = await memory(folder.path);
  expect(again.open.of(FOLLOWING, TRUST).map(({ key, version }) => [key, version])).toEqual([
    [keyHex("anna"), 7n],
    [keyHex("bert"), 6n],
  ]);
  expect(await again.take(HEAD)).toBe("older");
  expect(await again.take(newer)).toBe("known");
});

test("a withdrawal is of the same version, and later", async () => {
  using folder = scratch();
  const { take, open } = await memory(folder.path);
  await take(HEAD);
  expect(await take(headOf("anna", { isWithdrawn: true, issued: SAID.issued + 1 }))).toBe("new");
  expect(await take(HEAD)).toBe("older");
  expect(newestOf(open.of(FOLLOWING, TRUST), TRUST)).toMatchObject([{ version: 7n, isWithdrawn: true }]);
});

test("what is refused is not remembered", async () => {
  using folder = scratch();
  const { take, open } = await memory(folder.path);
  expect(await take(headOf("anna", { issued: TIMES.now + 9000, expires: TIMES.now + 9999 }))).toBe("not-yet");
  expect(await take(headOf("mallory"))).toBe("unknown-signer");
  expect(await take(item({ sig: Buffer.alloc(64) }))).toBe("bad-signature");
  expect(open.of(FOLLOWING, TRUST)).toEqual([]);
  expect(await take(HEAD)).toBe("new");
});

test("a key that leaves trust.json takes its memory along, even where it is listed again", async () => {
  using folder = scratch();
  const { take, open } = await memory(folder.path);
  await take(headOf("bert"));
  await take(headOf("anna", { version: 2n ** 62n }));
  const without = trustOf(2, { bert: ["head"], anna: ["release", "trust"] });
  expect(await take(HEAD, without)).toBe("unknown-signer");
  expect(open.of(FOLLOWING, without).map(({ key }) => key)).toEqual([keyHex("bert")]);
  expect(await take(HEAD)).toBe("older");
  await open.forget(without);
  expect(await take(HEAD)).toBe("new");
  expect((await memory(folder.path)).open.of(FOLLOWING, TRUST)).toHaveLength(2);
  await open.forget(TRUST, new Set([keyHex("bert")]));
  expect((await memory(folder.path)).open.of(FOLLOWING, TRUST).map(({ key }) => key)).toEqual([
    keyHex("anna"),
  ]);
});

test.each([
  ["torn", (text: string) => text.slice(0, -20)],
  ["of another schema", (text: string) => text.replace("heads/1", "heads/9")],
  ["with a head that is none", (text: string) => text.replace(/\["/, '["AAAA')],
  ["that is a number", () => "5"],
])("a memory %s is none, and is made anew", async (_what, spoil) => {
  using folder = scratch();
  const { take, path } = await memory(folder.path);
  await take(HEAD);
  writeFileSync(path, spoil(readFileSync(path, "utf8")));
  const again = await memory(folder.path);
  expect(again.open.of(FOLLOWING, TRUST)).toEqual([]);
  expect(await again.take(HEAD)).toBe("new");
});

test("the memory has a bound, and the oldest go", async () => {
  using folder = scratch();
  const { path } = await memory(folder.path);
  const targets = Array.from({ length: 201 }, (_, n) => `t${n}`);
  const [publicKey, signature] = [publicKeyOf(seedOf("anna")), Buffer.alloc(64)];
  const full = targets
    .slice(0, 200)
    .map((target) =>
      encodeHead({ ...SAID, target }, { publicKey, signature, v: encodeV(SAID) }).toString("base64"),
    );
  writeFileSync(path, JSON.stringify({ schema: "fruit.heads/1", heads: full }));
  const { open } = await memory(folder.path);
  await open.take(headOf("anna", { target: "t200" }), TRUST, { ...FOLLOWING, target: "t200" }, WHEN);
  const { open: again } = await memory(folder.path);
  const found = (target: string) => again.of({ ...FOLLOWING, target }, TRUST).length;
  expect(["t0", "t1", "t200"].map(found)).toEqual([0, 1, 1]);
});

test(
  `mutated heads are refused, or say what was signed (${ROUNDS})`,
  () => {
    const random = seeded(0x4ead);
    const right = verifyHead(HEAD, TRUST, FOLLOWING, WHEN);
    const parts = ["i", "e", "1:", "0:", "d", "9:withdrawni1e", "i0e"].map((text) => Buffer.from(text));
    const codes = new Map<string, number>();
    for (let round = 0; round < ROUNDS; round++) {
      const bytes = mutated(HEAD, random, parts);
      let code = "heard";
      try {
        if (!isDeepStrictEqual(verifyHead(bytes, TRUST, FOLLOWING, WHEN), right))
          throw new Error(`heard, but it says something else: ${Buffer.from(bytes).toString("base64")}`);
      } catch (cause) {
        if (!(cause instanceof HeadError)) throw cause;
        code = cause.code;
      }
      codes.set(code, (codes.get(code) ?? 0) + 1);
    }
    for (const code of ["not-canonical", "malformed", "bad-signature", "heard"])
      expect([code, codes.get(code)]).not.toEqual([code, undefined]);
  },
  30_000 + ROUNDS,
);
