import { parseArgs } from "node:util";
import { HalError } from "../../hal/ports.ts";
import { FAULTS } from "../../hal/sim/faults.ts";
import { CliError, type CliVerb, EXIT, seconds, UsageError } from "../terminal.ts";

function whole(flag: string, text: string, least: number, most: number): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < least || value > most)
    throw new UsageError(`--${flag}: "${text}" is not a whole number from ${least} to ${most}`);
  return value;
}

const OPTIONS = {
  nodes: { type: "string", default: "8" },
  for: { type: "string" },
  "mqtt-port": { type: "string" },
  state: { type: "string" },
  seed: { type: "string", default: "1" },
  fault: { type: "string", multiple: true },
} as const;

export const DEMO_VERBS: readonly CliVerb[] = [
  {
    words: "demo",
    synopsis: `[--nodes 8] [--for SECONDS] [--mqtt-port N] [--state DIR] [--seed N] [--fault NAME[:TARGET]]…
       faults: ${Object.keys(FAULTS).join(" ")}`,
    summary: "a whole simulated site on this machine: broker, boards, and a real agent per node",
    needsAgent: false,
    run: async ({ args, io }) => {
      const { values } = parseArgs({ args, options: OPTIONS });
      const { runDemo } = await import("./demo.ts");
      try {
        await runDemo(
          {
            nodes: whole("nodes", values.nodes, 2, 32),
            seed: whole("seed", values.seed, 0, 2 ** 31),
            faults: values.fault ?? [],
            ...(values.for === undefined ? {} : { seconds: seconds("--for", values.for) }),
            ...(values["mqtt-port"] === undefined
              ? {}
              : { port: whole("mqtt-port", values["mqtt-port"], 1, 65535) }),
            ...(values.state === undefined ? {} : { state: values.state }),
          },
          io,
        );
      } catch (cause) {
        if (cause instanceof HalError) throw new UsageError(cause.message);
        if ((cause as NodeJS.ErrnoException).code === "EADDRINUSE")
          throw new CliError(
            EXIT.failed,
            `demo: port ${values["mqtt-port"]} is taken; choose another with --mqtt-port`,
            { cause },
          );
        throw cause;
      }
      return EXIT.done;
    },
  },
];
