/**
 * The rows that consoles add to the command table.
 *
 * Invariant: no row carries what a line says or is told. Commands and results go through brokers in the clear, and are written
 * down; whoever reads or types attaches.
 */
import * as v from "valibot";
import { type Command, clip, command, Refusal } from "../commands.ts";
import { present } from "../power/fields.ts";
import type { SerialConsole } from "./console.ts";
import { type Openings, whoLines } from "./openings.ts";
import { REPLAY } from "./port.ts";

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
      summary:
        "Lists the consoles, whether their lines are there, who writes, and how long they have been silent",
      tier: 0,
      role: "read",
      broadcast: true,
      args: v.strictObject({}),
      run: async () => ({
        state: "done",
        result: { consoles: await Promise.all([...consoles.values()].map((console) => console.listLine())) },
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
      verb: "console.open",
      summary: "Attaches to a console",
      tier: ({ mode, force }) => (force ? 3 : mode === "write" ? 2 : 1),
      role: "console",
      args: v.pipe(
        v.strictObject({
          ...One,
          mode: v.optional(v.picklist(["write", "read"]), "write"),
          force: Flag,
          /** For an errand: coming and going is on record, but no mark. */
          quiet: Flag,
          replay_lines: v.optional(
            v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(REPLAY.most)),
            REPLAY.lines,
          ),
          key: v.optional(v.pipe(v.string(), v.base64(), v.length(44))),
        }),
        v.check(({ mode, force }) => !force || mode === "write", "force: only whoever writes can take over"),
      ),
      outlets,
      run: async ({ id, args, caller, reason = "" }) => {
        const { console, mode, force, quiet, replay_lines, key } = args;
        const wish = {
          wants: mode,
          replayLines: replay_lines,
          quiet,
          reason,
          ...(force ? { force: reason } : {}),
        };
        return { state: "done", result: openings.open(find(console), wish, { id, caller, key }) };
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
      summary: "Sends somebody away from a console, by name or by the number that console.who gives",
      tier: 3,
      role: "console",
      args: v.strictObject({ ...One, who: v.pipe(v.string(), v.minLength(1), v.maxLength(128)) }),
      outlets,
      run: async ({ args, caller, reason }) => {
        const console = find(args.console);
        if (console.kick(args.who, { who: caller.who, reason })) return { state: "done" };
        const there = console.attached.map(({ number, who }) => `${number} (${who})`).join(", ") || "nobody";
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
