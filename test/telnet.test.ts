import { afterEach, describe, expect, jest, onTestFinished, test } from "bun:test";
import { ComPort } from "../agent/console/comport.ts";
import { COM_PORT, escaped, subnegotiation, Telnet } from "../agent/console/telnet.ts";
import type { LineSettings, ModemLines } from "../hal/ports.ts";
import { bytes, notation, seeded } from "./fakes.ts";

/** Everything a telnet side heard, in order: bytes as they are, the rest in brackets. */
class Heard {
  readonly said: string[] = [];
  readonly sent: string[] = [];
  readonly telnet = new Telnet({
    bytes: (data) => {
      const last = this.said.at(-1);
      // Where chunks begin is no part of what was said
      if (last?.startsWith("=")) this.said[this.said.length - 1] = `${last} ${notation(data)}`;
      else this.said.push(`=${notation(data)}`);
    },
    send: (data) => this.sent.push(notation(data)),
    sub: (option, body) => this.said.push(`sub ${option}: ${notation(body)}`),
    breakAsked: () => this.said.push("break"),
  });
}

/** The same bytes in different pieces: whole, one by one, in twos. */
const PIECES = [Number.POSITIVE_INFINITY, 1, 2, 3];

function inPieces(data: Uint8Array, size: number): Uint8Array[] {
  if (size >= data.length) return [data];
  return Array.from({ length: Math.ceil(data.length / size) }, (_, n) =>
    data.slice(n * size, (n + 1) * size),
  );
}

const HEARD: { what: string; wire: string; said: string[]; sent: string[] }[] = [
  { what: "plain bytes", wire: "00 41 fe", said: ["=00 41 fe"], sent: [] },
  { what: "a doubled IAC as one byte of the line", wire: "41 ff ff 42", said: ["=41 ff 42"], sent: [] },
  { what: "IACs alone", wire: "ff ff ff ff", said: ["=ff ff"], sent: [] },
  { what: "an NVT's CR NUL as CR", wire: "41 0d 00 42 00", said: ["=41 0d 42 00"], sent: [] },
  {
    what: "CR NUL as it is once the client speaks BINARY",
    wire: "ff fb 00 0d 00",
    said: ["=0d 00"],
    sent: ["ff fd 00"],
  },
  {
    what: "bytes on both sides of a command in their order",
    wire: "41 ff f3 42",
    said: ["=41", "break", "=42"],
    sent: [],
  },
  {
    what: "a subnegotiation",
    wire: "ff fa 2c 01 00 01 c2 00 ff f0",
    said: ["sub 44: 01 00 01 c2 00"],
    sent: [],
  },
  {
    what: "an IAC inside a subnegotiation",
    wire: "ff fa 2c 0a ff ff ff f0",
    said: ["sub 44: 0a ff"],
    sent: [],
  },
  {
    what: "a subnegotiation that another command broke off",
    wire: "ff fa 2c 01 ff f3 41",
    said: ["break", "=41"],
    sent: [],
  },
  { what: "a subnegotiation without an option", wire: "ff fa ff f0 41", said: ["=41"], sent: [] },
  { what: "commands that mean nothing to a line", wire: "ff f1 ff f6 ff f9 41", said: ["=41"], sent: [] },
  {
    what: "options nobody knows: declined",
    wire: "ff fb 18 ff fd 22",
    said: [],
    sent: ["ff fe 18", "ff fc 22"],
  },
  { what: "options that are off already: not argued about", wire: "ff fc 18 ff fe 22", said: [], sent: [] },
  {
    what: "an option offered twice: accepted once",
    wire: "ff fb 2c ff fb 2c",
    said: [],
    sent: ["ff fd 2c"],
  },
  {
    what: "an option taken back",
    wire: "ff fd 00 ff fe 00 ff fe 00",
    said: [],
    sent: ["ff fb 00", "ff fc 00"],
  },
];

describe.each(PIECES)("in pieces of %p bytes", (size) => {
  test.each(HEARD)("telnet hears $what", ({ wire, said, sent }) => {
    const heard = new Heard();
    for (const piece of inPieces(bytes(wire), size)) heard.telnet.receive(piece);
    expect(heard.said).toEqual(said);
    expect(heard.sent).toEqual(sent);
  });
});

