import { setTimeout as sleep } from "node:timers/promises";
import { type BoardReading, HalError } from "../../hal/ports.ts";
import { Refusal } from "../commands.ts";
import type { Part } from "../parts.ts";
import type { Bus } from "./bus.ts";
import { present } from "./fields.ts";
import { measured, type Outlet, round } from "./outlet.ts";
import { Returns } from "./returns.ts";
import type { PowerOptions } from "./service.ts";
import type { Stack } from "./stack.ts";
import { look } from "./switch.ts";
import { guarded } from "./volts.ts";

/** Longest time for which a command that was sent explains a supply that changes. */
const INTENT_MS = 3_600_000;

/** Outlets by their board, in rack order. */
function boardsOf(stack: Stack, bus: Bus): Map<number, Outlet[]> {
  return Map.groupBy(
    [...stack.outlets.values()].filter((outlet) => outlet.bus === bus),
    ({ board }) => board,
  );
}

/**
 * Looks at every board again and again: publishes, raises alarms, notes what others did.
 * It reads at start and never writes (rule P1); only mains that came back make it act, by the policy of each outlet (rule P17).
 */
export function poll(stack: Stack, options: PowerOptions): Part {
  const { config, log, random = Math.random, teleSeconds = 60 } = options;
  return async (signal) => {
    const returns = new Returns({ means: stack.means, alarm: options.alarm, log, signal });
    const round = new Round(stack, options, returns, signal);
    const stopped = new Promise((resolve) => signal.addEventListener("abort", resolve, { once: true }));
    stack.locks.publishAll();
    let nextTele = performance.now();
    // Nodes that were switched on together shall not stay in step.
    let pauseMs = config.poll_seconds * 1000 * random();
    while (!signal.aborted) {
      const isTele = teleSeconds > 0 && performance.now() >= nextTele;
      if (isTele) nextTele = performance.now() + teleSeconds * 1000;
      // A board that does not answer takes seconds to give up on: the agent need not wait for it to stop.
      await Promise.race([
        Promise.all(stack.buses.map((bus, index) => round.bus(bus, index, isTele))),
        stopped,
      ]);
      await Promise.all([stack.followClock(), stack.locks.expire()]).catch((error) =>
        log("error", "lock.not-kept", { error: String(error) }),
      );
      await sleep(pauseMs, undefined, { signal }).catch(() => undefined);
      pauseMs = config.poll_seconds * 1000;
    }
    await returns.idle();
  };
}

class Round {
  readonly #stack: Stack;
  readonly #options: PowerOptions;
  readonly #returns: Returns;
  readonly #signal: AbortSignal;

  constructor(stack: Stack, options: PowerOptions, returns: Returns, signal: AbortSignal) {
    this.#stack = stack;
    this.#options = options;
    this.#returns = returns;
    this.#signal = signal;
  }

  /** One look at one bus. A bus that fails is an alarm, and its outlets are `unknown`, until it answers again. */
  async bus(bus: Bus, index: number, isTele: boolean): Promise<void> {
    const problems: string[] = [];
    for (const [board, outlets] of boardsOf(this.#stack, bus)) {
      if (this.#signal.aborted) return;
      const problem = await this.#tryBoard(bus, board, outlets, isTele);
      if (problem !== undefined) problems.push(problem);
    }
    if (this.#signal.aborted) return;
    const outlets = [...this.#stack.outlets.values()].filter((outlet) => outlet.bus === bus);
    const dark = outlets.filter(({ error }) => error !== undefined);
    const [why = dark[0]?.error] = problems;
    if (why === undefined) return this.#options.alarm(`bus-${index}`, null);
    const which = dark.length > 0 ? `cannot read ${dark.map(({ id }) => id).join(", ")}: ` : "";
    this.#options.alarm(`bus-${index}`, {
      severity: dark.length === outlets.length ? "critical" : "warning",
      message: `${bus.name}: ${which}${why}`,
    });
  }

  /** Why a board could not be looked at, where it could not. */
  async #tryBoard(
    bus: Bus,
    board: number,
    outlets: readonly Outlet[],
    isTele: boolean,
  ): Promise<string | undefined> {
    try {
      await this.#board(bus, board, outlets, isTele);
      return undefined;
    } catch (error) {
      // A full queue says nothing about the board.
      if (error instanceof Refusal) return undefined;
      const why = error instanceof Error ? error.message : String(error);
      if (!(error instanceof HalError))
        this.#options.log("error", "power.poll", { bus: bus.name, error: why });
      return why;
    }
  }

  async #board(bus: Bus, board: number, outlets: readonly Outlet[], isTele: boolean): Promise<void> {
    for (const outlet of outlets) await this.#outlet(outlet, isTele);
    // After its outlets: a supply that is off because the mains failed is then told from one that somebody switched off.
    const reading = await bus.do(`board ${board}`, "read", (controller) => controller.readBoard(board));
    this.#returns.note(board, reading, outlets);
    for (const outlet of outlets) await this.#explain(outlet);
    this.#sayBoard(board, reading, isTele);
  }

  async #outlet(outlet: Outlet, isTele: boolean): Promise<void> {
    const { means } = this.#stack;
    const reading = await look(means, outlet);
    if (!reading) return;
    if (outlet.boardPolicy === undefined) {
      await outlet.readPolicy();
      means.changed(outlet);
    }
    if (!isTele) return;
    const numbers = measured(reading);
    if (Object.keys(numbers).length === 0) return;
    const joules = numbers.watts === undefined ? undefined : round(outlet.energyJoules, 1);
    this.#options.publish("tele/power", outlet.id, {
      ...numbers,
      ...present({ energy_joules_total: joules }),
    });
  }

  /** Finds out why a supply is not as it was: our own command that ended late, or somebody else. */
  async #explain(outlet: Outlet): Promise<void> {
    const { supply, memory } = outlet;
    if (supply === "unknown" || supply === memory.supply || outlet.owed !== undefined) return;
    const { means } = this.#stack;
    const now = means.now();
    const { intent } = memory;
    if (intent?.supply === supply && Math.abs(now - intent.at) < INTENT_MS) {
      outlet.explain(supply, intent, intent.at);
    } else if (memory.supply === undefined) {
      outlet.explain(supply, { cause: "unknown" });
      // Seen for the first time while it is on its way somewhere else.
      if (intent) memory.intent = intent;
    } else {
      outlet.explain(supply, { cause: "external" }, now);
      means.happened(outlet.id, { kind: "power", what: `${supply} by somebody else` });
      means.tell("power.external", {
        outlet: outlet.id,
        ...present({ name: outlet.name }),
        after: supply,
        message: `${outlet.label}: switched ${supply} by somebody else`,
      });
    }
    means.changed(outlet);
    await means.memory.save();
  }

  #sayBoard(
    board: number,
    { inputVolts, inputAmperes, inputWatts, railVolts }: BoardReading,
    isTele: boolean,
  ) {
    const { alarm, config, publish } = this.#options;
    for (const { name, volts, least } of guarded({ inputVolts, railVolts }, config))
      alarm(
        `${name === "input" ? "input" : "rail"}-${board}`,
        volts >= least
          ? null
          : {
              severity: "warning",
              message: `board ${board}: ${name} below ${least} V; nothing is switched on (P10)`,
            },
      );
    const numbers = {
      ...measured(present({ volts: inputVolts, amperes: inputAmperes, watts: inputWatts })),
      ...present({ rail_volts: round(railVolts, 3) }),
    };
    if (isTele && Object.keys(numbers).length > 0) publish("tele/power", `input-${board}`, numbers);
  }
}
