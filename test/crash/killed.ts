/** `bun test/crash/killed.ts SCENARIO FOLDER`: an update on a card in `FOLDER/card.img`, by a process that may be killed at any moment. */
import { closeSync, openSync, writeSync } from "node:fs";
import { join } from "node:path";
import { argv } from "node:process";
import { CARD_BYTES } from "./card.ts";
import { Node } from "./node.ts";
import { SCENARIOS } from "./scenarios.ts";

const [name, path = ""] = argv.slice(2);
const scenario = SCENARIOS.find((one) => one.name === name);
if (!scenario) throw new Error(`there is no scenario ${name}`);
const card = openSync(join(path, "card.img"), "w");
const image = scenario.card();
for (const { offset, bytes } of image.written()) writeSync(card, bytes, 0, bytes.length, offset);
writeSync(card, new Uint8Array(1), 0, 1, CARD_BYTES - 1);
let seen = 0;
const node = new Node(image, scenario.world, {
  path,
  onStep: ({ disk }) => {
    for (; seen < disk.journal.length; seen++) {
      const step = disk.journal[seen];
      if (step?.kind === "write") writeSync(card, step.bytes, 0, step.bytes.length, step.offset);
    }
  },
});
await scenario.run(node);
closeSync(card);
