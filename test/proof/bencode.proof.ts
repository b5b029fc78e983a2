/** The bencode scanner and a million documents that are nearly right. */
import { expect, test } from "bun:test";
import { fuzz } from "../bencode.ts";
import { seeded } from "../fakes.ts";

const ROUNDS = 1_000_000;

test("of a million mutated documents each is refused by its byte, or read and written again as it was", () => {
  const { accepted, refused } = fuzz(ROUNDS, seeded(20_261_123));
  console.log(
    `bencode: ${ROUNDS} mutated documents, ${accepted} accepted and written again, ${refused} refused`,
  );
  expect(accepted + refused).toBe(ROUNDS);
  expect(accepted).toBeGreaterThan(ROUNDS / 50);
}, 300_000);
