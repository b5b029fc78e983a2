/** `fruit mqtt`: the contract on paper, the way to the broker, and tidying up. */
import { existsSync } from "node:fs";
import { parseArgs } from "node:util";
import { CONFIG_PATH, type Config, parseConfig, readConfig } from "../config.ts";
import { nodeIdOf } from "../identity.ts";
import { METRICS } from "../telemetry/metrics.ts";
import { CliError, type CliVerb, EXIT, type Io, table, UsageError } from "../terminal.ts";
import { BUILD } from "../version.ts";
import { LinkError } from "./connect.ts";
import type { Channel } from "./schema.ts";

const FLAGS = { config: { type: "string" }, hal: { type: "string" } } as const;

export const MQTT_VERBS: readonly CliVerb[] = [
  {
    words: "mqtt schema",
    synopsis: "[--asyncapi | --jsonschema | --ha [--config FILE] [--hal linux|sim]]",
    summary:
      "prints what travels on MQTT: a table, or a document for programs (--ha: of an example where no node is configured)",
    needsAgent: false,
    async run({ args, io }) {
      const { values } = parseArgs({
        args,
        options: {
          asyncapi: { type: "boolean" },
          jsonschema: { type: "boolean" },
          ha: { type: "boolean" },
          ...FLAGS,
        },
      });
      const { asyncapi, jsonschema, ha } = values;
      if ([asyncapi, jsonschema, ha].filter(Boolean).length > 1)
        throw new UsageError("--asyncapi, --jsonschema and --ha: one of them");
      // Loaded late: the agent at rest does not pay for converting schemas.
      const schema = await import("./schema.ts");
      if (asyncapi) io.out(json(schema.asyncApi(BUILD.version)));
      else if (jsonschema) io.out(json(schema.jsonSchemas()));
      else if (ha) io.out(json(await discoveryOf(example(values, io) ?? (await configured(values, io)))));
      else io.out(treeTable(schema.channels()));
      return EXIT.done;
    },
  },
  {
    words: "mqtt test",
    synopsis: "[--config FILE] [--hal linux|sim]",
    summary: "goes to the broker as this node would, and says how each step went",
    needsAgent: false,
    async run({ args, io, json: isJson }) {
      const { values } = parseArgs({ args, options: FLAGS });
      const { config, node } = await configured(values, io);
      const { tryBroker } = await import("./errands.ts");
      const report = new Report(io, isJson, "fruit.mqtt.test/1");
      const exit = await tryBroker(
        { config: brokerOf(config), site: config.site, node },
        report.say,
        io.signal,
      );
      report.end();
      return exit;
    },
  },
  {
    words: "mqtt forget",
    synopsis: "[--force] [--config FILE] [--hal linux|sim]",
    summary: "clears every retained topic of this node, discovery included",
    needsAgent: false,
    async run({ args, io, json: isJson }) {
      const { values } = parseArgs({ args, options: { force: { type: "boolean" }, ...FLAGS } });
      const { config, node } = await configured(values, io);
      const mqtt = brokerOf(config);
      const { forget } = await import("./errands.ts");
      const report = new Report(io, isJson, "fruit.mqtt.forget/1");
      try {
        const options = { isForced: values.force === true, prefix: mqtt.discovery_prefix };
        const exit = await forget({ config: mqtt, site: config.site, node }, options, report.say, io.signal);
        report.end();
        return exit;
      } catch (cause) {
        if (!(cause instanceof LinkError)) throw cause;
        throw new CliError(EXIT.unreachable, `mqtt: ${cause.message}`, { cause });
      }
    },
  },
];

/** One line per step, or all of them as one object. */
class Report {
  readonly #io: Io;
  readonly #isJson: boolean;
  readonly #schema: string;
  readonly #steps: { step: string; ok: boolean; message: string }[] = [];

  constructor(io: Io, isJson: boolean, schema: string) {
    this.#io = io;
    this.#isJson = isJson;
    this.#schema = schema;
  }

