/** The oracle of the bencode scanner: what it accepts it must be able to write again, and it throws nothing but its own error. */
import {
  BencodeError,
  decodeBencode,
  type Encodable,
  encodeBencode,
  type Received,
} from "../boot/bencode.ts";
import { mutated } from "./mutations.ts";
import { makeRelease } from "./releases.ts";

/** Documents to begin with, and inputs that have taught something. */
export const SEEDS: readonly string[] = [
  "i0e",
  "i18446744073709551615e",
  "i18446744073709551616e",
  "i-0e",
  "i-3e",
  "i03e",
  "ie",
  "0:",
  "4:spam",
  "04:spam",
  "l-3:",
  "le",
  "de",
  "l4:spam4:eggse",
  "d3:cow3:moo4:spam4:eggse",
  "d4:spam4:eggs3:cow3:mooe",
  "d1:ai1e1:ai2ee",
  "d4:infod6:lengthi5e4:name1:xee",
  "lllllllleeeeeeee",
  "llllllllleeeeeeeee",
  "99999999999999999999:",
  "9223372036854775808:x",
  "d0:0:e",
  "d2:\xff\xfe0:e",
];

/** What separates the tokens of bencode: put in at random places it makes nearly right documents. */
const TOKENS = ["i", "e", "l", "d", ":", "0", "1:", "i0e", "-", "d1:", "le", "\xff"].map(latin1);

/** The values without their received bytes. */
export function plain({ value }: Received): Encodable {
  if (value instanceof Map) return new Map([...value].map(([key, inner]) => [key, plain(inner)]));
  return Array.isArray(value) ? value.map(plain) : (value as bigint | Uint8Array);
}

/** Throws unless the scanner refuses these bytes by its own error, or can write what it read as the same bytes. */
export function judge(bytes: Uint8Array): "accepted" | "refused" {
  let received: Received;
  try {
    received = decodeBencode(bytes, 1_048_576);
  } catch (cause) {
    if (cause instanceof BencodeError && cause.at >= 0 && cause.at <= bytes.length) return "refused";
    throw new Error(`${JSON.stringify(Buffer.from(bytes).toString("latin1"))}: ${cause}`, { cause });
  }
  if (encodeBencode(plain(received)).equals(bytes)) return "accepted";
  throw new Error(
    `accepted, but written otherwise: ${JSON.stringify(Buffer.from(bytes).toString("latin1"))}`,
  );
}

/** Judges so many mutated documents, the same ones for the same random numbers. */
export function fuzz(rounds: number, random: () => number): { accepted: number; refused: number } {
  const seeds = [...SEEDS.map(latin1), makeRelease({ signers: ["anna", "bert"] }).update];
  const counts = { accepted: 0, refused: 0 };
  for (let round = 0; round < rounds; round++) {
    const seed = seeds[Math.floor(random() * seeds.length)] ?? latin1("");
    counts[judge(mutated(seed, random, TOKENS))]++;
  }
  return counts;
}

function latin1(text: string): Uint8Array {
  return Buffer.from(text, "latin1");
}
