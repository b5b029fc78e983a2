/** Checks a chained log on disk, the audit log or another: what was changed, removed, moved or put in between is named by file and line. */
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { AUDIT } from "./audit.ts";
import {
  CHAIN_FILES,
  type ChainedLine,
  type ChainHead,
  type ChainKind,
  GENESIS,
  listFiles,
  parseLine,
  sha256,
} from "./chained.ts";
import { readHead } from "./head.ts";
import { readLines } from "./lines.ts";

/** One thing that is wrong; `line` counts from 1 in its file. */
export interface ChainProblem {
  file: string;
  line: number;
  why: string;
}

/** What stands in a log, and whether it holds together. */
export interface ChainVerdict {
  lines: number;
  /** `seq` of the oldest line; above 1 once old files were dropped. */
  first?: number;
  head?: ChainHead;
  problems: ChainProblem[];
}

interface Place {
  file: string;
  line: number;
  sha256: string;
  /** Absent when the bytes are no entry. */
  entry?: ChainedLine;
}

/**
 * Reads the whole log of a directory and follows the chain back from its end.
 * The newest line is held against its note; with a head that the node published earlier, a log that was written anew is
 * found out too.
 */
export async function verifyChain(
  dir: string,
  kind: ChainKind<ChainedLine>,
  { files = CHAIN_FILES, head }: { files?: number; head?: ChainHead } = {},
): Promise<ChainVerdict> {
  // The note before the log: the agent writes them the other way round.
  const noted = await readHead(dir, kind.name);
  const { places, torn, oldest } = await readLog(dir, kind);
  const isNoted = head?.seq === noted?.seq && head?.sha256 === noted?.sha256;
  const heads = [noted, isNoted ? undefined : head].filter((one) => one !== undefined);
  const problems = [
    ...torn,
    ...follow(places, oldest >= files - 1),
    ...heads.flatMap((one) => remember(places, one, kind.name)),
  ];
  const rank = new Map(places.map(({ file, line }, index) => [`${file}:${line}`, index]));
  const rankOf = ({ file, line }: ChainProblem) => rank.get(`${file}:${line}`) ?? places.length;
  const first = places.find(({ entry }) => entry)?.entry?.seq;
  const last = places.findLast(({ entry }) => entry);
  return {
    lines: places.length,
    ...(first === undefined ? {} : { first }),
    ...(last?.entry ? { head: { seq: last.entry.seq, sha256: last.sha256 } } : {}),
    problems: problems.sort((a, b) => rankOf(a) - rankOf(b)),
  };
}

/** The same of an audit log. */
export function verifyAudit(
  dir: string,
  options: { files?: number; head?: ChainHead } = {},
): Promise<ChainVerdict> {
  return verifyChain(dir, AUDIT, options);
}

interface Found {
  places: Place[];
  torn: ChainProblem[];
  /** Highest number of a file. */
  oldest: number;
}

/** All lines, oldest first; once more when the agent moved its files meanwhile. */
async function readLog(dir: string, kind: ChainKind<ChainedLine>): Promise<Found> {
  const current = () =>
    stat(join(dir, `${kind.name}.jsonl`)).then(
      ({ ino }) => ino,
      () => 0,
    );
  let before = await current();
  let found = await readOnce(dir, kind);
  for (let tries = 2; tries > 0 && before !== (await current()); tries--) {
    before = await current();
    found = await readOnce(dir, kind);
  }
  return found;
}

