/**
 * The attacks that The Update Framework names (specification, section 1.5.2), and what may be wrong with keys, files and clocks: what
 * each would get past, and what stands in its way. Transfers have their own tests; here it is what is believed.
 */
import { expect, test } from "bun:test";
import { existsSync, mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { applyChain, raiseSignerFloors, trustPaths } from "../agent/update/trust.ts";
import { hashPrefix } from "../boot/admit.ts";
import { decodeBencode, type Encodable, encodeBencode, type Received } from "../boot/bencode.ts";
import { signEd25519 } from "../boot/ed25519.ts";
import { raiseFloors, type SignerFloor, signerFloors } from "../boot/floors.ts";
import {
  disagreement,
  HEAD_MAX_BYTES,
  HeadError,
  newestOf,
  overdue,
  parseHead,
  verifyHead,
} from "../boot/head.ts";
import { Heads } from "../boot/heads.ts";
import { type Situation, verifyRelease } from "../boot/release.ts";
import { CHAIN_MAX_BYTES, follow, parseChain, RotationError } from "../boot/rotation.ts";
import { openSide } from "../boot/side.ts";
import type { Statement } from "../boot/statement.ts";
import { parseTrust, TRUST_MAX_BYTES, type Trust, TrustError, type TrustRole } from "../boot/trust.ts";
import {
  parseUpdate,
  ReleaseError,
  signedBytes,
  UPDATE_MAX_BYTES,
  withSignature,
} from "../boot/updatefile.ts";
import { scratch } from "./node.ts";
import { BOARD, inMemory, makePayload, makeRelease, NODE, seedOf, signedBy, TIMES } from "./releases.ts";
import { chainOf, FOLLOWING, headOf, keyHex, linkOf, malleable, SAID, trustOf, trustText } from "./trusts.ts";
import { desk } from "./updates.ts";

const ALL: TrustRole[] = ["release", "trust", "head"];
const TWO = { release: 2, trust: 2, head: 2 };
/** A vendor with three keys, of whom two must sign everything. */
const SIGNERS = { anna: ALL, bert: ALL, cleo: ALL };
const TEXT = trustText(1, SIGNERS, TWO);
const TRUST = parseTrust(TEXT);
const TARGET = SAID.target;
const signed = (version: bigint, by: readonly string[], stated: Partial<Statement> = {}) =>
  makeRelease({
    payload: makePayload({ version, seed: Number(version % 97n) + 1 }),
    signers: by,
    stated: { floor: 0n, ...stated },
  });
const SEVEN = signed(7n, ["anna", "bert"]);

/** The code of the refusal, "" where it is believed. */
function judged(bytes: Uint8Array, node: Partial<Situation> = {}, trust: Trust = TRUST): string {
  return codeOf(() => verifyRelease(bytes, trust, { ...NODE, ...node }));
}
const heard = (bytes: Uint8Array, trust = TRUST, now: number | undefined = TIMES.now) =>
  codeOf(() => verifyHead(bytes, trust, FOLLOWING, { now }));
const followed = (bytes: Uint8Array, trust = TRUST) => codeOf(() => follow(trust, parseChain(bytes)));

function codeOf(work: () => unknown): string {
  try {
    work();
    return "";
  } catch (cause) {
    if (cause instanceof ReleaseError || cause instanceof HeadError || cause instanceof RotationError)
      return cause.code;
    throw cause;
  }
}

/** A dictionary of a document with one key replaced. */
function changed(received: Received | undefined, key: string, value: Encodable | undefined) {
  const map = new Map<string, Encodable>(received?.value as ReadonlyMap<string, Received>);
  if (value === undefined) map.delete(key);
  else map.set(key, value);
  return map;
}
const rootOf = (update: Uint8Array) => ({ value: parseUpdate(update).root }) as Received;

test("arbitrary file: what nobody, somebody else, or too few have signed is not believed", () => {
  expect(judged(SEVEN.update)).toBe("");
  expect(judged(SEVEN.unsigned)).toBe("unsigned");
  expect(judged(signed(7n, ["mallory", "eve"]).update)).toBe("unknown-signer");
  expect(judged(signed(7n, ["anna"]).update)).toBe("not-enough-signers");
  const other = encodeBencode(
    changed(rootOf(SEVEN.update), "info", parseUpdate(signed(8n, []).unsigned).root.get("info")),
  );
  expect(judged(other)).toBe("bad-signature");
});

test("arbitrary file: a side file that is not the signed one is not believed, so that no leaf is either", async () => {
  const release = verifyRelease(SEVEN.update, TRUST, NODE);
  expect(await openSide(inMemory(SEVEN.side), release)).toBeDefined();
  const bent = Buffer.from(SEVEN.side);
  bent.writeUInt8(bent.readUInt8(70) ^ 1, 70);
  await expect(openSide(inMemory(bent), release)).rejects.toThrow("SHA-256");
});

test("rollback: nothing below the record's floor, whoever signed it", () => {
  expect(judged(SEVEN.update, { floor: 8n })).toBe("below-floor");
  expect(judged(SEVEN.update, { floor: 7n })).toBe("");
});

test("rollback: a signer of what was confirmed here counts for nothing older, and the others do", () => {
  const floors = (...names: string[]): SignerFloor => {
    const keys = new Set(names.map(keyHex));
    return (key, target) => (keys.has(key) && target === TARGET ? 8n : 0n);
  };
  expect(judged(SEVEN.update, { signerFloor: floors("cleo") })).toBe("");
  expect(judged(SEVEN.update, { signerFloor: floors("bert") })).toBe("below-floor");
  const three = signedBy("cleo", SEVEN.update);
  expect(judged(three, { signerFloor: floors("bert") })).toBe("");
  expect(verifyRelease(three, TRUST, { ...NODE, signerFloor: floors("bert") }).signers).toEqual([
    "anna",
    "cleo",
  ]);
  expect(judged(three, { signerFloor: floors("bert", "cleo") })).toBe("below-floor");
  expect(judged(signed(8n, ["anna", "bert"]).update, { signerFloor: floors("anna", "bert") })).toBe("");
});

/** The fields of a head as they were received. */
const parseHeadMap = (bytes: Uint8Array) =>
  decodeBencode(bytes, HEAD_MAX_BYTES).value as ReadonlyMap<string, Received>;

/** A node's folder. */
function node(text = TEXT) {
  const folder = scratch();
  const paths = trustPaths(folder.path);
  writeFileSync(paths.trust, text);
  return { ...paths, dir: folder.path, [Symbol.dispose]: () => folder[Symbol.dispose]() };
}

test("rollback: an old head is not heard again, after a start neither", async () => {
  using on = node();
  const heads = await Heads.open(on.heads);
  const [old, young] = [headOf("anna", { version: 7n }), headOf("anna", { version: 8n })];
  await heads.take(young, TRUST, FOLLOWING, NODE);
  await expect(heads.take(old, TRUST, FOLLOWING, NODE)).rejects.toThrow("this key has said 8");
  await expect((await Heads.open(on.heads)).take(old, TRUST, FOLLOWING, NODE)).rejects.toThrow(
    "this key has said 8",
  );
});

test("fast-forward: a leaked key below the threshold moves no floor and no head but its own", async () => {
  using on = node();
  const far = signed(2n ** 64n - 1n, ["cleo"]);
  expect(judged(far.update)).toBe("not-enough-signers");
  const heads = await Heads.open(on.heads);
  for (const bytes of [headOf("cleo", { version: 2n ** 63n - 1n }), headOf("anna"), headOf("bert")])
    expect(await heads.take(bytes, TRUST, FOLLOWING, NODE)).toBe(true);
  const of = (trust: Trust) => newestOf(heads.of(FOLLOWING, trust), trust).map(({ version }) => version);
  expect(of(TRUST)).toEqual([7n]);
  // And where one is enough, what it names stands beside what the others name
  expect(of(trustOf(1, SIGNERS, { ...TWO, head: 1 }))).toEqual([2n ** 63n - 1n, 7n]);
  // Its own later words count for nothing, those of the others do
  expect(await heads.take(headOf("anna", { version: 8n }), TRUST, FOLLOWING, NODE)).toBe(true);
});

test("fast-forward: a head from the future is not remembered", async () => {
  using on = node();
  const heads = await Heads.open(on.heads);
  const future = headOf("anna", { issued: TIMES.now + 86_400, expires: TIMES.now + 2 * 86_400 });
  await expect(heads.take(future, TRUST, FOLLOWING, NODE)).rejects.toThrow("it was issued at");
  expect(await heads.take(headOf("anna"), TRUST, FOLLOWING, NODE)).toBe(true);
});

test("fast-forward: it is over when the keys are rotated", async () => {
  using on = node();
  const heads = await Heads.open(on.heads);
  await heads.take(headOf("cleo", { version: 2n ** 63n - 1n }), TRUST, FOLLOWING, NODE);
  const cleo = { keys: [keyHex("cleo")], target: TARGET, version: 2n ** 64n - 1n };
  await raiseFloors(on.floors, cleo, TRUST);
  const without = linkOf(trustText(2, { anna: ALL, bert: ALL }, TWO), "anna", "bert");
  const again = linkOf(trustText(3, SIGNERS, TWO), "anna", "bert");
  const { trust } = await applyChain(on.dir, chainOf(without, again), heads);
  expect(await heads.take(headOf("cleo"), trust, FOLLOWING, NODE)).toBe(true);
  const signerFloor = await signerFloors(on.floors);
  expect(judged(signed(7n, ["anna", "cleo"]).update, { signerFloor }, trust)).toBe("");
});

test("indefinite freeze: who hears nothing new knows since when, and refuses nothing for it", () => {
  const head = verifyHead(headOf("anna"), TRUST, FOLLOWING, { now: SAID.expires + 86_400 });
  expect(overdue(head, { now: SAID.expires + 86_400, atLeast: 0 })).toBe(86_400);
  expect(overdue(head, { now: undefined, atLeast: SAID.expires + 60 })).toBe(60);
  expect(overdue(head, { now: SAID.expires - 1, atLeast: 0 })).toBe(0);
  expect(judged(SEVEN.update, { now: SAID.expires + 86_400 })).toBe("");
  // One of two who goes on saying so does not keep the other's word young
  const heads = [headOf("anna", { issued: TIMES.now, expires: TIMES.now + 300 * 86_400 }), headOf("bert")];
  expect(newestOf(heads.map(parseHead), TRUST)).toMatchObject([{ expires: SAID.expires }]);
});

test("mix-and-match: info, statement and signatures of different releases do not go together", () => {
  const eight = signed(8n, ["anna", "bert"]);
  const signatures = parseUpdate(eight.update).root.get("signatures");
  expect(judged(encodeBencode(changed(rootOf(SEVEN.update), "signatures", signatures)))).toBe(
    "bad-signature",
  );
  const larger = makeRelease({
    payload: makePayload({ rootBytes: 90_000 }),
    signers: ["anna", "bert"],
    stated: { floor: 0n },
  });
  const grafted = parseUpdate(larger.update).root.get("signatures");
  expect(judged(encodeBencode(changed(rootOf(SEVEN.update), "signatures", grafted)))).toBe(
    "content-disagrees",
  );
});

test("mix-and-match: what signers state is never put together from several", () => {
  const one = signed(7n, ["anna"]).update;
  const two = parseUpdate(signed(7n, ["bert"], { channel: "beta" }).update).signatures.get("bert");
  const both = changed(parseUpdate(one).root.get("signatures"), "bert", two);
  expect(judged(encodeBencode(changed(rootOf(one), "signatures", both)))).toBe("signers-disagree");
});

test("mix-and-match: boot files outside the payload they were signed with are refused", () => {
  const { boot } = makePayload().area;
  const stated = { boot: { ...boot, kernel: { ...boot.kernel, offset: 2 ** 33 } } };
  expect(judged(makeRelease({ signers: ["anna", "bert"], stated }).update)).toBe("boot-files");
});

test("endless data: no document is looked at beyond its bound", () => {
  const endless = (bytes: number) => Buffer.alloc(bytes, "d");
  expect(judged(endless(UPDATE_MAX_BYTES + 1))).toBe("too-large");
  expect(heard(endless(HEAD_MAX_BYTES + 1))).toBe("too-large");
  expect(followed(endless(CHAIN_MAX_BYTES + 1))).toBe("too-large");
  expect(() => parseTrust(" ".repeat(TRUST_MAX_BYTES + 1))).toThrow(TrustError);
  expect(judged(Buffer.from("l".repeat(UPDATE_MAX_BYTES)))).toBe("not-canonical");
});

test("slow retrieval: how much is to come is signed, to the byte, before any of it comes", () => {
  const release = verifyRelease(SEVEN.update, TRUST, NODE);
  expect([release.size, release.side.bytes]).toEqual([SEVEN.payload.length, SEVEN.side.length]);
  expect(judged(signed(7n, ["anna", "bert"], { size: 2 ** 40 }).update)).toBe("content-disagrees");
});

test("key compromise below the threshold: one key of two makes no release, no head and no trust.json", () => {
  expect(judged(signed(9n, ["cleo"]).update)).toBe("not-enough-signers");
  const twice = parseUpdate(signed(9n, ["cleo"]).update);
  const forged = signEd25519(seedOf("cleo"), signedBytes(twice.infoBytes, Buffer.of()));
  expect(judged(withSignature(twice, "anna", forged))).toBe("bad-signature");
  expect(newestOf([parseHead(headOf("cleo", { version: 9n }))], TRUST)).toEqual([]);
  const own = trustText(2, { cleo: ALL }, { release: 1, trust: 1, head: 1 });
  expect(followed(chainOf(linkOf(own, "cleo")))).toBe("not-enough-signers");
});

test("key compromise below the threshold: once revoked it counts for nothing, in releases and heads", async () => {
  using on = node();
  const { trust, revoked } = await applyChain(
    on.dir,
    chainOf(linkOf(trustText(2, { anna: ALL, bert: ALL, dora: ALL }, TWO), "anna", "bert")),
  );
  expect(revoked).toEqual(["cleo"]);
  expect(judged(signed(7n, ["anna", "cleo"]).update, {}, trust)).toBe("not-enough-signers");
  expect(judged(signed(7n, ["anna", "dora"]).update, {}, trust)).toBe("");
  expect(heard(headOf("cleo"), trust)).toBe("unknown-signer");
});

const second = trustText(2, { anna: ALL, bert: ALL }, TWO);
const third = trustText(3, { anna: ALL, dora: ALL }, TWO);

test("rotation gap: from version N only N + 1 follows", () => {
  expect(followed(chainOf(linkOf(third, "anna", "bert", "dora")))).toBe("gap");
  const whole = linkOf(third, "anna", "bert", "dora");
  expect(
    followed(chainOf(linkOf(trustText(2, { anna: ALL, bert: ALL, dora: ALL }, TWO), "anna", "bert"), whole)),
  ).toBe("");
});

test("wrong board: a release for others is refused, and costs no look at a signature", () => {
  expect(judged(SEVEN.update, { boards: ["raspberrypi,5-model-b"] })).toBe("wrong-board");
  const anna = parseUpdate(SEVEN.update).signatures.get("anna");
  const spoilt = changed(
    parseUpdate(SEVEN.update).root.get("signatures"),
    "anna",
    changed(anna, "signature", Buffer.alloc(64)),
  );
  const bent = encodeBencode(changed(rootOf(SEVEN.update), "signatures", spoilt));
  expect(judged(bent)).toBe("bad-signature");
  expect(judged(bent, { boards: ["raspberrypi,5-model-b"] })).toBe("wrong-board");
  expect(judged(signed(7n, ["anna", "bert"], { boards: ["x"] }).update)).toBe("wrong-board");
});

test("expired: a release is refused from that second on, with and without a clock", () => {
  expect(judged(SEVEN.update, { now: TIMES.expires - 1 })).toBe("");
  expect(judged(SEVEN.update, { now: TIMES.expires })).toBe("expired");
  expect(judged(SEVEN.update, { now: undefined, atLeast: TIMES.expires })).toBe("expired");
});

const LATE = { created: TIMES.created, expires: 4_400_000_000 };
test.each([
  ["1970", 0, 0, "not-yet", ""],
  ["1970, which is known to be wrong", 0, TIMES.now, "", ""],
  ["2038", 2 ** 31, 0, "", "expired"],
  ["2106", 2 ** 32, 0, "", "expired"],
  ["none at all", undefined, 0, "", ""],
  ["none at all, and something known", undefined, TIMES.expires, "", "expired"],
])(
  "clock %s: a release that is in time is taken, one that has expired never is",
  (_what, now, atLeast, long, short) => {
    expect(judged(signed(7n, ["anna", "bert"], LATE).update, { now, atLeast })).toBe(long);
    const code = judged(SEVEN.update, { now, atLeast });
    expect(code).toBe(short === "" ? long : short);
  },
);

test("expired each role: a release is refused, a head is late, whoever signs trust.json is asked for no time", () => {
  const now = TIMES.expires + 1;
  expect(judged(SEVEN.update, { now })).toBe("expired");
  expect(heard(headOf("anna"), TRUST, now)).toBe("");
  expect(overdue(SAID, { now, atLeast: 0 })).toBe(now - SAID.expires);
  expect(followed(chainOf(linkOf(second, "anna", "bert")))).toBe("");
});

test("lower version each role: release, head, trust.json", async () => {
  using on = node(second);
  expect(judged(SEVEN.update, { floor: 8n })).toBe("below-floor");
  const heads = await Heads.open(on.heads);
  await heads.take(headOf("anna", { version: 8n }), TRUST, FOLLOWING, NODE);
  await expect(heads.take(headOf("anna"), TRUST, FOLLOWING, NODE)).rejects.toThrow(HeadError);
  await applyChain(on.dir, chainOf(linkOf(second, "anna", "bert")));
  await applyChain(on.dir, chainOf(linkOf(TEXT, "anna", "bert")));
  expect(readFileSync(on.trust, "utf8")).toBe(second);
});

test("wrong threshold, duplicate key ids: a key under two ids counts once, in every role", () => {
  expect(() => trustOf(1, { anna: ALL }, TWO)).toThrow("but only 1 different keys");
  const twins = { anna: ALL, "twin=anna": ALL, bert: ALL };
  const trust = trustOf(1, twins, TWO);
  const twice = signedBy("twin", signed(7n, ["anna"]).update, seedOf("anna"));
  expect(judged(twice, {}, trust)).toBe("not-enough-signers");
  expect(
    newestOf([headOf("anna"), headOf("anna", { issued: SAID.issued + 1 })].map(parseHead), trust),
  ).toEqual([]);
  expect(followed(chainOf(linkOf(trustText(2, twins, TWO), "anna")), trust)).toBe("not-enough-signers");
  expect(() => parseTrust(TEXT.replace('"id":"bert"', '"id":"anna"'))).toThrow('"anna" stands twice');
});

test("root chain gap, N -> N + 2: refused by name, and nothing of the chain counts", async () => {
  using on = node();
  const chain = chainOf(linkOf(third, "anna", "bert", "dora"));
  await expect(applyChain(on.dir, chain)).rejects.toThrow(
    "version 2 must come first: from 1 there is no way past it",
  );
  expect(readFileSync(on.trust, "utf8")).toBe(TEXT);
});

test("rotated timestamp key (fast-forward): the new key begins anew, the old one is heard no more", async () => {
  using on = node();
  const heads = await Heads.open(on.heads);
  await heads.take(headOf("cleo", { version: 2n ** 62n }), TRUST, FOLLOWING, NODE);
  const next = trustText(2, { anna: ALL, bert: ALL, cleo: ["release"], "clock=dora": ["head"] }, TWO);
  const { trust } = await applyChain(on.dir, chainOf(linkOf(next, "anna", "bert")), heads);
  expect(heads.of(FOLLOWING, trust)).toEqual([]);
  expect(await heads.take(headOf("dora"), trust, FOLLOWING, NODE)).toBe(true);
  expect(heard(headOf("cleo", { version: 2n ** 62n + 1n }), trust)).toBe("unknown-signer");
  expect((await Heads.open(on.heads)).of(FOLLOWING, TRUST)).toEqual([]);
});

test("snapshot lists other hash: a release that is not the one a head names is told by what differs", () => {
  const release = verifyRelease(SEVEN.update, TRUST, NODE);
  const right = { ...SAID, infohash: release.infohash };
  expect(disagreement(right, release)).toBeUndefined();
  expect(disagreement(SAID, release)).toBe(
    `its infohash is ${release.infohash}; the head names ${SAID.infohash}`,
  );
  expect(disagreement({ ...right, version: 8n }, release)).toBe("its version is 7; the head names 8");
  expect(disagreement({ ...right, target: "x" }, release)).toBe(
    "its target is fruitos/stable; the head names x",
  );
  expect(disagreement({ ...right, channel: "beta" }, release)).toBe(
    "its channel is stable; the head names beta",
  );
});

test("oversize: a file of a gigabyte is refused by its size, unread", async () => {
  using at = desk();
  at.put("fruitos-9.fruit", "");
  truncateSync(at.file("fruitos-9.fruit"), 2 ** 30); // a hole
  expect(await at.install()).toMatchObject({
    exit: 2,
    err: expect.stringContaining("1073741824 bytes; at most 1048576"),
  });
});

test.each([
  ["unknown field", (v: Map<string, Encodable>) => v.set("cas", 1)],
  ["huge number", (v: Map<string, Encodable>) => v.set("expires", 2n ** 64n - 1n)],
  ["bad UTF-8", (v: Map<string, Encodable>) => v.set("channel", Buffer.of(0xc3, 0x28))],
])(
  "unknown fields, duplicate keys, huge numbers, bad UTF-8: %s, though signed, is malformed everywhere",
  (_what, spoil) => {
    const { proposal } = parseUpdate(SEVEN.unsigned);
    const statement = new Map<string, Encodable>(proposal?.value as ReadonlyMap<string, Received>);
    spoil(statement);
    const update = encodeBencode(changed(rootOf(SEVEN.unsigned), "++", statement));
    expect(judged(signedBy("bert", signedBy("anna", update)))).toBe("malformed");
    const item = new Map<string, Encodable>(parseHeadMap(headOf("anna")));
    item.set(
      "v",
      spoil(new Map<string, Encodable>((item.get("v") as Received).value as ReadonlyMap<string, Received>)),
    );
    expect(heard(encodeBencode(item))).toBe("malformed");
  },
);

test("unknown fields, duplicate keys, huge numbers, bad UTF-8: none in trust.json", () => {
  for (const spoilt of [
    TEXT.replace("{", '{"more":1,'),
    TEXT.replace('"version":1', '"version":2,"version":1'),
    TEXT.replace('"version":1', '"version":99999999999999999999'),
  ])
    expect(() => parseTrust(spoilt)).toThrow(TrustError);
  const text = Buffer.from(TEXT.replace('"anna"', '"an?na"'));
  text[text.indexOf("?")] = 0xff;
  const chain = encodeBencode({ links: [{ signatures: new Map(), text }], schema: "fruit.trust-chain/1" });
  expect(followed(chain)).toBe("malformed");
  expect(judged(Buffer.from("d4:infoi1e4:infoi2ee"))).toBe("not-canonical");
});

test("clock 1970, 2038, 2106: heads are heard, and what is issued ahead of a set clock is not", () => {
  expect(heard(headOf("anna"), TRUST, 0)).toBe("not-yet");
  for (const year of [2 ** 31, 2 ** 32]) {
    const said = { issued: year - 60, expires: year + 86_400 };
    expect(heard(headOf("anna", said), TRUST, year)).toBe("");
    expect(overdue({ expires: said.expires }, { now: year, atLeast: 0 })).toBe(0);
    expect(heard(headOf("anna"), TRUST, year)).toBe("");
  }
});

test("no network time at all: releases and heads in time are believed, what has certainly expired is not", () => {
  expect(judged(SEVEN.update, { now: undefined, atLeast: 0 })).toBe("");
  expect(heard(headOf("anna"), TRUST, undefined)).toBe("");
  expect(judged(SEVEN.update, { now: undefined, atLeast: TIMES.expires })).toBe("expired");
  expect(overdue(SAID, { now: undefined, atLeast: SAID.expires + 5 })).toBe(5);
});

test("manifest for another board: the command line refuses it too, and nothing is written", async () => {
  using at = desk({ stated: { expires: 4_000_000_000, boards: ["raspberrypi,5-model-b"] } });
  const before = at.card.record;
  expect(await at.install()).toMatchObject({
    exit: 4,
    err: expect.stringContaining(`this node is ${BOARD}`),
  });
  expect(at.card.record).toEqual(before);
});

test("data wipe must not lower the floor: the record has its own, and signers' floors are beside it", async () => {
  using at = desk({ stated: { expires: 4_000_000_000, floor: 0n } });
  const { floors } = trustPaths(at.data);
  const trust = parseTrust(readFileSync(join(at.data, "trust.json"), "utf8"));
  await raiseFloors(floors, { keys: [keyHex("anna")], target: TARGET, version: 10n }, trust);
  expect(await at.install()).toMatchObject({
    exit: 4,
    err: expect.stringContaining("anna signed a newer one that was confirmed here (10)"),
  });
  at.card.put((record) => ({ ...record, floor: 10n }));
  rmSync(floors);
  expect(await at.install()).toMatchObject({
    exit: 4,
    err: expect.stringContaining("this node takes 10 and higher"),
  });
  expect(at.card.record.slots.b.state).not.toBe("staged");
});

test("a signature with S + L is none, in release, head and chain", () => {
  const file = parseUpdate(SEVEN.update);
  const { signatures } = file;
  const anna = new Map<string, Encodable>(signatures.get("anna")?.value as ReadonlyMap<string, Received>);
  const bytes = (anna.get("signature") as Received).value as Uint8Array;
  anna.set("signature", malleable(bytes));
  const bent = changed(file.root.get("signatures"), "anna", anna);
  expect(judged(encodeBencode(changed(rootOf(SEVEN.update), "signatures", bent)))).toBe("bad-signature");
  const head = new Map<string, Encodable>(parseHeadMap(headOf("anna")));
  head.set("sig", malleable(parseHead(headOf("anna")).signature));
  expect(heard(encodeBencode(head))).toBe("bad-signature");
  const link = linkOf(second, "anna", "bert");
  const both = new Map(link.signatures).set(
    keyHex("bert"),
    malleable(link.signatures.get(keyHex("bert")) ?? Buffer.alloc(64)),
  );
  expect(followed(chainOf({ text: second, signatures: both }))).toBe("bad-signature");
});

test("what is confirmed raises the floors of those who signed it, and of no stranger", async () => {
  using on = node();
  const { update } = signedAlso();
  const hash = hashPrefix(parseUpdate(update).info.piecesRoot);
  const floorsOf = async () => {
    const floor = await signerFloors(on.floors);
    return ["anna", "bert", "cleo", "mallory"].map((name) => floor(keyHex(name), TARGET));
  };
  await raiseSignerFloors(on.dir, "b", hash);
  expect(existsSync(on.floors)).toBe(false);
  mkdirSync(join(on.dir, "releases"));
  writeFileSync(join(on.dir, "releases/b.fruit"), update);
  await raiseSignerFloors(on.dir, "b", "5".repeat(32));
  expect(await floorsOf()).toEqual([0n, 0n, 0n, 0n]);
  await raiseSignerFloors(on.dir, "b", hash);
  expect(await floorsOf()).toEqual([7n, 7n, 0n, 0n]);
});

/** Signed by two, and by somebody who calls himself cleo. */
const signedAlso = () => ({ update: signedBy("cleo", signedBy("mallory", SEVEN.update), seedOf("mallory")) });
