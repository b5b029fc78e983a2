/** Power cuts at every write of a tryboot update, all of them: the everyday run makes some. */
import { expect, test } from "bun:test";
import { join } from "node:path";

test("every cut of a tryboot update ends in a whole system", async () => {
  const root = join(import.meta.dir, "../..");
  const child = Bun.spawn([process.execPath, "test", "./test/tryboot-crash.test.ts", "-t", "cuts? at"], {
    ...{ cwd: root, env: { ...process.env, FRUIT_TRYBOOT_EVERY: "1" } },
    ...({ stdout: "pipe", stderr: "pipe" } as const),
  });
  const [exit, out, said] = await Promise.all([
    child.exited,
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  console.log(out.trim());
  expect({ exit, said: exit === 0 ? "" : said }).toEqual({ exit: 0, said: "" });
  expect(out).toContain("an update that is ill");
}, 600_000);
