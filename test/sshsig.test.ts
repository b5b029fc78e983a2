/** SSHSIG against the real ssh-keygen, both ways, and against bytes nobody meant. FRUIT_FUZZ=1000000 for more. */
import { afterAll, expect, test } from "bun:test";
import { chmodSync, copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openKey } from "../agent/sign/keys.ts";
import { armorSshsig, parseSshsig, SignatureError, signedData, verifySshsig } from "../agent/sign/sshsig.ts";
import { fingerprint, publicKeyBlob, wireString } from "../agent/sign/wire.ts";
import { CliError, EXIT } from "../agent/terminal.ts";
import { publicKeyOf, signEd25519 } from "../boot/ed25519.ts";
import { seeded } from "./fakes.ts";

const ROUNDS = Number(process.env.FRUIT_FUZZ ?? 20_000);
const noSsh = !Bun.which("ssh-keygen") || !Bun.which("ssh-agent");
const NEEDS = "[needs ssh-keygen and ssh-agent: apt-get install openssh-client]";

const NAMESPACE = "fruit-cmd@v1";
const MESSAGE = Buffer.from('{"id":"1","verb":"power.off"}');
const SEED = new Uint8Array(32).fill(3);
const dir = mkdtempSync(join(tmpdir(), "fruit-sshsig-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

// Made by OpenSSH_9.2p1: printf hello | ssh-keygen -Y sign -n fruit-cmd@v1 -f KEY
const THEIRS = `-----BEGIN SSH SIGNATURE-----
U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAgCUmawEZx+iiQPZwC1zCxbuIFQo
JM7xOlTzBxm1ZdA6kAAAAMZnJ1aXQtY21kQHYxAAAAAAAAAAZzaGE1MTIAAABTAAAAC3Nz
aC1lZDI1NTE5AAAAQPh9dc/Ft7InpYrG/0YNK/DAEcYSw27iJEF5GP6ecnVaGXa9sYOg1E
VbVp3ZXe+pNllbYcX7UiDnuFzQ9zZ1RQs=
-----END SSH SIGNATURE-----
`;

function ours(message: Uint8Array = MESSAGE, hash: "sha256" | "sha512" = "sha512"): string {
  const signature = signEd25519(SEED, signedData(NAMESPACE, hash, message));
  return armorSshsig({ publicKey: publicKeyOf(SEED), namespace: NAMESPACE, hash, signature });
}

const armor = (blob: Uint8Array) =>
  `-----BEGIN SSH SIGNATURE-----\n${Buffer.from(blob).toString("base64")}\n-----END SSH SIGNATURE-----\n`;
const blobOf = (armored: string) => Buffer.from(armored.split("\n").slice(1, -2).join(""), "base64");
const blob = (parts: {
  magic?: string;
  version?: number;
  key?: Uint8Array;
  namespace?: string;
  reserved?: string;
  hash?: string;
  signature?: Uint8Array;
  rest?: string;
}) =>
  Buffer.concat([
    Buffer.from(parts.magic ?? "SSHSIG"),
    Buffer.from([0, 0, 0, parts.version ?? 1]),
    wireString(parts.key ?? publicKeyBlob(publicKeyOf(SEED))),
    wireString(parts.namespace ?? NAMESPACE),
    wireString(parts.reserved ?? ""),
    wireString(parts.hash ?? "sha512"),
    wireString(
      parts.signature ??
        Buffer.concat([
          wireString("ssh-ed25519"),
          wireString(signEd25519(SEED, signedData(NAMESPACE, "sha512", MESSAGE))),
        ]),
    ),
    Buffer.from(parts.rest ?? ""),
  ]);

test("a signature made by OpenSSH 9.2 holds, and is written again to the byte", () => {
  expect(verifySshsig(THEIRS, NAMESPACE, Buffer.from("hello")).fingerprint).toBe(
    "SHA256:G6vDUtBx3G9WFXWzLmBbltMB9OTAcaO0XfQTJzEH8vM",
  );
  expect(armorSshsig(parseSshsig(THEIRS))).toBe(THEIRS);
});

test.each(["sha256", "sha512"] as const)(
  "our own signature over %s holds for its bytes and namespace alone",
  (hash) => {
    const armored = ours(MESSAGE, hash);
    expect(verifySshsig(armored, NAMESPACE, MESSAGE)).toEqual({
      publicKey: publicKeyOf(SEED),
      fingerprint: fingerprint(publicKeyOf(SEED)),
    });
    expect(verifySshsig(armored.replaceAll("\n", "\r\n"), NAMESPACE, MESSAGE).publicKey).toEqual(
      publicKeyOf(SEED),
    );
    expect(() => verifySshsig(armored, NAMESPACE, Buffer.from(`${MESSAGE} `))).toThrow(
      "does not match the bytes",
    );
    expect(() => verifySshsig(armored, "file", MESSAGE)).toThrow(
      'was made for "fruit-cmd@v1", not for "file"',
    );
  },
);

test("the same parts in the same order are a signature", () => {
  expect(verifySshsig(armor(blob({})), NAMESPACE, MESSAGE).publicKey).toEqual(publicKeyOf(SEED));
});

const RSA = Buffer.concat([wireString("ssh-rsa"), wireString("\x01\x00\x01"), wireString("n")]);
test.each([
  ["nothing", "", "does not begin with"],
  ["text in front", `hello\n${ours()}`, "does not begin with"],
  ["text behind", `${ours()}hello`, "does not end with"],
  ["no end", ours().replace(/-----END.*/, ""), "does not end with"],
  [
    "only the frame",
    "-----BEGIN SSH SIGNATURE-----\n-----END SSH SIGNATURE-----",
    "the magic word has 6 bytes, but only 0",
  ],
  ["more than 4 KiB", ours().replace("\n", `\n${"\n".repeat(4096)}`), "at most 4096"],
  ["a blank in the base64", ours().replace("U1NI", "U1 NI"), "is not base64"],
  ["base64 written otherwise", armor(blobOf(ours())).replace(/=\n/, "\n"), "is not base64"],
  ["another magic word", armor(blob({ magic: "SSHSIX" })), "does not begin with SSHSIG"],
  ["version 2", armor(blob({ version: 2 })), "has version 2; only 1 is known"],
  ["an RSA key", armor(blob({ key: RSA })), "the public key is of type ssh-rsa; only ssh-ed25519 is taken"],
  ["a short key", armor(blob({ key: publicKeyBlob(new Uint8Array(31)) })), "has 31 bytes instead of 32"],
  [
    "a key with a tail",
    armor(blob({ key: Buffer.concat([publicKeyBlob(publicKeyOf(SEED)), Buffer.from("x")]) })),
    "1 bytes follow the public key",
  ],
  ["no namespace", armor(blob({ namespace: "" })), "the namespace is empty"],
  ["a namespace with a newline", armor(blob({ namespace: "a\nb" })), "is not printable ASCII"],
  ["a filled reserved field", armor(blob({ reserved: "x" })), "the reserved field is not empty"],
  ["MD5", armor(blob({ hash: "md5" })), 'the hash algorithm is "md5"'],
  [
    "an RSA signature",
    armor(blob({ signature: Buffer.concat([wireString("rsa-sha2-512"), wireString(new Uint8Array(256))]) })),
    'of type "rsa-sha2-512"',
  ],
  [
    "a short signature",
    armor(blob({ signature: Buffer.concat([wireString("ssh-ed25519"), wireString(new Uint8Array(63))]) })),
    "has 63 bytes instead of 64",
  ],
  [
    "a signature with a tail",
    armor(
      blob({
        signature: Buffer.concat([
          wireString("ssh-ed25519"),
          wireString(new Uint8Array(64)),
          Buffer.from("x"),
        ]),
      }),
    ),
    "1 bytes follow the signature itself",
  ],
  ["bytes behind", armor(blob({ rest: "x" })), "1 bytes follow the signature"],
  [
    "a length over the end",
    armor(Buffer.concat([Buffer.from("SSHSIG\0\0\0\x01\xff\xff\xff\xff", "latin1")])),
    "has 4294967295 bytes, but only 0",
  ],
])("%s is no signature, and the message says why", (_, armored, message) => {
  expect(() => verifySshsig(armored, NAMESPACE, MESSAGE)).toThrow(SignatureError);
  expect(() => verifySshsig(armored, NAMESPACE, MESSAGE)).toThrow(message);
});

/** The same bytes with one or two small accidents. */
function mutated(bytes: Uint8Array, random: () => number): Uint8Array {
  const below = (n: number) => Math.floor(random() * n);
  const data = [...bytes];
  for (let changes = 1 + below(2); changes > 0; changes--) {
    const at = below(data.length);
    const how = below(8);
    if (how === 0) data.splice(at, 1);
    else if (how === 1) data.splice(at, 0, below(256));
    else if (how === 2) data.length = at + 1;
    else data[at] = (data[at] ?? 0) ^ (1 << below(8));
  }
  return Uint8Array.from(data);
}

/** What becomes of an armored signature: refused, read as the genuine one, or read as another. */
function reading(armored: string, genuine: Uint8Array): "refused" | "genuine" | "other" {
  try {
    return blobOf(armorSshsig(parseSshsig(armored))).equals(genuine) ? "genuine" : "other";
  } catch (error) {
    if (error instanceof SignatureError) return "refused";
    throw error;
  }
}

test(`no mutation of a signature is accepted as another, and nothing but SignatureError is thrown (${ROUNDS} mutations)`, () => {
  const random = seeded(0x5519);
  const text = Buffer.from(ours());
  const genuine = blobOf(ours());
  const count = { refused: 0, genuine: 0, other: 0 };
  for (let round = 0; round < ROUNDS; round++) {
    const armored =
      round % 4 === 0
        ? Buffer.from(mutated(text, random)).toString("latin1")
        : armor(mutated(genuine, random));
    const how = reading(armored, genuine);
    count[how]++;
    if (how === "other") expect(() => verifySshsig(armored, NAMESPACE, MESSAGE)).toThrow(SignatureError);
  }
  // the fuzzing reaches both sides of the parser
  expect(count.refused / ROUNDS).toBeWithin(0.2, 0.9);
  expect(count.other / ROUNDS).toBeWithin(0.1, 0.8);
});

/** Runs a real program; what it prints, or its failure as an error. */
function run(args: string[], options: { stdin?: Uint8Array; env?: Record<string, string> } = {}) {
  const { exitCode, stdout, stderr } = Bun.spawnSync(args, {
    env: { PATH: process.env.PATH ?? "", ...options.env },
    stdin: options.stdin ?? null,
  });
  return { exitCode, out: stdout.toString(), err: stderr.toString() };
}

function makeKey(name: string, passphrase = "", type = "ed25519"): string {
  const file = join(dir, name);
  const args = ["ssh-keygen", "-q", "-t", type, "-N", passphrase, "-C", name, "-f", file];
  expect(run(args)).toMatchObject({ exitCode: 0 });
  return file;
}

function askpass(name: string, answer: string): Record<string, string> {
  const file = join(dir, `${name}.sh`);
  writeFileSync(file, `#!/bin/sh\necho '${answer}'\n`);
  chmodSync(file, 0o700);
  return { PATH: process.env.PATH ?? "", SSH_ASKPASS: file, SSH_ASKPASS_REQUIRE: "force" };
}

/** What the real program says of a signature by the key in `file`. */
function verifiedByOpenSsh(file: string, armored: string, message: Uint8Array) {
  const allowed = join(dir, "allowed");
  const [type, key] = readFileSync(`${file}.pub`, "utf8").split(" ");
  writeFileSync(
    allowed,
    `alice@desk namespaces="${NAMESPACE}",valid-before="20991231" ${type} ${key} roles=read\n`,
  );
  writeFileSync(join(dir, "sig"), armored);
  return run(
    [
      "ssh-keygen",
      "-Y",
      "verify",
      "-f",
      allowed,
      "-I",
      "alice@desk",
      "-n",
      NAMESPACE,
      "-s",
      join(dir, "sig"),
    ],
    { stdin: message },
  );
}

const failing = (promise: Promise<unknown>) =>
  promise.then(
    () => undefined,
    (error: unknown) => error as CliError,
  );

test.skipIf(noSsh)(
  `ours is accepted by ssh-keygen -Y verify, and theirs by us, with a plain key ${NEEDS}`,
  async () => {
    const file = makeKey("plain");
    const key = await openKey(file, { env: {} }); // no PATH: nothing can be started
    expect(run(["ssh-keygen", "-l", "-f", file]).out.split(" ")[1]).toBe(key.fingerprint);
    const armored = await key.sign(NAMESPACE, MESSAGE);
    expect(verifiedByOpenSsh(file, armored, MESSAGE)).toMatchObject({ exitCode: 0 });
    expect(verifiedByOpenSsh(file, armored, Buffer.from("other")).exitCode).not.toBe(0);
    for (const hash of ["sha256", "sha512"]) {
      const theirs = run(["ssh-keygen", "-Y", "sign", "-O", `hashalg=${hash}`, "-n", NAMESPACE, "-f", file], {
        stdin: MESSAGE,
      });
      expect(parseSshsig(theirs.out).hash).toBe(hash as "sha256");
      expect(verifySshsig(theirs.out, NAMESPACE, MESSAGE).fingerprint).toBe(key.fingerprint);
    }
  },
);

test.skipIf(noSsh)(
  `a key with a passphrase is signed with by ssh-keygen, which asks for it ${NEEDS}`,
  async () => {
    const file = makeKey("locked", "correct horse");
    const key = await openKey(file, { env: askpass("right", "correct horse") });
    const armored = await key.sign(NAMESPACE, MESSAGE);
    expect(verifySshsig(armored, NAMESPACE, MESSAGE).fingerprint).toBe(key.fingerprint);
    expect(verifiedByOpenSsh(file, armored, MESSAGE)).toMatchObject({ exitCode: 0 });
    const wrong = await failing(
      (await openKey(file, { env: askpass("wrong", "battery") })).sign(NAMESPACE, MESSAGE),
    );
    expect(wrong).toBeInstanceOf(CliError);
    expect(wrong?.exit).toBe(EXIT.unauthorised);
    expect(wrong?.message).toContain("wrong passphrase");
  },
);

test.skipIf(noSsh)(
  `a key in ssh-agent is used by its .pub file, and its absence there is explained ${NEEDS}`,
  async () => {
    const file = makeKey("agent");
    const alone = join(dir, "alone.pub");
    copyFileSync(`${file}.pub`, alone);
    const socket = join(dir, "agent.sock");
    const agent = Bun.spawn(["ssh-agent", "-D", "-a", socket], { stdout: "ignore", stderr: "ignore" });
    try {
      const env = { PATH: process.env.PATH ?? "", SSH_AUTH_SOCK: socket };
      const deadline = Date.now() + 5000;
      while (run(["ssh-add", file], { env }).exitCode !== 0) {
        if (Date.now() > deadline) throw new Error("ssh-agent does not answer");
        await Bun.sleep(20);
      }
      const key = await openKey(alone, { env });
      const armored = await key.sign(NAMESPACE, MESSAGE);
      expect(verifiedByOpenSsh(file, armored, MESSAGE)).toMatchObject({ exitCode: 0 });
      expect(run(["ssh-add", "-D"], { env }).exitCode).toBe(0);
      const gone = await failing(key.sign(NAMESPACE, MESSAGE));
      expect(gone?.exit).toBe(EXIT.unauthorised);
      expect(gone?.message).toContain("neither beside it nor in ssh-agent");
    } finally {
      agent.kill();
      await agent.exited;
    }
  },
);

test.skipIf(noSsh)(`a file that is no usable key is refused with the way out ${NEEDS}`, async () => {
  const rsa = makeKey("rsa", "", "rsa");
  const ecdsa = makeKey("ecdsa", "", "ecdsa");
  const pem = join(dir, "pem");
  writeFileSync(pem, "-----BEGIN PRIVATE KEY-----\nMC4CAQA=\n-----END PRIVATE KEY-----\n", { mode: 0o600 });
  const open = makeKey("open");
  chmodSync(open, 0o644);
  const locked = makeKey("lockedtoo", "secret");
  for (const [file, message] of [
    [rsa, "the key is of type ssh-rsa; only ssh-ed25519 is taken; make one with: ssh-keygen -t ed25519"],
    [`${rsa}.pub`, "the key is of type ssh-rsa"],
    [ecdsa, "the key is of type ecdsa-sha2-nistp256"],
    [pem, "a key of another kind"],
    [open, "others can read this private key (mode 644); chmod 600"],
    [join(dir, "allowed"), "neither a private nor a public SSH key"],
    [join(dir, "nowhere"), "the key cannot be read: ENOENT"],
  ] as const) {
    const error = await failing(openKey(file));
    expect(error).toBeInstanceOf(CliError);
    expect(error?.exit).toBe(EXIT.usage);
    expect(error?.message).toContain(`${file}: `);
    expect(error?.message).toContain(message);
  }
  const missing = await failing((await openKey(locked, { env: { PATH: dir } })).sign(NAMESPACE, MESSAGE));
  expect(missing?.message).toContain("ssh-keygen is not installed");
});

test.skipIf(noSsh)(`a damaged private key never signs: each byte is changed once ${NEEDS}`, async () => {
  const file = makeKey("damaged");
  const text = readFileSync(file, "utf8");
  const body = Buffer.from(text.split("\n").slice(1, -2).join(""), "base64");
  const comment = body.lastIndexOf("damaged");
  const good = (await openKey(file)).fingerprint;
  for (let at = 0; at < body.length; at++) {
    const bent = Buffer.from(body);
    bent[at]! ^= 0x40;
    writeFileSync(
      file,
      `-----BEGIN OPENSSH PRIVATE KEY-----\n${bent.toString("base64")}\n-----END OPENSSH PRIVATE KEY-----\n`,
    );
    const opened = await openKey(file, { env: {} }).catch((error: unknown) => error);
    if (opened instanceof CliError) continue;
    // left: its own comment, which nothing depends on, and the words of the encryption, for which ssh-keygen is asked
    const key = opened as Awaited<ReturnType<typeof openKey>>;
    expect(key.fingerprint).toBe(good);
    if (at < comment || at >= comment + "damaged".length)
      expect(await failing(key.sign(NAMESPACE, MESSAGE))).toBeInstanceOf(CliError);
  }
});
