/** The rows that consoles add to the command table. */
import * as v from "valibot";
import { type Command, clip, command, Refusal } from "../commands.ts";
import { present } from "../power/fields.ts";
import { counted } from "../terminal.ts";
import type { SerialConsole } from "./console.ts";
import { type Openings, whoLines } from "./openings.ts";
import { Cursor, RING_BYTES, type Ring } from "./ring.ts";
import { Transcript } from "./text.ts";

/** Lines of `console.log`, and bytes of its answer: it must fit a message on MQTT. */
const LOG_LINES = 200;
const LOG_BYTES = 12_288;
const SEND_BYTES = 4096;
const REPLAY_LINES = 10_000;

const Name = v.pipe(v.string(), v.minLength(1), v.maxLength(64));
const Flag = v.optional(v.boolean(), false);
const One = { console: Name };

const Settings = {
  baud: v.optional(v.pipe(v.number(), v.integer(), v.minValue(50), v.maxValue(4_000_000))),
  data_bits: v.optional(v.picklist([5, 6, 7, 8])),
  parity: v.optional(v.picklist(["none", "even", "odd"])),
  stop_bits: v.optional(v.picklist([1, 2])),
  flow: v.optional(v.picklist(["none", "rtscts", "xonxoff"])),
};

/** All commands about consoles. */
export function consoleCommands(consoles: ReadonlyMap<string, SerialConsole>, openings: Openings): Command[] {
  const find = (name: string): SerialConsole => {
    const found = consoles.get(name);
    if (found) return found;
    if (consoles.size === 0) throw new Refusal("unknown-console", "this node has no consoles");
    throw new Refusal(
      "unknown-console",
      `no console "${clip(name)}"; there are ${[...consoles.keys()].join(", ")}`,
    );
  };
  const outlets = ({ console }: { console: string }) => {
    const { outlet } = find(console);
    return outlet === undefined ? [] : [outlet];
  };
  return [
    command({
      verb: "console.list",
      summary: "Lists the consoles, whether their lines are there, and who writes",
      tier: 0,
      role: "read",
      broadcast: true,
      args: v.strictObject({}),
      run: async () => ({
        state: "done",
        result: { consoles: [...consoles.values()].map(({ state }) => state) },
      }),
    }),
    command({
      verb: "console.who",
      summary: "Lists who is attached to a console, or to any",
      tier: 0,
      role: "read",
      args: v.strictObject({ console: v.optional(Name) }),
      run: async ({ args }) => {
        const asked = args.console === undefined ? [...consoles.values()] : [find(args.console)];
        return { state: "done", result: { attached: asked.flatMap(whoLines) } };
      },
    }),
    command({
      verb: "console.log",
      summary: "Shows the last lines that a console said",
      tier: 1,
      role: "console",
      args: v.strictObject({
        ...One,
        lines: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(LOG_LINES)), 50),
        raw: Flag,
      }),
      outlets,
      unwritten: ["result"],
      run: async ({ args: { console, lines, raw } }) => {
        const { name, ring } = find(console);
        const from = ring.linesBack(lines);
        return {
          state: "done",
          result: { console: name, ...(raw ? rawTail(ring, from) : tail(ring, from)) },
        };
      },
    }),
    command({
      verb: "console.open",
      summary: "Attaches to a console",
      tier: ({ mode, force }) => (force ? 3 : mode === "write" ? 2 : 1),
      role: "console",
      args: v.pipe(
        v.strictObject({
          ...One,
          mode: v.optional(v.picklist(["write", "read"]), "write"),
          force: Flag,
          replay_lines: v.optional(
            v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(REPLAY_LINES)),
            200,
          ),
          key: v.optional(v.pipe(v.string(), v.base64(), v.length(44))),
        }),
        v.check(({ mode, force }) => !force || mode === "write", "force: only whoever writes can take over"),
      ),
      outlets,
      run: async ({ id, args, caller, reason = "" }) => {
        const { console, mode, force, replay_lines, key } = args;
        const wish = { wants: mode, replayLines: replay_lines, ...(force ? { force: reason } : {}) };
        return { state: "done", result: openings.open(find(console), wish, { id, caller, key }) };
      },
    }),
    command({
      verb: "console.send",
      summary: "Sends text to a console without attaching",
      tier: ({ force }) => (force ? 3 : 2),
      role: "console",
      args: v.strictObject({
        ...One,
        text: v.pipe(v.string(), v.minLength(1), v.maxLength(2 * SEND_BYTES)),
        /** The text is bytes in hexadecimal. */
        hex: Flag,
        force: Flag,
      }),
      outlets,
      unwritten: ["text"],
      run: async ({ args: { console, text, hex, force }, caller, reason }) => {
        const bytes = hex ? fromHex(text) : Buffer.from(text);
        if (bytes.length > SEND_BYTES)
          throw new Refusal("bad-args", `args.text: ${bytes.length} bytes, and ${SEND_BYTES} at most`);
        await find(console).send({ who: caller.who, reason }, bytes, force);
        return { state: "done", message: `${counted(bytes.length, "byte")} sent` };
      },
    }),
    command({
      verb: "console.break",
      summary: "Sends a break (SysRq) to a console",
      tier: 2,
      role: "console",
      args: v.strictObject(One),
      outlets,
      run: async ({ args, caller, reason }) => {
        await find(args.console).sendBreak({ who: caller.who, reason });
        return { state: "done" };
      },
    }),
    command({
      verb: "console.kick",
      summary: "Sends somebody away from a console",
      tier: 3,
      role: "console",
      args: v.strictObject({ ...One, who: v.pipe(v.string(), v.minLength(1), v.maxLength(128)) }),
      outlets,
      run: async ({ args, caller, reason }) => {
        const console = find(args.console);
        const kicked = console.kick(args.who, { who: caller.who, reason });
        if (kicked > 0) return { state: "done", result: { kicked } };
        const there = console.attached.map(({ who }) => who).join(", ") || "nobody";
        return {
          state: "unchanged",
          message: `console ${console.name}: ${clip(args.who)} is not attached; there is ${there}`,
        };
      },
    }),
    command({
      verb: "console.set",
      summary: "Changes how a console's line talks, until the agent ends",
      tier: 2,
      role: "console",
      args: v.strictObject({ ...One, ...Settings }),
      outlets,
      run: async ({ args: { console: name, ...settings }, caller, reason }) => {
        const console = find(name);
        const isNews = await console.change({ who: caller.who, reason }, present(settings));
        return { state: isNews ? "done" : "unchanged", result: { console: name, ...console.settings } };
      },
    }),
  ];
}

