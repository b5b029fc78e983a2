import { expect, test } from "bun:test";
import { crc8, errorFrame, replyFrame } from "../hal/pistack.ts";
import { pistackRs485 } from "../hal/pistack-rs485.ts";
import { HalError, type PowerBus, type SerialLink } from "../hal/ports.ts";
import { bytes, failure, notation, PlaybackSerial, type SerialLine, scan } from "./fakes.ts";

const BUS: PowerBus = {
  driver: "pistack-rs485",
  device: "/dev/ttyUSB0",
  boards: [3, 4],
  hardware: 3,
  i2c_base: 0x10,
};

/** Hardware version of board 4, and its answer: version 3. Of the frozen table. */
const ASK_VERSION = "03 04 03 3d";
const VERSION_3 = "00 ff 04 03 0b";
const ASK_INPUT_VOLTS = "0a 04 03 b3";
const INPUT_VOLTS = "00 ff 05 63 f2 19";
const FORCE_OFF = "13 03 04 01 31";
const DONE = "00 ff 03 63";
const BAD_PI = "01 ff 04 14 9a";

/** A request, its CRC added. */
const sent = (body: string) => notation(Uint8Array.of(...bytes(body), crc8(bytes(body))));
const frame = (data: number[]) => notation(replyFrame(data));
const error = (code: number) => notation(errorFrame(code));

function setUp(lines: SerialLine[]) {
  const link = new PlaybackSerial(lines);
  return { link, power: pistackRs485(link, BUS) };
}

/** What `readBoard(4)` asks before the boot count, all answered. */
const BOARD_4: SerialLine[] = [
  { write: ASK_VERSION, pieces: [VERSION_3] },
  { write: sent("02 04 03"), pieces: [frame([5])] },
  { write: ASK_INPUT_VOLTS, pieces: [INPUT_VOLTS] },
  { write: sent("0b 04 03"), pieces: [frame([0x79, 0x04])] },
  { write: sent("0c 04 03"), pieces: [frame([0xd2, 0x1a])] },
  { write: sent("1e 04 03"), pieces: [frame([0x00, 0x07])] },
];
const ASK_BOOT_COUNT = sent("29 04 03");

test("a reading is four exchanges, all of them about that Pi", async () => {
  using link = new PlaybackSerial([
    { write: sent("10 03 04 01"), pieces: [frame([1])] },
    { write: sent("0f 03 04 01"), pieces: [frame([1])] },
    { write: sent("0d 03 04 01"), pieces: [frame([0xd6, 0x51])] },
    { write: sent("0e 03 04 01"), pieces: [frame([0x7d, 0x70])] },
  ]);
  const power = pistackRs485(link, BUS);
  const reading = await power.read("3.1");
  expect(reading).toMatchObject({ supply: "on", heartbeat: true });
  expect(reading.volts).toBeCloseTo(5.1, 2);
  expect(reading.amperes).toBeCloseTo(0.98, 2);
  expect(reading.watts).toBeCloseTo(4.998, 2);
  expect(power.counters).toEqual({
    exchanges: 4,
    retries: 0,
    crcErrors: 0,
    timeouts: 0,
    otherErrors: 0,
  });
});

test.each([
  [0, "off"],
  [1, "on"],
  [2, "unknown"],
  [0xff, "unknown"],
] as const)("powered %d is a supply that is %s", async (powered, supply) => {
  using link = new PlaybackSerial([
    { write: sent("10 04 04 00"), pieces: [frame([powered])] },
    { write: sent("0f 04 04 00"), pieces: [frame([0])] },
    { write: sent("0d 04 04 00"), pieces: [frame([0, 0])] },
    { write: sent("0e 04 04 00"), pieces: [frame([0, 0])] },
  ]);
  expect(await pistackRs485(link, BUS).read("4.0")).toEqual({
    supply,
    heartbeat: false,
    volts: 0,
    amperes: 0,
    watts: 0,
  });
});

test("hardware 2 has its own divider for the Pis", async () => {
  using link = new PlaybackSerial([
    { write: sent("10 04 04 00"), pieces: [frame([1])] },
    { write: sent("0f 04 04 00"), pieces: [frame([1])] },
    { write: sent("0d 04 04 00"), pieces: [frame([0xff, 0xff])] },
    { write: sent("0e 04 04 00"), pieces: [frame([0xff, 0xff])] },
  ]);
  const { volts, watts } = await pistackRs485(link, { ...BUS, hardware: 2 }).read("4.0");
  expect(volts).toBeCloseTo(5.5, 6);
  expect(watts).toBeCloseTo(11, 6);
});

