/** The allowed_signers file: what a line grants, what it does not, and that ssh-keygen reads it the same way. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, renameSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ROLES, type Role } from "../agent/commands.ts";
import { FailureLimit } from "../agent/sign/limit.ts";
import { isValidAt, parseSigners, SignerFile } from "../agent/sign/signers.ts";
import { armorSshsig, signedData } from "../agent/sign/sshsig.ts";
import { fingerprint, publicKeyBlob } from "../agent/sign/wire.ts";
import { publicKeyOf, signEd25519 } from "../boot/ed25519.ts";
import type { OutletId } from "../hal/ports.ts";
import { seeded } from "./fakes.ts";

const ROUNDS = Number(process.env.FRUIT_FUZZ ?? 5_000);
const noSsh = !Bun.which("ssh-keygen");
const dir = mkdtempSync(join(tmpdir(), "fruit-signers-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const seed = (n: number) => new Uint8Array(32).fill(n);
const publicKeys = [0, 1, 2].map((n) => publicKeyOf(seed(n)));
const key = (n: number) => `ssh-ed25519 ${publicKeyBlob(publicKeys[n]!).toString("base64")}`;
const print = (n: number) => fingerprint(publicKeys[n]!);
const A = key(1);
const utc = (text: string) => Date.parse(text) / 1000;

/** The one signer of a line that is good. */
function only(line: string) {
  const { signers, problems } = parseSigners(line);
  expect(problems).toEqual([]);
  expect(signers).toHaveLength(1);
  return signers[0]!;
}

test("a full line says who, what, where and until when", () => {
  const signer = only(
    `alice@desk namespaces="fruit-cmd@v1",valid-after="20260101Z",valid-before="20271231120000Z" ${A} roles=read,power outlets=0.0,1.*`,
  );
  expect(signer.principal).toBe("alice@desk");
  expect(signer.fingerprint).toBe(print(1));
  expect([...signer.roles]).toEqual(["read", "power"]);
  expect(signer.maySign("fruit-cmd@v1")).toBe(true);
  expect(signer.maySign("file")).toBe(false);
  expect(signer.validAfter).toBe(utc("2026-01-01T00:00:00Z"));
  expect(signer.validBefore).toBe(utc("2027-12-31T12:00:00Z"));
});

test("comments, blank lines, tabs, CRLF and words of a person are taken", () => {
  const text = `# people\r\n\r\n\talice\t${A} of the desk roles=read\r\n  bob   ${key(2)}  roles=console of the lab\r\n`;
  const { signers, problems } = parseSigners(text);
  expect(problems).toEqual([]);
  expect(signers.map(({ principal, roles }) => [principal, ...roles])).toEqual([
    ["alice", "read"],
    ["bob", "console"],
  ]);
});

test("option names are read in any case, as OpenSSH does", () => {
  expect(only(`a NAMESPACES="x",Valid-Before="20300101Z" ${A} roles=read`).validBefore).toBe(
    utc("2030-01-01T00:00:00Z"),
  );
});

test("admin has every role; nobody else has another's", () => {
  expect([...only(`a ${A} roles=admin outlets=*`).roles]).toEqual([...ROLES]);
  for (const role of ROLES.filter((each) => each !== "admin"))
    expect([...only(`a ${A} roles=${role} outlets=*`).roles]).toEqual([role as Role]);
});

test.each([
  ["0.0", ["0.0"], ["0.1", "1.0", "10.0"]],
  ["0.1,2.0", ["0.1", "2.0"], ["0.0", "2.1"]],
  ["3.*", ["3.0", "3.1"], ["2.1", "4.0", "30.0", "13.0"]],
  ["4.0-7.1", ["4.0", "4.1", "5.0", "7.0", "7.1"], ["3.1", "7.2", "8.0"]],
  ["4.1-5.0", ["4.1", "5.0"], ["4.0", "5.1"]],
  ["*", ["0.0", "254.1"], []],
])("outlets=%s", (list, granted, denied) => {
  const { mayOutlet, outlets } = only(`a ${A} roles=power outlets=${list}`);
  expect(outlets).toBe(list);
  expect(granted.filter((outlet) => !mayOutlet(outlet as OutletId))).toEqual([]);
  expect(denied.filter((outlet) => mayOutlet(outlet as OutletId))).toEqual([]);
});