  say = (step: string, ok: boolean, message: string): void => {
    this.#steps.push({ step, ok, message });
    if (!this.#isJson) this.#io.out(`${ok ? "ok  " : "FAIL"}  ${step.padEnd(8)}  ${message}\n`);
  };

  end(): void {
    if (this.#isJson) this.#io.out(`${JSON.stringify({ schema: this.#schema, steps: this.#steps })}\n`);
  }
}

async function configured(
  values: { config?: string | undefined; hal?: string | undefined },
  io: Io,
): Promise<{ config: Config; node: string }> {
  const config = readConfig(values.config ?? io.env.FRUIT_CONFIG ?? CONFIG_PATH);
  if (config.node) return { config, node: config.node };
  const { openHardware } = await import("../hardware.ts");
  const hal = await openHardware(values.hal, io.env, config);
  try {
    return { config, node: nodeIdOf(hal.machine) };
  } finally {
    await hal.close();
  }
}

/** Where nobody configured a node, as on a build host: a board of two outlets, of which unsigned messages may switch the second. */
function example(
  values: { config?: string | undefined },
  io: Io,
): { config: Config; node: string } | undefined {
  if ((values.config ?? io.env.FRUIT_CONFIG) !== undefined || existsSync(CONFIG_PATH)) return undefined;
  io.err(
    `fruit: no ${CONFIG_PATH}: this is an example, node pi1234 with a board of two outlets; --config FILE\n`,
  );
  const config = parseConfig("example", {
    site: "example",
    node: "pi1234",
    power: {
      buses: [{ driver: "pistack-rs485", device: "/dev/ttyUSB0", boards: [0] }],
      outlets: { "0.0": { name: "rack1-a" }, "0.1": { name: "rack1-b" } },
    },
    commands: { unsigned_outlets: ["0.1"] },
  });
  return { config, node: "pi1234" };
}

function brokerOf(config: Config): NonNullable<Config["mqtt"]> {
  if (!config.mqtt) throw new CliError(EXIT.config, "mqtt: this configuration names no broker (mqtt.url)");
  return config.mqtt;
}

/** As if every group without instances, every file system and every outlet were published. */
async function discoveryOf({ config, node }: { config: Config; node: string }): Promise<unknown> {
  const { discoveryFacts } = await import("./facts.ts");
  const { discovery } = await import("./entities.ts");
  const { rackOrder } = await import("../../hal/bus.ts");
  const outlets = config.power.buses.flatMap(({ driver, boards, pis }) =>
    rackOrder(boards, pis ?? (driver.startsWith("cluster") ? 4 : 2)),
  );
  const named = Object.keys(config.power.outlets).filter((id) => !outlets.some((outlet) => outlet === id));
  const facts = discoveryFacts(config, node, {}, [...outlets, ...named]);
  const instances: [string, Set<string>][] = [];
  for (const [group, { instance, keys }] of Object.entries(METRICS)) {
    const names =
      instance === "main" ? ["main"] : group === "fs" ? Object.keys(config.telemetry.filesystems) : [];
    const all = group === "power" ? facts.outlets.map(({ id }) => id) : names;
    for (const name of all) instances.push([`${group}/${name}`, new Set(Object.keys(keys))]);
  }
  return Object.fromEntries(discovery({ ...facts, telemetry: new Map(instances), alarms: [] }));
}

function treeTable(channels: Channel[]): string {
  return table([
    ["TOPIC", "FROM NODE", "QOS", "RETAINED", "WHAT"],
    ...channels.map(({ address, instance, direction, qos, retain, summary }) => [
      address
        .replace("{site}", "<site>")
        .replace("{node}", "<node>")
        .replace("{instance}", instance ?? ""),
      direction === "send" ? "out" : "in",
      String(qos),
      retain ? "yes" : "no",
      summary,
    ]),
  ]);
}

function json(document: unknown): string {
  return `${JSON.stringify(document, undefined, 2)}\n`;
}