test("a board tells its versions, its input, its rail and its counts", async () => {
  const { link, power } = setUp([...BOARD_4, { write: ASK_BOOT_COUNT, pieces: [frame([1, 2])] }]);
  using _ = link;
  const board = await power.readBoard(4);
  expect(board).toMatchObject({ board: 4, hardware: 3, firmware: 5, errorCount: 7, bootCount: 258 });
  expect(board.inputVolts).toBeCloseTo(12.02, 2);
  expect(board.inputAmperes).toBeCloseTo(2, 2);
  expect(board.inputWatts).toBeCloseTo(24.05, 1);
  expect(board.railVolts).toBeCloseTo(5, 2);
});

test.each([
  ["op not provided", 0x15],
  ["unknown", 0x12],
])(
  "a firmware to which the boot count is %s leaves it out, each time, and nothing failed",
  async (_, code) => {
    const old = [...BOARD_4, { write: ASK_BOOT_COUNT, pieces: [error(code)] }];
    const { link, power } = setUp([...old, ...old]);
    using __ = link;
    for (let i = 0; i < 2; i++) {
      const board = await power.readBoard(4);
      expect(board).toMatchObject({ board: 4, errorCount: 7 });
      expect(board).not.toHaveProperty("bootCount");
    }
    expect(power.counters).toMatchObject({ exchanges: 14, retries: 0, crcErrors: 0, otherErrors: 0 });
  },
);

test("any other error to the boot count is an error", async () => {
  const { link, power } = setUp([...BOARD_4, { write: ASK_BOOT_COUNT, pieces: [error(0x41)] }]);
  using _ = link;
  expect(await failure(power.readBoard(4))).toMatchObject({
    code: "refused",
    message: "board 4: bootCount: its stored errors fail their CRC (0x41)",
  });
});

test.each<[string, (power: ReturnType<typeof pistackRs485>) => Promise<unknown>, string, string, unknown]>([
  ["on is op 0x11", (power) => power.switch("4.0", "on"), sent("11 04 04 00"), DONE, undefined],
  ["off is force off", (power) => power.switch("3.1", "off"), FORCE_OFF, DONE, undefined],
  ["signal asks the Pi", (power) => power.signal("3.0"), sent("21 03 04 00"), DONE, undefined],
  ["identify lights the board", (power) => power.identify("4.1", true), sent("04 04 03"), DONE, undefined],
  ["and darkens it", (power) => power.identify("4.1", false), sent("05 04 03"), DONE, undefined],
  ["start policy on", (power) => power.startPolicy("3.0"), sent("22 03 04 00"), frame([1]), "on"],
  ["start policy off", (power) => power.startPolicy("3.0"), sent("22 03 04 00"), frame([0]), "off"],
  [
    "a start policy is stored",
    (power) => power.setStartPolicy("3.1", "on"),
    sent("23 03 05 01 01"),
    DONE,
    undefined,
  ],
  ["and taken back", (power) => power.setStartPolicy("3.1", "off"), sent("23 03 05 01 00"), DONE, undefined],
])("%s", async (_, act, write, reply, result) => {
  const { link, power } = setUp([{ write, pieces: [reply] }]);
  using __ = link;
  expect(await act(power)).toEqual(result as never);
});

test("the abilities and the outlets are known before anything is said", () => {
  const { power } = setUp([]);
  expect(power.outlets).toEqual(["3.0", "3.1", "4.0", "4.1"]);
  expect([...power.abilities].sort()).toEqual([
    "boot-count",
    "heartbeat",
    "identify",
    "measure",
    "signal",
    "start-policy",
  ]);
});

test("an outlet of another bus is absent, and nothing is said", async () => {
  const { link, power } = setUp([]);
  using _ = link;
  for (const outlet of ["9.0", "3.2"] as const) {
    expect(await failure(power.switch(outlet, "off"))).toMatchObject({
      code: "absent",
      message: `outlet ${outlet}: not on /dev/ttyUSB0`,
    });
  }
});

// What goes wrong on the wire. Each case is one exchange; three of them are a failure.

const bad: [string, string[], string, string, string][] = [
  ["silence", [], "timeout", "no answer within 300 ms", "timeouts"],
  ["a CRC error", ["00 ff 05 63 f2 18"], "bad-reply", "CRC error in 00ff0563f218", "crcErrors"],
  ["a flipped bit in the data", ["00 ff 05 63 f3 19"], "bad-reply", "CRC error in 00ff0563f319", "crcErrors"],
  ["a short reply", ["00 ff 05 63"], "bad-reply", "no whole answer in 00ff0563", "otherErrors"],
  ["a sound reply with too little in it", [VERSION_3], "bad-reply", "no whole answer", "otherErrors"],
  ["a sound reply with too much in it", [frame([1, 2, 3, 4])], "bad-reply", "no whole answer", "otherErrors"],
  ["garbage", ["7f 7f", "7f"], "bad-reply", "no whole answer in 7f7f7f", "otherErrors"],
  ["a board that misheard us", [error(0x11)], "bad-reply", "request failed its CRC (0x11)", "crcErrors"],
];

