/** The rows that power adds to the command table. */
import * as v from "valibot";
import { type BoardReading, HalError } from "../../hal/ports.ts";
import { type Command, command, Refusal } from "../commands.ts";
import { perform } from "./actions.ts";
import { SCAN_LIMIT_MS } from "./bus.ts";
import { present } from "./fields.ts";
import { identifyCommand } from "./identify.ts";
import { lockCommands } from "./locks.ts";
import { FRESH_MS, type Outlet } from "./outlet.ts";
import { setPolicy } from "./policy.ts";
import { summarise } from "./result.ts";
import { refuseAll, SWITCH_VERBS, type SwitchVerb } from "./rules.ts";
import type { PowerOptions } from "./service.ts";
import { type Stack, Words } from "./stack.ts";
import { look } from "./switch.ts";

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
    run: async ({ args }) => {
      const outlets = args.outlets ? stack.resolve(args.outlets) : [...stack.outlets.values()];
      await Promise.all(outlets.map((outlet) => refresh(stack, outlet)));
      const boards = new Map(outlets.map((outlet) => [outlet.board, outlet]));
      const result = {
        boards: await Promise.all([...boards.values()].map(readBoard)),
        outlets: outlets.map((outlet) => stack.state(outlet)),
      };
      const dark = outlets.filter(({ reading }) => reading === undefined);
      if (dark.length === 0) return { state: "done", result };
      return {
        state: "failed",
        code: "bus",
        message: `outlet ${dark.map(({ id }) => id).join(", ")}: ${dark[0]?.error ?? "not read"}`,
        result,
      };
    },
  });
}

/** A reading of the last two seconds is as good as a new one (rule P2) and spares the bus. */
async function refresh({ means }: Stack, outlet: Outlet): Promise<void> {
  const age = outlet.reading && outlet.readAt !== undefined ? means.now() - outlet.readAt : Number.NaN;
  if (age >= 0 && age <= FRESH_MS) return;
  await look(means, outlet);
}

async function readBoard({ bus, board }: Outlet) {
  try {
    const reading = await bus.do(`board ${board}`, "read", (controller) => controller.readBoard(board));
    return boardLine(reading);
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
    input_volts: inputVolts,
    input_amperes: inputAmperes,
    input_watts: inputWatts,
    rail_volts: railVolts,
    boot_count: bootCount,
  });
}

function switching(stack: Stack, { config }: PowerOptions, verb: SwitchVerb): Command {
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
        graceSeconds: args.timeout_seconds ?? config.grace_seconds,
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
    role: "read",
    args: v.strictObject({}),
    run: async () => {
      if (isScanning) throw new Refusal("busy", "a scan is under way; wait for it");
      isScanning = true;
      try {
        const found = await Promise.all(
          stack.buses.map(async (bus) => {
            const configured = new Set(bus.controller.outlets.map((id) => Number(id.split(".")[0])));
            const options = { limitMs: SCAN_LIMIT_MS };
            const boards = await bus.do("bus", "scan", (controller) => controller.scan(), options);
            return boards.map((reading) => ({
              bus: bus.name,
              ...boardLine(reading),
              configured: configured.has(reading.board),
            }));
          }),
        );
        return { state: "done", result: { boards: found.flat() } };
      } finally {
        isScanning = false;
      }
    },
  });
}
