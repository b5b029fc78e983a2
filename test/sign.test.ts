/** `fruit sign cmd`, `fruit verify` and `fruit audit` as a person types them. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { run } from "../agent/cli.ts";
import { Audit } from "../agent/record/audit.ts";
import { openEnvelope } from "../agent/sign/envelope.ts";
import { makeKey } from "../agent/sign/keygen.ts";
import { openKey } from "../agent/sign/keys.ts";
import { FailureLimit } from "../agent/sign/limit.ts";
import { parseSigners } from "../agent/sign/signers.ts";
import { EXIT, type Io } from "../agent/terminal.ts";

const dir = mkdtempSync(join(tmpdir(), "fruit-sign-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

async function newKey(name: string) {
  const { privateFile, publicLine } = makeKey(name);
  const file = join(dir, name);
  writeFileSync(file, privateFile, { mode: 0o600 });
  return { ...(await openKey(file)), file, line: publicLine.split(" ").slice(0, 2).join(" ") };
}
const alice = await newKey("alice");
const bob = await newKey("bob");
const mallory = await newKey("mallory");

/** The command line as a function. */
async function fruit(args: string[], stdin = "", env: Io["env"] = {}) {
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
    stdin: async () => Buffer.from(stdin),
    signal: new AbortController().signal,
  };
  return { exit: await run(args, io), ...said };
}
const SIGNERS = join(dir, "allowed_signers");
const FILE = `alice@desk namespaces="fruit-cmd@v1",valid-before="20991231Z" ${alice.line} roles=read,power outlets=0.*
bob ${bob.line} roles=read
carol ssh-rsa AAAA roles=read
`;
writeFileSync(SIGNERS, FILE);
const SIGN = [
  "sign",
  "cmd",
  "power.cycle",
  '{"outlets":["0.1"]}',
  "--site",
  "lab",
  "--node",
  "pi1",
  "--key",
  alice.file,
];

test("a command signed on the command line is verified there, and opened by a node", async () => {
  const sealed = await fruit([...SIGN, "--for", "5m", "--reason", "hung\u001b[2J", "--challenge", "c-1"]);
  expect(sealed).toMatchObject({ exit: EXIT.done, err: "" });
  const { signers } = parseSigners(FILE);
  const find = (print: string) => signers.find(({ fingerprint }) => fingerprint === print);
  const limits = { failures: new FailureLimit(), verifications: new FailureLimit() };
  const { payload } = openEnvelope(Buffer.from(sealed.out), { signers: { find }, ...limits });
  expect(payload).toMatchObject({
    verb: "power.cycle",
    site: "lab",
    node: "pi1",
    args: { outlets: ["0.1"] },
    challenge: "c-1",
  });
  expect(payload.exp - payload.iat).toBe(300);

  const verified = await fruit(["verify", "--signers", SIGNERS], sealed.out);
  expect(verified.exit).toBe(EXIT.done);
  expect(verified.err).toBe(`fruit: ${SIGNERS}: line 3: key type ssh-rsa; only ssh-ed25519 is taken\n`);
  const shown = verified.out
    .replace(/(id|signed|expires) {2,}.*\n/g, "$1 …\n")
    .replace(/SHA256:\S+/, "SHA256:…");
  expect(shown).toMatchInlineSnapshot(`
    "signed by    alice@desk SHA256:…
    roles        read, power
    outlets      0.*
    valid until  2099-12-31T00:00:00Z
    command      power.cycle {"outlets":["0.1"]}
    for          lab/pi1
    id …
    signed …
    expires …
    reason       hung?[2J
    "
  `);

  const json = await fruit(["verify", "--json", "--signers", SIGNERS, "-"], sealed.out);
  expect(JSON.parse(json.out)).toMatchObject({
    schema: "fruit.verify/1",
    principal: "alice@desk",
    roles: ["read", "power"],
    payload,
  });
});

test("what a node of this release would refuse is signed all the same, and said", async () => {
  const [, , , args = "", ...rest] = SIGN;
  const { exit, out, err } = await fruit(["sign", "cmd", "power.explode", args, ...rest, "--for", "10m"]);
  expect(exit).toBe(EXIT.done);
  expect(JSON.parse(out)).toHaveProperty("s");
  expect(err).toMatch(
    /^fruit: sign cmd: no verb "power\.explode" in this release; there are .*console\.break, .*\n/,
  );
  expect(err).toEndWith("fruit: sign cmd: --for 10m: nodes refuse what lives longer than 5m\n");
});

test("what does not verify on the command line says why, with exit 7", async () => {
  const { out } = await fruit(SIGN);
  const bent = Buffer.from(JSON.parse(out).p, "base64").toString().replace("0.1", "0.0");
  const forged = JSON.stringify({ ...JSON.parse(out), p: Buffer.from(bent).toString("base64") });
  const answer = await fruit(["verify", "--signers", SIGNERS, "-"], forged);
  expect(answer.exit).toBe(EXIT.unauthorised);
  expect(answer.err).toEndWith(
    "fruit: standard input: not accepted: the signature does not match the bytes it stands with\n",
  );
  const plain = await fruit(["verify", "--signers", SIGNERS], bent);
  expect(plain.exit).toBe(EXIT.unauthorised);
  expect(plain.err).toEndWith("not accepted: it is not signed\n");
});

