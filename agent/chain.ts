/** Checks an audit log on disk: what was changed, removed, moved or put in between is named by file and line. */
import { stat } from "node:fs/promises";
import { join } from "node:path";
import {
  AUDIT_FILES,
  type AuditHead,
  type AuditLine,
  GENESIS,
  listFiles,
  parseAuditLine,
  sha256,
} from "./audit.ts";
import { readLines } from "./lines.ts";

/** One thing that is wrong; `line` counts from 1 in its file. */
export interface AuditProblem {
  file: string;
  line: number;
  why: string;
}

/** What stands in a log, and whether it holds together. */
export interface AuditVerdict {
  lines: number;
  /** `seq` of the oldest line; above 1 once old files were dropped. */
  first?: number;
  head?: AuditHead;
  problems: AuditProblem[];
}

interface Place {
  file: string;
  line: number;
  sha256: string;
  /** Absent when the bytes are no entry. */
  entry?: AuditLine;
}

/**
 * Reads the whole log of a directory and follows the chain back from its end.
 * With a head that the node published earlier, a log that was cut or written anew is found out too.
 */
export async function verifyAudit(
  dir: string,
  { files = AUDIT_FILES, head }: { files?: number; head?: AuditHead } = {},
): Promise<AuditVerdict> {
  const { places, torn, oldest } = await readLog(dir);
  const problems = [...torn, ...follow(places, oldest >= files - 1), ...(head ? remember(places, head) : [])];
  const rank = new Map(places.map(({ file, line }, index) => [`${file}:${line}`, index]));
  const rankOf = ({ file, line }: AuditProblem) => rank.get(`${file}:${line}`) ?? places.length;
  const first = places.find(({ entry }) => entry)?.entry?.seq;
  const last = places.findLast(({ entry }) => entry);
  return {
    lines: places.length,
    ...(first === undefined ? {} : { first }),
    ...(last?.entry ? { head: { seq: last.entry.seq, sha256: last.sha256 } } : {}),
    problems: problems.sort((a, b) => rankOf(a) - rankOf(b)),
  };
}

interface Found {
  places: Place[];
  torn: AuditProblem[];
  /** Highest number of a file. */
  oldest: number;
}

/** All lines, oldest first; once more when the agent moved its files meanwhile. */
async function readLog(dir: string): Promise<Found> {
  const current = () =>
    stat(join(dir, "audit.jsonl")).then(
      ({ ino }) => ino,
      () => 0,
    );
  let before = await current();
  let found = await readOnce(dir);
  for (let tries = 2; tries > 0 && before !== (await current()); tries--) {
    before = await current();
    found = await readOnce(dir);
  }
  return found;
}

async function readOnce(dir: string): Promise<Found> {
  const files = await listFiles(dir);
  const places: Place[] = [];
  const torn: AuditProblem[] = [];
  for (const { name } of files) {
    const { lines, rest } = await readLines(join(dir, name));
    for (const [index, bytes] of lines.entries()) {
      const entry = parseAuditLine(bytes);
      places.push({ file: name, line: index + 1, sha256: sha256(bytes), ...(entry ? { entry } : {}) });
    }
    if (rest.length > 0)
      torn.push({ file: name, line: lines.length + 1, why: "torn: the line has no end (a power cut?)" });
  }
  return { places, torn, oldest: files[0]?.number ?? 0 };
}

/**
 * From the end back: each line's `prev` says which line must stand above it. A line that is not the one meant was
 * changed, or the one meant is missing; a line that nothing leads to was put in between.
 */
function follow(places: readonly Place[], mayBeCut: boolean): AuditProblem[] {
  const problems: AuditProblem[] = [];
  const reached = new Set<number>();
  const byHash = new Map<string, number>();
  for (const [index, { sha256 }] of places.entries()) if (!byHash.has(sha256)) byHash.set(sha256, index);

  for (let at = start(places); at !== undefined; ) {
    reached.add(at);
    const step = above(places, at, byHash, reached, mayBeCut);
    if (step.problem) problems.push(step.problem);
    at = step.next;
  }
  for (const [index, place] of places.entries())
    if (!reached.has(index)) problems.push(said(place, "inserted: no line below it leads to it"));
  return problems;
}

