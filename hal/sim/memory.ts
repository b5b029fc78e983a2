/**
 * Where a simulated stack keeps what survives its process: one JSON file, replaced whole.
 * A file that is not what was written is refused by name and left alone.
 */
import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { HalError } from "../ports.ts";
import { type BoardState, newBoard } from "./board.ts";
import { HOST_STATES } from "./pi.ts";

/** The whole stack at one moment of its clock. */
export interface StackState {
  at: number;
  boards: Record<string, BoardState>;
}

/** Reads the state file; undefined when there is none yet. Throws `HalError` on one that cannot be used. */
export function recall(path: string): StackState | undefined {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (cause) {
    if (cause instanceof Error && "code" in cause && cause.code === "ENOENT") return undefined;
    throw new HalError("io", `sim: state ${path} cannot be read`, { cause });
  }
  let document: unknown;
  try {
    document = JSON.parse(text);
  } catch (cause) {
    throw new HalError("io", `sim: state ${path} is not JSON; remove it to start afresh`, { cause });
  }
  const template: StackState = { at: 0, boards: {} };
  const boards = isRecord(document) && isRecord(document.boards) ? Object.keys(document.boards) : [];
  for (const number of boards) template.boards[number] = newBoard(Number(number));
  const wrong = difference(template, document, "");
  if (wrong) throw new HalError("io", `sim: state ${path}: ${wrong}; remove it to start afresh`);
  return document as StackState;
}

/** Replaces the state file: whole or not at all. */
export function remember(path: string, state: StackState): void {
  try {
    writeFileSync(`${path}.new`, JSON.stringify(state));
    renameSync(`${path}.new`, path);
  } catch (cause) {
    throw new HalError("io", `sim: state ${path} cannot be written`, { cause });
  }
}

/** Where `found` is not of the template's shape, in words; undefined when it is. A null in the template may be a number; no number is negative. */
function difference(template: unknown, found: unknown, at: string): string | undefined {
  if (isRecord(template)) {
    if (!isRecord(found)) return `${at || "it"} is no object`;
    for (const [key, value] of Object.entries(template)) {
      const wrong = difference(value, found[key], at ? `${at}.${key}` : key);
      if (wrong) return wrong;
    }
    return undefined;
  }
  return isFit(template, found) ? undefined : `${at} is ${JSON.stringify(found)}`;
}

function isFit(template: unknown, found: unknown): boolean {
  if (typeof template === "string") return HOST_STATES.includes(String(found));
  if (template === null && found === null) return true;
  if (typeof template === "boolean") return typeof found === "boolean";
  return typeof found === "number" && Number.isFinite(found) && found >= 0;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}
