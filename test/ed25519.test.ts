import { expect, test } from "bun:test";
import { createPrivateKey, createPublicKey, sign, verify } from "node:crypto";
import nacl from "tweetnacl";
import { publicKeyOf, signEd25519, verifyEd25519 } from "../boot/ed25519.ts";
import { seeded } from "./fakes.ts";

const L = 2n ** 252n + 27742317777372353535851937790883648493n;
const hex = (text: string) => new Uint8Array(Buffer.from(text, "hex"));
const spki = (publicKey: Uint8Array) =>
  createPublicKey({
    key: Buffer.concat([Buffer.from("302a300506032b6570032100", "hex"), publicKey]),
    format: "der",
    type: "spki",
  });

// RFC 8032 §7.1, tests 1 to 3 and SHA(abc)
const VECTORS = [
  {
    name: "1",
    seed: "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
    publicKey: "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    message: "",
    signature:
      "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
  },
  {
    name: "2",
    seed: "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
    publicKey: "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
    message: "72",
    signature:
      "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
  },
  {
    name: "3",
    seed: "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
    publicKey: "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
    message: "af82",
    signature:
      "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
  },
  {
    name: "SHA(abc)",
    seed: "833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42",
    publicKey: "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
    message:
      "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
    signature:
      "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
  },
];

test.each(VECTORS)("RFC 8032 §7.1 test $name is signed and verified", (vector) => {
  const message = hex(vector.message);
  expect(Buffer.from(publicKeyOf(hex(vector.seed))).toString("hex")).toBe(vector.publicKey);
  expect(Buffer.from(signEd25519(hex(vector.seed), message)).toString("hex")).toBe(vector.signature);
  expect(verifyEd25519(hex(vector.publicKey), message, hex(vector.signature))).toBe(true);
});

test.each(VECTORS)("one flipped bit anywhere in RFC 8032 test $name is refused", (vector) => {
  const parts = [hex(vector.publicKey), hex(vector.message), hex(vector.signature)] as const;
  for (const [part, bytes] of parts.entries()) {
    for (let bit = 0; bit < bytes.length * 8; bit++) {
      const bent = parts.map((each) => each.slice()) as [Uint8Array, Uint8Array, Uint8Array];
      bent[part]![bit >> 3]! ^= 1 << (bit & 7);
      expect(verifyEd25519(...bent)).toBe(false);
    }
  }
});

test("a signature with S + L, which tweetnacl accepts, is refused", () => {
  const seed = new Uint8Array(32).fill(7);
  const message = Buffer.from("power.off 3.1");
  const signature = signEd25519(seed, message);
  const bent = Buffer.from(signature);
  const S = BigInt(`0x${Buffer.from(signature.subarray(32)).reverse().toString("hex")}`) + L;
  Buffer.from(S.toString(16).padStart(64, "0"), "hex").reverse().copy(bent, 32);
  expect(nacl.sign.detached.verify(message, bent, publicKeyOf(seed))).toBe(true);
  expect(verifyEd25519(publicKeyOf(seed), message, bent)).toBe(false);
  expect(verifyEd25519(publicKeyOf(seed), message, signature)).toBe(true);
});

// Every y of a point of small order, then the same points and others written with y >= p. R is the neutral element, S is 0.
test.each([
  ["0100000000000000000000000000000000000000000000000000000000000000", true],
  ["ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", true],
  ["0000000000000000000000000000000000000000000000000000000000000000", true],
  ["0000000000000000000000000000000000000000000000000000000000000080", true],
  ["26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", true],
  ["26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85", true],
  ["c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a", true],
  ["c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa", true],
  ["eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", true],
  ["edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", true],
])("under the weak public key %s a signature nobody made is refused", (key, nodeAccepts) => {
  const publicKey = hex(key);
  const signature = new Uint8Array(64);
  signature[0] = 1;
  const messages = Array.from({ length: 200 }, (_, i) => Buffer.from(`message ${i}`));
  expect(messages.some((message) => verify(null, message, spki(publicKey), signature))).toBe(nodeAccepts);
  expect(messages.some((message) => verifyEd25519(publicKey, message, signature))).toBe(false);
});

test("wrong sizes and keys that are no point are false, not an error", () => {
  const seed = new Uint8Array(32).fill(9);
  const message = new Uint8Array(3);
  const signature = signEd25519(seed, message);
  const publicKey = publicKeyOf(seed);
  for (const size of [0, 31, 33, 64])
    expect(verifyEd25519(new Uint8Array(size), message, signature)).toBe(false);
  for (const size of [0, 63, 65, 128])
    expect(verifyEd25519(publicKey, message, new Uint8Array(size))).toBe(false);
  for (let y = 2; y < 40; y++)
    expect(verifyEd25519(new Uint8Array(32).fill(y), message, signature)).toBe(false);
  expect(() => signEd25519(new Uint8Array(31), message)).toThrow("an Ed25519 seed has 32 bytes, not 31");
});

test("node:crypto and tweetnacl agree with us on random keys and messages", () => {
  const random = seeded(8032);
  const below = (n: number) => Math.floor(random() * n);
  const bytes = (length: number) => Uint8Array.from({ length }, () => below(256));
  for (let round = 0; round < 60; round++) {
    const seed = bytes(32);
    const message = bytes(below(300));
    // PKCS #8 in front of a bare seed, RFC 8410 §7
    const pkcs8 = Buffer.concat([Buffer.from("302e020100300506032b657004220420", "hex"), seed]);
    const theirs = sign(null, message, createPrivateKey({ key: pkcs8, format: "der", type: "pkcs8" }));
    const ours = signEd25519(seed, message);
    expect(Buffer.from(ours).equals(theirs)).toBe(true);
    expect(verifyEd25519(publicKeyOf(seed), message, theirs)).toBe(true);
    expect(nacl.sign.detached.verify(message, theirs, publicKeyOf(seed))).toBe(true);
    const bent = Uint8Array.from(ours);
    bent[below(64)]! ^= 1 << below(8);
    expect(verifyEd25519(publicKeyOf(seed), message, bent)).toBe(false);
  }
});
