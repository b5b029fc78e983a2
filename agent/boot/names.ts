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
