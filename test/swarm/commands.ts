/** `fruit update seed` and `fruit update install` in processes of their own, as a user without privileges may run them too. */
import { chmodSync, cpSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { type Executable, FRUIT, scratch } from "../node.ts";

/** The executable, with libraries that a user without privileges may read as well. */
export function readable(): Executable & Disposable {
  const folder = scratch();
  const { LD_LIBRARY_PATH } = FRUIT.env;
  chmodSync(folder.path, 0o755);
  const lib = join(folder.path, "lib");
  if (LD_LIBRARY_PATH) cpSync(LD_LIBRARY_PATH, lib, { recursive: true, dereference: true });
  return {
    ...FRUIT,
    env: LD_LIBRARY_PATH ? { LD_LIBRARY_PATH: lib } : {},
    [Symbol.dispose]: () => folder[Symbol.dispose](),
  };
}

/** Starts a command line; nothing of what it says is lost. */
export const started = (fruit: Executable, words: string[], env: Record<string, string> = {}) =>
  Bun.spawn([...fruit.command, ...words], {
    env: { PATH: process.env.PATH ?? "", HOME: "/", ...fruit.env, ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });

/** `fruit update seed` of a release in hand: the link it prints, and whom it can be reached at. */
export async function seeding(fruit: Executable, release: string, ...more: string[]) {
  const child = started(fruit, ["update", "seed", release, "--json", ...more]);
  const { value } = await child.stdout.getReader().read();
  const said = Buffer.from(value ?? []).toString();
  if (said === "") throw new Error(await new Response(child.stderr).text());
  const { magnet, port } = JSON.parse(said) as { magnet: string; port: number };
  return {
    ...{ magnet, port, peer: `127.0.0.1:${port}`, pid: child.pid },
    async [Symbol.asyncDispose]() {
      child.kill("SIGTERM");
      await child.exited;
    },
  };
}

/** What a command line said once it ended. */
export async function ended(child: ReturnType<typeof started>) {
  const [out, err] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  return { exit: await child.exited, err, result: out === "" ? undefined : JSON.parse(out) };
}

/** The child that talks to peers, of a process that runs. */
export const childOf = (pid: number) =>
  Number(readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ")[0]) || undefined;