test("a server offers what a serial port needs, and an agreement to it is not answered again", () => {
  const heard = new Heard();
  heard.telnet.open();
  expect(heard.sent).toEqual(["ff fb 00 ff fb 03 ff fb 01 ff fd 00 ff fd 03 ff fd 2c"]);
  heard.telnet.receive(bytes("ff fd 00 ff fd 03 ff fd 01 ff fb 00 ff fb 03 ff fb 2c"));
  expect(heard.sent).toHaveLength(1);
});

test.each([
  { what: "has not answered yet", wire: "", isPadded: false },
  { what: "declines BINARY", wire: "ff fe 00", isPadded: true },
  { what: "declines it for its own direction and says nothing of ours", wire: "ff fc 00", isPadded: true },
  { what: "declines it for its own direction and wants ours", wire: "ff fc 00 ff fd 00", isPadded: false },
  { what: "agrees", wire: "ff fd 00 ff fb 00", isPadded: false },
])("for a client that $what a CR alone is padded: $isPadded", ({ wire, isPadded }) => {
  const heard = new Heard();
  heard.telnet.open();
  heard.telnet.receive(bytes(wire));
  expect(notation(heard.telnet.carried(bytes("0d 0a 0d 00 ff 0d")))).toBe(
    isPadded ? "0d 0a 0d 00 00 ff ff 0d 00" : "0d 0a 0d 00 ff ff 0d",
  );
});

test("a subnegotiation longer than any that means something is dropped whole", () => {
  const heard = new Heard();
  const body = new Uint8Array(300).fill(0x61);
  heard.telnet.receive(subnegotiation(COM_PORT, body));
  heard.telnet.receive(subnegotiation(COM_PORT, body.subarray(0, 200)));
  expect(heard.said).toEqual([`sub 44: ${notation(body.subarray(0, 200))}`]);
});

test("a subnegotiation that never ends takes no memory", () => {
  const heard = new Heard();
  heard.telnet.receive(bytes("ff fa 2c"));
  const before = process.memoryUsage().rss;
  const chunk = new Uint8Array(65_536);
  for (let n = 0; n < 512; n++) heard.telnet.receive(chunk);
  expect(process.memoryUsage().rss - before).toBeLessThan(100_000_000);
  heard.telnet.receive(bytes("ff f0 41"));
  expect(heard.said).toEqual(["=41"]);
});

test("bytes without an IAC are carried as they are, without a copy", () => {
  const plain = new Uint8Array([0, 1, 254]);
  expect(escaped(plain)).toBe(plain);
  expect(notation(escaped(bytes("ff 01 ff ff 02")))).toBe("ff ff 01 ff ff ff ff 02");
});

test("whatever is escaped comes out again, however it is cut", () => {
  const random = seeded(2217);
  for (let round = 0; round < 500; round++) {
    const data = Uint8Array.from({ length: 1 + Math.floor(random() * 200) }, () =>
      random() < 0.3 ? 255 : Math.floor(random() * 256),
    );
    const heard = new Heard();
    heard.telnet.receive(bytes("ff fb 00"));
    const wire = escaped(data);
    for (let at = 0; at < wire.length; ) {
      const length = 1 + Math.floor(random() * 9);
      heard.telnet.receive(wire.slice(at, at + length));
      at += length;
    }
    expect(heard.said).toEqual([`=${notation(data)}`]);
  }
});

/** Whether the line is there, and what it answers when it is asked for its modem lines. */
interface LineState {
  isUp: boolean;
  modem?: () => Promise<ModemLines | undefined> | undefined;
}

/** A line that does what it is told, unless it is told by a reader. */
function line(isWriter = true) {
  const settings: LineSettings = { baud: 115_200, data_bits: 8, parity: "none", stop_bits: 1, flow: "none" };
  const lines = { dtr: true, rts: true };
  const done: string[] = [];
  const sent: string[] = [];
  const act = (what: string, how: () => void) => {
    if (!isWriter) return false;
    done.push(what);
    how();
    return true;
  };
  const state: LineState = { isUp: true };
  const port = new ComPort(
    {
      settings: () => settings,
      lines: () => lines,
      isUp: () => state.isUp,
      modemLines: () => state.modem?.(),
      change: async (asked) => void act(JSON.stringify(asked), () => Object.assign(settings, asked)),
      setLines: async (asked) => void act(JSON.stringify(asked), () => Object.assign(lines, asked)),
      sendBreak: async () => act("break", () => undefined),
      suspend: (isSuspended) => void done.push(isSuspended ? "suspended" : "resumed"),
      send: (data) => void sent.push(notation(data)),
    },
    "fruit a",
  );
  return { port, settings, done, sent, state };
}

