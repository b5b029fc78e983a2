/** Envelopes of commands: what is opened, what is refused and with which code, and what a sender may learn. */
import { afterAll, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Refusal } from "../agent/commands.ts";
import type { CommandPayload } from "../agent/messages.ts";
import {
  type Binding,
  checkBinding,
  claimedId,
  openEnvelope,
  type SignatureRefusal,
  sealCommand,
} from "../agent/sign/envelope.ts";
import { makeKey } from "../agent/sign/keygen.ts";
import { openKey, type SigningKey } from "../agent/sign/keys.ts";
import { FailureLimit } from "../agent/sign/limit.ts";
import { parseSigners } from "../agent/sign/signers.ts";
import { seeded } from "./fakes.ts";

const ROUNDS = Number(process.env.FRUIT_FUZZ ?? 5_000);
const NOW = 1_800_000_000;
const dir = mkdtempSync(join(tmpdir(), "fruit-envelope-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const PAYLOAD: CommandPayload = {
  id: "01J",
  verb: "power.cycle",
  site: "lab",
  node: "pi1",
  args: { outlets: ["0.1"] },
  iat: NOW,
  exp: NOW + 60,
};

async function newKey(name: string): Promise<SigningKey & { file: string; line: string }> {
  const { privateFile, publicLine } = makeKey(name);
  const file = join(dir, name);
  writeFileSync(file, privateFile, { mode: 0o600 });
  return { ...(await openKey(file)), file, line: publicLine.split(" ").slice(0, 2).join(" ") };
}
const alice = await newKey("alice");
const bob = await newKey("bob");
const mallory = await newKey("mallory");

const FILE = `alice@desk namespaces="fruit-cmd@v1",valid-before="20280101Z" ${alice.line} roles=read,power outlets=0.*
bob ${bob.line} roles=read
`;
const signersOf = (text: string) => {
  const { signers } = parseSigners(text);
  return { find: (print: string) => signers.find(({ fingerprint }) => fingerprint === print) };
};
const options = (more: Partial<Parameters<typeof openEnvelope>[1]> = {}) => ({
  signers: signersOf(FILE),
  failures: new FailureLimit(),
  verifications: new FailureLimit(),
  nowSeconds: NOW,
  ...more,
});
const bytes = (value: unknown) => Buffer.from(typeof value === "string" ? value : JSON.stringify(value));
const sha256 = (data: Uint8Array) => createHash("sha256").update(data).digest("hex");

function refusal(work: () => unknown): Refusal {
  try {
    work();
  } catch (error) {
    if (error instanceof Refusal) return error;
    throw error;
  }
  throw new Error("it was accepted");
}

test("a plain command is opened, without a signer", () => {
  const sent = bytes(PAYLOAD);
  expect(openEnvelope(sent, options())).toEqual({ payload: PAYLOAD, digest: sha256(sent) });
});

test("a signed command is opened with its signer and the digest of the signed bytes", async () => {
  const sealed = await sealCommand(PAYLOAD, alice);
  const { payload, digest, signer } = openEnvelope(bytes(sealed), options());
  expect(payload).toEqual(PAYLOAD);
  expect(digest).toBe(sha256(Buffer.from(JSON.parse(sealed).p, "base64")));
  expect(signer?.principal).toBe("alice@desk");
  expect(signer?.mayOutlet("0.1")).toBe(true);
});

test("what counts are the exact bytes that were signed, odd spelling and repeated keys included", async () => {
  const odd = Buffer.from(`{ "verb":"identify", ${JSON.stringify(PAYLOAD).slice(1)}  `);
  const envelope = {
    p: odd.toString("base64"),
    s: await alice.sign("fruit-cmd@v1", odd),
    k: alice.fingerprint,
  };
  const { payload, digest } = openEnvelope(bytes(envelope), options());
  expect(payload.verb).toBe("power.cycle");
  expect(digest).toBe(sha256(odd));
});

const DEEP = `{"args":${'{"a":'.repeat(2000)}1${"}".repeat(2000)}}`;
test.each([
  ["more than 16 KiB", Buffer.alloc(16_385, 0x20), "too-large", "16385 bytes; at most 16384"],
  ["bytes that are no UTF-8", Buffer.from([0x7b, 0x22, 0xff, 0x22, 0x7d]), "bad-utf8", "not UTF-8"],
  ["half a document", bytes('{"id":"1",'), "bad-json", "is not JSON"],
  ["nothing", Buffer.alloc(0), "bad-json", "is not JSON"],
  ["a number", bytes("7"), "bad-envelope", "expected an object, received 7"],
  ["null", bytes("null"), "bad-envelope", "expected an object, received null"],
  ["an empty object", bytes({}), "bad-envelope", "id: "],
  ["a command without exp", bytes({ ...PAYLOAD, exp: undefined }), "bad-envelope", "exp: "],
  ["an unknown key", bytes({ ...PAYLOAD, force: true }), "bad-envelope", "force: "],
  ["an id with a slash", bytes({ ...PAYLOAD, id: "a/b" }), "bad-envelope", "id: "],
  ["args that are a list", bytes({ ...PAYLOAD, args: [] }), "bad-envelope", "args: "],
  ["a fraction of a second", bytes({ ...PAYLOAD, exp: 1.5 }), "bad-envelope", "exp: "],
  ["a signature beside a plain command", bytes({ ...PAYLOAD, s: "x" }), "bad-envelope", "p: "],
  ["a signed form without k", bytes({ p: "e30=", s: "x" }), "bad-envelope", "k: "],
  ["a deep nest", bytes(DEEP), "bad-envelope", "id: "],
] as const)("%s is refused by name", (_, sent, code, message) => {
  const refused = refusal(() => openEnvelope(sent, options()));
  expect(refused.code).toBe(code);
  expect(refused.message).toContain(message);
  expect(refused.message.length).toBeLessThan(400);
});

/** Signed by somebody, then bent. */
async function bent(how: string): Promise<Uint8Array> {
  const good = JSON.parse(await sealCommand(PAYLOAD, alice));
  const other = (payload: CommandPayload) => Buffer.from(JSON.stringify(payload)).toString("base64");
  const message = Buffer.from(good.p, "base64");
  const ways: Record<string, () => unknown> = {
    "an argument changed": () => ({ ...good, p: other({ ...PAYLOAD, args: { outlets: ["0.0"] } }) }),
    "an unknown key": () => sealCommand(PAYLOAD, mallory),
    "another's name on it": async () => ({
      ...JSON.parse(await sealCommand(PAYLOAD, mallory)),
      k: alice.fingerprint,
    }),
    "another allowed key's name on it": () => ({ ...good, k: bob.fingerprint }),
    "another namespace": async () => ({ ...good, s: await alice.sign("file", message) }),
    "no signature at all": () => ({ ...good, s: "" }),
  };
  const made = await ways[how]?.();
  return bytes(made);
}

test.each([
  ["an argument changed", "does not match the bytes"],
  ["an unknown key", "is not among the allowed signers"],
  ["another's name on it", "made by SHA256:"],
  ["another allowed key's name on it", "but k says"],
  ["another namespace", 'made for "file"'],
  ["no signature at all", "does not begin with"],
])("%s: the sender learns only that the signature is not accepted", async (how, why) => {
  const sent = await bent(how);
  const refused = refusal(() => openEnvelope(sent, options()));
  expect([refused.code, refused.message]).toEqual(["unauthorised", "signature not accepted"]);
  expect((refused as SignatureRefusal).why).toContain(why);
});

test.each([
  ["without a file", undefined],
  ["when the file names no such namespace", signersOf(FILE.replace("fruit-cmd@v1", "git"))],
  ["when the line is gone", signersOf("")],
  ["when the key has expired", signersOf(FILE.replace("20280101Z", "20260101Z"))],
  ["when the key is not valid yet", signersOf(FILE.replace("valid-before", "valid-after"))],
])("%s the answer is the same", async (_, signers) => {
  const sent = bytes(await sealCommand(PAYLOAD, alice));
  const refused = refusal(() => openEnvelope(sent, options({ signers })));
  expect([refused.code, refused.message]).toEqual(["unauthorised", "signature not accepted"]);
});

test("a node whose clock is at 1970 judges a key by the time the command was signed", async () => {
  const sent = bytes(await sealCommand(PAYLOAD, alice));
  expect(openEnvelope(sent, options({ nowSeconds: 60 })).signer?.principal).toBe("alice@desk");
  const signers = signersOf(FILE.replace("20280101Z", "20260101Z"));
  expect(refusal(() => openEnvelope(sent, options({ nowSeconds: 60, signers }))).code).toBe("unauthorised");
});

test("whoever fails in a technician's name is rate-limited; the technician is not", async () => {
  let now = 0;
  const nowSeconds = () => now;
  const more = {
    failures: new FailureLimit({ nowSeconds }),
    verifications: new FailureLimit({ burst: 200, secondsEach: 1 / 200, nowSeconds }),
  };
  const code = (sent: Uint8Array) => refusal(() => openEnvelope(sent, options(more))).code;
  const forged = await bent("an argument changed");
  expect(Array.from({ length: 12 }, () => code(forged))).toEqual([
    ...Array(10).fill("unauthorised"),
    "rate-limited",
    "rate-limited",
  ]);
  const genuine = bytes(await sealCommand(PAYLOAD, alice));
  for (let n = 0; n < 100; n++) {
    expect(code(forged)).toBe("rate-limited");
    if (n % 10 === 0) expect(openEnvelope(genuine, options(more)).signer?.principal).toBe("alice@desk");
  }
  now = 61;
  expect([code(forged), code(forged)]).toEqual(["unauthorised", "rate-limited"]);
});

test("failures of unknown keys are counted together, and cost those who are known nothing", async () => {
  const more = { failures: new FailureLimit(), verifications: new FailureLimit({ burst: 0 }) };
  const unknown = await bent("an unknown key");
  const codes = Array.from({ length: 11 }, () => refusal(() => openEnvelope(unknown, options(more))).code);
  expect(codes).toEqual([...Array(10).fill("unauthorised"), "rate-limited"]);
  const sealed = [await sealCommand(PAYLOAD, alice), await sealCommand(PAYLOAD, bob)].map(bytes);
  expect(sealed.map((sent) => openEnvelope(sent, options(more)).signer?.principal)).toEqual([
    "alice@desk",
    "bob",
  ]);
});

test("a flood in known keys' names is not verified without end, and keys that nobody abuses are not in it", async () => {
  let now = 0;
  const nowSeconds = () => now;
  const verifications = new FailureLimit({ burst: 5, secondsEach: 1, nowSeconds });
  const more = { failures: new FailureLimit({ nowSeconds }), verifications };
  const forged = await bent("an argument changed");
  for (let n = 0; n < 10 + 5; n++) refusal(() => openEnvelope(forged, options(more)));
  expect(verifications.isOpen()).toBe(false);
  const genuine = bytes(await sealCommand(PAYLOAD, alice));
  expect(refusal(() => openEnvelope(genuine, options(more))).code).toBe("rate-limited");
  const byBob = bytes(await sealCommand(PAYLOAD, bob));
  expect(openEnvelope(byBob, options(more)).signer?.principal).toBe("bob");
  now = 1;
  expect(openEnvelope(genuine, options(more)).signer?.principal).toBe("alice@desk");
});

test.each([
  ["of a plain command", () => JSON.stringify(PAYLOAD), "01J"],
  ["of a signed one", () => sealCommand(PAYLOAD, mallory), "01J"],
  ["of one that lacks the rest", () => '{"id":"x-1","exp":"soon"}', "x-1"],
  ["that would be a topic of its own", () => JSON.stringify({ ...PAYLOAD, id: "../cmd/x" }), ""],
  ["that is a number", () => '{"id":7}', ""],
  ["of a signed form that is none", () => '{"p":{},"s":"","k":""}', ""],
  ["of nothing", () => "null", ""],
  ["beyond the limit", () => JSON.stringify(PAYLOAD).padEnd(16_385), ""],
])("the id %s is known for an answer, whoever made it", async (_, make, id) => {
  expect(claimedId(bytes(await make()))).toBe(id);
});

test(`no mutation of a signed command is accepted with other bytes (${ROUNDS / 4} mutations)`, async () => {
  const random = seeded(0xe7e1);
  const below = (n: number) => Math.floor(random() * n);
  const sealed = await sealCommand(PAYLOAD, alice);
  const genuine = sha256(Buffer.from(JSON.parse(sealed).p, "base64"));
  const codes = new Map<string, number>();
  for (let round = 0; round < ROUNDS / 4; round++) {
    const data = [...Buffer.from(sealed)];
    const at = below(data.length);
    if (below(3) === 0) data.splice(at, below(3), below(256));
    else data[at] = (data[at] ?? 0) ^ (1 << below(8));
    try {
      const opened = openEnvelope(Uint8Array.from(data), options());
      if (!opened.signer || opened.digest !== genuine) throw new Error(`accepted: ${Buffer.from(data)}`);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      codes.set(error.code, (codes.get(error.code) ?? 0) + 1);
    }
  }
  expect([...codes.keys()].sort()).toEqual(["bad-envelope", "bad-json", "bad-utf8", "unauthorised"]);
});

test("a payload that is none is not signed", async () => {
  await expect(sealCommand({ ...PAYLOAD, id: "a b" }, alice)).rejects.toThrow("id: ");
  await expect(sealCommand({ ...PAYLOAD, args: { a: "x".repeat(16_000) } }, alice)).rejects.toThrow(
    "at most 16384",
  );
});

const HERE: Binding = {
  site: "lab",
  node: "pi1",
  verb: "power.cycle",
  nowSeconds: NOW + 5,
  clockSynced: true,
  challenge: "c-1",
  maxSeconds: 300,
  isSigned: true,
};

test.each([
  ["as it was meant", {}, {}],
  ["with a sender's clock a minute ahead", { nowSeconds: NOW - 60 }, {}],
  ["a minute after exp", { nowSeconds: NOW + 120 }, {}],
  ["with the longest life", {}, { exp: NOW + 300 }],
  ["without a clock, with the challenge", { clockSynced: false, nowSeconds: 30 }, { challenge: "c-1" }],
  ["without a clock, unsigned and harmless", { clockSynced: false, nowSeconds: 30, isSigned: false }, {}],
  ["with a clock, whatever challenge it carries", {}, { challenge: "old" }],
])("a command is taken %s", (_, here, payload) => {
  expect(() => checkBinding({ ...PAYLOAD, ...payload }, { ...HERE, ...here })).not.toThrow();
});

test.each([
  ["wrong-site", {}, { site: "home" }, 'for site "home"; this is "lab"'],
  ["wrong-node", {}, { node: "pi2" }, 'for node "pi2"; this is "pi1"'],
  ["wrong-node", { node: "all" }, {}, 'for node "pi1"; this is "all"'],
  ["wrong-topic", { verb: "power.off" }, {}, 'says "power.cycle", its topic "power.off"'],
  ["expired", { nowSeconds: NOW + 121 }, {}, "expired 61 s ago"],
  ["clock", { nowSeconds: NOW - 61 }, {}, "61 s in the future"],
  ["bad-envelope", {}, { exp: NOW + 301 }, "301 s after iat; at most 300 s"],
  ["bad-envelope", {}, { exp: NOW }, "is not after iat"],
  ["bad-envelope", { clockSynced: false }, { exp: NOW + 301, challenge: "c-1" }, "at most 300 s"],
  ["clock", { clockSynced: false }, {}, "`challenge` that stands in its info"],
  ["clock", { clockSynced: false }, { challenge: "c-0" }, "`challenge` that stands in its info"],
])("%s is the answer", (code, here, payload, message) => {
  const refused = refusal(() => checkBinding({ ...PAYLOAD, ...payload }, { ...HERE, ...here }));
  expect(refused.code).toBe(code as Refusal["code"]);
  expect(refused.message).toContain(message);
});
