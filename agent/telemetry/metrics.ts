/** One number this node reports: base units, counters end in `_total`, flags are 0 or 1. */
export interface Metric {
  /** One sentence: what it is for, with its unit. */
  help: string;
  type: "gauge" | "counter";
}

/** A set of numbers taken at the same moment and published as one flat message. */
export interface MetricGroup {
  /** `main`, or what the instances are: `<device>`, `<interface>`. */
  instance: string;
  summary: string;
  keys: Record<string, Metric>;
}

/** Every number of every group. A metric without a row here cannot be published. */
export const METRICS = {
  system: {
    instance: "main",
    summary: "The machine as a whole",
    keys: { uptime_seconds: { help: "Seconds since the kernel started", type: "gauge" } },
  },
} as const satisfies Record<string, MetricGroup>;
export type Group = keyof typeof METRICS;
export const GROUPS = Object.keys(METRICS) as [Group, ...Group[]];
