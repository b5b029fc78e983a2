/** Nodes in processes of their own, ours and others: they print JSON lines and read addresses to meet. */
import { createHash } from "node:crypto";
import { writeFileSync } from "node:fs";
import { LEAF_BYTES } from "../../boot/content.ts";
import type { Payload } from "./payload.ts";

/** Puts into a folder what `runner.ts` and libtorrent read; the payload under its name. */
export function lay(folder: string, one: Payload): void {
  const leaves: Buffer[] = [];
  for (let at = 0; at < one.bytes.length; at += LEAF_BYTES)
    leaves.push(
      createHash("sha256")
        .update(one.bytes.subarray(at, at + LEAF_BYTES))
        .digest(),
    );
  writeFileSync(`${folder}/payload-5`, one.bytes);
  writeFileSync(`${folder}/payload.torrent`, one.update);
  writeFileSync(`${folder}/infohash`, one.infohash);
  writeFileSync(`${folder}/leaves`, Buffer.concat(leaves));
}

/** Starts a node that prints JSON lines; `hear` waits for the one that says something. */
export function spawn(command: string[]) {
  const child = Bun.spawn(command, { stdin: "pipe", stdout: "pipe", stderr: "inherit" });
  const said: Record<string, number>[] = [];
  const ended = (async () => {
    let text = "";
    for await (const bytes of child.stdout) {
      text += Buffer.from(bytes).toString();
      const lines = text.split("\n");
      text = lines.pop() ?? "";
      said.push(...lines.map((line) => JSON.parse(line)));
    }
  })();
  let isEnded = false;
  void ended.then(() => {
    isEnded = true;
  });
  const hear = async (key: string): Promise<number> => {
    for (;;) {
      const found = said.find((line) => key in line)?.[key];
      if (found !== undefined) return found;
      if (isEnded) throw new Error(`${command[0]} ended before it said "${key}"`);
      await Bun.sleep(10);
    }
  };
  return { child, hear };
}
