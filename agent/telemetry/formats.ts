/** The same numbers in the formats other programs read: what MQTT carries, in a file or on a page. */
import { GROUPS, type Group, METRICS } from "./metrics.ts";
import type { Sample } from "./sampler.ts";

/** What was sampled, by group. */
export type Samples = Partial<Record<Group, Sample[]>>;

/** What the instances of a group are called as a Prometheus label; groups without have one instance. */
const LABELS: Partial<Record<Group, string>> = {
  disk: "device",
  fs: "name",
  net: "interface",
  wifi: "interface",
  power: "outlet",
  console: "console",
};

/**
 * Prometheus text format 0.0.4, names with the prefix `fruit_`. Without time stamps: node_exporter's textfile
 * collector skips a file that has any.
 */
export function toProm(samples: Samples): string {
  let text = "";
  for (const { group, instances } of inOrder(samples)) {
    for (const [key, { help, type }] of Object.entries(METRICS[group].keys)) {
      const name = `fruit_${group}_${key}`;
      const lines = instances
        .filter(({ values }) => values[key] !== undefined)
        .map(({ instance, values }) => `${name}${label(group, instance)} ${values[key]}\n`);
      if (lines.length > 0)
        text += `# HELP ${name} ${help.replace(/[\\\n]/g, escapeProm)}\n# TYPE ${name} ${type}\n${lines.join("")}`;
    }
  }
  return text;
}

/** InfluxDB line protocol, one line an instance; `ts` in Unix seconds, the server's time without. */
export function toInflux(samples: Samples, tags: { site?: string; node?: string }, ts?: number): string {
  let text = "";
  for (const { group, instances } of inOrder(samples)) {
    for (const { instance, values } of instances) {
      const labels = Object.entries({ ...tags, inst: instance })
        .map(([tag, value]) => `,${tag}=${value.replace(/[,= \\]/g, "\\$&").replace(/\n/g, "\\n")}`)
        .join("");
      const fields = Object.entries(values).map(([key, value]) => `${key}=${value}`);
      text += `${group}${labels} ${fields.join(",")}${ts === undefined ? "" : ` ${ts}000000000`}\n`;
    }
  }
  return text;
}

/** Group, then instance, then the payload as it is published, `ts` included where the clock is synchronised. */
export function toTree(
  samples: Samples,
  ts?: number,
): Record<string, Record<string, Record<string, number>>> {
  return Object.fromEntries(
    inOrder(samples).map(({ group, instances }) => [
      group,
      Object.fromEntries(instances.map(({ instance, values }) => [instance, payloadOf(values, ts)])),
    ]),
  );
}

/** Topic below the node and payload, one line a message, as `mosquitto_sub -v` would show them. */
export function toMessages(samples: Samples, ts?: number): string {
  return inOrder(samples)
    .flatMap(({ group, instances }) =>
      instances.map(
        ({ instance, values }) => `tele/${group}/${instance} ${JSON.stringify(payloadOf(values, ts))}\n`,
      ),
    )
    .join("");
}

/** The numbers of one message; `ts` in Unix seconds stands first, and only where somebody knows the time. */
export function payloadOf(values: Record<string, number>, ts: number | undefined): Record<string, number> {
  return ts === undefined ? { ...values } : { ts, ...values };
}

function inOrder(samples: Samples): { group: Group; instances: Sample[] }[] {
  return GROUPS.map((group) => ({ group, instances: samples[group] ?? [] })).filter(
    ({ instances }) => instances.length > 0,
  );
}

function label(group: Group, instance: string): string {
  const name = LABELS[group];
  return name ? `{${name}="${instance.replace(/["\\\n]/g, escapeProm)}"}` : "";
}

function escapeProm(char: string): string {
  return char === "\n" ? "\\n" : `\\${char}`;
}
