/**
 * What was seen of each try, line by line: the initramfs, the watchdog feeder and the agent append `TRIAL TRY BOOT-ID WHAT [TEXT]`
 * to `DATA/boot/marks`. It is evidence, and foreign: a line that makes no sense is left out.
 */
import { open, readFile, rm } from "node:fs/promises";
import { join } from "node:path";

/** `init` and `agent` were reached; the others ended a try. `stopped`: somebody shut the system down in an orderly way. */
export const MARKS = ["init", "agent", "agent-dead", "deadline", "stopped"] as const;

/** One line. */
export interface Mark {
  /** Id of the trial, as in the record. */
  trial: number;
  /** Counts from 1. */
  attempt: number;
  boot: string;
  what: (typeof MARKS)[number];
  text?: string;
}

const LINE = /^(\d{1,10}) (\d{1,4}) ([\w-]{1,64}) ([a-z-]{1,32})(?: (.*))?$/;
/** More than a trial's tries can leave behind; what goes on after it is not looked at. */
const MOST_LINES = 1000;
const TEXT_MAX = 200;

/** The lines of a file's text that make sense. */
export function parseMarks(text: string): Mark[] {
  return text.split("\n", MOST_LINES).flatMap((line) => {
    const [, trial, attempt, boot = "", word, text] = LINE.exec(line) ?? [];
    const what = MARKS.find((known) => known === word);
    if (!what) return [];
    const shown = text?.replace(/\p{Cc}/gu, "?").slice(0, TEXT_MAX);
    return [
      { trial: Number(trial), attempt: Number(attempt), boot, what, ...(shown ? { text: shown } : {}) },
    ];
  });
}

/** All marks; none where the file cannot be read. */
export async function readMarks(dir: string): Promise<Mark[]> {
  return parseMarks(await readFile(join(dir, "marks"), "utf8").catch(() => ""));
}

/** Adds a line, on the disk when this resolves. Throws what the system says. */
export async function appendMark(dir: string, { trial, attempt, boot, what, text }: Mark): Promise<void> {
  const file = await open(join(dir, "marks"), "a", 0o600);
  try {
    await file.write(`${[trial, attempt, boot, what, ...(text ? [text] : [])].join(" ")}\n`);
    await file.datasync();
  } finally {
    await file.close();
  }
}

/** Before a new trial: the marks of older ones have been judged. */
export async function clearMarks(dir: string): Promise<void> {
  await rm(join(dir, "marks"), { force: true });
}