test.each(bad)("%s is tried three times, and then said", async (_, pieces, code, text, counter) => {
  const line = { write: ASK_INPUT_VOLTS, pieces };
  const { link, power } = setUp([...BOARD_4.slice(0, 2), line, line, line]);
  using __ = link;
  const caught = await failure(power.readBoard(4));
  expect(caught.code).toBe(code as HalError["code"]);
  expect(caught.message).toStartWith(`board 4 on /dev/ttyUSB0: inputVolts: ${text}`);
  expect(power.counters).toMatchObject({ exchanges: 5, retries: 2, [counter]: 3 });
});

test.each(bad)("%s once is only a retry", async (_, pieces, __, ___, counter) => {
  const { link, power } = setUp([
    ...BOARD_4.slice(0, 2),
    { write: ASK_INPUT_VOLTS, pieces },
    ...BOARD_4.slice(2, 3),
    // A reply that did not come may still be on its way, and must not be taken for that of the next request.
    ...(counter === "crcErrors" ? [] : [{ write: "", pieces: [INPUT_VOLTS] }]),
    ...BOARD_4.slice(3),
    { write: ASK_BOOT_COUNT, pieces: [frame([0, 1])] },
  ]);
  using ____ = link;
  expect((await power.readBoard(4)).inputVolts).toBeCloseTo(12.02, 2);
  expect(power.counters).toMatchObject({ retries: 1, [counter]: 1 });
});

test("an error reply to a two-byte query is the board's refusal, by its own length", async () => {
  const { link, power } = setUp([
    { write: sent("10 03 04 01"), pieces: [frame([1])] },
    { write: sent("0f 03 04 01"), pieces: [frame([1])] },
    { write: sent("0d 03 04 01"), pieces: [BAD_PI] },
  ]);
  using _ = link;
  expect(await failure(power.read("3.1"))).toMatchObject({
    code: "refused",
    message: "board 3: piVolts: no such Pi (0x14)",
  });
  expect(link.waitedMs).toEqual([]);
  expect(power.counters).toMatchObject({ exchanges: 3, retries: 0, crcErrors: 0, otherErrors: 0 });
});

test.each([
  [0x15, "op not provided (0x15)"],
  [0x77, "an undocumented error (0x77)"],
])("a refusal is not asked again: 0x%s", async (code, text) => {
  const { link, power } = setUp([{ write: sent("22 03 04 00"), pieces: [error(code)] }]);
  using _ = link;
  expect(await failure(power.startPolicy("3.0"))).toMatchObject({
    code: "refused",
    message: `board 3: onAtStart: ${text}`,
  });
});

test("a command is tried again, since its effect is the same twice", async () => {
  const { link, power } = setUp([
    { write: FORCE_OFF },
    { write: FORCE_OFF, pieces: ["00 ff 03 62"] },
    { write: FORCE_OFF, pieces: [DONE] },
  ]);
  using _ = link;
  await power.switch("3.1", "off");
  expect(link.waitedMs).toEqual([300, 300]);
  expect(power.counters).toMatchObject({ retries: 2, timeouts: 1, crcErrors: 1 });
});

test("a line that is gone says so after three tries", async () => {
  const fails = new HalError("io", "/dev/ttyUSB0: no such device");
  const { link, power } = setUp([
    { write: FORCE_OFF, fails },
    { write: FORCE_OFF, fails },
    { write: FORCE_OFF, fails },
  ]);
  using _ = link;
  expect(await failure(power.switch("3.1", "off"))).toBe(fails);
  expect(power.counters).toMatchObject({ exchanges: 3, otherErrors: 3 });
});

const pieces = (text: string) => text.split(" ");

test.each<[string, string[]]>([
  ["whole", [INPUT_VOLTS]],
  ["byte by byte", pieces(INPUT_VOLTS)],
  ["with garbage in front", ["7f 00", INPUT_VOLTS]],
  ["with garbage in front, byte by byte", pieces(`00 ff 00 ff 09 ${INPUT_VOLTS}`)],
  ["after our own echo", [ASK_INPUT_VOLTS, INPUT_VOLTS]],
  ["after a stray header that promises more than comes", [`00 ff 40 ${INPUT_VOLTS}`]],
  ["two at once, the first of them taken", [`${INPUT_VOLTS} ${frame([0, 0])}`]],
  ["after a late reply of another length", [VERSION_3, INPUT_VOLTS]],
  ["after a late reply whose data look like a frame", [frame([...replyFrame([0, 0])]), INPUT_VOLTS]],
])("a reply is understood %s", async (_, arriving) => {
  const { link, power } = setUp([
    ...BOARD_4.slice(0, 2),
    { write: ASK_INPUT_VOLTS, pieces: arriving },
    ...BOARD_4.slice(3),
    { write: ASK_BOOT_COUNT, pieces: [frame([0, 1])] },
  ]);
  using __ = link;
  expect((await power.readBoard(4)).inputVolts).toBeCloseTo(12.02, 2);
  expect(power.counters.retries).toBe(0);
  expect(link.waitedMs).toEqual([]);
});

