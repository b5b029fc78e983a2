import { accessSync, constants, statSync } from "node:fs";

/** One thing that was looked at. `FAIL` means that something the configuration asks for will not work. */
export interface Check {
  name: string;
  level: "ok" | "warn" | "FAIL";
  /** What was found. */
  what: string;
  /** What to do about it; only where something is to be done. */
  remedy?: string;
}

/** All is well. */
export function ok(name: string, what: string): Check {
  return { name, level: "ok", what };
}

/** Works, but somebody should know. */
export function warn(name: string, what: string, remedy: string): Check {
  return { name, level: "warn", what, remedy };
}

/** Will not work. */
export function fail(name: string, what: string, remedy: string): Check {
  return { name, level: "FAIL", what, remedy };
}

/** One line a check: `FAIL broker: no answer from …; start it`. */
export function lineOf({ name, level, what, remedy }: Check): string {
  return `${level.padEnd(4)} ${name}: ${what}${remedy ? `; ${remedy}` : ""}\n`;
}

/** Why a file cannot be used as asked; undefined when it can. */
export function trouble(path: string, mode: "read" | "write" | "both"): string | undefined {
  const { R_OK, W_OK } = constants;
  try {
    accessSync(path, { read: R_OK, write: W_OK, both: R_OK | W_OK }[mode]);
    return undefined;
  } catch (cause) {
    return `${path}: ${reason(cause)}`;
  }
}

/** Whether there is anything under that name. */
export function isThere(path: string): boolean {
  return statSync(path, { throwIfNoEntry: false }) !== undefined;
}

/** An error of the system in words; others say what they say. */
export function reason(cause: unknown): string {
  const { code, message } = cause as NodeJS.ErrnoException;
  return REASONS[code ?? ""] ?? message ?? String(cause);
}

const REASONS: Record<string, string> = {
  ENOENT: "does not exist",
  EACCES: "no permission",
  EPERM: "no permission",
  EROFS: "is on a read-only file system",
  ENOTDIR: "is below something that is no folder",
  EISDIR: "is a folder",
  ECONNREFUSED: "refuses the connection",
  EHOSTUNREACH: "cannot be reached",
  ENETUNREACH: "cannot be reached",
  ENOTFOUND: "has no address",
  EAI_AGAIN: "has no address now",
  ETIMEDOUT: "does not answer",
};
