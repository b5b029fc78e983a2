import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import type { CommandResult } from "../commands.ts";
import type { OutletState } from "../messages.ts";
import { EXIT, type Exit, exitOf, type Io, seconds } from "../terminal.ts";
import { type Context, print, wordsOf } from "./answer.ts";
import { type BoardLine, changeWords, statusTable } from "./show.ts";

const WATCH_MS = 2000;

/** What `power.status` answers. */
export interface Looked {
  outlets: OutletState[];
  boards: BoardLine[];
}

/** Asks for the state of some outlets, or of all. */
export function askStatus({ send }: Context, outlets: string[]): Promise<CommandResult> {
  return send("power.status", outlets.length > 0 ? { outlets } : {});
}

/** Prints how it is and then what changes, a line or a JSON object each, until told to stop or the time is over. */
export async function watch(context: Context): Promise<Exit> {
  const { io } = context;
  const { values, positionals } = parseArgs({
    args: context.args,
    allowPositionals: true,
    options: { for: { type: "string" }, jsonl: { type: "boolean", default: false } },
  });
  const json = context.json || values.jsonl;
  const lasts = values.for === undefined ? Number.POSITIVE_INFINITY : seconds("--for", values.for) * 1000;
  const endsAt = performance.now() + lasts;
  const words = wordsOf(positionals);
  const before = new Map<string, OutletState>();
  while (!io.signal.aborted) {
    const answer = await askStatus(context, words).catch((error) => {
      if (!io.signal.aborted) throw error;
    });
    if (!answer) break;
    if (answer.result === undefined) return print(context, "power.status", answer, () => "");
    const { outlets, boards } = answer.result as Looked;
    if (before.size === 0 && !json) io.out(statusTable(outlets, boards, Date.now()));
    for (const state of outlets) sayChange(io, json, before, state);
    const left = endsAt - performance.now();
    if (left <= 0) return exitOf(answer);
    await sleep(Math.min(WATCH_MS, left), undefined, { signal: io.signal }).catch(() => undefined);
  }
  return EXIT.done;
}

function sayChange(io: Io, json: boolean, before: Map<string, OutletState>, state: OutletState): void {
  const last = before.get(state.outlet);
  before.set(state.outlet, state);
  const change = last && changeWords(last, state);
  if (!change && (last || !json)) return;
  const at = new Date().toISOString();
  if (json) io.out(`${JSON.stringify({ schema: "fruit.power.watch/1", at, change, ...state })}\n`);
  else io.out(`${at.slice(11, 19)} ${change}\n`);
}
