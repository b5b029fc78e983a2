/** Foreign bytes on the RS-485 bus, most of them nearly a reply. FRUIT_FUZZ=1000000 for more. */
import { expect, test } from "bun:test";
import { errorFrame, replyFrame } from "../hal/pistack.ts";
import { findReply, pistackRs485, type Reply } from "../hal/pistack-rs485.ts";
import { HalError, type SerialLink } from "../hal/ports.ts";
import { bytes, notation, scan, seeded } from "./fakes.ts";

const ROUNDS = Number(process.env.FRUIT_FUZZ ?? 5_000);

/** CRC-8/MAXIM once more, by long division over the bits, lowest first: not the code under test. */
function remainder(data: Uint8Array): number {
  const bits = Array.from(data).flatMap((byte) => Array.from({ length: 8 }, (_, bit) => (byte >> bit) & 1));
  const padded = [...bits, 0, 0, 0, 0, 0, 0, 0, 0];
  const divisor = [1, 0, 0, 1, 1, 0, 0, 0, 1]; // x^8 + x^5 + x^4 + 1
  for (let at = 0; at < bits.length; at++) {
    if (padded[at]) for (const [i, bit] of divisor.entries()) padded[at + i] = (padded[at + i] ?? 0) ^ bit;
  }
  return padded.slice(-8).reduce((crc, bit, i) => crc | (bit << i), 0);
}

/** What the answer has to be, found without cleverness: the first sound frame that fits, none inside another. */
function expected(data: Uint8Array, length: number): string[] {
  for (let at = 0; at < data.length; at++) {
    const [status = 0xff, address, size = 0] = data.subarray(at, at + 3);
    const frame = data.subarray(at, at + size + 1);
    const isSound = status < 2 && address === 0xff && size > 2 && frame.length === size + 1;
    if (!isSound || remainder(frame.subarray(0, -1)) !== frame.at(-1)) continue;
    if (size - 3 === [length, 1][status]) return [`${status} ${notation(frame.subarray(3, -1))}`];
    at += size;
  }
  return [];
}

const said = (reply: Reply) =>
  "data" in reply ? `0 ${notation(reply.data)}` : `1 ${notation(Uint8Array.of(reply.error))}`;

function mutated(random: () => number): Uint8Array {
  const below = (n: number) => Math.floor(random() * n);
  const parts = Array.from({ length: 1 + below(3) }, () => {
    const data = Array.from({ length: below(5) }, () =>
      below(3) ? below(256) : ([0x00, 0x01, 0xff][below(3)] ?? 0),
    );
    return [...(below(4) ? replyFrame(data) : errorFrame(below(256)))];
  });
  const all = parts.flat();
  for (let changes = below(4); changes > 0; changes--) {
    const at = below(all.length + 1);
    const how = below(4);
    if (how === 0) all.splice(at, 1);
    else if (how === 1) all.splice(at, 0, [0x00, 0x01, 0xff, below(256)][below(4)] ?? 0);
    else if (how === 2) all.length = Math.min(all.length, at);
    else if (at < all.length) all[at] = (all[at] ?? 0) ^ (1 << below(8));
  }
  return Uint8Array.from(all);
}

/** Kept from earlier runs and from thinking: late replies, headers in data, lengths below the least. */
const SEEDS: [string, number, string[]][] = [
  ["", 2, []],
  ["00 ff 03 63", 0, ["0 "]],
  ["00 ff 03 63", 2, []],
  ["00 ff 02 00", 0, []],
  ["00 ff 00 00 ff 03 63", 0, ["0 "]],
  ["00 00 ff 03 63", 0, ["0 "]],
  ["00 ff ff 00 ff 03 63", 0, ["0 "]],
  ["02 ff 03 63", 0, []],
  ["01 ff 04 14 9a", 2, ["1 14"]],
  ["01 ff 03 3a", 0, []],
  ["00 ff 05 63 f2 19", 2, ["0 63 f2"]],
  ["00 ff 05 63 f2 18", 2, []],
];

test.each(SEEDS)("of %p with %d bytes of data expected, %p is the answer", (text, length, answers) => {
  const reply = findReply(bytes(text), length);
  expect(reply ? [said(reply)] : []).toEqual(answers);
});

test(`nothing but a sound frame of the right length is ever an answer (${ROUNDS} mutations)`, () => {
  const random = seeded(0x5eed);
  let found = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const heard = mutated(random);
    const length = Math.floor(random() * 5);
    const reply = findReply(heard, length);
    const answers = reply ? [said(reply)] : [];
    if (String(answers) !== String(expected(heard, length)))
      throw new Error(`${notation(heard)} for ${length}: ${answers}, not ${expected(heard, length)}`);
    if (reply) found++;
  }
  expect(found / ROUNDS).toBeWithin(0.1, 0.9);
});

test(`whatever arrives, the driver throws nothing but HalError (${Math.ceil(ROUNDS / 10)} conversations)`, async () => {
  const random = seeded(0xf00d);
  const link: SerialLink = { exchange: async () => mutated(random), close: async () => {} };
  const power = pistackRs485(link, {
    driver: "pistack-rs485",
    device: "/dev/ttyUSB0",
    boards: [3, 4],
    hardware: 3,
    i2c_base: 0x10,
  });
  const acts = [
    () => power.read("3.0"),
    () => power.readBoard(4),
    () => power.switch("3.1", "on"),
    () => power.startPolicy("4.1"),
  ];
  for (let round = 0; round < ROUNDS / 10; round++) {
    const act = acts[round % acts.length] ?? (() => scan(power));
    await act().catch((error: unknown) => {
      if (!(error instanceof HalError)) throw error;
    });
  }
  const { exchanges, retries, crcErrors } = power.counters;
  expect(exchanges).toBeGreaterThan(retries);
  expect(crcErrors).toBeGreaterThan(0);
});
