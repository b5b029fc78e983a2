/** Named lines on simulated hardware, and somebody who asks for them. */
import { onTestFinished } from "bun:test";
import * as v from "valibot";
import { type Caller, type Outcome, Refusal } from "../agent/commands.ts";
import { parseConfig } from "../agent/config.ts";
import { createGpioService } from "../agent/gpio/service.ts";
import type { GpioUse } from "../hal/ports.ts";
import { openSim } from "../hal/sim/hal.ts";
import { LOCAL } from "./desk.ts";

/** Two outputs and an input. */
export const LINES = {
  door: { gpio: 24, active_low: true, bias: "pull-up" },
  light: { gpio: 25, direction: "out" },
  reset: { gpio: 26, direction: "out", active_low: true, pulse_min_ms: 20, pulse_max_ms: 400 },
};

/** A node with named lines, and somebody who asks it. */
export function node(more: object = {}, hasStackRole = false) {
  const config = parseConfig("node.json", { site: "lab", gpio: LINES, ...more });
  const sim = openSim({ seed: 1, boards: [0], wireTime: false, faults: [], clockSynced: true });
  const opened: string[] = [];
  const hal = {
    ...sim,
    openGpio: (gpio: number, use: GpioUse) => {
      opened.push(`${gpio} ${use.direction}`);
      return sim.openGpio(gpio, use);
    },
  };
  const service = createGpioService({ config, hal, hasStackRole });
  onTestFinished(() => service.close());
  const stopping = new AbortController();
  const said: string[] = [];
  const ask = async (verb: string, args: object = {}, caller: Caller = LOCAL): Promise<Outcome> => {
    const row = service.commands.find((one) => one.verb === `gpio.${verb}`);
    if (!row) throw new Error(`no verb ${verb}`);
    const call = {
      id: "c1",
      args: v.parse(row.args, args) as never,
      caller,
      progress: (text: string) => void said.push(text),
      signal: stopping.signal,
    };
    return row.run(call);
  };
  const refused = async (verb: string, args: object, caller?: Caller): Promise<Refusal> => {
    const error = await ask(verb, args, caller).catch((caught) => caught);
    if (!(error instanceof Refusal)) throw new Error(`not refused: ${JSON.stringify(error)}`);
    return error;
  };
  return { ...sim, service, ask, refused, said, opened, stop: () => stopping.abort() };
}
