/** Bencode, canonical only. FRUIT_FUZZ=1000000 for more mutations. */
import { expect, test } from "bun:test";
import { BencodeError, decodeBencode, encodeBencode } from "../boot/bencode.ts";
import { fuzz, judge, plain, SEEDS } from "./bencode.ts";
import { seeded } from "./fakes.ts";

const ROUNDS = Number(process.env.FRUIT_FUZZ ?? 5_000);
const decode = (text: string) => decodeBencode(Buffer.from(text, "latin1"), 1000);

function refusal(text: string): string {
  try {
    decode(text);
  } catch (cause) {
    if (cause instanceof BencodeError) return cause.message;
    throw cause;
  }
  return "accepted";
}

test.each([
  ["i-1e", 'byte 1: an integer cannot hold "-"'],
  ["i-0e", 'byte 1: an integer cannot hold "-"'],
  ["i01e", "byte 1: an integer has a leading zero"],
  ["i00e", "byte 1: an integer has a leading zero"],
  ["ie", 'byte 1: an integer cannot hold "e"'],
  ["i1", "byte 2: an integer has no end"],
  ["i1:", 'byte 2: an integer cannot hold ":"'],
  ["i18446744073709551616e", "byte 1: an integer is 18446744073709551616; 2^64-1 is the highest"],
  ["i184467440737095516150e", "byte 1: an integer has more than 20 digits"],
  ["01:a", "byte 0: a length has a leading zero"],
  ["5:abc", "byte 0: 5 bytes are announced, 3 are there"],
  ["18446744073709551615:", "byte 0: 18446744073709551615 bytes are announced, 0 are there"],
  ["-1:a", 'byte 0: a value cannot begin with "-"'],
  ["l-3:", 'byte 1: a value cannot begin with "-"'],
  ["l", "byte 1: a list has no end"],
  ["d", "byte 1: a dictionary has no end"],
  ["d1:a", "byte 4: a value is missing"],
  ["di1ei2ee", 'byte 1: a key cannot begin with "i"'],
  ["d1:b0:1:a0:e", 'byte 6: key "a" comes after "b"'],
  ["d1:a0:1:a0:e", 'byte 6: key "a" stands twice'],
  ["d2:aa0:1:b0:1:\xff0:1:\x7f0:e", 'byte 17: key "?" comes after "ÿ"'],
  ["i1ei2e", "byte 3: 3 bytes after the end"],
  ["", "byte 0: a value is missing"],
  ["llllllllleeeeeeeee", "byte 8: nested deeper than 8"],
])("%p is refused: %s", (text, why) => {
  expect(refusal(text)).toBe(why);
});

test.each(["i0e", "i18446744073709551615e", "0:", "le", "de", "lllllllleeeeeeee", "d0:0:1:a0:1:\xffi1ee"])(
  "%p is accepted and written again",
  (text) => {
    expect(judge(Buffer.from(text, "latin1"))).toBe("accepted");
  },
);

test("a document over the limit is refused before it is looked at", () => {
  expect(() => decodeBencode(Buffer.from("4:spam"), 5)).toThrow("byte 5: 6 bytes; at most 5 are read");
});

test("a document of very many values is refused", () => {
  const many = Buffer.from(`l${"0:".repeat(16_384)}e`);
  expect(() => decodeBencode(many, many.length)).toThrow("byte 32767: more than 16384 values");
  expect(judge(Buffer.from(`l${"0:".repeat(16_383)}e`))).toBe("accepted");
});

test("each value has the very bytes that were received for it", () => {
  const document = decode("d1:ad1:bi7ee1:cl3:xyzee");
  const outer = document.value as ReadonlyMap<string, ReturnType<typeof decode>>;
  expect(Buffer.from(outer.get("a")?.bytes ?? []).toString()).toBe("d1:bi7ee");
  expect(outer.get("a")?.at).toBe(4);
  expect(Buffer.from(outer.get("c")?.bytes ?? []).toString()).toBe("l3:xyze");
  expect(Buffer.from(document.bytes).toString()).toBe("d1:ad1:bi7ee1:cl3:xyzee");
});

test("what is written has its keys in the order of their bytes, and what was received goes out as it came", () => {
  const received = decode("d1:zi1ee");
  expect(
    encodeBencode({ "\xff": 1, b: received, B: ["x", 2n ** 64n - 1n], a: undefined }).toString("latin1"),
  ).toBe("d1:Bl1:xi18446744073709551615ee1:bd1:zi1ee1:\xffi1ee");
});

test.each([-1, 1.5, 2 ** 53, 2n ** 64n, -1n, { "\u0100": 1 }])("%p cannot be written", (value) => {
  expect(() => encodeBencode(value)).toThrow(RangeError);
});

/** Any value of bencode, at most `depth` deep. */
function anyValue(random: () => number, depth: number): Parameters<typeof encodeBencode>[0] {
  const below = (n: number) => Math.floor(random() * n);
  const bytes = () => Buffer.from(Array.from({ length: below(6) }, () => below(256)));
  const ways = [
    () => BigInt(below(2 ** 32)) * BigInt(below(2 ** 32)),
    () => bytes(),
    () => Array.from({ length: below(5) }, () => anyValue(random, depth - 1)),
    () =>
      new Map(
        Array.from({ length: below(5) }, () => [bytes().toString("latin1"), anyValue(random, depth - 1)]),
      ),
  ];
  return (ways[below(depth > 1 ? 4 : 2)] ?? ways[0])?.() ?? 0n;
}

test("whatever is written is accepted and says the same", () => {
  const random = seeded(0xbe);
  for (let round = 0; round < 2000; round++) {
    const written = encodeBencode(anyValue(random, 8));
    expect(encodeBencode(plain(decodeBencode(written, 1_048_576)))).toEqual(written);
  }
});

test.each(SEEDS)("the kept input %p is refused, or read and written again", (seed) => {
  expect(judge(Buffer.from(seed, "latin1"))).toBeOneOf(["accepted", "refused"]);
});

test(
  `mutated documents are refused by their byte, or read and written again (${ROUNDS})`,
  () => {
    const { accepted, refused } = fuzz(ROUNDS, seeded(0xbe9c));
    expect(accepted + refused).toBe(ROUNDS);
    expect(accepted).toBeGreaterThan(ROUNDS / 50);
    expect(refused).toBeGreaterThan(ROUNDS / 4);
  },
  30_000 + ROUNDS,
);
