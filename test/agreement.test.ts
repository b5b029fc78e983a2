/** How a sealed session gets its keys, and what one direction of it takes. */
import { describe, expect, test } from "bun:test";
import { createHash, createPublicKey, diffieHellman, generateKeyPairSync, hkdfSync } from "node:crypto";
import nacl from "tweetnacl";
import { AgreementError, agree, ephemeral, transcriptOf } from "../agent/console/agreement.ts";
import { FRAME_OVERHEAD, FrameError, Opener, Sealer } from "../agent/console/frames.ts";
import { wireString } from "../agent/sign/wire.ts";
import { seeded } from "./fakes.ts";

const text = (bytes: Uint8Array) => Buffer.from(bytes).toString();

describe("the agreement", () => {
  const fields = { site: "lab", node: "pi1", id: "c1", signer: "SHA256:abc" };
  const both = (change: Partial<typeof fields> = {}) => {
    const [person, node] = [ephemeral(), ephemeral()];
    const keys = { personKey: person.publicKey, nodeKey: node.publicKey };
    const [one, other] = [
      transcriptOf({ ...fields, ...keys }),
      transcriptOf({ ...fields, ...keys, ...change }),
    ];
    return { person: agree(person, node.publicKey, one), node: agree(node, person.publicKey, other) };
  };

  test("gives both sides the same two keys, one for each direction, and other ones each time", () => {
    const { person, node } = both();
    expect(person).toEqual(node);
    expect(person.toNode).not.toEqual(person.toPerson);
    expect(both().person).not.toEqual(person);
  });

  test.each(["site", "node", "id", "signer"] as const)("has nothing in common for another %s", (field) => {
    const { person, node } = both({ [field]: "other" });
    expect(person.toNode).not.toEqual(node.toNode);
    expect(person.toPerson).not.toEqual(node.toPerson);
  });

  test("is X25519 and HKDF-SHA-512 as node:crypto computes them", () => {
    const { publicKey, privateKey } = generateKeyPairSync("x25519");
    const theirs = Buffer.from(publicKey.export({ format: "jwk" }).x ?? "", "base64url");
    const own = ephemeral();
    const x = Buffer.from(own.publicKey, "base64");
    const jwk = { kty: "OKP", crv: "X25519", x: x.toString("base64url") };
    const shared = diffieHellman({ privateKey, publicKey: createPublicKey({ key: jwk, format: "jwk" }) });
    const strings = ["fruit-console@v1", "lab", "pi1", "c1", "SHA256:abc", x, theirs].map(wireString);
    const salt = createHash("sha512").update(Buffer.concat(strings)).digest();
    const key = (info: string) => new Uint8Array(hkdfSync("sha512", shared, salt, info, 32));
    const nodeKey = theirs.toString("base64");
    const transcript = transcriptOf({ ...fields, personKey: own.publicKey, nodeKey });
    expect(transcript).toEqual(Buffer.concat(strings));
    expect(agree(own, nodeKey, transcript)).toEqual({
      toNode: key("fruit-console@v1 to node"),
      toPerson: key("fruit-console@v1 to person"),
    });
  });

  // The points of small order (RFC 7748 §6.1; libsodium's list), little-endian.
  test.each([
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
  ])("is refused with the point of small order %s", (hex) => {
    const key = Buffer.from(hex, "hex").toString("base64");
    expect(() => agree(ephemeral(), key, new Uint8Array())).toThrow("the key is of small order");
  });

  test.each([
    { what: "too short", key: Buffer.alloc(31, 9).toString("base64"), says: "31 bytes instead of 32" },
    { what: "too long", key: Buffer.alloc(33, 9).toString("base64"), says: "33 bytes instead of 32" },
    { what: "no base64", key: "!".repeat(44), says: "not base64" },
    { what: "empty", key: "", says: "0 bytes instead of 32" },
  ])("is refused with a key that is $what", ({ key, says }) => {
    const opening = { ...fields, personKey: key, nodeKey: ephemeral().publicKey };
    expect(() => transcriptOf(opening)).toThrow(AgreementError);
    expect(() => transcriptOf(opening)).toThrow(says);
  });
});