/** A request and its answer as they stand between `ff fa 2c` and `ff f0`. */
async function answers(to: ReturnType<typeof line>, request: string): Promise<string[]> {
  await to.port.obey(bytes(request));
  return to.sent.splice(0).map((data) => data.replace(/^ff fa 2c (.*) ff f0$/, "$1"));
}

/** An RFC 2217 client is told the modem lines with its first request. */
async function greeted(isWriter = true) {
  const to = line(isWriter);
  expect(await answers(to, "05 00")).toEqual(["6b b0", "69 01"]);
  return to;
}

// RFC 2217 §2, §3; the answer's code is the request's and 100 (0x64).
test.each([
  {
    what: "baud",
    ask: "01 00 00 00 00",
    answer: "65 00 01 c2 00",
    set: "01 00 00 25 80",
    now: "65 00 00 25 80",
    done: '{"baud":9600}',
  },
  { what: "data bits", ask: "02 00", answer: "66 08", set: "02 07", now: "66 07", done: '{"data_bits":7}' },
  { what: "parity", ask: "03 00", answer: "67 01", set: "03 03", now: "67 03", done: '{"parity":"even"}' },
  { what: "stop bits", ask: "04 00", answer: "68 01", set: "04 02", now: "68 02", done: '{"stop_bits":2}' },
  {
    what: "flow control",
    ask: "05 00",
    answer: "69 01",
    set: "05 03",
    now: "69 03",
    done: '{"flow":"rtscts"}',
  },
  { what: "DTR", ask: "05 07", answer: "69 08", set: "05 09", now: "69 09", done: '{"dtr":false}' },
  { what: "RTS", ask: "05 0a", answer: "69 0b", set: "05 0c", now: "69 0c", done: '{"rts":false}' },
  { what: "a break", ask: "05 04", answer: "69 06", set: "05 05", now: "69 05", done: "break" },
])(
  "$what is asked for and set by the writer; a reader is told what is in force",
  async ({ ask, answer, set, now, done }) => {
    const writer = await greeted();
    expect(await answers(writer, ask)).toEqual([answer]);
    expect(writer.done).toEqual([]);
    expect(await answers(writer, set)).toEqual([now]);
    expect(writer.done).toEqual([done]);
    const reader = await greeted(false);
    expect(await answers(reader, set)).toEqual([answer]);
    expect(reader.done).toEqual([]);
  },
);

test.each([
  { what: "a baud rate that no adapter makes", ask: "01 00 00 00 01", answer: "65 00 01 c2 00" },
  { what: "more baud than there are", ask: "01 ff ff ff ff", answer: "65 00 01 c2 00" },
  { what: "a baud rate of three bytes", ask: "01 00 25 80", answer: "65 00 01 c2 00" },
  { what: "nine data bits", ask: "02 09", answer: "66 08" },
  { what: "mark parity", ask: "03 04", answer: "67 01" },
  { what: "one and a half stop bits", ask: "04 03", answer: "68 01" },
  { what: "flow control by carrier detect", ask: "05 11", answer: "69 01" },
  { what: "another flow control for what comes in", ask: "05 0f", answer: "69 0e" },
  { what: "a control that nobody has defined", ask: "05 63", answer: "69 01" },
  { what: "what is so already", ask: "01 00 01 c2 00", answer: "65 00 01 c2 00" },
  { what: "no value", ask: "02", answer: "66 08" },
])("$what changes nothing, and the answer says what is in force", async ({ ask, answer }) => {
  const to = await greeted();
  expect(await answers(to, ask)).toEqual([answer]);
  expect(to.done).toEqual([]);
});

test("who we are is told when asked for, and who the client is is not answered", async () => {
  const to = await greeted();
  expect(await answers(to, "00")).toEqual(["64 66 72 75 69 74 20 61"]);
  expect(await answers(to, "00 41")).toEqual([]);
});

test("masks and purges are confirmed, a suspended client gets no bytes until it resumes", async () => {
  const to = await greeted();
  expect(await answers(to, "0c 03")).toEqual(["70 03"]);
  expect(await answers(to, "0a 02")).toEqual(["6e 02"]);
  expect(await answers(to, "0b ff")).toEqual(["6f ff ff"]);
  expect(await answers(to, "08")).toEqual([]);
  expect(await answers(to, "09")).toEqual([]);
  expect(to.done).toEqual(["suspended", "resumed"]);
});