async function readOnce(dir: string, kind: ChainKind<ChainedLine>): Promise<Found> {
  const files = await listFiles(dir, kind.name);
  const places: Place[] = [];
  const torn: ChainProblem[] = [];
  for (const { name } of files) {
    const { lines, rest } = await readLines(join(dir, name));
    for (const [index, bytes] of lines.entries()) {
      const entry = parseLine(kind, bytes);
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
function follow(places: readonly Place[], mayBeCut: boolean): ChainProblem[] {
  const problems: ChainProblem[] = [];
  const reached = new Set<number>();
  const byHash = new Map<string, number>();
  for (const [index, { sha256 }] of places.entries()) if (!byHash.has(sha256)) byHash.set(sha256, index);

  const walk = { places, byHash, reached, mayBeCut };
  let step: Step = { next: start(places) };
  while (step.next !== undefined && !reached.has(step.next)) {
    reached.add(step.next);
    step = above(walk, step.next, step.doubted);
    const { problem } = step;
    const isKnown = problems.some(({ file, line }) => file === problem?.file && line === problem.line);
    if (problem && !isKnown) problems.push(problem);
  }
  for (const [index, place] of places.entries())
    if (!reached.has(index)) problems.push(said(place, "inserted: no line below it leads to it"));
  return problems;
}

/** The last line that stands below the one it follows, or is the only one to follow it: others were put behind the end. */
function start(places: readonly Place[]): number | undefined {
  const followers = new Map<string, number>();
  for (const { entry } of places) if (entry) followers.set(entry.prev, (followers.get(entry.prev) ?? 0) + 1);
  const last = places.findLastIndex(
    ({ entry }, at) => entry && (entry.prev === places[at - 1]?.sha256 || followers.get(entry.prev) === 1),
  );
  return last < 0 ? undefined : last;
}

interface Walk {
  places: readonly Place[];
  byHash: ReadonlyMap<string, number>;
  reached: ReadonlySet<number>;
  mayBeCut: boolean;
}

interface Step {
  next: number | undefined;
  /** The `seq` that the next line should have, when what it says of itself is in doubt. */
  doubted?: number;
  problem?: ChainProblem;
}

function above(walk: Walk, at: number, doubted: number | undefined): Step {
  const here = walk.places[at];
  const seq = doubted ?? here?.entry?.seq ?? 0;
  const isFirst = seq === 1 && (doubted === 1 || here?.entry?.prev === GENESIS);
  if (!here || isFirst) return { next: undefined };
  return linked(walk, at, here, seq) ?? broken(walk, at, here, seq, doubted !== undefined);
}

/** The line that `prev` means, wherever it stands. */
function linked({ places, byHash, reached }: Walk, at: number, here: Place, seq: number): Step | undefined {
  const prev = here.entry?.prev ?? "";
  if (places[at - 1]?.sha256 === prev) return { next: at - 1 };
  const meant = byHash.get(prev);
  const found = meant === undefined || reached.has(meant) ? undefined : places[meant];
  if (meant === undefined || !found) return undefined;
  if (meant < at) return { next: meant }; // what stands between was put there, or comes in its turn
  return { next: meant, problem: said(found, `moved: seq ${found.entry?.seq} stands below seq ${seq}`) };
}

/** There is no line that `prev` means: it was changed, or removed. */
function broken(
  { places, reached, mayBeCut }: Walk,
  at: number,
  here: Place,
  seq: number,
  isDoubted: boolean,
): Step {
  if (isDoubted && places[at - 1]?.entry?.seq === seq - 1) return { next: at - 1 };
  const changed = changedAbove(places, at, seq);
  const suspect = changed === undefined || reached.has(changed) ? undefined : places[changed];
  if (changed === undefined || !suspect) return missingAbove(places, at, here, seq, mayBeCut);
  const problem = said(suspect, "changed: it is not the line that the next one follows");
  return { next: changed, doubted: seq - 1, problem };
}

/** The line that stands where the missing one should: by its number, by its place, or because it is no entry any more. */
function changedAbove(places: readonly Place[], at: number, seq: number): number | undefined {
  const direct = places[at - 1];
  if (!direct) return undefined;
  const isInPlace =
    !direct.entry || direct.entry.seq === seq - 1 || (places[at - 2]?.entry?.seq ?? 0) === seq - 2;
  if (isInPlace) return at - 1;
  const numbered = places.slice(0, at).findLastIndex(({ entry }) => entry?.seq === seq - 1);
  return numbered >= 0 ? numbered : undefined;
}

function missingAbove(
  places: readonly Place[],
  at: number,
  here: Place,
  seq: number,
  mayBeCut: boolean,
): Step {
  if (seq === 1) return { next: undefined, problem: said(here, "changed: the first line follows no other") };
  const lower = places.slice(0, at).findLastIndex(({ entry }) => entry !== undefined && entry.seq < seq);
  if (lower < 0 && mayBeCut) return { next: undefined }; // the oldest files were dropped
  const from = (places[lower]?.entry?.seq ?? 0) + 1;
  const gone = from >= seq - 1 ? `seq ${seq - 1} is` : `seq ${from} to ${seq - 1} are`;
  const problem = said(here, `removed: ${gone} missing above this line`);
  return { next: lower < 0 ? undefined : lower, problem };
}

/** Holds the log against a head that is known from elsewhere. */
function remember(places: readonly Place[], head: ChainHead, log: string): ChainProblem[] {
  const found = places.filter(({ entry }) => entry?.seq === head.seq);
  if (found.some(({ sha256 }) => sha256 === head.sha256)) return [];
  if (found[0]) return [said(found[0], `changed: seq ${head.seq} is known with SHA-256 ${head.sha256}`)];
  const last = places.findLast(({ entry }) => entry);
  const end = last?.entry?.seq ?? 0;
  if (end >= head.seq) return []; // dropped with the oldest file
  const place = last ?? { file: `${log}.jsonl`, line: 0 };
  return [said(place, `removed: the log ends with seq ${end}, but seq ${head.seq} is known`)];
}

const said = ({ file, line }: Pick<Place, "file" | "line">, why: string): ChainProblem => ({
  file,
  line,
  why,
});