test("without outlets= no outlet is granted", () => {
  expect(only(`a ${A} roles=read`).mayOutlet("0.0")).toBe(false);
});

test.each([
  ['namespaces="fruit-*"', ["fruit-cmd@v1", "fruit-"], ["xfruit-cmd@v1", "git"]],
  ['namespaces="fruit-cmd@v?"', ["fruit-cmd@v1"], ["fruit-cmd@v", "fruit-cmd@v12"]],
  ['namespaces="git,fruit-cmd@v1"', ["git", "fruit-cmd@v1"], ["file"]],
  ['namespaces="*,!git"', ["file"], ["git"]],
  ['namespaces="!git"', [], ["git", "file"]],
  ['namespaces="a.b"', ["a.b"], ["axb"]],
])("%s", (option, taken, refused) => {
  const { maySign } = only(`a ${option} ${A} roles=read`);
  expect(taken.filter((namespace) => !maySign(namespace))).toEqual([]);
  expect(refused.filter((namespace) => maySign(namespace))).toEqual([]);
});

test.each([
  ["20271231Z", "2027-12-31T00:00:00Z"],
  ["202712312359Z", "2027-12-31T23:59:00Z"],
  ["20271231235958Z", "2027-12-31T23:59:58Z"],
  ["20240229Z", "2024-02-29T00:00:00Z"],
])("the time %s is %s", (text, instant) => {
  expect(only(`a valid-before="${text}" ${A} roles=read`).validBefore).toBe(utc(instant));
});

test("a time without Z is this machine's", () => {
  const { validBefore } = only(`a valid-before="20270701103000" ${A} roles=read`);
  expect(validBefore).toBe(new Date(2027, 6, 1, 10, 30, 0).getTime() / 1000);
});

test("a key is valid at both ends of its time, and not a second outside", () => {
  const signer = { validAfter: 100, validBefore: 200 };
  expect([99, 100, 200, 201].map((at) => isValidAt(signer, at))).toEqual([false, true, true, false]);
  expect(isValidAt({}, 0)).toBe(true);
});

const RSA = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAAQE=";
test.each([
  [`a ${A}`, "roles= is missing, so the key has no rights"],
  [`a ${A} role=read`, '"role=read" is neither roles= nor outlets='],
  [`a ${A} roles=`, '"" is no role'],
  [`a ${A} roles=read,root`, '"root" is no role; there are read, power'],
  [`a ${A} roles=read roles=power`, "roles= stands twice"],
  [`a ${A} roles=power`, "outlets= is missing"],
  [`a ${A} roles=admin`, "outlets= is missing"],
  [`a ${A} roles=power outlets=`, 'outlets: "" is neither'],
  [`a ${A} roles=power outlets=0`, 'outlets: "0" is neither 0.1, 3.*, 4.0-7.1 nor *'],
  [`a ${A} roles=power outlets=*.1`, 'outlets: "*.1" is neither'],
  [`a ${A} roles=power outlets=7.1-4.0`, "outlets: 7.1-4.0 ends before it begins"],
  [`a cert-authority ${A} roles=read`, "cert-authority: certificates are not taken"],
  [`a namespaces="x",cert-authority ${A} roles=read`, "cert-authority"],
  [`a valid-before=20271231 ${A} roles=read`, "valid-before: the value must stand in double quotes"],
  [`a valid-before="20271231",valid-before="20281231" ${A} roles=read`, "valid-before stands twice"],
  [`a valid-before="20270230" ${A} roles=read`, "valid-before: 20270230 does not exist"],
  [`a valid-before="202712312460" ${A} roles=read`, "does not exist"],
  [`a valid-before="2027-12-31" ${A} roles=read`, "is not YYYYMMDD[HHMM[SS]]"],
  [
    `a valid-after="20280101Z",valid-before="20270101Z" ${A} roles=read`,
    "valid-before is not after valid-after",
  ],
  [`a namespaces="" ${A} roles=read`, "namespaces: empty"],
  [`a namespaces="x ${A} roles=read`, "a double quote is not closed"],
  [
    `a no-touch-required ${A} roles=read`,
    '"no-touch-required" is no option; there are namespaces, valid-after, valid-before',
  ],
  [`a namespaces="x", ${A} roles=read`, '"" is no option'],
  [`a ${RSA} roles=read`, "key type ssh-rsa; only ssh-ed25519 is taken"],
  [`a sk-ssh-ed25519@openssh.com AAAA roles=read`, "key type sk-ssh-ed25519@openssh.com; only ssh-ed25519"],
  ["a ssh-ed25519 AAAA roles=read", "the length of the type of the key has 4 bytes, but only 3 are there"],
  [`a ssh-ed25519 ${A.slice(12)}! roles=read`, "the key is not base64"],
  ["a", "there is no key on this line"],
  [`* ${A} roles=read`, '"*" is no name'],
  [`alice,bob ${A} roles=read`, '"alice,bob" is no name'],
  [`${A} roles=read`, "the line begins with the key; the name comes first"],
])("the line %p gives nobody a right, and is named", (line, message) => {
  const { signers, problems } = parseSigners(`# first\n${line}\nbob ${key(2)} roles=read\n`);
  expect(signers.map(({ principal }) => principal)).toEqual(["bob"]);
  expect(problems).toHaveLength(1);
  expect(problems[0]).toStartWith("line 2: ");
  expect(problems[0]).toContain(message);
});