describe("frames", () => {
  const key = nacl.randomBytes(32);
  const sealed = (count: number) => {
    const sealer = new Sealer(key);
    return Array.from({ length: count }, (_, at) => sealer.seal(Buffer.from(`body ${at + 1}`)));
  };
  const openerAfter = (frames: Uint8Array[]) => {
    const opener = new Opener(key);
    for (const frame of frames) opener.open(frame);
    return opener;
  };

  test("are opened in their order, and look different for the same body", () => {
    const opener = new Opener(key);
    expect(sealed(3).map((frame) => text(opener.open(frame)))).toEqual(["body 1", "body 2", "body 3"]);
    const sealer = new Sealer(key);
    const [one, two] = [sealer.seal(Buffer.from("same")), sealer.seal(Buffer.from("same"))];
    expect(one.subarray(8)).not.toEqual(two.subarray(8));
    expect(one).toHaveLength(4 + FRAME_OVERHEAD);
  });

  const frames = sealed(5);
  const at = (number: number) => frames[number - 1] as Uint8Array;
  const changed = (frame: Uint8Array, index: number) => {
    const copy = new Uint8Array(frame);
    copy[index] = (copy[index] ?? 0) ^ 1;
    return copy;
  };
  test.each([
    { what: "that came already", after: 2, frame: at(2), says: "frame 2 came again" },
    { what: "after one that is missing", after: 1, frame: at(3), says: "frame 2 is missing" },
    { what: "after some that are missing", after: 1, frame: at(5), says: "frames 2 to 4 are missing" },
    { what: "with another body", after: 2, frame: changed(at(3), 25), says: "frame 3 was altered" },
    { what: "with another tag", after: 0, frame: changed(at(1), 8), says: "frame 1 was altered" },
    {
      what: "with another number",
      after: 2,
      frame: changed(at(3), 6),
      says: "what came as frame 259 is no frame of the session",
    },
    {
      what: "of another session",
      after: 0,
      frame: new Sealer(nacl.randomBytes(32)).seal(Buffer.from("body 1")),
      says: "frame 1 was altered",
    },
    { what: "that is cut", after: 0, frame: at(1).subarray(0, 23), says: "what has 23 bytes is no frame" },
    { what: "of nothing", after: 0, frame: new Uint8Array(), says: "what has 0 bytes is no frame" },
    {
      what: "with the highest number there is",
      after: 0,
      frame: Buffer.concat([Buffer.alloc(8, 0xff), Buffer.alloc(40)]),
      says: "is no frame of the session",
    },
  ])("one $what is refused and named", ({ after, frame, says }) => {
    const opener = openerAfter(frames.slice(0, after));
    expect(() => opener.open(frame)).toThrow(FrameError);
    expect(() => opener.open(frame)).toThrow(says);
    // Refusing takes nothing: the right one is still the next.
    expect(text(opener.open(at(after + 1)))).toBe(`body ${after + 1}`);
  });

  test("nothing that is not the next frame, bit by bit and at random, is ever opened", () => {
    const random = seeded(20_261);
    const opener = openerAfter(frames.slice(0, 2));
    const next = at(3);
    const tries = Number(process.env.FRUIT_FUZZ ?? 5_000);
    for (let n = 0; n < tries; n++) {
      const mutant = mutantOf(frames[Math.floor(random() * frames.length)] as Uint8Array, random);
      if (Buffer.from(mutant).equals(next)) continue;
      expect(() => opener.open(mutant)).toThrow(FrameError);
    }
    for (let bit = 0; bit < next.length * 8; bit++) {
      const mutant = new Uint8Array(next);
      mutant[bit >> 3] = (mutant[bit >> 3] ?? 0) ^ (1 << (bit & 7));
      expect(() => opener.open(mutant)).toThrow(FrameError);
    }
    expect(text(opener.open(next))).toBe("body 3");
  });
});

/** Perhaps cut, with up to three bits flipped. */
function mutantOf(source: Uint8Array, random: () => number): Uint8Array {
  const mutant = new Uint8Array(random() < 0.5 ? source : source.subarray(0, random() * 50));
  for (let flips = Math.floor(random() * 4); flips > 0; flips--) {
    const index = Math.floor(random() * mutant.length);
    mutant[index] = (mutant[index] ?? 0) ^ (1 << Math.floor(random() * 8));
  }
  return mutant;
}
