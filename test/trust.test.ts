/** `trust.json`: read strictly, and counted by keys. */
import { expect, test } from "bun:test";
import { publicKeyOf } from "../boot/ed25519.ts";
import { distinctKeys, keyLine, parseTrust, signersFor, TRUST_MAX_BYTES, TrustError } from "../boot/trust.ts";
import { seedOf } from "./releases.ts";

const key = (name: string) => keyLine(publicKeyOf(seedOf(name)));
const anna = { id: "org.example.anna", key: key("anna"), roles: ["release"] };
const bert = { id: "org.example.bert", key: key("bert"), roles: ["release", "trust"] };
const GOOD = { schema: "fruit.trust/1", version: 3, threshold: { release: 2 }, signers: [anna, bert] };

function problems(document: unknown): readonly string[] {
  try {
    parseTrust(typeof document === "string" ? document : JSON.stringify(document));
  } catch (cause) {
    if (cause instanceof TrustError) return cause.problems;
    throw cause;
  }
  return [];
}

test("signers, their keys and roles are read", () => {
  const trust = parseTrust(JSON.stringify(GOOD));
  expect(trust).toMatchObject({ version: 3, threshold: { release: 2 } });
  expect(signersFor(trust, "release").map(({ id }) => id)).toEqual([anna.id, bert.id]);
  expect(signersFor(trust, "trust").map(({ id }) => id)).toEqual([bert.id]);
  expect(trust.signers[0]?.publicKey).toEqual(Uint8Array.from(publicKeyOf(seedOf("anna"))));
});

test("a key may have a comment, as ssh-keygen writes it", () => {
  expect(problems({ ...GOOD, signers: [{ ...anna, key: `${anna.key} anna at work` }, bert] })).toEqual([]);
});

test("a key under two ids counts once, and cannot reach a threshold of two", () => {
  const twin = { ...anna, id: "org.example.twin" };
  const { signers } = parseTrust(JSON.stringify({ ...GOOD, signers: [anna, twin, bert] }));
  expect(distinctKeys(signers)).toBe(2);
  expect(problems({ ...GOOD, signers: [anna, twin] })).toEqual([
    'threshold.release: 2, but only 1 different keys have the role "release"',
  ]);
});

// A point of order 4 (y = 0): under it anybody's signature holds
const weak = keyLine(new Uint8Array(32));
const rsa = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQ== x";

test.each([
  ["no JSON", "{", [expect.stringContaining("no JSON: ")]],
  ["too long", " ".repeat(TRUST_MAX_BYTES + 1), ["65537 bytes; at most 65536 are read"]],
  ["a number", 5, ["(top): 5 is not Object"]],
  [
    "of another schema",
    { ...GOOD, schema: "fruit.trust/2" },
    ['schema: "fruit.trust/2" is not "fruit.trust/1"'],
  ],
  ["without a version", { ...GOOD, version: undefined }, ["version: is missing"]],
  ["of version 0", { ...GOOD, version: 0 }, ["version: 0 is not >=1"]],
  ["of version 1.5", { ...GOOD, version: 1.5 }, [expect.stringContaining("version: 1.5 is not")]],
  [
    "of version 2^53",
    { ...GOOD, version: 2 ** 53 },
    [expect.stringContaining("version: 9007199254740992 is not")],
  ],
  ["with a threshold of 0", { ...GOOD, threshold: { release: 0 } }, ["threshold.release: 0 is not >=1"]],
  [
    "without a threshold for releases",
    { ...GOOD, threshold: { head: 1 } },
    ["threshold.release: is missing"],
  ],
  [
    "with an unknown role's threshold",
    { ...GOOD, threshold: { release: 1, all: 1 } },
    ["threshold.all: unknown key"],
  ],
  ["with an unknown key", { ...GOOD, treshold: 1 }, ["treshold: unknown key"]],
  [
    "with an unknown role",
    { ...GOOD, signers: [anna, { ...bert, roles: ["boss"] }] },
    [expect.stringContaining('signers.1.roles.0: "boss" is not')],
  ],
  [
    "with a signer without a role",
    { ...GOOD, signers: [anna, { ...bert, roles: [] }] },
    [expect.stringContaining("signers.1.roles: [] is not")],
  ],
  [
    "with a strange id",
    { ...GOOD, signers: [{ ...anna, id: "../anna" }, bert] },
    [expect.stringContaining('signers.0.id: "../anna" is not')],
  ],
  [
    "with an id twice",
    { ...GOOD, signers: [anna, { ...bert, id: anna.id }] },
    ['signers.1.id: "org.example.anna" stands twice'],
  ],
  [
    "with a key of another kind",
    { ...GOOD, signers: [{ ...anna, key: rsa }, bert] },
    [expect.stringContaining(`signers.0.key: "${rsa}" is no line`)],
  ],
  [
    "with a key that holds for everybody",
    { ...GOOD, signers: [{ ...anna, key: weak }, bert] },
    [expect.stringContaining("is no line")],
  ],
  [
    "with a cut key",
    { ...GOOD, signers: [{ ...anna, key: anna.key.slice(0, -4) }, bert] },
    [expect.stringContaining("is no line")],
  ],
  [
    "with a threshold nobody reaches",
    { ...GOOD, threshold: { release: 3 } },
    ['threshold.release: 3, but only 2 different keys have the role "release"'],
  ],
  [
    "with a threshold for a role nobody has",
    { ...GOOD, threshold: { release: 1, head: 1 } },
    ['threshold.head: 1, but only 0 different keys have the role "head"'],
  ],
])("a trust.json %s is refused, path and value named", (_what, document, said) => {
  expect(problems(document)).toEqual(said as string[]);
});

test("a key that stands twice is not read in favour of the last", () => {
  const text = JSON.stringify(GOOD, null, 2);
  expect(problems(`${text}\n`)).toEqual([]);
  const said = [
    "(top): a key stands twice, or a number or a text is written in another way than JSON.stringify would",
  ];
  expect(problems(text.replace('"version"', '"version": 2, "version"'))).toEqual(said);
  expect(problems(text.replace('"id"', '"id": "org.example.eve", "id"'))).toEqual(said);
});

test("all problems are said at once", () => {
  expect(problems({ ...GOOD, version: 0, extra: 1, signers: [{ ...anna, id: "" }] })).toHaveLength(3);
});
