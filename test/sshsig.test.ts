/** SSHSIG: what is a signature, what is not, and bytes that nobody meant. FRUIT_FUZZ=1000000 for more. */
import { expect, test } from "bun:test";
import { armorSshsig, parseSshsig, SignatureError, signedData, verifySshsig } from "../agent/sign/sshsig.ts";
import { fingerprint, publicKeyBlob, wireString } from "../agent/sign/wire.ts";
import { publicKeyOf, signEd25519 } from "../boot/ed25519.ts";
import { seeded } from "./fakes.ts";

const ROUNDS = Number(process.env.FRUIT_FUZZ ?? 5_000);

const NAMESPACE = "fruit-cmd@v1";
const MESSAGE = Buffer.from('{"id":"1","verb":"power.off"}');
const SEED = new Uint8Array(32).fill(3);

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
