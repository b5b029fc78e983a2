/** Frozen facts of the Pi Stack's protocol. If this fails, do not change the test. */
import { expect, test } from "bun:test";
import {
  boardError,
  crc8,
  errorFrame,
  fromBytes,
  fromCounts,
  OPS,
  type OpName,
  opName,
  type Quantity,
  replyFrame,
  requestFrame,
  toBytes,
  toCounts,
} from "../hal/pistack.ts";
import { bytes, notation } from "./fakes.ts";

test("the CRC is CRC-8/MAXIM", () => {
  expect(crc8(Buffer.from("123456789"))).toBe(0xa1);
  expect(crc8(new Uint8Array())).toBe(0);
});

test.each<[string, Uint8Array, string]>([
  ["hardware version, board 4", requestFrame("hardwareVersion", 4), "03 04 03 3d"],
  ["Pi 0 on, board 0", requestFrame("on", 0, [0]), "11 00 04 00 8c"],
  ["Pi 1 off, board 3", requestFrame("off", 3, [1]), "12 03 04 01 be"],
  ["Pi 1 force off, board 3", requestFrame("forceOff", 3, [1]), "13 03 04 01 31"],
  ["input voltage, board 4", requestFrame("inputVolts", 4), "0a 04 03 b3"],
  ["reply OK, no data", replyFrame(), "00 ff 03 63"],
  ["reply OK, hardware 3", replyFrame([3]), "00 ff 04 03 0b"],
  ["reply OK, input voltage 0x63F2", replyFrame([0x63, 0xf2]), "00 ff 05 63 f2 19"],
  ["reply error, bad Pi", errorFrame(0x14), "01 ff 04 14 9a"],
])("a frame is, byte for byte: %s", (_, frame, expected) => {
  expect(notation(frame)).toBe(expected);
});

/** Code, bytes of arguments, bytes of reply data. */
const TABLE: [OpName, number, number, number][] = [
  ["softwareVersion", 0x02, 0, 1],
  ["hardwareVersion", 0x03, 0, 1],
  ["ledsOn", 0x04, 0, 0],
  ["ledsOff", 0x05, 0, 0],
  ["rgbLed", 0x06, 3, 0],
  ["setPrefix", 0x07, 1, 0],
  ["prefix", 0x08, 0, 1],
  ["fullId", 0x09, 0, 1],
  ["inputVolts", 0x0a, 0, 2],
  ["inputAmperes", 0x0b, 0, 2],
  ["railVolts", 0x0c, 0, 2],
  ["piVolts", 0x0d, 1, 2],
  ["piAmperes", 0x0e, 1, 2],
  ["heartbeat", 0x0f, 1, 1],
  ["powered", 0x10, 1, 1],
  ["on", 0x11, 1, 0],
  ["off", 0x12, 1, 0],
  ["forceOff", 0x13, 1, 0],
  ["heartbeatTime", 0x14, 1, 1],
  ["setHeartbeatTime", 0x15, 2, 0],
  ["heartbeatDelay", 0x16, 1, 1],
  ["setHeartbeatDelay", 0x17, 2, 0],
  ["offDelay", 0x18, 1, 1],
  ["setOffDelay", 0x19, 2, 0],
  ["signalOffDelay", 0x1a, 1, 1],
  ["setSignalOffDelay", 0x1b, 2, 0],
  ["readErrors", 0x1c, 0, 1],
  ["clearErrors", 0x1d, 0, 0],
  ["errorCount", 0x1e, 0, 2],
  ["clearCounts", 0x1f, 0, 0],
  ["errorPointer", 0x20, 0, 1],
  ["signal", 0x21, 1, 0],
  ["onAtStart", 0x22, 1, 1],
  ["setOnAtStart", 0x23, 2, 0],
  ["signalWidth", 0x24, 1, 1],
  ["setSignalWidth", 0x25, 2, 0],
  ["inputWatts", 0x26, 0, 4],
  ["railWatts", 0x27, 0, 4],
  ["piWatts", 0x28, 1, 4],
  ["bootCount", 0x29, 0, 2],
];

test.each(TABLE)("op %s has its published code and lengths", (name, code, args, reply) => {
  expect(OPS[name]).toEqual({ code, args, reply } as (typeof OPS)[typeof name]);
  expect(opName(code)).toBe(name);
});

test("no op is missing from the table, and unpublished codes have no name", () => {
  expect(Object.keys(OPS)).toHaveLength(TABLE.length);
  for (const code of [0x00, 0x01, 0x2a, 0xff]) expect(opName(code)).toBeUndefined();
});

test.each<[Quantity, 2 | 3, number, number]>([
  ["inputVolts", 3, 0x63f2, 12.02],
  ["inputVolts", 3, 0xffff, 30.8],
  ["inputVolts", 2, 0xffff, 30.8],
  ["inputAmperes", 3, 0xffff, 4.23],
  ["railVolts", 3, 0xffff, 6.09],
  ["piVolts", 2, 0xffff, 5.5],
  ["piVolts", 3, 0xffff, 6.09],
  ["piAmperes", 2, 0xffff, 2],
  ["piAmperes", 3, 0xffff, 2],
  // 12.02 V at 2.00 A, and 5.1 V at 0.98 A: products of the two counts.
  ["inputWatts", 3, 25586 * 30980, 24.05],
  ["piWatts", 3, 54865 * 32112, 4.997],
  ["railWatts", 3, 54865 * 32112, 4.997],
])("%s of hardware %d: %d counts are %d", (quantity, hardware, counts, expected) => {
  expect(fromCounts(counts, quantity, hardware)).toBeCloseTo(expected, 2);
});

test.each<Quantity>([
  "inputVolts",
  "inputAmperes",
  "inputWatts",
  "railVolts",
  "railWatts",
  "piVolts",
  "piAmperes",
  "piWatts",
])("%s goes to counts and back", (quantity) => {
  for (const hardware of [2, 3] as const) {
    for (const counts of [0, 1, 255, 256, 0x63f2, 0xffff]) {
      expect(toCounts(fromCounts(counts, quantity, hardware), quantity, hardware)).toBe(counts);
    }
  }
});

test("a value beyond the scale is the end of the scale", () => {
  expect(toCounts(1e6, "inputVolts", 3)).toBe(0xffff);
  expect(toCounts(1e9, "inputWatts", 3)).toBe(0xffff_ffff);
  expect(toCounts(-1, "piAmperes", 3)).toBe(0);
});

test("numbers of several bytes are big-endian, up to 32 bits", () => {
  expect(fromBytes(bytes("63 f2"))).toBe(0x63f2);
  expect(fromBytes(bytes("ff fe 00 01"))).toBe(0xfffe_0001);
  expect(notation(toBytes(0xfffe_0001, 4))).toBe("ff fe 00 01");
  expect(notation(toBytes(5, 2))).toBe("00 05");
});

test("an error says its code, known or not", () => {
  expect(boardError(0x14)).toBe("no such Pi (0x14)");
  expect(boardError(0x77)).toBe("an undocumented error (0x77)");
});
