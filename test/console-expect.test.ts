/** What is sent to a console by scripts, and what is waited for. */
import { expect, test } from "bun:test";
import { bytesOf, Expecting, parsePattern } from "../agent/console/expect.ts";
import { UsageError } from "../agent/terminal.ts";
import { notation } from "./fakes.ts";

test.each([
  { text: "reboot\\r", bytes: "72 65 62 6f 6f 74 0d" },
  { text: "\\n\\t\\e\\\\", bytes: "0a 09 1b 5c" },
  { text: "\\x00\\xff\\x7F", bytes: "00 ff 7f" },
  { text: "ü👋", bytes: "c3 bc f0 9f 91 8b" },
  { text: "a\\\\n", bytes: "61 5c 6e" },
  { text: "two\nlines", bytes: "74 77 6f 0a 6c 69 6e 65 73" },
  { text: "", bytes: "" },
])("$text is sent as $bytes", ({ text, bytes }) => {
  expect(notation(bytesOf(text))).toBe(bytes);
});

test.each(["\\q", "\\x0", "\\xgg", "end\\", "\\X41"])("%s is a matter of usage", (text) => {
  expect(() => bytesOf(text)).toThrow(UsageError);
});

test.each(["(", "[z-a]", "*", "\\"])("the expression %s is a matter of usage", (text) => {
  expect(() => parsePattern(text)).toThrow(UsageError);
});

/** Whether it is found in these pieces. */
function found(pattern: string, pieces: readonly Uint8Array[]): boolean {
  const expecting = new Expecting(parsePattern(pattern));
  for (const piece of pieces) expecting.add(piece);
  return expecting.look();
}

test.each([
  { pattern: "login: $", text: "Welcome\r\n\r\npi login: ", is: true },
  { pattern: "^pi login", text: "Welcome\r\n\r\npi login: ", is: true },
  { pattern: "^login", text: "pi login: ", is: false },
  { pattern: "Temp.*°C", text: "Temp 40 °C\r\n", is: true },
  { pattern: "^.👋.$", text: "x👋y", is: true },
  { pattern: "\\x1b\\[0m", text: "red\x1b[0m", is: true },
  { pattern: "rc\\:\\ 0\\-", text: "rc: 0-", is: true },
])("$pattern in $text is $is, in whatever pieces it comes", ({ pattern, text, is }) => {
  const bytes = Buffer.from(text);
  expect(found(pattern, [bytes])).toBe(is);
  expect(
    found(
      pattern,
      [...bytes].map((byte) => Uint8Array.of(byte)),
    ),
  ).toBe(is);
});

test("bytes that are no text do not hide what is", () => {
  expect(found("ok$", [Uint8Array.of(0xff, 0xfe, 0xc3), Buffer.from("ok")])).toBe(true);
});

test("the last 64 KiB are looked at, and no more is kept", () => {
  const filler = Buffer.from("x".repeat(65_530));
  expect(found("needle", [Buffer.from("needle"), filler])).toBe(true);
  expect(found("needle", [Buffer.from("needle"), filler, Buffer.from("y")])).toBe(false);
});

test("what was looked at without success is looked at again only when more has come", () => {
  const expecting = new Expecting(parsePattern("^$|ab|ü"));
  expect(expecting.look()).toBe(false);
  expecting.add(Buffer.from("a"));
  expect(expecting.look()).toBe(false);
  // Half a character is nothing yet
  expecting.add(Uint8Array.of(0xc3));
  expect(expecting.look()).toBe(false);
  expecting.add(Uint8Array.of(0xbc));
  expect(expecting.look()).toBe(true);
  expect(expecting.look()).toBe(false);
});

/** Each takes half a second: proof/fuzz.proof.ts has all of them. */
const ENDLESS = ["(a+)+$", ...(process.env.FRUIT_FUZZ ? ["(.*)*x", "(\\w+\\s?)*$", "(a|aa)+$"] : [])];

test.each(ENDLESS)(
  "%s ends by itself on what it cannot match",
  (pattern) => {
    const expecting = new Expecting(parsePattern(pattern));
    expecting.add(Buffer.from(`${"a".repeat(5000)}!`));
    expect(expecting.look()).toBe(false);
  },
  30_000,
);
