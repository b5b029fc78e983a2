/** The rows that power adds to the command table. */
import * as v from "valibot";
import { type BoardReading, HalError } from "../../hal/ports.ts";
import { type Command, command, type Outcome, Refusal } from "../commands.ts";
import type { OutletState } from "../messages.ts";
import { perform } from "./actions.ts";
import type { Bus } from "./bus.ts";
import { present } from "./fields.ts";
import { identifyCommand } from "./identify.ts";
import { lockCommands } from "./locks.ts";
import { FRESH_MS, type Outlet, round } from "./outlet.ts";
import { setPolicy } from "./policy.ts";
import { summarise, untilStopped } from "./result.ts";
import { refuseAll, SWITCH_VERBS, type SwitchVerb } from "./rules.ts";
import type { PowerOptions } from "./service.ts";
import { type Stack, Words } from "./stack.ts";

const Flag = v.optional(v.boolean(), false);
const Seconds = v.pipe(v.number(), v.minValue(0), v.maxValue(600));

const SwitchArgs = v.strictObject({
  outlets: Words,
  yes: Flag,
  force: Flag,
  self: Flag,
  off_time_seconds: v.optional(Seconds),
  timeout_seconds: v.optional(Seconds),
  wait: Flag,
  dry_run: Flag,
});

const SUMMARIES: Record<SwitchVerb, string> = {
  on: "Switches outlets on, one after the other",
  off: "Asks the Pis to shut down, then cuts their supply",
  cycle: "Off and on again",
  reset: "Cuts without asking and switches on again",
  shutdown: "Asks the Pis to shut down and leaves the supply on",
};

/** All commands about outlets and locks. */
export function powerCommands(stack: Stack, options: PowerOptions): Command[] {
  const idsOf = ({ outlets }: { outlets: string[] }) => stack.resolve(outlets).map(({ id }) => id);
  return [
    status(stack),
    ...SWITCH_VERBS.map((verb) => switching(stack, options, verb)),
    identifyCommand(stack),
    command({
      verb: "power.policy",
      summary: "Shows or sets what outlets do when the mains come back",
      tier: ({ policy }) => (policy === undefined ? 0 : 2),
      role: "power",
      args: v.strictObject({
        outlets: Words,
        policy: v.optional(v.picklist(["off", "on", "last"])),
        once: Flag,
        yes: Flag,
      }),
      outlets: idsOf,
      run: async ({ args, caller, reason }) => {
        const { policy, once, yes } = args;
        if (policy !== undefined) refuseAll(args.outlets, `policy ${policy}`, yes);
        const asked = { policy, once, door: caller.door, by: caller.who, reason };
        return summarise(
          await Promise.all(
            stack.resolve(args.outlets).map((outlet) => setPolicy(stack.means, outlet, asked)),
          ),
        );
      },
    }),
    scan(stack),
    ...lockCommands(stack.locks, (word) => stack.resolve([word])),
  ];
}

function status(stack: Stack): Command {
  return command({
    verb: "power.status",
    summary: "Reads supply, host and measurements of outlets from their boards",
    tier: 0,
    role: "read",
    broadcast: true,
    args: v.strictObject({ outlets: v.optional(Words) }),
    run: ({ args, signal }) =>
      untilStopped(signal, async () => {
        const outlets = args.outlets ? stack.resolve(args.outlets) : [...stack.outlets.values()];
        const unread = await Promise.all(outlets.map((outlet) => refresh(stack, outlet, signal)));
        const boards = new Map(outlets.map((outlet) => [outlet.board, outlet]));
        const result = {
          boards: await Promise.all([...boards.values()].map((outlet) => readBoard(outlet, signal))),
          outlets: outlets.map((outlet, i) => asRead(stack.state(outlet), unread[i])),
        };
        const why = unread.find((problem) => problem !== undefined);
        if (!why) return { state: "done", result };
        const dark = outlets.filter((_, i) => unread[i]).map(({ id }) => id);
        return {
          state: "failed",
          code: why.code,
          message: `outlet ${dark.join(", ")}: ${why.message}`,
          result,
        };
      }),
  });
}

/** Why an outlet could not be looked at. */
type Unread = { code: "bus" | "busy"; message: string } | undefined;

/** A reading of the last two seconds is as good as a new one (rule P2) and spares the bus. */
async function refresh({ means }: Stack, outlet: Outlet, signal: AbortSignal): Promise<Unread> {
  const isFresh = () =>
    outlet.reading !== undefined && means.now() - (outlet.readAt ?? Number.NEGATIVE_INFINITY) <= FRESH_MS;
  if (isFresh()) return undefined;
  try {
    await outlet.read(means.now, { signal });
    return undefined;
  } catch (error) {
    if (error instanceof HalError) return { code: "bus", message: error.message };
    if (!(error instanceof Refusal)) throw error;
    return isFresh() ? undefined : { code: "busy", message: error.message };
  } finally {
    means.changed(outlet);
  }
}

