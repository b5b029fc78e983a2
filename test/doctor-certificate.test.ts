import { describe, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { X509Certificate } from "node:crypto";
import { chmodSync, readFileSync } from "node:fs";
import { parseConfig } from "../agent/config.ts";
import { checkCertificates } from "../agent/doctor/certificate.ts";
import { not, Tree } from "./tree.ts";

const tree = new Tree();

describe.skipIf(!Bun.which("openssl"))("certificates [needs openssl: apt-get install openssl]", () => {
  const openssl = (...args: string[]) => {
    const done = spawnSync("openssl", args, { cwd: tree.root, encoding: "utf8" });
    if (done.status !== 0) throw new Error(done.stderr);
  };
  const make = (name: string, cn: string) => {
    openssl(
      "req",
      "-x509",
      "-newkey",
      "ec",
      "-pkeyopt",
      "ec_paramgen_curve:prime256v1",
      "-nodes",
      "-days",
      "365",
      "-subj",
      `/O=lab/CN=${cn}`,
      "-keyout",
      `${name}.key`,
      "-out",
      `${name}.pem`,
    );
    chmodSync(tree.at(`${name}.key`), 0o600);
  };
  const check = (change: object = {}, nowMs?: number) => {
    const files = { ca: tree.at("node.pem"), cert: tree.at("node.pem"), key: tree.at("node.key") };
    const { mqtt } = parseConfig("test", {
      site: "lab",
      mqtt: { url: "mqtts://broker", ...files, ...change },
    });
    if (!mqtt) throw new Error("the configuration has mqtt");
    return checkCertificates(mqtt, "pi1", nowMs);
  };
  const DAY_MS = 86_400_000;

  test("that are in force and belong together pass", () => {
    make("node", "pi1");
    expect(tree.lines(check())).toMatch(
      /^ok {3}ca: ROOT\/node\.pem: valid until [\d-]+\nok {3}certificate: ROOT\/node\.pem: valid until [\d-]+\nok {3}key: ROOT\/node\.key: matches the certificate\n$/,
    );
  });

  test("of another node, with another's key, or one that all may read, are told so", () => {
    make("node", "pi1");
    make("other", "pi2");
    const cert = tree.at("other.pem");
    expect(tree.lines(not("ok", check({ cert })))).toBe(
      `warn certificate: ROOT/other.pem: made for "pi2", this node is pi1; make one whose CN is the node id
FAIL key: ROOT/node.key: is not the key of the certificate; put the two that belong together there
`,
    );
    chmodSync(tree.at("node.key"), 0o644);
    expect(tree.lines(not("ok", check()))).toBe(
      "warn key: ROOT/node.key: matches the certificate, but other users may read it (mode 644); chmod 600 ROOT/node.key\n",
    );
  });

  test.each([
    { days: -1, level: "FAIL", what: "valid only from" },
    { days: 364, level: "warn", what: "expires on" },
    { days: 366, level: "FAIL", what: "expired on" },
    { days: -9000, level: "warn", what: "so its validity cannot be judged" },
  ])("$days days from their making are $level: $what", ({ days, level, what }) => {
    make("node", "pi1");
    const { validFrom } = new X509Certificate(readFileSync(tree.at("node.pem")));
    const found = check({}, Date.parse(validFrom) + days * DAY_MS).find(({ name }) => name === "certificate");
    expect(found).toMatchObject({ level, what: expect.stringContaining(what) });
  });

  test("that are missing, or something else, are told so", () => {
    make("node", "pi1");
    const ca = tree.put("ca.pem", "hello");
    expect(tree.lines(not("ok", check({ ca, key: tree.at("none.key") })))).toBe(
      `FAIL ca: ROOT/ca.pem: is not what it should be (PEM expected); put the PEM file there
FAIL key: ROOT/none.key: does not exist; put the certificate's private key there, PEM, without passphrase
`,
    );
  });

  test("a password file must be there, hold something and be secret", () => {
    make("node", "pi1");
    const of = (password_file: string) => tree.lines(not("ok", check({ username: "pi1", password_file })));
    expect(of(tree.at("none"))).toContain("FAIL password: ROOT/none: does not exist");
    expect(of(tree.put("empty", "\n", 0o600))).toContain("FAIL password: ROOT/empty: is empty");
    expect(of(tree.put("open", "secret\n", 0o640))).toContain(
      "warn password: ROOT/open: is readable, but other users",
    );
    expect(of(tree.put("good", "secret\n", 0o600))).toBe("");
  });
});
