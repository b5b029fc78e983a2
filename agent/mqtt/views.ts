import type { Group, Key } from "../telemetry/metrics.ts";

/** How one number becomes an entity; `value` is a Jinja expression over the message `value_json`. */
export interface View {
  name: string;
  p?: "sensor" | "binary_sensor";
  value?: string;
  /** Other keys that `value` needs. */
  needs?: string[];
  options: Record<string, unknown>;
}

const measurement = (unit: string, deviceClass?: string, more: Record<string, unknown> = {}) => ({
  unit_of_measurement: unit,
  ...(deviceClass ? { device_class: deviceClass } : {}),
  state_class: "measurement",
  ...more,
});
const total = (unit: string, deviceClass: string, more: Record<string, unknown> = {}) => ({
  unit_of_measurement: unit,
  device_class: deviceClass,
  state_class: "total_increasing",
  ...more,
});
/** Shown among the diagnostics, not on a dashboard. */
export const diagnostic = { entity_category: "diagnostic" };
const hidden = { ...diagnostic, enabled_by_default: false };
const percent = (of: string) => `(${of} * 100) | round(1)`;
const problem = (name: string): View => ({
  name,
  p: "binary_sensor",
  options: { device_class: "problem", ...diagnostic },
});

/** Which numbers are worth an entity. What is not here can still be had from its topic. */
export const VIEWS: { [G in Group]?: { [K in Key<G>]?: View } } = {
  system: {
    boot_time_seconds: {
      name: "Started",
      value: "value_json.boot_time_seconds | as_datetime",
      options: { device_class: "timestamp", ...diagnostic },
    },
    load1: { name: "Load", options: { state_class: "measurement", ...diagnostic } },
  },
  cpu: {
    usage_ratio: {
      name: "Processor use",
      value: percent("value_json.usage_ratio"),
      options: measurement("%", undefined, diagnostic),
    },
  },
  memory: {
    available_bytes: {
      name: "Memory use",
      value: percent("(1 - value_json.available_bytes / value_json.total_bytes)"),
      needs: ["total_bytes"],
      options: measurement("%", undefined, diagnostic),
    },
  },
  thermal: {
    temp_celsius: {
      name: "Processor temperature",
      options: measurement("°C", "temperature", diagnostic),
    },
  },
  firmware: {
    undervoltage: problem("Undervoltage"),
    undervoltage_seen: problem("Undervoltage since boot"),
    throttled: problem("Throttled"),
    throttled_seen: problem("Throttled since boot"),
  },
  disk: {
    written_bytes_total: { name: "written", options: total("B", "data_size", hidden) },
    life_used_ratio: {
      name: "wear",
      value: percent("value_json.life_used_ratio"),
      options: measurement("%", undefined, diagnostic),
    },
  },
  fs: {
    avail_bytes: {
      name: "space used",
      value: percent("(1 - value_json.avail_bytes / value_json.size_bytes)"),
      needs: ["size_bytes"],
      options: measurement("%", undefined, diagnostic),
    },
    readonly: problem("read-only"),
  },
  net: {
    rx_bytes_total: { name: "received", options: total("B", "data_size", hidden) },
    tx_bytes_total: { name: "sent", options: total("B", "data_size", hidden) },
  },
  wifi: { signal_dbm: { name: "signal", options: measurement("dBm", "signal_strength", diagnostic) } },
  fan: { rpm: { name: "Fan", options: measurement("rpm", undefined, diagnostic) } },
  power: {
    volts: { name: "Voltage", options: measurement("V", "voltage") },
    amperes: { name: "Current", options: measurement("A", "current") },
    watts: { name: "Power", options: measurement("W", "power") },
    energy_joules_total: {
      name: "Energy",
      value: "(value_json.energy_joules_total / 3600000) | round(6)",
      options: total("kWh", "energy"),
    },
  },
};