/** What was said from a place on, marks and all, as text: the newest that fits. */
function tail(ring: Ring, from: number): { text: string } {
  const cursor = new Cursor(ring, from, RING_BYTES);
  const transcript = new Transcript({ isStamped: false });
  let text = "";
  for (let item = cursor.next(); item; item = cursor.next()) text += transcript.add(item);
  const bytes = Buffer.from(text);
  if (bytes.length <= LOG_BYTES) return { text };
  const cut = bytes.subarray(-LOG_BYTES);
  // From the next line on; in a line without an end from its next character.
  const newline = cut.indexOf("\n");
  const start =
    newline >= 0 && newline < cut.length - 1 ? newline + 1 : cut.findIndex((byte) => (byte & 0xc0) !== 0x80);
  return { text: cut.subarray(start).toString() };
}

/** The same as bytes, in base64: nothing is lost of what is no text. */
function rawTail(ring: Ring, from: number): { base64: string } {
  const most = (LOG_BYTES / 4) * 3;
  const bytes = ring.slice(Math.max(from, ring.end - most), ring.end);
  return { base64: Buffer.from(bytes).toString("base64") };
}

function fromHex(text: string): Uint8Array {
  const digits = text.replace(/\s+/g, "");
  if (!/^(?:[0-9a-f]{2})+$/i.test(digits))
    throw new Refusal("bad-args", `args.text: "${clip(text)}" is not hexadecimal, two digits a byte`);
  return Buffer.from(digits, "hex");
}
