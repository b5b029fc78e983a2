/** The verbs that start the agent and look at its configuration. */
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { CONFIG_PATH, type Config, ConfigError, readConfig } from "./config.ts";
import { openHardware } from "./hardware.ts";
import { jsonLog } from "./log.ts";
import { CliError, type CliVerb, counted, EXIT } from "./terminal.ts";

/** How often an attached agent looks whether it still has a parent. */
const PARENT_MS = 500;

export const AGENT_VERBS: readonly CliVerb[] = [
  {
    words: "agent",
    synopsis: "[--config FILE] [--hal linux|sim] [--attached]",
    summary: "runs this node until it is told to stop; with --attached also when whoever started it ends",
    needsAgent: false,
    run: async ({ args, io }) => {
      const { values } = parseArgs({
        args,
        options: { config: { type: "string" }, hal: { type: "string" }, attached: { type: "boolean" } },
      });
      const config = readConfig(values.config ?? io.env.FRUIT_CONFIG ?? CONFIG_PATH);
      if (io.env.FRUIT_SOCKET) config.socket = io.env.FRUIT_SOCKET;
      const hal = await openHardware(values.hal, io.env, config);
      const log = jsonLog(io.err, config.log_level);
      const { runAgent } = await import("./agent.ts");
      const stop = new AbortController();
      const signal = AbortSignal.any([io.signal, stop.signal]);
      if (values.attached) void watchParent(signal).then(() => stop.abort());
      try {
        await runAgent(config, hal, log, signal);
        return EXIT.done;
      } catch (cause) {
        const code = (cause as NodeJS.ErrnoException).code;
        if (code && ["EACCES", "EROFS", "ENOENT", "ENOTDIR", "ENOSPC"].includes(code))
          throw new CliError(
            EXIT.failed,
            `data_dir ${config.data_dir}, socket ${config.socket}: ${(cause as Error).message}`,
            { cause },
          );
        throw cause;
      } finally {
        stop.abort();
        await hal.close();
      }
    },
  },
  {
    words: "config check",
    synopsis: "[FILE]",
    summary: "says everything that is wrong with a node.json",
    needsAgent: false,
    run: async ({ args, io, json }) => {
      const { positionals } = parseArgs({ args, allowPositionals: true });
      const file = positionals[0] ?? io.env.FRUIT_CONFIG ?? CONFIG_PATH;
      const say = (found: { problems: readonly string[]; config?: Config }) =>
        io.out(`${JSON.stringify({ schema: "fruit.config.check/1", file, ...found })}\n`);
      try {
        const config = readConfig(file);
        if (json) say({ problems: [], config });
        else io.out(`${file}: good; ${summary(config)}\n`);
        return EXIT.done;
      } catch (cause) {
        if (!json || !(cause instanceof ConfigError)) throw cause;
        say({ problems: cause.problems });
        return EXIT.config;
      }
    },
  },
];

function summary({ site, power, mqtt }: Config): string {
  return `site ${site}, ${counted(power.buses.length, "power bus", "power buses")}, ${mqtt?.url ?? "no broker"}`;
}

/** Ends when the process that started this one is gone. */
async function watchParent(signal: AbortSignal): Promise<void> {
  const parent = process.ppid;
  while (!signal.aborted && process.ppid === parent)
    await sleep(PARENT_MS, undefined, { signal }).catch(() => undefined);
}
