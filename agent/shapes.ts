/** Shapes that the sections of `node.json` are made of. */
import * as v from "valibot";

/** An object that takes only its own keys; `strictObject` would say only the first one it does not know. */
export const strict = <const Entries extends v.ObjectEntries>(entries: Entries) =>
  v.objectWithRest(entries, v.never()) as unknown as v.StrictObjectSchema<Entries, undefined>;
/** One level of a topic: site, node, names. */
export const level = (what: string) =>
  v.pipe(
    v.string(),
    v.regex(/^[a-z0-9-]{1,32}$/, (i) => `${i.received} is no ${what}: 1 to 32 of a-z, 0-9 and -`),
  );
/** A number with limits and a default. */
export const bounded = (min: number, max: number, fallback: number) =>
  v.optional(v.pipe(v.number(), v.minValue(min), v.maxValue(max)), fallback);
/** A whole number with limits and a default. */
export const whole = (min: number, max: number, fallback: number) =>
  v.optional(v.pipe(v.number(), v.integer(), v.minValue(min), v.maxValue(max)), fallback);
/** `<board>.<pi>`. */
export const outletId = v.pipe(
  v.string(),
  v.regex(/^(0|[1-9]\d{0,2})\.(0|[1-9]\d?)$/, (i) => `${i.received} is no outlet: <board>.<pi>, such as 3.1`),
);
/** A line of the SoC (BCM). */
export const gpioNumber = v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(57));
/** A TCP port. */
export const port = v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(65_535));
/** An absolute path. */
export const path = v.pipe(
  v.string(),
  v.startsWith("/", (i) => `"${i.input}" is not an absolute path`),
);
