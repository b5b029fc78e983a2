/** Reads the words of `fruit release`: versions, moments, boards. Each throws `UsageError` naming the flag and the value. */
import { parseTime } from "../sign/validity.ts";
import { WireError } from "../sign/wire.ts";
import { seconds, UsageError } from "../terminal.ts";

/** The value of a flag that must be there. */
export function needed(flag: string, value: string | undefined): string {
  if (value) return value;
  throw new UsageError(`--${flag} is missing`);
}

/** A version: 0 to 2^64-1. */
export function unsigned(flag: string, text: string): bigint {
  if (/^\d{1,20}$/.test(text) && BigInt(text) < 2n ** 64n) return BigInt(text);
  throw new UsageError(`--${flag}: "${text}" is no integer from 0 to 2^64-1`);
}

/** Unix seconds of `2027-01-31`, `2027-01-31T12:00:00Z` (UTC, with or without Z) or `@1800000000`; with `from`, `365d` counts from there. */
export function moment(flag: string, text: string, from?: number): number {
  if (/^@?\d{9,12}$/.test(text)) return Number(text.replace("@", ""));
  if (from !== undefined && /^\d+[smhd]$/.test(text)) return from + seconds(`--${flag}`, text);
  const digits = text.replace(/^(\d{4})-(\d\d)-(\d\d)(?:T(\d\d):(\d\d)(?::(\d\d))?)?Z?$/, "$1$2$3$4$5$6Z");
  try {
    return parseTime(`--${flag}`, digits.endsWith("Z") ? digits : `${digits}Z`);
  } catch (cause) {
    if (!(cause instanceof WireError)) throw cause;
    const or = from === undefined ? "" : " or a duration, 365d";
    throw new UsageError(`--${flag}: "${text}" is no time (try 2027-01-31 or 2027-01-31T12:00:00Z${or})`, {
      cause,
    });
  }
}

/** Words separated by spaces, in one flag or several; a board's name may hold a comma. */
export function words(flag: string, values: readonly string[]): string[] {
  const all = values.flatMap((value) => value.split(/\s+/)).filter((word) => word !== "");
  if (all.length === 0) throw new UsageError(`--${flag} is missing`);
  return all;
}

/** `BOARD=FILE`, once for each board. */
export function devicesOf(values: readonly string[]): Record<string, string> {
  const pairs = values.map((value): [string, string] => {
    const at = value.indexOf("=");
    if (at < 1 || at === value.length - 1) throw new UsageError(`--dtb: "${value}" is not BOARD=FILE`);
    return [value.slice(0, at), value.slice(at + 1)];
  });
  const twice = pairs.find(([board], index) => pairs.findIndex(([other]) => other === board) < index);
  if (twice) throw new UsageError(`--dtb: ${twice[0]} stands twice`);
  return Object.fromEntries(pairs);
}