test("a reply is taken as soon as its length is there; what comes after is never the next answer", async () => {
  const { link, power } = setUp([
    { write: sent("22 03 04 00"), pieces: [frame([1]), frame([0])] },
    { write: sent("22 04 04 00"), pieces: [frame([1])] },
  ]);
  using _ = link;
  expect(await power.startPolicy("3.0")).toBe("on");
  expect(link.dropped).toEqual([frame([0])]);
  expect(await power.startPolicy("4.0")).toBe("on");
});

test("a late reply of the same length never answers for another outlet", async () => {
  const ask = sent("22 03 04 00");
  const { link, power } = setUp([
    { write: ask },
    { write: ask },
    { write: ask },
    { write: "", pieces: [frame([0]), frame([0])] },
    { write: sent("22 04 04 00"), pieces: [frame([1])] },
    { write: ask, pieces: [frame([0])] },
  ]);
  using _ = link;
  expect((await failure(power.startPolicy("3.0"))).code).toBe("timeout");
  expect(await power.startPolicy("4.0")).toBe("on");
  expect(link.waitedMs).toEqual([300, 300, 300, 400]);
  expect(await power.startPolicy("3.0")).toBe("off");
});

test("replies name no board: many callers at once still have one request in flight", async () => {
  const { link, power } = setUp([
    { write: sent("22 03 04 00"), pieces: pieces(frame([1])) },
    { write: sent("22 03 04 01"), pieces: pieces(frame([0])) },
    { write: sent("22 04 04 00"), pieces: [BAD_PI] },
    { write: sent("22 04 04 01"), pieces: pieces(frame([1])) },
  ]);
  using _ = link;
  const answers = await Promise.allSettled(power.outlets.map((outlet) => power.startPolicy(outlet)));
  expect(answers.map((answer) => (answer.status === "fulfilled" ? answer.value : "failed"))).toEqual([
    "on",
    "off",
    "failed",
    "on",
  ]);
});

test("no more than 64 requests wait for the line", async () => {
  const lines = Array.from({ length: 64 }, () => ({ write: FORCE_OFF, pieces: [DONE] }));
  const { link, power } = setUp(lines);
  using _ = link;
  const answers = await Promise.allSettled(Array.from({ length: 70 }, () => power.switch("3.1", "off")));
  const failed = answers.flatMap((answer) => (answer.status === "rejected" ? [answer.reason] : []));
  expect(failed).toHaveLength(6);
  expect(failed[0]).toMatchObject({ code: "busy" });
});

test("a scan asks each address once, and names who answers, configured or not", async () => {
  const link = new Boards(
    new Map([
      [0, [3, 5]],
      [9, [2, 4]],
      [11, undefined],
    ]),
  );
  const power = pistackRs485(link, BUS);
  expect(await scan(power)).toEqual([
    { board: 0, hardware: 3, firmware: 5 },
    { board: 9, hardware: 2, firmware: 4 },
    // Two boards on one address: garbage, and yet somebody is there.
    { board: 11 },
  ]);
  expect(link.asked.filter((board) => board === 5)).toHaveLength(1);
  expect(new Set(link.asked).size).toBe(16);
  expect(power.counters.timeouts).toBe(0);
});

test("a scan looks at the prefixes that are configured too", async () => {
  const link = new Boards(new Map([[0x25, [3, 5]]]));
  const power = pistackRs485(link, { ...BUS, boards: [0x24] });
  expect(await scan(power)).toEqual([{ board: 0x25, hardware: 3, firmware: 5 }]);
  expect(new Set(link.asked).size).toBe(32);
});

/** Boards by address that know their hardware and firmware versions; undefined: two of them talk at once. */
class Boards implements SerialLink {
  readonly asked: number[] = [];
  readonly #boards: ReadonlyMap<number, number[] | undefined>;
  constructor(boards: ReadonlyMap<number, number[] | undefined>) {
    this.#boards = boards;
  }
  async exchange(write: Uint8Array): Promise<Uint8Array> {
    const [op, board = 0] = write;
    this.asked.push(board);
    if (!this.#boards.has(board)) return new Uint8Array();
    const versions = this.#boards.get(board);
    return versions ? replyFrame([versions[op === 0x03 ? 0 : 1] ?? 0]) : bytes("00 7f 04");
  }
  async close(): Promise<void> {}
}
