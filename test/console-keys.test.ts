/** What is typed at a console: bytes for the line, keys for us, answers to questions. */
import { expect, test } from "bun:test";
import { Escapes, escapeWord, KEYS, keysHelp, parseEscape, Question } from "../agent/console/keys.ts";
import { UsageError } from "../agent/terminal.ts";

const TILDE = 0x7e;

/** What becomes of typed text: `<x>` where it was a key. */
function typed(text: string, character: number | undefined): string {
  const escapes = new Escapes(character);
  return [...Buffer.from(text, "latin1")]
    .map((byte) => {
      const said = escapes.add(byte);
      return typeof said === "string" ? `<${said}>` : Buffer.from(said).toString("latin1");
    })
    .join("");
}

test.each([
  { what: "directly at the start", text: "~.", becomes: "<.>" },
  { what: "directly after Enter", text: "ls\r~?", becomes: "ls\r<?>" },
  { what: "directly after a newline", text: "ls\n~w", becomes: "ls\n<w>" },
  { what: "after another key", text: "~t~B", becomes: "<t><B>" },
  { what: "twice is one for the line", text: "~~.", becomes: "~." },
  { what: "twice after Enter, and Enter again", text: "\r~~\r~.", becomes: "\r~\r<.>" },
  { what: "in the middle of a line is text", text: "cd ~.ssh", becomes: "cd ~.ssh" },
  { what: "before what is no key is text", text: "~/bin\r", becomes: "~/bin\r" },
  { what: "before Enter is text, and Enter is one", text: "~\r~.", becomes: "~\r<.>" },
  { what: "of another case is text", text: "~b", becomes: "~b" },
  { what: "alone waits for what comes", text: "\r~", becomes: "\r" },
  { what: "after the far side's control bytes", text: "\x03\x04\x1a\x1c~.", becomes: "\x03\x04\x1a\x1c~." },
])("the escape character $what", ({ text, becomes }) => {
  expect(typed(text, TILDE)).toBe(becomes);
});

test("without an escape character every byte is for the line", () => {
  const all = Buffer.from(Array.from({ length: 512 }, (_, n) => n)).toString("latin1");
  expect(typed(`\r~.\r~B${all}`, undefined)).toBe(`\r~.\r~B${all}`);
});

test("with one, every byte but the keys behind it is for the line as it is", () => {
  const all = Buffer.from(Array.from({ length: 256 }, (_, n) => n)).toString("latin1");
  expect(typed(`x${all}`, TILDE)).toBe(`x${all}`);
});

test.each([
  { text: "~", is: 0x7e },
  { text: "%", is: 0x25 },
  { text: "^]", is: 0x1d },
  { text: "^a", is: 0x01 },
  { text: "^^", is: 0x1e },
  { text: "^", is: 0x5e },
  { text: "none", is: undefined },
])("-e $text is read, and said again so", ({ text, is }) => {
  expect(parseEscape(text)).toBe(is);
  if (is !== undefined) expect(escapeWord(is).toLowerCase()).toBe(text.toLowerCase());
});

test.each(["", " ", "~~", "^", "§", "\r", "^1", "None"].filter((text) => text !== "^"))(
  "-e %j is a matter of usage",
  (text) => {
    expect(() => parseEscape(text)).toThrow(UsageError);
  },
);

test("another escape character takes the place of the first", () => {
  expect(typed("~.\r\x1d.", 0x1d)).toBe("~.\r<.>");
});

test("the help names every key, and what to do when nobody could put the terminal back", () => {
  const help = keysHelp(0x1d);
  for (const [key, what] of Object.entries(KEYS)) expect(help).toContain(`  ^]${key}  ${what}\n`);
  expect(help).toContain("^]^]  the character itself");
  expect(help).toContain("stty sane");
});

/** Answers a question with these keys; what the screen shows, and the answer. */
async function answered(keys: string, isKey = false): Promise<{ shown: string; answer: string | undefined }> {
  let shown = "";
  const question = new Question("why? ", {
    echo: (text) => {
      shown += text;
    },
    isKey,
  });
  for (const byte of Buffer.from(keys)) if (!question.isOver) question.add(byte);
  question.cancel();
  return { shown, answer: await question.answer };
}

test.each([
  { what: "a line", keys: "kernel test\r", answer: "kernel test", shown: "why? kernel test\r\n" },
  { what: "umlauts and more", keys: "für 👋\r", answer: "für 👋", shown: "why? für 👋\r\n" },
  {
    what: "a corrected line",
    keys: "ab\x7f\x7fü\x08c\r",
    answer: "c",
    shown: "why? ab\b \b\b \bü\b \bc\r\n",
  },
  { what: "a line begun anew", keys: "abc\x15d\r", answer: "d", shown: "why? abc\b \b\b \b\b \bd\r\n" },
  { what: "more corrections than letters", keys: "\x7f\x7fa\r", answer: "a", shown: "why? a\r\n" },
  { what: "only Enter", keys: "\r", answer: undefined, shown: "why? \r\n" },
  { what: "only blanks", keys: "  \r", answer: undefined, shown: "why?   \r\n" },
  { what: "Ctrl-C", keys: "abc\x03def", answer: undefined, shown: "why? abc\r\n" },
  { what: "Escape", keys: "\x1b", answer: undefined, shown: "why? \r\n" },
])("$what answers a question with $answer", async ({ keys, answer, shown }) => {
  expect(await answered(keys)).toEqual({ shown, answer });
});

test("a question for one key is answered by it", async () => {
  expect(await answered("y", true)).toEqual({ shown: "why? y\r\n", answer: "y" });
});

test("an answer is at most 400 characters long", async () => {
  expect((await answered(`${"x".repeat(5000)}\r`)).answer).toHaveLength(400);
});