test("a key that stands twice has the rights of its first line", () => {
  const { signers, problems } = parseSigners(`a ${A} roles=read\nb ${A} roles=admin outlets=*\n`);
  expect(signers.map(({ principal }) => principal)).toEqual(["a"]);
  expect(problems).toEqual(["line 2: the key of line 1 again"]);
});

test(`a mutated file never throws, and grants nothing that is not written there (${ROUNDS} mutations)`, () => {
  const random = seeded(0xa110);
  const below = (n: number) => Math.floor(random() * n);
  const file = `alice@desk namespaces="fruit-cmd@v1",valid-before="20271231" ${A} roles=read,power outlets=0.0,1.*\nbob ${key(2)} roles=console\n`;
  const pieces = [
    '"',
    ",",
    "=",
    " ",
    "*",
    "\n",
    "#",
    "roles=admin",
    "outlets=*",
    "cert-authority,",
    "\0",
    "!",
    "-",
    "ssh-ed25519 ",
    "é",
    "\\",
  ];
  const known = [print(1), print(2)];
  let good = 0;
  for (let round = 0; round < ROUNDS; round++) {
    let text = file;
    for (let changes = 1 + below(2); changes > 0; changes--) {
      const at = below(text.length);
      text = `${text.slice(0, at)}${below(3) ? pieces[below(pieces.length)] : ""}${text.slice(at + below(3))}`;
    }
    const { signers } = parseSigners(text);
    good += signers.length;
    const isBad = signers.some(
      ({ fingerprint, roles, outlets, mayOutlet }) =>
        !known.includes(fingerprint) ||
        (roles.has("config") && !text.includes("admin")) ||
        (mayOutlet("9.0") && !/(^|,)\*|-|9/.test(outlets)),
    );
    if (isBad) throw new Error(`grants too much: ${text}`);
  }
  expect(good / ROUNDS).toBeWithin(0.5, 1.9);
});

