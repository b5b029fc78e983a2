/** The nodes a person knows, by their keys. */
import { expect, test } from "bun:test";
import { mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { checkNode, knownNodesFile } from "../agent/knownnodes.ts";
import { makeKey } from "../agent/sign/keygen.ts";
import { decodeBase64, fingerprint, readPublicKey } from "../agent/sign/wire.ts";
import { CliError, EXIT } from "../agent/terminal.ts";
import { scratch } from "./node.ts";

function newKey() {
  const [type = "", base64 = ""] = makeKey("lab/pi1").publicLine.split(" ");
  const publicKey = readPublicKey(decodeBase64(base64, "key"), "key");
  return { publicKey, line: `${type} ${base64}`, print: fingerprint(publicKey) };
}
const [own, other] = [newKey(), newKey()];

/** A home of its own with a file of known nodes; `check` looks at somebody who has a key. */
function home(lines?: string) {
  const folder = scratch();
  const env = { HOME: folder.path };
  const file = knownNodesFile(env);
  mkdirSync(dirname(file), { recursive: true });
  if (lines !== undefined) writeFileSync(file, lines);
  return {
    file,
    text: () => readFileSync(file, "utf8"),
    check: (more: { publicKey?: Uint8Array; node?: string; pinned?: string } = {}) =>
      checkNode({ site: "lab", node: "pi1", publicKey: own.publicKey, env, ...more }),
    [Symbol.dispose]: () => folder[Symbol.dispose](),
  };
}

/** What it says against somebody, and the exit code. */
function refusal(check: () => unknown): { exit: number; message: string } {
  try {
    check();
  } catch (error) {
    if (error instanceof CliError) return { exit: error.exit, message: error.message };
    throw error;
  }
  throw new Error("it was content");
}

test.each([
  { env: { HOME: "/home/a" }, file: "/home/a/.config/fruit/known_nodes" },
  { env: { HOME: "/home/a", XDG_CONFIG_HOME: "/etc/a" }, file: "/etc/a/fruit/known_nodes" },
  { env: { HOME: "/home/a", XDG_CONFIG_HOME: "here" }, file: "/home/a/.config/fruit/known_nodes" },
  { env: {}, file: join(homedir(), ".config/fruit/known_nodes") },
])("with $env they are in $file", ({ env, file }) => {
  expect(knownNodesFile(env)).toBe(file);
});

test("a node that nobody met is believed once, and said with its fingerprint; from then on it is known", () => {
  using folder = scratch();
  const env = { HOME: join(folder.path, "none/yet") };
  const check = () => checkNode({ site: "lab", node: "pi1", publicKey: own.publicKey, env });
  const file = knownNodesFile(env);
  expect(check()).toBe(
    `lab/pi1 is met for the first time, with key ${own.print} (compare with 'fruit console key' on the node); it is kept in ${file}`,
  );
  expect(readFileSync(file, "utf8")).toBe(`lab/pi1 ${own.line}\n`);
  expect(statSync(file).mode & 0o077).toBe(0);
  expect(check()).toBeUndefined();
  expect(readFileSync(file, "utf8")).toBe(`lab/pi1 ${own.line}\n`);
});

test("a node with another key than before is refused loudly, with the line and the way out, and nothing is written", () => {
  const lines = `# mine\nlab/pi2 ${own.line}\nlab/pi1 ${other.line}\n`;
  using one = home(lines);
  const { exit, message } = refusal(() => one.check());
  expect(exit).toBe(EXIT.unauthorised);
  expect(message).toContain(`lab/pi1 HAS ANOTHER KEY THAN BEFORE: ${own.print} instead of ${other.print}`);
  expect(message).toContain(`${one.file}, line 3`);
  expect(message).toContain("delete that line");
  expect(one.text()).toBe(lines);
});

test("another node's key is not this one's, and a new node goes on a line of its own", () => {
  using one = home(`lab/pi2 ${own.line}`);
  expect(one.check()).toContain("is met for the first time");
  expect(one.text()).toBe(`lab/pi2 ${own.line}\nlab/pi1 ${own.line}\n`);
});

test("a node may stand there with several keys", () => {
  using one = home(`lab/pi1 ${other.line}\nlab/pi1 ${own.line} since May\n`);
  expect(one.check()).toBeUndefined();
});

test.each(["lab/pi1", "lab/pi1 ssh-rsa AAAA", "lab/pi1 ssh-ed25519 AAAA", "lab/pi1 ssh-ed25519"])(
  "a damaged line of the node, '%s', is no reason to believe whoever comes",
  (line) => {
    using one = home(`${line}\n`);
    const { exit, message } = refusal(() => one.check());
    expect({ exit, message }).toEqual({
      exit: EXIT.usage,
      message: expect.stringContaining(`${one.file}, line 1: `),
    });
    // What is wrong with others' lines is their own affair.
    expect(one.check({ node: "pi7" })).toContain("is met for the first time");
  },
);

test("a home that cannot be written to is said, and is no reason to stay out", () => {
  using folder = scratch();
  const env = { HOME: folder.file("home", "a file") };
  const said = checkNode({ site: "lab", node: "pi1", publicKey: own.publicKey, env });
  expect(said).toMatch(/is met for the first time.* could not be kept: ENOTDIR/);
});

test("--node-key decides alone: a fingerprint, a public key file, or lines of known nodes", () => {
  using one = home(`lab/pi1 ${other.line}\n`);
  using folder = scratch();
  const good = [
    own.print,
    folder.file("key.pub", `${own.line} lab/pi1\n`),
    folder.file("known", `# ours\nlab/pi2 ${other.line}\nlab/pi1 ${own.line}\n`),
  ];
  for (const pinned of good) expect(one.check({ pinned })).toBeUndefined();
  const bad = [
    other.print,
    folder.file("other.pub", `${other.line} lab/pi1\n`),
    folder.file("known-other", `lab/pi2 ${own.line}\nlab/pi1 ${other.line}\n`),
  ];
  for (const pinned of bad)
    expect(refusal(() => one.check({ pinned }))).toEqual({
      exit: EXIT.unauthorised,
      message: `lab/pi1 proves itself with key ${own.print}, not with that of --node-key (${other.print}): it is another node, or somebody stands between`,
    });
  expect(one.text()).toBe(`lab/pi1 ${other.line}\n`);
});

test.each([
  { what: "is not there", pinned: () => "/none", says: "neither SHA256:… nor a file that can be read" },
  {
    what: "is empty",
    pinned: (file: (text: string) => string) => file(""),
    says: "no ssh-ed25519 key of lab/pi1",
  },
  {
    what: "has only others",
    pinned: (file: (text: string) => string) => file(`lab/pi2 ${own.line}\n`),
    says: "no ssh-ed25519 key of lab/pi1",
  },
  {
    what: "is damaged",
    pinned: (file: (text: string) => string) => file("ssh-ed25519 AAAA\n"),
    says: "line 1: ",
  },
])("a --node-key that $what is said, exit 2", ({ pinned, says }) => {
  using one = home();
  using folder = scratch();
  const file = pinned((text) => folder.file("key", text));
  expect(refusal(() => one.check({ pinned: file }))).toEqual({
    exit: EXIT.usage,
    message: expect.stringMatching(new RegExp(`${file}.*${says}`)),
  });
});