test("a file and its detached signature are verified on the command line", async () => {
  const file = join(dir, "release");
  writeFileSync(file, "payload");
  writeFileSync(`${file}.sig`, await bob.sign("file", Buffer.from("payload")));
  const args = ["verify", "--signers", SIGNERS, "--signature", `${file}.sig`];
  expect(await fruit([...args, "--namespace", "file", file])).toMatchObject({
    exit: EXIT.done,
    out: expect.stringContaining("signed by  bob SHA256:"),
  });
  expect((await fruit([...args, file])).err).toContain('made for "file", not for "fruit-cmd@v1"');
  writeFileSync(`${file}.sig`, await alice.sign("file", Buffer.from("payload")));
  expect((await fruit([...args, "--namespace", "file", file])).err).toContain(
    'the key of alice@desk is not for "file"',
  );
  writeFileSync(`${file}.sig`, await mallory.sign("file", Buffer.from("payload")));
  expect((await fruit([...args, "--namespace", "file", file])).exit).toBe(EXIT.unauthorised);
});

test("the audit log is shown and checked without the agent, where its configuration says it is", async () => {
  const data = join(dir, "data");
  const config = join(dir, "node.json");
  writeFileSync(config, JSON.stringify({ site: "lab", data_dir: data }));
  const env = { FRUIT_CONFIG: config };
  const absent = await fruit(["audit", "verify"], "", env);
  expect(absent).toMatchObject({
    exit: EXIT.failed,
    err: `fruit: ${data}/audit: there is no audit log; another place: --dir DIR\n`,
  });

  const audit = await Audit.open(join(data, "audit"), { boot: "b", clock: () => "synced" });
  const entry = { src: "mqtt", who: "key:alice@desk", verb: "power.off", decision: "allowed" } as const;
  await audit.append({ ...entry, args: { outlets: ["0.1"] }, reason: "hung\u001b[2J" }, { durable: false });
  await audit.append({ ...entry, verb: "power.on", outcome: "done", duration_s: 0.25 }, { durable: true });
  await audit.append(
    { ...entry, who: "anonymous", decision: "refused", code: "unauthorised" },
    { durable: false },
  );
  await audit.close();
  const head = audit.head()!;

  const shown = await fruit(["audit", "tail"], "", env);
  expect(shown.exit).toBe(EXIT.done);
  expect(shown.out.replace(/\d{4}-\S+Z/g, "YYYY-MM-DDTHH:MM:SS.mmmZ")).toMatchInlineSnapshot(`
    "SEQ  TIME                      WHO             VERB       ARGS                 DECISION              REASON
    1    YYYY-MM-DDTHH:MM:SS.mmmZ  key:alice@desk  power.off  {"outlets":["0.1"]}  allowed               hung?[2J
    2    YYYY-MM-DDTHH:MM:SS.mmmZ  key:alice@desk  power.on   -                    allowed done (0.3 s)  -
    3    YYYY-MM-DDTHH:MM:SS.mmmZ  anonymous       power.off  -                    refused unauthorised  -
    "
  `);
  expect(
    (await fruit(["audit", "tail", "-n", "1", "--dir", join(data, "audit")])).out.split("\n"),
  ).toHaveLength(3);
  const lines = JSON.parse((await fruit(["audit", "tail", "--json"], "", env)).out);
  expect(lines).toMatchObject({ schema: "fruit.audit-tail/1", lines: [{ seq: 1 }, { seq: 2 }, { seq: 3 }] });

  expect(await fruit(["audit", "verify"], "", env)).toEqual({
    exit: EXIT.done,
    out: `${data}/audit: 3 lines, seq 1 to 3, the chain holds\nhead 3:${head.sha256}\n`,
    err: "",
  });
  expect((await fruit(["audit", "verify", "--head", `3:${head.sha256}`], "", env)).exit).toBe(EXIT.done);
  expect(await fruit(["audit", "verify", "--head", `9:${head.sha256}`], "", env)).toMatchObject({
    exit: EXIT.failed,
    out: "audit.jsonl line 3: removed: the log ends with seq 3, but seq 9 is known\n",
  });
  const file = join(data, "audit", "audit.jsonl");
  writeFileSync(file, (await Bun.file(file).text()).replace("hung", "hing"));
  expect(await fruit(["audit", "verify"], "", env)).toMatchObject({
    exit: EXIT.failed,
    out: "audit.jsonl line 1: changed: it is not the line that the next one follows\n",
  });
  const json = JSON.parse((await fruit(["audit", "verify", "--json"], "", env)).out);
  expect(json).toMatchObject({
    schema: "fruit.audit-verify/1",
    lines: 3,
    problems: [{ file: "audit.jsonl", line: 1 }],
  });
});

test.each([
  ["expected VERB", ["sign", "cmd"]],
  ["--site is missing", ["sign", "cmd", "identify", "--node", "pi1", "--key", alice.file]],
  ["the arguments are a JSON object", ["sign", "cmd", "identify", "[1]", ...SIGN.slice(4)]],
  ['--for: "soon" is not a duration', [...SIGN, "--for", "soon"]],
  ["id: ", [...SIGN, "--id", "a b"]],
  ["the key cannot be read", [...SIGN.slice(0, -1), join(dir, "nokey")]],
  ["--signers is missing", ["verify"]],
  ["ENOENT", ["verify", "--signers", join(dir, "nofile")]],
  ["--namespace goes with --signature", ["verify", "--signers", SIGNERS, "--namespace", "file"]],
  ['-n: "0" is not a number of lines', ["audit", "tail", "-n", "0"]],
  ['-n: "many" is not a number of lines', ["audit", "tail", "-n", "many"]],
  ['--head: "7" is not SEQ:SHA256', ["audit", "verify", "--head", "7"]],
])("wrong words are a usage error that says: %s", async (message, args) => {
  const answer = await fruit(args);
  expect(answer.exit).toBe(EXIT.usage);
  expect(answer.err).toContain(message);
  expect(answer.out).toBe("");
});
