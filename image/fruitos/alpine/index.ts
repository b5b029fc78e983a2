/** Alpine's package index: what there is, and what a list of packages needs. Source: Alpine wiki, "Apk spec"; apk-tools, src/version.c. */
import { BuildError } from "../tools.ts";

/** A package as an index names it. */
export interface Listed {
  name: string;
  version: string;
  /** `Q1…`: SHA-1 of its control member. */
  checksum: string;
  /** Bytes of its file. */
  size: number;
  depends: readonly string[];
  /** Names it also answers to, each with a version where it has one. */
  provides: ReadonlyMap<string, string>;
  priority: number;
  /** `main`, `community`; empty for what a minirootfs brings. */
  repository: string;
}

/** Reads an index, or the list of what is installed, which is written alike. Throws `BuildError` for an entry that is none. */
export function parseIndex(text: string, repository: string): Listed[] {
  return text
    .split(/\n{2,}/)
    .filter((entry) => entry.trim() !== "")
    .map((entry) => {
      const fields = new Map<string, string>();
      for (const line of entry.split("\n"))
        if (line[1] === ":" && !fields.has(line[0] ?? "")) fields.set(line[0] ?? "", line.slice(2).trim());
      const field = (key: string) => fields.get(key) ?? "";
      const list = (key: string) => field(key).split(" ").filter(Boolean);
      const [name, version] = [field("P"), field("V")];
      // Both become part of a file's name and of an address
      if (!/^[A-Za-z0-9][A-Za-z0-9._+-]*$/.test(name) || !VERSION.test(version))
        throw new BuildError(
          `index of ${repository || "what is installed"}: "${name}" "${version}" is no package`,
        );
      return {
        ...{ name, version, repository, checksum: field("C") },
        ...{ size: Number(field("S")), priority: Number(field("k") || "0") },
        depends: list("D"),
        provides: new Map(
          list("p")
            .map((word) => wordOf(word))
            .map(({ name: is, version: has }) => [is, has]),
        ),
      };
    });
}

const VERSION =
  /^(\d+(?:\.\d+)*)([a-z]?)((?:_(?:alpha|beta|pre|rc|cvs|svn|git|hg|p)\d*)*)(?:~[0-9a-f]+)?(?:-r(\d+))?$/;
const SUFFIXES = ["alpha", "beta", "pre", "rc", "", "cvs", "svn", "git", "hg", "p"];

/** Less than 0 where the first version is older, more where it is newer. What is no version is older than what is one. */
export function compareVersions(one: string, other: string): number {
  const [first, second] = [VERSION.exec(one), VERSION.exec(other)];
  if (!first || !second) return Number(first !== null) - Number(second !== null);
  return (
    compareNumbers((first[1] ?? "").split("."), (second[1] ?? "").split(".")) ||
    (first[2] ?? "").localeCompare(second[2] ?? "") ||
    compareSuffixes(first[3] ?? "", second[3] ?? "") ||
    Number(first[4] ?? 0) - Number(second[4] ?? 0)
  );
}

function compareNumbers(one: readonly string[], other: readonly string[]): number {
  for (let index = 0; index < Math.max(one.length, other.length); index++) {
    const [a, b] = [one[index], other[index]];
    if (a === undefined || b === undefined) return a === undefined ? -1 : 1;
    // Behind a point a leading zero makes it a fraction: 1.05 is older than 1.1
    const isFraction = index > 0 && (a.startsWith("0") || b.startsWith("0"));
    const order = isFraction ? Number(a > b) - Number(a < b) : Number(BigInt(a) - BigInt(b));
    if (order !== 0) return order;
  }
  return 0;
}

function compareSuffixes(one: string, other: string): number {
  const parts = (text: string) =>
    text
      .split("_")
      .slice(1)
      .map((word) => /^([a-z]+)(\d*)$/.exec(word));
  const [a, b] = [parts(one), parts(other)];
  for (let index = 0; index < Math.max(a.length, b.length); index++) {
    const rank = (of: typeof a) => SUFFIXES.indexOf(of[index]?.[1] ?? "");
    const order = rank(a) - rank(b) || Number(a[index]?.[2] ?? 0) - Number(b[index]?.[2] ?? 0);
    if (order !== 0) return order;
  }
  return 0;
}

/** A word of a dependency: `name`, `name=1.2`, `name>=1.2-r0`, `name~1.2`, `!name`. */
interface Word {
  name: string;
  operator: string;
  version: string;
  isConflict: boolean;
}

function wordOf(word: string): Word {
  const [, not = "", name = word, operator = "", version = ""] =
    /^(!?)([^<>=~]+)([<>=~]*)(.*)$/.exec(word) ?? [];
  return { name: name.replace(/@.*$/, ""), operator, version, isConflict: not !== "" };
}

function satisfies(version: string, { operator, version: wanted }: Word): boolean {
  if (operator === "") return true;
  if (operator.includes("~") && (version === wanted || /^[.\-_]/.test(version.slice(wanted.length))))
    return version.startsWith(wanted);
  const order = compareVersions(version, wanted);
  return (
    (operator.includes("=") && order === 0) ||
    (operator.includes("<") && order < 0) ||
    (operator.includes(">") && order > 0)
  );
}

/** The version by which a package answers to a word; undefined where it does not. */
function answer(one: Listed, word: Word): string | undefined {
  const version = one.name === word.name ? one.version : one.provides.get(word.name);
  return version !== undefined && satisfies(version, word) ? version : undefined;
}

/**
 * The packages that a list needs beyond what is installed, in the order of their names. Each need gets the package of that name,
 * or else the one that provides it with the highest priority and version: there is no second try. `install_if` is not looked at.
 * Throws `BuildError` with the chain that leads to what cannot be had.
 */
export function resolve(
  wanted: readonly string[],
  available: readonly Listed[],
  installed: readonly Listed[] = [],
): Listed[] {
  const chosen = new Map<string, Listed>();
  const there = () => [...chosen.values(), ...installed.filter(({ name }) => !chosen.has(name))];
  const open = wanted.map((text) => ({ text, chain: "the package list" }));
  const conflicts: { word: Word; chain: string }[] = [];
  for (let need = open.shift(); need; need = open.shift()) {
    const { text, chain } = need;
    const word = wordOf(text);
    if (word.isConflict) {
      conflicts.push({ word, chain });
      continue;
    }
    if (there().some((one) => answer(one, word) !== undefined)) continue;
    const best = choose(available, word);
    if (!best) throw new BuildError(`nothing provides ${text}, which ${chain} needs`);
    const other = chosen.get(best.name);
    if (other)
      throw new BuildError(
        `${text}, which ${chain} needs, would be ${best.name} ${best.version}, but ${other.version} is chosen`,
      );
    chosen.set(best.name, best);
    for (const further of best.depends) open.push({ text: further, chain: `${best.name} ← ${chain}` });
  }
  for (const { word, chain } of conflicts) {
    const bad = there().find((one) => answer(one, word) !== undefined);
    if (bad) throw new BuildError(`${bad.name} ${bad.version} must not be there beside ${chain}`);
  }
  return [...chosen.values()].sort(({ name: a }, { name: b }) => (a < b ? -1 : 1));
}

function choose(available: readonly Listed[], word: Word): Listed | undefined {
  const answers = available.filter((one) => answer(one, word) !== undefined);
  return answers.sort(
    (one, other) =>
      Number(other.name === word.name) - Number(one.name === word.name) ||
      other.priority - one.priority ||
      compareVersions(other.version, one.version) ||
      (one.name < other.name ? -1 : 1),
  )[0];
}