/** The last line that follows the one above it: a line put behind the true end does not. */
function start(places: readonly Place[]): number | undefined {
  const joined = places.findLastIndex(({ entry }, at) => entry && entry.prev === places[at - 1]?.sha256);
  return joined >= 0 ? joined : places.length > 0 ? places.length - 1 : undefined;
}

interface Step {
  next: number | undefined;
  problem?: AuditProblem;
}

function above(
  places: readonly Place[],
  at: number,
  byHash: ReadonlyMap<string, number>,
  reached: ReadonlySet<number>,
  mayBeCut: boolean,
): Step {
  const here = places[at];
  const isFree = (index: number) => index >= 0 && !reached.has(index);
  if (!here?.entry) return { next: isFree(at - 1) ? at - 1 : undefined }; // named when the line below was looked at
  const { seq, prev } = here.entry;
  if (places[at - 1]?.sha256 === prev) return { next: at - 1 };

  const meant = byHash.get(prev);
  const found = meant === undefined ? undefined : places[meant];
  if (meant !== undefined && found && isFree(meant)) {
    if (meant < at) return { next: meant }; // what stands between was put there, or is reached in its turn
    return { next: meant, problem: said(found, `moved: seq ${found.entry?.seq} stands below seq ${seq}`) };
  }
  if (seq === 1 && prev === GENESIS) return { next: undefined };
  const changed = changedAbove(places, at, seq);
  const suspect = changed === undefined ? undefined : places[changed];
  if (changed !== undefined && suspect && isFree(changed))
    return { next: changed, problem: said(suspect, "changed: it is not the line that the next one follows") };
  return missingAbove(places, at, here, seq, isFree, mayBeCut);
}

/** The line that stands where the missing one should: by its number, by its place, or because it is no entry any more. */
function changedAbove(places: readonly Place[], at: number, seq: number): number | undefined {
  const direct = places[at - 1];
  if (!direct) return undefined;
  const isInPlace = !direct.entry || direct.entry.seq === seq - 1 || places[at - 2]?.entry?.seq === seq - 2;
  if (isInPlace) return at - 1;
  const numbered = places.slice(0, at).findLastIndex(({ entry }) => entry?.seq === seq - 1);
  return numbered >= 0 ? numbered : undefined;
}

function missingAbove(
  places: readonly Place[],
  at: number,
  here: Place,
  seq: number,
  isFree: (index: number) => boolean,
  mayBeCut: boolean,
): Step {
  const lower = places.findLastIndex(
    ({ entry }, index) => index < at && isFree(index) && entry !== undefined && entry.seq < seq,
  );
  if (lower < 0 && seq > 1 && mayBeCut) return { next: undefined }; // the oldest files were dropped
  if (lower < 0 && seq === 1)
    return { next: undefined, problem: said(here, "changed: the first line follows no other") };
  const from = (places[lower]?.entry?.seq ?? 0) + 1;
  const gone = from === seq - 1 ? `seq ${from} is` : `seq ${from} to ${seq - 1} are`;
  return {
    next: lower < 0 ? undefined : lower,
    problem: said(here, `removed: ${gone} missing above this line`),
  };
}

function remember(places: readonly Place[], head: AuditHead): AuditProblem[] {
  const found = places.find(({ entry }) => entry?.seq === head.seq);
  if (found?.sha256 === head.sha256) return [];
  if (found) return [said(found, `changed: seq ${head.seq} was published with SHA-256 ${head.sha256}`)];
  const last = places.findLast(({ entry }) => entry);
  const end = last?.entry?.seq ?? 0;
  if (end >= head.seq) return []; // dropped with the oldest file
  const place = last ?? { file: "audit.jsonl", line: 0 };
  return [said(place, `removed: the log ends with seq ${end}, but seq ${head.seq} was published`)];
}

const said = ({ file, line }: Pick<Place, "file" | "line">, why: string): AuditProblem => ({
  file,
  line,
  why,
});
