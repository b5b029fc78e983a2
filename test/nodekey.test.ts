/** The node's own key: made once, kept, and never replaced by itself. */
import { expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { chmodSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { openNodeKey } from "../agent/nodekey.ts";
import { makeKey } from "../agent/sign/keygen.ts";
import { verifySshsig } from "../agent/sign/sshsig.ts";
import { fruit, needs, SOURCES, scratch } from "./node.ts";

const message = Buffer.from("transcript");

test("it is made where there is none, for its owner alone, and is the same from then on", () => {
  using folder = scratch();
  const first = openNodeKey(folder.path, "lab/pi1");
  const second = openNodeKey(folder.path, "lab/pi1");
  expect(second.fingerprint).toBe(first.fingerprint);
  expect(second.publicKey).toEqual(first.publicKey);
  expect(statSync(join(folder.path, "node_key")).mode & 0o777).toBe(0o600);
  using other = scratch();
  expect(openNodeKey(other.path, "lab/pi1").fingerprint).not.toBe(first.fingerprint);
});

test("what it signs is an SSHSIG for one namespace by that key", () => {
  using folder = scratch();
  const key = openNodeKey(folder.path, "lab/pi1");
  const armored = key.sign("fruit-console@v1", message);
  expect(verifySshsig(armored, "fruit-console@v1", message).fingerprint).toBe(key.fingerprint);
  expect(() => verifySshsig(armored, "fruit-cmd@v1", message)).toThrow("fruit-console@v1");
  expect(() => verifySshsig(armored, "fruit-console@v1", Buffer.from("other"))).toThrow("does not match");
});

const keygen = needs("ssh-keygen shows the fingerprint that the node says", {
  name: "ssh-keygen",
  install: "openssh-client",
});
test.skipIf(keygen.isSkipped)(keygen.title, () => {
  using folder = scratch();
  const { fingerprint } = openNodeKey(folder.path, "lab/pi1");
  for (const file of ["node_key", "node_key.pub"]) {
    const { stdout } = spawnSync("ssh-keygen", ["-l", "-f", join(folder.path, file)], { encoding: "utf8" });
    expect(stdout).toBe(`256 ${fingerprint} lab/pi1 (ED25519)\n`);
  }
});

test.each([
  {
    what: "torn",
    text: makeKey("x").privateFile.slice(0, 200),
    says: "neither a private nor a public SSH key|kind",
  },
  { what: "empty", text: "", says: "neither a private nor a public SSH key" },
  { what: "only the public half", text: `${makeKey("x").publicLine}\n`, says: "no private key" },
])("a file that is $what is said and left as it is", ({ text, says }) => {
  using folder = scratch();
  const file = folder.file("node_key", text);
  expect(() => openNodeKey(folder.path, "lab/pi1")).toThrow(new RegExp(`${file}: .*(${says})`));
  expect(readFileSync(file, "utf8")).toBe(text);
});

test("a key that others can read is not used", () => {
  using folder = scratch();
  openNodeKey(folder.path, "lab/pi1");
  chmodSync(join(folder.path, "node_key"), 0o640);
  expect(() => openNodeKey(folder.path, "lab/pi1")).toThrow(
    /node_key: others can read .*mode 640.*chmod 600/,
  );
});

test("what a power cut left of making one is no obstacle", () => {
  using folder = scratch();
  for (const name of ["node_key.new", "node_key.pub.new", "node_key.pub"])
    writeFileSync(join(folder.path, name), "half a ke");
  const { fingerprint } = openNodeKey(folder.path, "lab/pi1");
  expect(openNodeKey(folder.path, "lab/pi1").fingerprint).toBe(fingerprint);
  expect(readFileSync(join(folder.path, "node_key.pub"), "utf8")).toMatch(/^ssh-ed25519 \S{68} lab\/pi1\n$/);
});

test("a folder that takes no file is said by the system's own words", () => {
  using folder = scratch();
  rmSync(folder.path, { recursive: true });
  expect(() => openNodeKey(folder.path, "lab/pi1")).toThrow("ENOENT");
});

test("'fruit console key' prints it, without the agent", async () => {
  using folder = scratch();
  const data_dir = join(folder.path, "data");
  mkdirSync(data_dir);
  const config = folder.file("node.json", { site: "lab", node: "pi1", data_dir });
  const none = await fruit(["console", "key", "--config", config], { executable: SOURCES });
  expect(none).toMatchObject({
    exit: 1,
    err: expect.stringContaining(`${data_dir}/node_key: not there yet`),
  });
  const { fingerprint } = openNodeKey(data_dir, "lab/pi1");
  const line = readFileSync(join(data_dir, "node_key.pub"), "utf8").split(" ").slice(0, 2).join(" ");
  expect(await fruit(["console", "key", "--config", config], { executable: SOURCES })).toEqual({
    exit: 0,
    out: `${fingerprint}\n${line}\n`,
    err: "",
  });
  const { out } = await fruit(["console", "key", "--json", "--config", config], { executable: SOURCES });
  expect(JSON.parse(out)).toEqual({ schema: "fruit.console.key/1", fingerprint, key: line });
});
