/** ssh-agent: the real one, and one that lies, stalls and floods. FRUIT_FUZZ=1000000 for more mutations. */
import { expect, test } from "bun:test";
import { chmodSync, statSync, writeFileSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { join } from "node:path";
import { makeKey } from "../agent/sign/keygen.ts";
import { parseKeyFile } from "../agent/sign/keys.ts";
import { openRawKey } from "../agent/sign/rawkey.ts";
import { listIdentities, parseIdentities, parseSignature, signInAgent } from "../agent/sign/sshagent.ts";
import { fingerprint, publicKeyBlob, WireError, wireString } from "../agent/sign/wire.ts";
import { publicKeyOf, signEd25519, verifyEd25519 } from "../boot/ed25519.ts";
import { seeded } from "./fakes.ts";
import { mutated } from "./mutations.ts";
import { needs, scratch, until } from "./node.ts";
import { seedOf } from "./releases.ts";

const ROUNDS = Number(process.env.FRUIT_FUZZ ?? 5_000);
const signal = new AbortController().signal;
const MESSAGE = Buffer.from("what is signed");
const KEY = publicKeyOf(seedOf("anna"));

const number = (value: number) => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
};
const keys = (...blobs: Uint8Array[]) =>
  Buffer.concat([
    Buffer.of(12),
    number(blobs.length),
    ...blobs.flatMap((blob, index) => [wireString(blob), wireString(`key ${index}`)]),
  ]);
const signature = (bytes: Uint8Array, type = "ssh-ed25519") =>
  Buffer.concat([Buffer.of(14), wireString(Buffer.concat([wireString(type), wireString(bytes)]))]);
const GOOD = signature(signEd25519(seedOf("anna"), MESSAGE));

/** An agent that does as it is told with whoever comes. */
async function agent(answer: (socket: Socket) => void) {
  const folder = scratch();
  const socketPath = join(folder.path, "agent");
  const open = new Set<Socket>();
  const server = createServer((socket) => {
    open.add(socket);
    socket.on("error", () => undefined);
    socket.once("data", () => answer(socket));
  });
  await new Promise<void>((resolve) => server.listen(socketPath, resolve));
  return {
    door: { socketPath, signal },
    env: { SSH_AUTH_SOCK: socketPath },
    folder,
    [Symbol.asyncDispose]: async () => {
      for (const socket of open) socket.destroy();
      await new Promise((resolve) => server.close(resolve));
      folder[Symbol.dispose]();
    },
  };
}
const says = (bytes: Uint8Array) => agent((socket) => socket.write(wireString(bytes)));

test("an answer that comes byte by byte is read, and of keys of other kinds nothing is told", async () => {
  const rsa = Buffer.concat([wireString("ssh-rsa"), wireString("x")]);
  const bytes = wireString(keys(rsa, publicKeyBlob(KEY)));
  await using dripping = await agent((socket) => {
    const next = (at: number) => {
      if (at < bytes.length) socket.write(bytes.subarray(at, at + 1), () => setImmediate(next, at + 1));
    };
    next(0);
  });
  const found = await listIdentities(dripping.door);
  expect(found).toEqual([{ publicKey: new Uint8Array(KEY), comment: "key 1" }]);
});

test("more than the answer is not looked at", async () => {
  await using chatty = await agent((socket) =>
    socket.write(Buffer.concat([wireString(GOOD), Buffer.alloc(500)])),
  );
  expect(verifyEd25519(KEY, MESSAGE, await signInAgent(chatty.door, KEY, MESSAGE))).toBe(true);
});

test.each<[what: string, answer: (socket: Socket) => void, why: string]>([
  [
    "refuses",
    (socket) => socket.write(wireString(Buffer.of(5))),
    "it does not have this key, or would not use it",
  ],
  ["hangs up", (socket) => socket.end(), "it hung up without an answer"],
  [
    "hangs up in the middle",
    (socket) => socket.end(wireString(GOOD).subarray(0, 20)),
    "it hung up without an answer",
  ],
  [
    "announces four gigabytes",
    (socket) => socket.write(number(0xffff_ffff)),
    "an answer of 4294967295 bytes",
  ],
  ["announces a little too much", (socket) => socket.write(number(4097)), "an answer of 4097 bytes"],
  ["answers nothing", (socket) => socket.write(number(0)), "the answer has 1 bytes, but only 0 are there"],
  [
    "signs with another kind",
    (socket) => socket.write(wireString(signature(Buffer.alloc(64), "ssh-rsa"))),
    'a signature of type "ssh-rsa"',
  ],
  [
    "signs with 63 bytes",
    (socket) => socket.write(wireString(signature(Buffer.alloc(63)))),
    "a signature of 63 bytes instead of 64",
  ],
  ["says nothing at all", () => undefined, "it did not answer within 0.2 s"],
])("an agent that %s is named", async (_what, answer, why) => {
  await using bad = await agent(answer);
  await expect(signInAgent({ ...bad.door, limitMs: 200 }, KEY, MESSAGE)).rejects.toThrow(why);
});

