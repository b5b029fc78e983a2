import { parseArgs } from "node:util";
import { CONFIG_PATH } from "../config.ts";
import { openHardware } from "../hardware.ts";
import { type CliVerb, EXIT, type Io, UsageError } from "../terminal.ts";
import { lineOf } from "./check.ts";
import { checkImage } from "./image.ts";
import { checkNode, look } from "./node.ts";

/** `fruit doctor`: what stands in the way, on a node or in an image, one line each. Changes nothing. */
export const DOCTOR_VERBS: readonly CliVerb[] = [
  {
    words: "doctor",
    synopsis: "[--config FILE] [--hal linux|sim] | --image ROOT",
    summary:
      "checks this node, or an unpacked image, and says what to do; exit 1 when something will not work",
    needsAgent: false,
    async run({ args, io, json }) {
      const { values: flags } = parseArgs({
        args,
        options: {
          image: { type: "string" },
          config: { type: "string" },
          hal: { type: "string" },
        },
      });
      if (flags.image !== undefined && flags.config !== undefined)
        throw new UsageError("--image and --config: an image's configuration is the one inside it");
      const checks =
        flags.image === undefined
          ? await checkThisNode(flags.config ?? io.env.FRUIT_CONFIG ?? CONFIG_PATH, flags.hal, io.env)
          : checkImage(flags.image);
      const isWell = checks.every(({ level }) => level !== "FAIL");
      if (json) io.out(`${JSON.stringify({ v: 1, well: isWell, checks }, undefined, 2)}\n`);
      else for (const check of checks) io.out(lineOf(check));
      return isWell ? EXIT.done : EXIT.failed;
    },
  },
];

async function checkThisNode(file: string, flag: string | undefined, env: Io["env"]) {
  const found = look(file);
  const hal = await openHardware(flag, env, found.config);
  try {
    return await checkNode(found, hal);
  } finally {
    await hal.close();
  }
}