test("a line that goes is a lost carrier, and one that returns a carrier", async () => {
  const to = await greeted();
  to.state.isUp = false;
  to.port.tellState();
  to.port.tellState();
  to.state.isUp = true;
  to.port.tellState();
  expect(to.sent).toEqual(["ff fa 2c 6b 0b ff f0", "ff fa 2c 6b bb ff f0"]);
});

/** A line that says how its modem lines are: names of those that are on. */
async function withModem(on: string, isBegun = true) {
  const to = line();
  const modem = { on, asked: 0, isDead: false };
  to.state.modem = async () => {
    modem.asked++;
    if (modem.isDead) return undefined;
    const isOn = (name: string) => modem.on.includes(name);
    return { cts: isOn("cts"), dsr: isOn("dsr"), dcd: isOn("dcd"), ri: isOn("ri") };
  };
  const said = () => to.sent.splice(0).flatMap((data) => /^ff fa 2c 6b (.*) ff f0$/.exec(data)?.[1] ?? []);
  jest.useFakeTimers();
  onTestFinished(() => to.port.end());
  if (isBegun) await to.port.obey(bytes("00"));
  await turns();
  return { ...to, modem, said };
}

/** Lets what has been answered be told. */
async function turns(): Promise<void> {
  for (let n = 0; n < 20; n++) await Promise.resolve();
}

async function passes(seconds: number): Promise<void> {
  for (let tenth = 0; tenth < seconds * 10; tenth++) {
    jest.advanceTimersByTime(100);
    await turns();
  }
}

afterEach(() => {
  jest.useRealTimers();
});

// RFC 2217 §3, NOTIFY-MODEMSTATE
test.each<{ before: string; state: string; after: string; told: string[] }>([
  { before: "", state: "00", after: "cts", told: ["11"] },
  { before: "cts dsr dcd", state: "b0", after: "cts dsr", told: ["38"] },
  { before: "dsr", state: "20", after: "", told: ["02"] },
  { before: "dsr", state: "20", after: "dsr dcd", told: ["a8"] },
  { before: "cts", state: "10", after: "cts ri", told: ["50"] },
  { before: "cts ri", state: "50", after: "cts", told: ["14"] },
  { before: "cts", state: "10", after: "cts", told: [] },
])("modem lines '$before' are told as $state, and within a second that they became '$after'", async (row) => {
  const to = await withModem(row.before);
  expect(to.said()).toEqual([row.state]);
  to.modem.on = row.after;
  await passes(1.1);
  expect(to.said()).toEqual(row.told);
  await passes(5);
  expect(to.said()).toEqual([]);
  expect(to.modem.asked).toBe(7);
  await to.port.obey(bytes("07"));
  await turns();
  expect(to.said()).toEqual([
    (Number.parseInt(row.told[0] ?? row.state, 16) & 0xf0).toString(16).padStart(2, "0"),
  ]);
});

test("only what a client has masked in is told, and with nothing masked in nobody looks", async () => {
  const to = await withModem("cts dsr");
  await to.port.obey(bytes("0b 80"));
  expect(to.said()).toEqual(["30"]);
  to.modem.on = "dsr";
  await passes(2);
  expect(to.said()).toEqual([]);
  to.modem.on = "dsr dcd";
  await passes(1);
  expect(to.said()).toEqual(["80"]);
  await to.port.obey(bytes("0b 00"));
  to.sent.splice(0);
  const { asked } = to.modem;
  to.modem.on = "";
  await passes(10);
  expect([to.said(), to.modem.asked]).toEqual([[], asked]);
});

test("nobody looks for a client that does not speak RFC 2217, nor for one that has left", async () => {
  const to = await withModem("cts", false);
  await passes(10);
  expect(to.modem.asked).toBe(0);
  await to.port.obey(bytes("00"));
  await passes(2.5);
  expect(to.modem.asked).toBe(3);
  to.port.end();
  to.modem.on = "";
  await passes(10);
  expect([to.modem.asked, to.said()]).toEqual([3, ["10"]]);
});

