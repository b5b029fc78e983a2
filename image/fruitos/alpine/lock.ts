/** `packages.lock`: the very packages that an image is made of, so that the same sources make the same image after the mirror has moved on. */
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { BuildError } from "../tools.ts";
import { compareVersions } from "./index.ts";

/** One package as it was when the lock was written. */
export interface Locked {
  name: string;
  version: string;
  repository: string;
  /** SHA-256 of its file, hex. */
  sha256: string;
}

/** What a lock says. */
export interface Lock {
  /** The list that it answers to. */
  wanted: readonly string[];
  packages: readonly Locked[];
}

/** Reads a lock; undefined where there is none. */
export function readLock(path: string): Lock | undefined {
  if (!existsSync(path)) return undefined;
  const lines = readFileSync(path, "utf8")
    .split("\n")
    .filter((line) => line !== "" && !line.startsWith("#"));
  const wanted: string[] = [];
  const packages: Locked[] = [];
  for (const line of lines) {
    const [repository = "", name = "", version = "", sha256 = "", ...rest] = line.split(" ");
    if (repository === "wanted" && name !== "" && version === "") wanted.push(name);
    else if (
      /^[a-z]+$/.test(repository) &&
      /^[A-Za-z0-9][A-Za-z0-9._+-]*$/.test(name) &&
      /^[0-9][A-Za-z0-9._~-]*$/.test(version) &&
      /^[0-9a-f]{64}$/.test(sha256) &&
      rest.length === 0
    )
      packages.push({ repository, name, version, sha256 });
    else throw new BuildError(`${path}: "${line}" is no line of a lock; write it anew with --update-lock`);
  }
  return { wanted, packages };
}

/** Writes a lock, one line a package. */
export function writeLock(path: string, { wanted, packages }: Lock): void {
  const lines = [
    "# Written by 'bun run image -- --update-lock': what was asked for, then repository, name, version, SHA-256.",
    ...[...wanted].sort().map((name) => `wanted ${name}`),
    ...packages.map(({ repository, name, version, sha256 }) => `${repository} ${name} ${version} ${sha256}`),
  ];
  writeFileSync(path, `${lines.join("\n")}\n`);
}

/** Throws `BuildError` where a newer lock would take a package back to an older version, as a mirror that repeats an old index would. */
export function checkNoDowngrade(before: Lock | undefined, after: readonly Locked[]): void {
  const older = after.flatMap(({ name, version }) => {
    const was = before?.packages.find((one) => one.name === name);
    return was && compareVersions(version, was.version) < 0 ? [`${name} ${was.version} → ${version}`] : [];
  });
  if (older.length > 0)
    throw new BuildError(
      `the mirror offers older packages than the lock has: ${older.join(", ")}; --allow-older takes them`,
    );
}

/** Throws `BuildError` where the list of packages is no longer the one that the lock was written for. */
export function checkWanted(lock: Lock, wanted: readonly string[], path: string): void {
  const added = wanted.filter((name) => !lock.wanted.includes(name));
  const gone = lock.wanted.filter((name) => !wanted.includes(name));
  const changes = [...added.map((name) => `${name} is new`), ...gone.map((name) => `${name} is gone`)];
  if (changes.length > 0)
    throw new BuildError(
      `${path} does not fit the package list (${changes.join(", ")}): run with --update-lock`,
    );
}
