import { existsSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import type { Machine } from "../../hal/ports.ts";
import { CONFIG_PATH, type Config, parseConfig, readConfig } from "../config.ts";
import { openHardware } from "../hardware.ts";
import { nodeIdOf } from "../identity.ts";
import { type CliVerb, EXIT, UsageError } from "../terminal.ts";
import { type Samples, toInflux, toMessages, toProm, toTree } from "./formats.ts";
import { GROUPS, isSampled } from "./metrics.ts";
import { createSampler } from "./sampler.ts";

/** Between the two samples that ratios are made of: long enough for the kernel's 10 ms ticks to say something. */
const GAP_MS = 250;

/** `fruit telemetry once`: works without the agent, on a build host or in a chroot too. */
export const TELEMETRY_VERBS: readonly CliVerb[] = [
  {
    words: "telemetry once",
    synopsis: "[--json | --prom | --influx] [--hal linux|sim] [--config FILE]",
    summary:
      "prints what would be published now (all but power, console and agent, which only a running agent knows)",
    needsAgent: false,
    async run({ args, io, json }) {
      const { values: flags } = parseArgs({
        args,
        options: {
          prom: { type: "boolean" },
          influx: { type: "boolean" },
          hal: { type: "string" },
          config: { type: "string" },
        },
      });
      if ([json, flags.prom, flags.influx].filter(Boolean).length > 1)
        throw new UsageError("--json, --prom and --influx: one of them");
      const config = configOf(flags.config ?? io.env.FRUIT_CONFIG);
      const hal = await openHardware(flags.hal, io.env, config);
      const { machine } = hal;
      try {
        const samples = await sampleAll(machine, config?.telemetry, io.signal);
        const ts = machine.clock().synced ? Math.floor(Date.now() / 1000) : undefined;
        if (json) io.out(`${JSON.stringify(toTree(samples, ts), undefined, 2)}\n`);
        else if (flags.prom) io.out(toProm(samples));
        else if (flags.influx) io.out(toInflux(samples, tagsOf(machine, config), ts));
        else io.out(toMessages(samples, ts));
        return EXIT.done;
      } finally {
        await hal.close();
      }
    },
  },
];

/** The configuration named; else the node's own if it has one. */
function configOf(file: string | undefined): Config | undefined {
  if (file !== undefined) return readConfig(file);
  return existsSync(CONFIG_PATH) ? readConfig(CONFIG_PATH) : undefined;
}

/** Two samples of every group that is on, because the first has no ratios. */
async function sampleAll(
  machine: Machine,
  config: Config["telemetry"] | undefined,
  signal: AbortSignal,
): Promise<Samples> {
  const { filesystems, groups, interval_seconds } = config ?? parseConfig("", { site: "none" }).telemetry;
  const sampler = createSampler(machine, { filesystems, nowMs: () => performance.now() });
  const wanted = GROUPS.filter(
    (group) => group !== "agent" && isSampled(group) && (groups[group] ?? interval_seconds) > 0,
  );
  for (const group of wanted) sampler.sample(group);
  await sleep(GAP_MS, undefined, { signal }).catch(() => undefined);
  return Object.fromEntries(wanted.map((group) => [group, sampler.sample(group)]));
}

function tagsOf(machine: Machine, config: Config | undefined): { site?: string; node: string } {
  const node = config?.node ?? nodeIdOf(machine);
  return config ? { site: config.site, node } : { node };
}
