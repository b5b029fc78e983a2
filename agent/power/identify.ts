import * as v from "valibot";
import { HalError, type OutletId } from "../../hal/ports.ts";
import { type Command, command } from "../commands.ts";
import { Lights } from "../lights.ts";
import type { Outlet } from "./outlet.ts";
import { type Ending, summarise } from "./result.ts";
import { type Stack, Words } from "./stack.ts";

/** How long a board shows itself when nobody says. */
const IDENTIFY_SECONDS = 30;

/** The row that makes boards visible; it ends at once, and the lights go out later by themselves. */
export function identifyCommand(stack: Stack): Command {
  const lights = new Lights<OutletId>();
  const show = async (outlet: Outlet, on: boolean) =>
    outlet.bus.beside(outlet.id, "identify", (controller) => controller.identify(outlet.id, on));
  const once = async (
    outlet: Outlet,
    { on, seconds }: { on?: boolean | undefined; seconds?: number | undefined },
    signal: AbortSignal,
  ): Promise<Ending & { outlet: string }> => {
    if (!outlet.bus.controller.abilities.has("identify"))
      return {
        outlet: outlet.id,
        outcome: "refused",
        code: "bad-args",
        message: "its board has nothing to show itself with",
      };
    const isOn = on ?? true;
    if (isOn && (seconds !== undefined || on === undefined))
      lights.darken(outlet.id, seconds ?? IDENTIFY_SECONDS, () => show(outlet, false), signal);
    else lights.keep(outlet.id);
    try {
      await show(outlet, isOn);
    } catch (error) {
      if (!(error instanceof HalError)) throw error;
      return { outlet: outlet.id, outcome: "failed", code: "bus", message: error.message };
    }
    return { outlet: outlet.id, outcome: "done" };
  };
  return command({
    verb: "power.identify",
    summary: "Lights up the boards of outlets so that a person finds them",
    tier: 1,
    role: "read",
    args: v.strictObject({
      outlets: Words,
      on: v.optional(v.boolean()),
      seconds: v.optional(v.pipe(v.number(), v.minValue(1), v.maxValue(3600))),
    }),
    outlets: ({ outlets }) => stack.resolve(outlets).map(({ id }) => id),
    run: async ({ args, signal }) =>
      summarise(await Promise.all(stack.resolve(args.outlets).map((outlet) => once(outlet, args, signal)))),
  });
}
