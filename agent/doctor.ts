import { parseArgs } from "node:util";
import { openLinux } from "../hal/linux.ts";
import { CONFIG_PATH } from "./config.ts";
import { lineOf } from "./doctor/check.ts";
import { checkImage } from "./doctor/image.ts";
import { checkNode } from "./doctor/node.ts";
import { type CliVerb, EXIT, UsageError } from "./terminal.ts";

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
          hal: { type: "string", default: "linux" },
        },
      });
      if (flags.image !== undefined && flags.config !== undefined)
        throw new UsageError("--image and --config: an image's configuration is the one inside it");
      if (flags.hal !== "linux" && flags.hal !== "sim")
        throw new UsageError(`--hal ${flags.hal}: there are linux and sim`);
      const checks =
        flags.image === undefined
          ? await checkThisNode(flags.config ?? io.env.FRUIT_CONFIG ?? CONFIG_PATH, flags.hal)
          : checkImage(flags.image);
      const isWell = checks.every(({ level }) => level !== "FAIL");
      if (json) io.out(`${JSON.stringify({ v: 1, well: isWell, checks }, undefined, 2)}\n`);
      else for (const check of checks) io.out(lineOf(check));
      return isWell ? EXIT.done : EXIT.failed;
    },
  },
];

async function checkThisNode(file: string, hal: "linux" | "sim") {
  const { machine, close } = openLinux();
  try {
    return await checkNode(file, machine, hal);
  } finally {
    await close();
  }
}
