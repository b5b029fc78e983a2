/** The technician's key with the real ssh-keygen and ssh-agent, signatures going both ways. */
import { afterAll, expect, test } from "bun:test";
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { makeKey as makeOurKey } from "../agent/sign/keygen.ts";
import { openKey } from "../agent/sign/keys.ts";
import { parseSshsig, verifySshsig } from "../agent/sign/sshsig.ts";
import { CliError, EXIT } from "../agent/terminal.ts";

const noSsh = !Bun.which("ssh-keygen") || !Bun.which("ssh-agent");
const NEEDS = "[needs ssh-keygen and ssh-agent: apt-get install openssh-client]";
const NAMESPACE = "fruit-cmd@v1";
const MESSAGE = Buffer.from('{"id":"1","verb":"power.off"}');
const dir = mkdtempSync(join(tmpdir(), "fruit-keys-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));

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

test.skipIf(noSsh)(
  `a signature that is not the key's is not passed on, whoever made it ${NEEDS}`,
  async () => {
    const locked = makeKey("lockedthree", "secret");
    const another = join(dir, "another");
    writeFileSync(another, makeOurKey("another").privateFile, { mode: 0o600 });
    const other = await openKey(another);
    const liar = join(dir, "liar");
    mkdirSync(liar);
    for (const [said, message] of [
      [await other.sign(NAMESPACE, MESSAGE), "it was made by SHA256:"],
      [await other.sign(NAMESPACE, Buffer.from("x")), "does not match the bytes"],
      ["thank you", "does not begin with"],
    ] as const) {
      writeFileSync(join(liar, "said"), said);
      writeFileSync(join(liar, "ssh-keygen"), `#!/bin/sh\nexec /bin/cat '${join(liar, "said")}'\n`, {
        mode: 0o700,
      });
      const error = await failing((await openKey(locked, { env: { PATH: liar } })).sign(NAMESPACE, MESSAGE));
      expect(error).toBeInstanceOf(CliError);
      expect(error?.message).toContain("ssh-keygen's signature is no good");
      expect(error?.message).toContain(message);
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
  const notes = join(dir, "notes");
  writeFileSync(notes, "alice@desk has the key\n");
  for (const [file, message] of [
    [rsa, "the key is of type ssh-rsa; only ssh-ed25519 is taken; make one with: ssh-keygen -t ed25519"],
    [`${rsa}.pub`, "the key is of type ssh-rsa"],
    [ecdsa, "the key is of type ecdsa-sha2-nistp256"],
    [pem, "a key of another kind"],
    [open, "others can read this private key (mode 644); chmod 600"],
    [notes, "neither a private nor a public SSH key"],
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