/** What was read too long ago to be true is not shown as if it were. */
function asRead(state: OutletState, unread: Unread): OutletState {
  if (!unread) return state;
  const { volts, amperes, watts, heartbeat, ...known } = state;
  return { ...known, supply: "unknown", host: "unknown", source: "stale", error: unread.message };
}

async function readBoard({ bus, board }: Outlet, signal: AbortSignal) {
  try {
    return boardLine(
      await bus.do(`board ${board}`, "read", (controller) => controller.readBoard(board), { signal }),
    );
  } catch (error) {
    if (error instanceof HalError || error instanceof Refusal) return { board, error: error.message };
    throw error;
  }
}

function boardLine(reading: BoardReading) {
  const { board, hardware, firmware, inputVolts, inputAmperes, inputWatts, railVolts, bootCount } = reading;
  return present({
    board,
    hardware,
    firmware,
    input_volts: round(inputVolts, 3),
    input_amperes: round(inputAmperes, 3),
    input_watts: round(inputWatts, 2),
    rail_volts: round(railVolts, 3),
    boot_count: bootCount,
  });
}

function switching(stack: Stack, { config }: PowerOptions, verb: SwitchVerb): Command {
  // Where a Pi is asked to shut down that is what a timeout limits, else the wait for its sign of life.
  const isDownAsked = verb !== "on" && verb !== "reset";
  return command({
    verb: `power.${verb}`,
    summary: SUMMARIES[verb],
    tier: ({ force }) => (force || verb === "reset" ? 3 : 2),
    role: "power",
    args: SwitchArgs,
    outlets: ({ outlets }) => stack.resolve(outlets).map(({ id }) => id),
    run: async ({ args, reason, caller, progress, signal }) => {
      refuseAll(args.outlets, verb, args.yes);
      const outlets = stack.resolve(args.outlets);
      let ended = 0;
      const asked = {
        verb,
        door: caller.door,
        by: caller.who,
        cause: "operator" as const,
        reason,
        force: args.force,
        self: args.self,
        offTimeSeconds: args.off_time_seconds ?? config.off_time_seconds,
        graceSeconds: (isDownAsked ? args.timeout_seconds : undefined) ?? config.grace_seconds,
        bootSeconds: isDownAsked ? undefined : args.timeout_seconds,
        wait: args.wait,
        dryRun: args.dry_run,
        signal,
        progress: (message: string) => progress(message, ended / outlets.length),
      };
      return summarise(
        await Promise.all(
          outlets.map(async (outlet) => {
            const result = await perform(stack.means, outlet, asked);
            ended += 1;
            return result;
          }),
        ),
      );
    },
  });
}

function scan(stack: Stack): Command {
  let isScanning = false;
  return command({
    verb: "power.scan",
    summary: "Lists the boards that answer on each bus, configured or not",
    tier: 1,
    role: "power",
    args: v.strictObject({}),
    run: async ({ signal }) => {
      if (isScanning) throw new Refusal("busy", "a scan is under way; wait for it");
      isScanning = true;
      try {
        return await untilStopped(signal, async () =>
          scanned(await Promise.all(stack.buses.map((bus) => scanBus(bus, signal)))),
        );
      } finally {
        isScanning = false;
      }
    },
  });
}

/** What one bus gave, and why it gave no more. */
interface Scan {
  bus: string;
  boards: object[];
  error?: string;
}

/** Address by address, so that nobody who needs the bus waits for all of them. A bus that fails keeps nobody from the others. */
async function scanBus(bus: Bus, signal: AbortSignal): Promise<Scan> {
  const configured = new Set(bus.controller.outlets.map((id) => Number(id.split(".")[0])));
  const boards: object[] = [];
  try {
    for (const address of bus.controller.addresses) {
      const reading = await bus.do(`address ${address}`, "scan", (controller) => controller.probe(address), {
        signal,
      });
      if (reading)
        boards.push({ bus: bus.name, ...boardLine(reading), configured: configured.has(reading.board) });
    }
    return { bus: bus.name, boards };
  } catch (error) {
    if (error instanceof HalError || error instanceof Refusal)
      return { bus: bus.name, boards, error: error.message };
    throw error;
  }
}

function scanned(scans: readonly Scan[]): Outcome {
  const errors = scans.flatMap(({ bus, error }) => (error === undefined ? [] : [{ bus, message: error }]));
  const result = { boards: scans.flatMap(({ boards }) => boards), errors };
  if (errors.length === 0) return { state: "done", result };
  const message = errors.map((error) => `${error.bus}: ${error.message}`).join("; ");
  return { state: "failed", code: "bus", message, result };
}
