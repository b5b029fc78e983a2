/** A vendor at a desk: a release in a folder, `fruit release` as a process of its own, and a broker that remembers. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { aedes } from "./broker.ts";
import type { Announced } from "./fleet.ts";
import { SOURCES, scratch } from "./node.ts";
import { seedOf } from "./releases.ts";

/** Before the moment at which the nodes of a fleet in tests live. */
export const ISSUED = ["--issued", "@1799000000"];

/** A vendor's folder: a release, and the key of its heads. */
export function vendor(made: Announced) {
  const folder = scratch();
  for (const [name, bytes] of [
    ["fruitos-7", made.payload],
    ["fruitos-7.side", made.side],
    ["fruitos-7.fruit", made.update],
  ] as const)
    writeFileSync(join(folder.path, name), bytes);
  const key = folder.file("bell", `${Buffer.from(seedOf("bell")).toString("hex")}\n`);
  const release = join(folder.path, "fruitos-7.fruit");
  return { folder, key, release, head: join(folder.path, "fruitos-7.head") };
}

/** A command line of its own, whose JSON lines come one by one. */
export function release(...words: string[]) {
  const child = Bun.spawn([...SOURCES.command, "release", ...words, "--no-lan", "--json"], {
    env: { PATH: process.env.PATH ?? "", HOME: "/" },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const lines: Record<string, unknown>[] = [];
  const read = (async () => {
    let text = "";
    for await (const bytes of child.stdout) {
      text += Buffer.from(bytes);
      const whole = text.split("\n");
      text = whole.pop() ?? "";
      lines.push(...whole.map((line) => JSON.parse(line)));
    }
  })();
  const err = new Response(child.stderr).text();
  return {
    lines,
    child,
    async ended() {
      await read;
      return { exit: await child.exited, err: await err, last: lines.at(-1) };
    },
    async [Symbol.asyncDispose]() {
      child.kill("SIGTERM");
      await child.exited;
    },
  };
}

/** A broker that remembers what was published to it. */
export async function broker() {
  const published: { topic: string; retain: boolean; payload: Buffer }[] = [];
  const at = await aedes({
    authorizePublish: (_, { topic, retain, payload }, done) => {
      published.push({ topic, retain, payload: Buffer.from(payload) });
      done(null);
    },
  });
  return {
    ...at,
    published,
    url: `mqtt://127.0.0.1:${at.port}`,
    [Symbol.asyncDispose]: () => at[Symbol.asyncDispose](),
  };
}
