/** Runs steps and test files and adds up what passed: the closing line `N passed, N failed, N skipped`. */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Glob } from "bun";

/** How much of each there was. */
export interface Tally {
  passed: number;
  failed: number;
  skipped: number;
}

const root = join(import.meta.dir, "..");

/** Runs one program to its end; it counts as one test of that name. */
export async function step(name: string, command: string[]): Promise<Tally> {
  const startedAt = performance.now();
  const exit = await Bun.spawn(command, { cwd: root, stdio: ["ignore", "inherit", "inherit"] }).exited;
  process.stdout.write(
    `${exit === 0 ? "(pass)" : "(fail)"} ${name} [${Math.round(performance.now() - startedAt)} ms]\n`,
  );
  return { passed: exit === 0 ? 1 : 0, failed: exit === 0 ? 0 : 1, skipped: 0 };
}

/** The test files that match, by name. */
export function filesOf(pattern: string): string[] {
  return [...new Glob(pattern).scanSync(root)].sort().map((file) => `./${file}`);
}

/** Runs test files, `env` being added to the environment; with the flag `--parallel` several at a time, each in a process of its own. */
export async function tests(
  files: readonly string[],
  flags: readonly string[],
  env: Readonly<Record<string, string>> = {},
): Promise<Tally> {
  const folder = mkdtempSync(join(tmpdir(), "fruit-report-"));
  const outfile = join(folder, "junit.xml");
  const command = [
    process.execPath,
    "test",
    ...flags,
    "--reporter=junit",
    `--reporter-outfile=${outfile}`,
    ...files,
  ];
  try {
    const exit = await Bun.spawn(command, {
      cwd: root,
      env: { ...process.env, ...env },
      stdio: ["ignore", "inherit", "inherit"],
    }).exited;
    const tally = read(outfile);
    // A run that failed without a failed test (a file that does not load, a crash) must not pass.
    return exit !== 0 && tally.failed === 0 ? { ...tally, failed: 1 } : tally;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

function read(junit: string): Tally {
  let xml: string;
  try {
    xml = readFileSync(junit, "utf8");
  } catch {
    return { passed: 0, failed: 1, skipped: 0 };
  }
  const head = /<testsuites\b[^>]*>/.exec(xml)?.[0] ?? "";
  const count = (name: string) => Number(new RegExp(`\\b${name}="(\\d+)"`).exec(head)?.[1] ?? 0);
  const failed = count("failures") + count("errors");
  // By name: the title says what would have to be installed.
  for (const [, name] of xml.matchAll(/<testcase name="([^"]*)"[^>]*>\s*<skipped/g))
    process.stdout.write(`(skip) ${plain(name)}\n`);
  return { passed: count("tests") - failed - count("skipped"), failed, skipped: count("skipped") };
}

/** XML's five names back into characters. */
function plain(text = ""): string {
  const names: Record<string, string> = { lt: "<", gt: ">", quot: '"', apos: "'", amp: "&" };
  return text.replace(/&(\w+);/g, (whole, name) => names[name] ?? whole);
}

/** Prints the closing line and sets the exit code. */
export function close(tallies: Tally[]): void {
  const sum = (key: keyof Tally) => tallies.reduce((total, tally) => total + tally[key], 0);
  process.stdout.write(`${sum("passed")} passed, ${sum("failed")} failed, ${sum("skipped")} skipped\n`);
  process.exitCode = sum("failed") > 0 || sum("passed") === 0 ? 1 : 0;
}
