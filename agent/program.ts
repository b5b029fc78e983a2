/** How this same program is started once more. */
import { argv } from "node:process";

/** The words before the verb: none in a compiled executable, the script in sources. */
export function program(): string[] {
  const script = argv[1];
  return script && !script.startsWith("/$bunfs/") ? [script] : [];
}
