/**
 * From which version on a signer's word counts, `DATA/floors.json`: of each key and target the highest version that was confirmed on this
 * node. It is beside the version floor of the record, which outlives the data and holds for everybody.
 *
 * Invariants
 * - Only what was confirmed raises it, and only for those who signed that: a leaked key below the threshold moves nobody's.
 * - It never falls, but with a key that `trust.json` does not list for releases any more.
 */
import { readFile } from "node:fs/promises";
import * as v from "valibot";
import { replaceFile } from "./progress.ts";
import { keyOf, signersFor, type Trust } from "./trust.ts";

/** Most floors that are kept: `trust.json` has at most 100 signers. */
const MOST = 200;
const Document = v.object({
  schema: v.literal("fruit.floors/1"),
  floors: v.pipe(
    v.array(
      v.object({
        /** Public key, hex. */
        key: v.pipe(v.string(), v.regex(/^[0-9a-f]{64}$/)),
        target: v.string(),
        version: v.pipe(v.string(), v.regex(/^\d{1,20}$/)),
      }),
    ),
    v.maxLength(MOST),
  ),
});
type Floor = v.InferOutput<typeof Document>["floors"][number];

/** Answers from which version on the signature of a key (hex) counts for a target. */
export type SignerFloor = (key: string, target: string) => bigint;

/** Reads the floors. A file that is not there or makes no sense says nothing: the record's floor remains. */
export async function signerFloors(path: string): Promise<SignerFloor> {
  const floors = await load(path);
  return (key, target) => versionOf(floors, key, target);
}

/** These keys (hex) have signed a version that was confirmed. */
export async function raiseFloors(
  path: string,
  { keys, target, version }: { keys: Iterable<string>; target: string; version: bigint },
  trust: Trust,
): Promise<void> {
  const before = listed(await load(path), trust);
  const raised = [...keys].filter((key) => versionOf(before, key, target) < version);
  if (raised.length === 0) return;
  const others = before.filter((one) => !(one.target === target && raised.includes(one.key)));
  await save(path, [...others, ...raised.map((key) => ({ key, target, version: String(version) }))]);
}

/** Forgets the floors of keys that are not listed for releases any more, or were not on the way here (`gone`, hex). */
export async function forgetFloors(
  path: string,
  trust: Trust,
  gone: ReadonlySet<string> = new Set(),
): Promise<void> {
  const before = await load(path);
  const left = listed(before, trust).filter(({ key }) => !gone.has(key));
  if (left.length < before.length) await save(path, left);
}

async function load(path: string): Promise<Floor[]> {
  const text = await readFile(path, "utf8").catch(() => "");
  try {
    return v.parse(Document, JSON.parse(text)).floors;
  } catch {
    return [];
  }
}

const save = (path: string, floors: readonly Floor[]) =>
  replaceFile(path, `${JSON.stringify({ schema: "fruit.floors/1", floors: floors.slice(-MOST) })}\n`);

function listed(floors: readonly Floor[], trust: Trust): Floor[] {
  const keys = new Set(signersFor(trust, "release").map(keyOf));
  return floors.filter(({ key }) => keys.has(key));
}

function versionOf(floors: readonly Floor[], key: string, target: string): bigint {
  const found = floors.filter((one) => one.key === key && one.target === target);
  return found.reduce((most, { version }) => (BigInt(version) > most ? BigInt(version) : most), 0n);
}