test("a line whose driver does not answer counts as ready, or as it last was, and one that goes has lost all", async () => {
  const to = await withModem("", false);
  to.modem.isDead = true;
  await to.port.obey(bytes("00"));
  await turns();
  expect(to.said()).toEqual(["b0"]);
  to.modem.isDead = false;
  to.modem.on = "dcd";
  await passes(1.1);
  expect(to.said()).toEqual(["83"]);
  to.modem.isDead = true;
  await passes(3);
  expect(to.said()).toEqual([]);
  to.state.isUp = false;
  to.port.tellState();
  expect(to.said()).toEqual(["08"]);
  to.modem.isDead = false;
  to.modem.on = "cts";
  to.state.isUp = true;
  to.port.tellState();
  await turns();
  expect(to.said()).toEqual(["11"]);
});

test("who asks for the modem state again and again before it is known is told once", async () => {
  const to = await withModem("cts");
  to.sent.splice(0);
  const held = Promise.withResolvers<undefined>();
  let asked = 0;
  to.state.modem = () => {
    asked++;
    return held.promise;
  };
  for (let n = 0; n < 100; n++) await to.port.obey(bytes("07"));
  expect(asked).toBe(1);
  held.resolve(undefined);
  await turns();
  expect(to.said()).toEqual(["10"]);
});

test("skipped bytes are an overrun for those who want to know, and nothing for the others", async () => {
  const to = await greeted();
  to.port.tellSkipped();
  expect(to.sent).toEqual([]);
  await answers(to, "0a 02");
  to.port.tellSkipped();
  expect(to.sent).toEqual(["ff fa 2c 6a 02 ff f0"]);
});

test("who never speaks RFC 2217 is told nothing in it", () => {
  const to = line();
  to.state.isUp = false;
  to.port.tellState();
  to.port.tellSkipped();
  expect(to.sent).toEqual([]);
});

const SEEDS = [
  "41 0d 00 ff ff 42 ff fa 2c 01 00 00 25 80 ff f0 43",
  "ff fb 00 ff fd 00 ff fb 2c ff fa 2c 05 05 ff f0 00 00 0d 00",
  "ff fa 2c ff fa 2c 0a ff ff ff f0 ff f3 ff ff",
  "ff fa ff f0 ff fa 2c ff f0 ff fc 00 ff fe 2c",
];

test("no bytes upset the codec, and how they are cut makes no difference", async () => {
  const random = seeded(Number(process.env.FRUIT_SEED ?? 1));
  const rounds = Number(process.env.FRUIT_FUZZ ?? 5_000);
  for (let round = 0; round < rounds; round++) {
    const wire = mutated(bytes(SEEDS[round % SEEDS.length] ?? ""), random);
    const whole = new Heard();
    const cut = new Heard();
    whole.telnet.receive(wire);
    for (const piece of inPieces(wire, 1 + Math.floor(random() * 4))) cut.telnet.receive(piece);
    if (JSON.stringify([whole.said, whole.sent]) !== JSON.stringify([cut.said, cut.sent]))
      expect({ wire: notation(wire), said: cut.said, sent: cut.sent }).toEqual({
        wire: notation(wire),
        said: whole.said,
        sent: whole.sent,
      });
    await obeyAll(whole.said);
  }
});

/** A few bytes changed, left out, doubled or put in; commands more often than chance would. */
function mutated(seed: Uint8Array, random: () => number): Uint8Array {
  const data = [...seed];
  for (let change = 1 + Math.floor(random() * 4); change > 0; change--) {
    const at = Math.floor(random() * data.length);
    const byte = random() < 0.5 ? 240 + Math.floor(random() * 16) : Math.floor(random() * 256);
    data.splice(at, Math.floor(random() * 3), ...(random() < 0.7 ? [byte] : []));
  }
  return Uint8Array.from(data);
}

/** Each subnegotiation gets at most one answer, always a whole one, and only settings that a line can have are set. */
async function obeyAll(said: readonly string[]): Promise<void> {
  const { port, sent, settings } = line();
  for (const sub of said) {
    if (!sub.startsWith("sub 44: ")) continue;
    const before = sent.length;
    await port.obey(bytes(sub.slice(8)));
    if (sent.length - before > 2) throw new Error(`${sub}: ${sent.length - before} answers`);
  }
  for (const answer of sent)
    if (!/^ff fa 2c (6[4-9]|6b|6e|6f|70)( ff ff| (?!ff)..)* ff f0$/.test(answer))
      throw new Error(`answered ${answer}`);
  const { baud, data_bits, parity } = settings;
  if (baud < 50 || baud > 4_000_000 || data_bits < 5 || data_bits > 8 || !parity)
    throw new Error(JSON.stringify(settings));
}