test("an agent that floods costs no more than its bound", async () => {
  let sent = 0;
  await using flooding = await agent((socket) => {
    const chunk = Buffer.alloc(65_536, 0xff);
    const more = () => {
      while (!socket.destroyed && sent < 2 ** 28) {
        sent += chunk.length;
        if (!socket.write(chunk)) return;
      }
    };
    socket.on("drain", more);
    more();
  });
  await expect(signInAgent(flooding.door, KEY, MESSAGE)).rejects.toThrow("an answer of 4294967295 bytes");
  expect(sent).toBeLessThan(2 ** 24);
});

test("a signature that does not hold is not used", async () => {
  await using lying = await says(signature(Buffer.alloc(64)));
  const file = join(lying.folder.path, "anna.pub");
  writeFileSync(file, `ssh-ed25519 ${publicKeyBlob(KEY).toString("base64")} anna`);
  const key = await openRawKey(file, { env: lying.env, signal });
  await expect(key.sign(MESSAGE)).rejects.toThrow("the signature that ssh-agent made is no good");
});

test("a person who gives up is not kept waiting", async () => {
  const controller = new AbortController();
  await using silent = await agent(() => controller.abort());
  const asked = signInAgent({ ...silent.door, signal: controller.signal }, KEY, MESSAGE);
  await expect(asked).rejects.toThrow("aborted");
});

test("a key that agent:… does not name, or names twice, is said with those there are", async () => {
  await using two = await says(keys(publicKeyBlob(KEY), publicKeyBlob(publicKeyOf(seedOf("bert")))));
  const open = (named: string) => openRawKey(named, { env: two.env, signal });
  expect((await open("agent:key 1")).publicKey).toEqual(new Uint8Array(publicKeyOf(seedOf("bert"))));
  expect((await open(`agent:${fingerprint(KEY)}`)).publicKey).toEqual(new Uint8Array(KEY));
  await expect(open("agent")).rejects.toThrow("agent: 2 keys of ssh-agent are meant; it has SHA256:");
  await expect(open("agent:eve")).rejects.toThrow(
    "agent:eve: ssh-agent has no such Ed25519 key; it has SHA256:",
  );
  await expect(openRawKey("agent", { env: {}, signal })).rejects.toThrow("there is no ssh-agent here");
  await expect(openRawKey("agent", { env: { SSH_AUTH_SOCK: "/nowhere" }, signal })).rejects.toThrow(
    "agent: ssh-agent at /nowhere: ",
  );
});

test("a bare seed in hex signs, if it is its owner's alone", async () => {
  using folder = scratch();
  const path = folder.file("seed", `${Buffer.from(seedOf("anna")).toString("hex")}\n`);
  const key = await openRawKey(path, { env: {}, signal });
  expect(verifyEd25519(KEY, MESSAGE, await key.sign(MESSAGE))).toBe(true);
  chmodSync(path, 0o644);
  await expect(openRawKey(path, { env: {}, signal })).rejects.toThrow(
    "others can read this private key (mode 644)",
  );
});

const real = needs(
  "the real ssh-agent lists its keys and signs",
  { name: "ssh-agent", install: "openssh-client" },
  { name: "ssh-add", install: "openssh-client" },
);
test.skipIf(real.isSkipped)(real.title, async () => {
  using folder = scratch();
  const socketPath = join(folder.path, "agent");
  const running = Bun.spawn(["ssh-agent", "-D", "-a", socketPath], { stdout: "ignore", stderr: "ignore" });
  try {
    await until("ssh-agent answers", () => statSync(socketPath, { throwIfNoEntry: false }) !== undefined);
    const env = { PATH: process.env.PATH ?? "", SSH_AUTH_SOCK: socketPath };
    expect(await listIdentities({ socketPath, signal })).toEqual([]);
    const made = ["anna at work", "bert"].map((comment) => makeKey(comment));
    for (const [index, { privateFile }] of made.entries()) {
      const file = folder.file(`key${index}`, privateFile);
      expect(Bun.spawnSync(["ssh-add", "-q", file], { env }).exitCode).toBe(0);
    }
    const { publicKey } = parseKeyFile("key0", made[0]?.privateFile ?? "");
    const all = await listIdentities({ socketPath, signal });
    expect(all.map(({ comment }) => comment).sort()).toEqual(["anna at work", "bert"]);
    const key = await openRawKey("agent:anna at work", { env, signal });
    expect(key.fingerprint).toBe(fingerprint(publicKey));
    expect(verifyEd25519(publicKey, MESSAGE, await key.sign(MESSAGE))).toBe(true);
  } finally {
    running.kill();
    await running.exited;
  }
});

test.each([
  ["keys", keys(publicKeyBlob(KEY), publicKeyBlob(KEY)), (bytes: Uint8Array) => void parseIdentities(bytes)],
  ["signatures", GOOD, (bytes: Uint8Array) => void parseSignature(bytes)],
])(
  `mutated %s are refused by their field, or read (${ROUNDS})`,
  (_what, right, parse) => {
    const random = seeded(0xa6e7);
    let [read, refused] = [0, 0];
    for (let round = 0; round < ROUNDS; round++) {
      try {
        parse(mutated(right, random, [Buffer.alloc(4), number(0xffff_ffff)]));
        read++;
      } catch (cause) {
        if (!(cause instanceof WireError)) throw cause;
        refused++;
      }
    }
    expect(read).toBeGreaterThan(0);
    expect(refused).toBeGreaterThan(ROUNDS / 4);
  },
  30_000 + ROUNDS,
);