test("the file is asked anew each time: a line removed counts at once, even with the old size and time", () => {
  const path = join(dir, "allowed_signers");
  const log: unknown[][] = [];
  const file = new SignerFile(path, (...line) => log.push(line));
  expect(file.find(print(1))).toBeUndefined();
  expect(file.find(print(1))).toBeUndefined();
  expect(log.map(([level, what]) => `${level} ${what}`)).toEqual(["error signers.unreadable"]);

  writeFileSync(path, `a ${A} roles=read\n`);
  utimesSync(path, 1000, 1000);
  expect(file.find(print(1))?.principal).toBe("a");
  writeFileSync(path, `a ${key(2)} roles=read\n`);
  utimesSync(path, 1000, 1000);
  expect(file.find(print(1))).toBeUndefined();
  expect(file.find(print(2))?.principal).toBe("a");

  renameSync(path, `${path}.gone`);
  expect(file.find(print(2))).toBeUndefined();
  renameSync(`${path}.gone`, path);
  expect(file.find(print(2))?.principal).toBe("a");

  writeFileSync(path, `a ${A}\nb ${key(2)} roles=read\n`);
  expect(file.find(print(1))).toBeUndefined();
  expect(log.at(-1)).toEqual([
    "error",
    "signers.bad-line",
    { file: path, problem: expect.stringContaining("line 1: roles= is missing") },
  ]);
  writeFileSync(path, `b ${key(2)} roles=read\n#${"x".repeat(262_144)}\n`);
  expect(file.find(print(2))).toBeUndefined();
  expect(String((log.at(-1) as [string, string, { error: string }])[2].error)).toContain(
    "at most 262144 are read",
  );
});

/** Whether the real program takes a line for the key's signature. */
function openSshTakes(line: string, namespace: string): boolean {
  const message = Buffer.from("hello");
  const signature = signEd25519(seed(1), signedData(namespace, "sha512", message));
  const allowed = join(dir, "allowed");
  writeFileSync(allowed, `${line}\n`);
  writeFileSync(
    join(dir, "sig"),
    armorSshsig({ publicKey: publicKeyOf(seed(1)), namespace, hash: "sha512", signature }),
  );
  const { exitCode } = Bun.spawnSync(
    [
      "ssh-keygen",
      "-Y",
      "verify",
      "-f",
      allowed,
      "-I",
      "alice@desk",
      "-n",
      namespace,
      "-s",
      join(dir, "sig"),
    ],
    { stdin: message, stdout: "ignore", stderr: "ignore" },
  );
  return exitCode === 0;
}

test.skipIf(noSsh).each([
  ["", true],
  ['namespaces="fruit-cmd@v1"', true],
  ['namespaces="fruit-*,git"', true],
  ['namespaces="git"', false],
  ['namespaces="*,!fruit-cmd@v1"', false],
  ['valid-before="20991231"', true],
  ['valid-before="20200101Z"', false],
  ['valid-after="20200101"', true],
  ['valid-after="20980101120000Z",valid-before="20990101Z"', false],
  ["valid-before=20991231", false],
  ['NAMESPACES="fruit-cmd@v1",valid-after="200001010000"', true],
])(
  "ssh-keygen and we read the options %p alike [needs ssh-keygen: apt-get install openssh-client]",
  (options, taken) => {
    const line = `alice@desk ${options} ${A} roles=read,power outlets=0.0,1.*`;
    expect(openSshTakes(line, "fruit-cmd@v1")).toBe(taken);
    const [signer] = parseSigners(line).signers;
    const weTake = signer?.maySign("fruit-cmd@v1") && isValidAt(signer, Date.now() / 1000);
    expect(weTake ?? false).toBe(taken);
  },
);

test("ten failures are looked at, then one a minute; quiet earns them back", () => {
  let now = 1000;
  const limit = new FailureLimit({ nowSeconds: () => now });
  const takes = (n: number) => Array.from({ length: n }, () => limit.take("alice")).filter(Boolean).length;
  expect(takes(20)).toBe(10);
  expect(limit.isOpen("alice")).toBe(false);
  expect(limit.isOpen("bob")).toBe(true);
  now += 59;
  expect(limit.isOpen("alice")).toBe(false);
  now += 2;
  expect(takes(20)).toBe(1);
  now += 180;
  expect(takes(20)).toBe(3);
  now += 86_400;
  expect(takes(20)).toBe(10);
});

test("a key without roles is known where roles do not matter, and still has no rights", () => {
  const { signers, problems } = parseSigners(`alice@desk ${A}\n`, { needsRoles: false });
  expect(problems).toEqual([]);
  expect(signers.map(({ principal, roles }) => [principal, [...roles]])).toEqual([["alice@desk", []]]);
  expect(signers[0]?.mayOutlet("0.0")).toBe(false);
});
