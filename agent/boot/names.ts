/** What a trial always looks at, each where it makes sense; sites add their own. */
export const BUILT_IN_CHECKS = [
  "record",
  "agent",
  "slot",
  "data",
  "broker",
  "power",
  "stack",
  "clock",
  "memory",
  "devices",
  "services",
] as const;

/** Those of them that ask for what is around a node: an outage fails them in any release. */
export const SURROUNDINGS = ["data", "broker", "power", "stack", "clock", "devices"] as const;

/** Kinds of devices that are counted. */
export const DEVICES = ["gpio", "i2c", "serial"] as const;
