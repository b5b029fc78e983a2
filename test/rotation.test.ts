/** Chains from one `trust.json` to the next, read and followed; and brought onto a node. FRUIT_FUZZ=1000000 for more mutations. */
import { expect, test } from "bun:test";
import { existsSync, linkSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { holdFolder } from "../agent/hold.ts";
import { applyChain, trustPaths } from "../agent/update/trust.ts";
import { type Encodable, encodeBencode } from "../boot/bencode.ts";
import { signEd25519 } from "../boot/ed25519.ts";
import { raiseFloors, signerFloors } from "../boot/floors.ts";
import { Heads } from "../boot/heads.ts";
import { CHAIN_MAX_BYTES, CHAIN_MAX_LINKS, follow, parseChain, RotationError } from "../boot/rotation.ts";
import { parseTrust, type Trust, type TrustRole } from "../boot/trust.ts";
import { seeded } from "./fakes.ts";
import { mutated } from "./mutations.ts";
import { scratch } from "./node.ts";
import { seedOf, TIMES } from "./releases.ts";
import { chainOf, FOLLOWING, headOf, keyHex, linkOf, trustOf, trustText } from "./trusts.ts";
import { command } from "./updates.ts";

const ROUNDS = Number(process.env.FRUIT_FUZZ ?? 5_000);
const ALL: TrustRole[] = ["release", "trust", "head"];
const TWO = { release: 2, trust: 2, head: 1 };
/** Version 1 lists anna, bert and cleo; 2 has dora for bert; 3 has emil for cleo. Two must sign. */
const ONE = trustText(1, { anna: ALL, bert: ALL, cleo: ALL }, TWO);
const SECOND = trustText(2, { anna: ALL, cleo: ALL, dora: ALL }, TWO);
const THIRD = trustText(3, { anna: ALL, dora: ALL, emil: ALL }, TWO);
const OWN = parseTrust(ONE);
const FIRST_LINK = linkOf(SECOND, "anna", "cleo");
const SECOND_LINK = linkOf(THIRD, "anna", "dora");
const CHAIN = chainOf(FIRST_LINK, SECOND_LINK);

function refusal(chain: Uint8Array, own: Trust = OWN): [string, string] {
  try {
    return ["", `led to version ${follow(own, parseChain(chain)).trust.version}`];
  } catch (cause) {
    if (cause instanceof RotationError) return [cause.code, cause.message];
    throw cause;
  }
}

test("a chain leads from any of its versions to its last", () => {
  const found = follow(OWN, parseChain(CHAIN));
  expect(found.text).toBe(THIRD);
  expect(found.trust).toEqual(parseTrust(THIRD));
  expect([...found.gone.head].sort()).toEqual([keyHex("bert"), keyHex("cleo")].sort());
  expect(refusal(CHAIN, parseTrust(SECOND))).toEqual(["", "led to version 3"]);
  expect(follow(parseTrust(THIRD), parseChain(CHAIN)).text).toBeUndefined();
  expect(follow(trustOf(9, { anna: ALL }), parseChain(CHAIN)).text).toBeUndefined();
});

test("a key that is lost on the way and listed again at its end has been lost", () => {
  const back = trustText(3, { anna: ALL, bert: ALL, cleo: ["release"], dora: ALL }, TWO);
  const { gone } = follow(OWN, parseChain(chainOf(FIRST_LINK, linkOf(back, "anna", "dora"))));
  expect([...gone.release]).toEqual([keyHex("bert")]);
  expect([...gone.head].sort()).toEqual([keyHex("bert"), keyHex("cleo")].sort());
});

const oldAndNew = trustText(2, { dora: ALL, emil: ALL }, TWO);
test.each<[what: string, chain: () => Uint8Array, code: string, why: string]>([
  [
    "with a gap before it",
    () => chainOf(SECOND_LINK),
    "gap",
    "it goes on with version 3, but version 2 must come first: from 1 there is no way past it",
  ],
  [
    "with a gap in it",
    () => encodeRaw([FIRST_LINK, linkOf(trustText(4, { anna: ALL, dora: ALL }, TWO), "anna", "dora")]),
    "gap",
    "version 4 stands behind version 2",
  ],
  ["that goes back", () => encodeRaw([SECOND_LINK, FIRST_LINK]), "gap", "version 2 stands behind version 3"],
  [
    "with a link twice",
    () => encodeRaw([FIRST_LINK, FIRST_LINK]),
    "gap",
    "version 2 stands behind version 2",
  ],
  [
    "that nobody signed",
    () => chainOf(linkOf(SECOND)),
    "not-enough-signers",
    "version 2: 2 different keys of version 1 must sign it (anna, bert, cleo), 0 have",
  ],
  [
    "that one of two signed",
    () => chainOf(linkOf(SECOND, "anna")),
    "not-enough-signers",
    "version 2: 2 different keys of version 1 must sign it (anna, bert, cleo), 1 have",
  ],
  [
    "that strangers signed too",
    () => chainOf(linkOf(SECOND, "anna", "mallory", "eve")),
    "not-enough-signers",
    "1 have",
  ],
  [
    "that only those before signed",
    () => chainOf(linkOf(oldAndNew, "anna", "bert")),
    "not-enough-signers",
    "version 2: 2 different keys of itself must sign it (dora, emil), 0 have",
  ],
  [
    "that only those after signed",
    () => chainOf(linkOf(oldAndNew, "dora", "emil")),
    "not-enough-signers",
    "version 2: 2 different keys of version 1 must sign it",
  ],
  [
    "with a signature over something else",
    () =>
      chainOf({
        text: SECOND,
        signatures: new Map([...linkOf(SECOND, "anna").signatures, ...linkOf(THIRD, "cleo").signatures]),
      }),
    "bad-signature",
    "version 2: the signature of cleo does not match it; 1 of the 2 that version 1 asks for hold",
  ],
  [
    "to a version that nobody could replace",
    () => chainOf(linkOf(trustText(2, { anna: ALL, cleo: ALL }, { release: 1 }), "anna", "cleo")),
    "fixed",
    'version 2: itself has no threshold for the role "trust", so that nobody can sign the next',
  ],
  [
    "whose second link is bad, and then the first does not count either",
    () => chainOf(FIRST_LINK, linkOf(THIRD, "anna", "bert")),
    "not-enough-signers",
    "version 3: 2 different keys of version 2 must sign it (anna, cleo, dora), 1 have",
  ],
])("a chain %s is refused", (_what, chain, code, why) => {
  const [found, message] = refusal(chain());
  expect(message).toContain(why);
  expect(found).toBe(code);
});

test("a chain from a trust.json that gives nobody the right leads nowhere", () => {
  const own = trustOf(1, { anna: ALL, cleo: ALL }, { release: 1 });
  expect(refusal(CHAIN, own)).toEqual([
    "fixed",
    'version 2: version 1 has no threshold for the role "trust", so that nobody can sign the next',
  ]);
});

test("a signature is over the domain and the text, and over nothing else that somebody may sign", () => {
  const by = (message: Uint8Array) =>
    new Map(["anna", "cleo"].map((name) => [keyHex(name), signEd25519(seedOf(name), message)]));
  const signed = (message: Uint8Array) => refusal(chainOf({ text: SECOND, signatures: by(message) }))[0];
  expect(signed(Buffer.from(`FRUIT-TRUST-v1\0${SECOND}`))).toBe("");
  expect(signed(Buffer.from(SECOND))).toBe("bad-signature");
  expect(signed(Buffer.from(`FRUIT-TORRENT++-v1\0${SECOND}`))).toBe("bad-signature");
});

test("a key under two ids signs once", () => {
  const own = trustOf(1, { anna: ALL, "twin=anna": ALL, bert: ALL }, { release: 1, trust: 2 });
  const text = trustText(2, { anna: ALL, "twin=anna": ALL, bert: ALL }, { release: 1, trust: 2 });
  expect(refusal(chainOf(linkOf(text, "anna")), own)[0]).toBe("not-enough-signers");
  expect(refusal(chainOf(linkOf(text, "anna", "bert")), own)).toEqual(["", "led to version 2"]);
});

test("another trust.json of the same version is told from the own", () => {
  const forked = parseTrust(trustText(2, { anna: ALL, bert: ALL, cleo: ALL }, TWO));
  expect(refusal(CHAIN, forked)).toEqual([
    "another",
    "its version 2 is another than the trust.json of version 2 here",
  ]);
  // What only looks different is the same
  expect(refusal(CHAIN, parseTrust(JSON.stringify(JSON.parse(SECOND), null, 2)))).toEqual([
    "",
    "led to version 3",
  ]);
});

function encodeRaw(
  links: readonly { text: string | Uint8Array; signatures: ReadonlyMap<string, Uint8Array> }[],
) {
  return encodeBencode({
    links: links.map(({ text, signatures }) => ({
      signatures: new Map(
        [...signatures].map(([key, value]) => [Buffer.from(key, "hex").toString("latin1"), value]),
      ),
      text,
    })),
    schema: "fruit.trust-chain/1",
  });
}
const doc = (change: Record<string, Encodable | undefined>) =>
  encodeBencode({
    links: [{ signatures: new Map(), text: SECOND }],
    schema: "fruit.trust-chain/1",
    ...change,
  });
const link = (change: Record<string, Encodable | undefined>) =>
  doc({ links: [{ signatures: new Map(), text: SECOND, ...change }] });

test.each<[what: string, bytes: () => Uint8Array, code: string, why: string]>([
  ["too long", () => Buffer.alloc(CHAIN_MAX_BYTES + 1), "too-large", "a chain has at most 1048576"],
  ["empty", () => Buffer.alloc(0), "not-canonical", "byte 0: a value is missing"],
  [
    "followed by a byte",
    () => Buffer.concat([CHAIN, Buffer.of(0)]),
    "not-canonical",
    "1 bytes after the end",
  ],
  ["of another schema", () => doc({ schema: "fruit.trust-chain/2" }), "malformed", "the chain.schema is"],
  ["with another key", () => doc({ more: 1 }), "malformed", 'the chain has the unknown key "more"'],
  ["without links", () => doc({ links: [] }), "malformed", "the chain.links has 0 entries, not 1 to 64"],
  [
    "with too many links",
    () =>
      doc({
        links: Array.from({ length: CHAIN_MAX_LINKS + 1 }, () => ({ signatures: new Map(), text: SECOND })),
      }),
    "malformed",
    "the chain.links has 65 entries, not 1 to 64",
  ],
  [
    "with a link that is none",
    () => doc({ links: ["x"] }),
    "malformed",
    "the chain.links[0] is no dictionary",
  ],
  [
    "with another key in a link",
    () => link({ role: "boss" }),
    "malformed",
    'the chain.links[0] has the unknown key "role"',
  ],
  [
    "with a text too long",
    () => link({ text: " ".repeat(65_537) }),
    "malformed",
    "a trust.json has at most 65536",
  ],
  [
    "with bad UTF-8",
    () => link({ text: Buffer.from([0x22, 0xff, 0x22]) }),
    "malformed",
    "the chain.links[0].text is no UTF-8",
  ],
  [
    "with no trust.json",
    () => link({ text: "{}" }),
    "malformed",
    "the chain.links[0].text is no trust.json: schema: is missing",
  ],
  [
    "with a key twice in its text",
    () => link({ text: SECOND.replace('"version":2', '"version":1,"version":2') }),
    "malformed",
    "a key stands twice",
  ],
  [
    "with a short key",
    () => link({ signatures: { x: Buffer.alloc(64) } }),
    "malformed",
    "is no key: it has 1 bytes, not 32",
  ],
  [
    "with a short signature",
    () => link({ signatures: { ["k".repeat(32)]: Buffer.alloc(63) } }),
    "malformed",
    "has 63 bytes, not 64",
  ],
  [
    "with very many signatures",
    () =>
      link({
        signatures: new Map(
          Array.from({ length: 201 }, (_, n) => [String(n).padStart(32, "0"), Buffer.alloc(64)]),
        ),
      }),
    "malformed",
    "has 201 entries; at most 200 are read",
  ],
])("a chain that is %s is refused", (_what, bytes, code, why) => {
  const [found, message] = refusal(bytes());
  expect(message).toContain(why);
  expect(found).toBe(code);
});

test(
  `mutated chains are refused, or lead where the right one does (${ROUNDS})`,
  () => {
    const random = seeded(0xc4a1);
    const parts = ["i", "e", "1:", "0:", "d", '"version":9', '"trust":1'].map((text) => Buffer.from(text));
    const codes = new Map<string, number>();
    for (let round = 0; round < ROUNDS; round++) {
      const bytes = mutated(CHAIN, random, parts);
      let code = "led on";
      try {
        const { text } = follow(OWN, parseChain(bytes));
        if (text !== THIRD && text !== SECOND)
          throw new Error(`led elsewhere: ${Buffer.from(bytes).toString("base64")}`);
      } catch (cause) {
        if (!(cause instanceof RotationError)) throw cause;
        code = cause.code;
      }
      codes.set(code, (codes.get(code) ?? 0) + 1);
    }
    for (const code of ["not-canonical", "malformed", "led on"])
      expect([code, codes.get(code)]).not.toEqual([code, undefined]);
  },
  60_000 + 2 * ROUNDS,
);

/** A node's data folder with version 1. */
function node() {
  const folder = scratch();
  const data = join(folder.path, "data");
  mkdirSync(data);
  const paths = trustPaths(data);
  writeFileSync(paths.trust, ONE);
  return {
    ...{ folder, data, paths },
    text: () => readFileSync(paths.trust, "utf8"),
    apply: (chain: Uint8Array) => applyChain(data, chain),
    /** What its signers are known for. */
    floors: async () => {
      const floor = await signerFloors(paths.floors);
      return ["anna", "bert", "cleo"].map((name) => floor(keyHex(name), "t"));
    },
    [Symbol.dispose]: () => folder[Symbol.dispose](),
  };
}

test("a chain that is applied replaces trust.json by exactly what was signed, once", async () => {
  using on = node();
  expect(await on.apply(CHAIN)).toMatchObject({ from: 1, trust: { version: 3 }, revoked: ["bert", "cleo"] });
  expect(on.text()).toBe(THIRD);
  expect(await on.apply(CHAIN)).toMatchObject({ from: 3, trust: { version: 3 }, revoked: [] });
  expect(await on.apply(chainOf(FIRST_LINK))).toMatchObject({ from: 3, trust: { version: 3 } });
  expect(on.text()).toBe(THIRD);
});

test("trust.json is replaced, never written into: a cut leaves the whole old or the whole new one", async () => {
  using on = node();
  const before = join(on.folder.path, "before");
  linkSync(on.paths.trust, before);
  await on.apply(CHAIN);
  expect(readFileSync(before, "utf8")).toBe(ONE);
  expect(on.text()).toBe(THIRD);
});

test("a folder that is no node's is left as it is", async () => {
  using on = node();
  const dir = join(on.folder.path, "typo");
  await expect(applyChain(dir, CHAIN)).rejects.toThrow("typo/trust.json: ENOENT");
  expect(existsSync(dir)).toBe(false);
});

test("two chains at once are applied one after the other", async () => {
  using on = node();
  using _ = holdFolder(join(on.data, "boot"), "trust");
  await expect(on.apply(CHAIN)).rejects.toThrow("another trust is running there");
  expect(on.text()).toBe(ONE);
});

test("a chain that is refused changes nothing", async () => {
  using on = node();
  const chain = chainOf(FIRST_LINK, linkOf(THIRD, "anna", "bert"));
  await expect(on.apply(chain)).rejects.toThrow("version 3: 2 different keys of version 2 must sign it");
  expect(on.text()).toBe(ONE);
});

test("what a revoked key had said is forgotten: heads and floors", async () => {
  using on = node();
  const keys = ["anna", "bert", "cleo"].map(keyHex);
  await raiseFloors(on.paths.floors, { keys, target: "t", version: 5n }, OWN);
  const heads = await Heads.open(on.paths.heads);
  for (const name of ["anna", "bert"])
    await heads.take(headOf(name, { version: 2n ** 62n }), OWN, FOLLOWING, { now: TIMES.now });
  await applyChain(on.data, chainOf(FIRST_LINK), heads);
  expect(heads.of(FOLLOWING, OWN).map(({ key }) => key)).toEqual([keyHex("anna")]);
  expect((await Heads.open(on.paths.heads)).of(FOLLOWING, OWN)).toHaveLength(1);
  expect(await on.floors()).toEqual([5n, 0n, 5n]);
});

test("a cut between the new trust.json and the forgetting leaves nothing that counts, and the same chain again ends it", async () => {
  using on = node();
  await raiseFloors(on.paths.floors, { keys: [keyHex("bert")], target: "t", version: 2n ** 62n }, OWN);
  const heads = await Heads.open(on.paths.heads);
  await heads.take(headOf("bert", { version: 2n ** 62n }), OWN, FOLLOWING, { now: TIMES.now });
  writeFileSync(on.paths.trust, SECOND);
  writeFileSync(`${on.paths.trust}.new`, SECOND.slice(0, 50));
  expect((await Heads.open(on.paths.heads)).of(FOLLOWING, parseTrust(SECOND))).toEqual([]);
  await on.apply(chainOf(FIRST_LINK));
  expect(on.text()).toBe(SECOND);
  expect(await on.floors()).toEqual([0n, 0n, 0n]);
  expect((await Heads.open(on.paths.heads)).of(FOLLOWING, OWN)).toEqual([]);
});

test("a cut within the forgetting leaves the old trust.json: the same chain forgets a key that it lists again, too", async () => {
  using on = node();
  await raiseFloors(on.paths.floors, { keys: [keyHex("bert")], target: "t", version: 2n ** 62n }, OWN);
  const back = trustText(3, { anna: ALL, bert: ALL, cleo: ALL }, TWO);
  const chain = chainOf(FIRST_LINK, linkOf(back, "anna", "cleo"));
  // What a medium that fails in that moment leaves
  mkdirSync(`${on.paths.floors}.new`);
  await expect(on.apply(chain)).rejects.toThrow();
  expect(on.text()).toBe(ONE);
  rmdirSync(`${on.paths.floors}.new`);
  await on.apply(chain);
  expect(on.text()).toBe(back);
  expect(await on.floors()).toEqual([0n, 0n, 0n]);
});

test("floors rise, never fall, and are kept by key and target", async () => {
  using on = node();
  const raise = (version: bigint, keys: string[], target = "t") =>
    raiseFloors(on.paths.floors, { keys: keys.map(keyHex), target, version }, OWN);
  expect(await on.floors()).toEqual([0n, 0n, 0n]);
  await raise(2n ** 64n - 1n, ["anna"]);
  await raise(7n, ["bert"]);
  await raise(6n, ["anna", "bert", "cleo"]);
  await raise(9n, ["cleo"], "u");
  expect(await on.floors()).toEqual([2n ** 64n - 1n, 7n, 6n]);
  writeFileSync(on.paths.floors, readFileSync(on.paths.floors, "utf8").slice(0, -9));
  expect(await on.floors()).toEqual([0n, 0n, 0n]);
});

test("a person brings a chain onto a node, and is told what came of it", async () => {
  using on = node();
  const file = join(on.folder.path, "3.trust");
  writeFileSync(file, CHAIN);
  const config = on.folder.file("node.json", { site: "lab", data_dir: on.data });
  const words = ["update", "trust", file, "--config", config, "--hal", "sim"];
  expect(await command(words)).toEqual({
    exit: 0,
    out: "trust.json: version 1 -> 3; revoked: bert, cleo\n",
    err: "",
  });
  expect(await command(words)).toEqual({
    exit: 0,
    out: "trust.json is of version 3: nothing newer in it\n",
    err: "",
  });
  writeFileSync(on.paths.trust, ONE);
  const json = await command([...words, "--json"]);
  expect(JSON.parse(json.out)).toEqual({
    schema: "fruit.update-trust/1",
    from: 1,
    to: 3,
    revoked: ["bert", "cleo"],
  });
  writeFileSync(on.paths.trust, ONE);
  writeFileSync(file, chainOf(SECOND_LINK));
  expect(await command(words)).toMatchObject({
    exit: 4,
    err: expect.stringContaining("version 2 must come first"),
  });
  expect(on.text()).toBe(ONE);
  writeFileSync(on.paths.trust, "{");
  expect((await command(words)).exit).toBe(78);
  expect(existsSync(`${on.paths.trust}.new`)).toBe(false);
});
