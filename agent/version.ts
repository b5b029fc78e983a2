import manifest from "../package.json" with { type: "json" };
import { type CliVerb, EXIT } from "./terminal.ts";

/** Put in by the compiler (`image/build.ts`). */
declare const FRUIT_BUILD: { commit: string; time: number } | undefined;

const build = typeof FRUIT_BUILD === "undefined" ? { commit: "sources", time: 0 } : FRUIT_BUILD;

/** What this program was made from; `time` is the commit's in Unix seconds, 0 when started from sources. */
export const BUILD = { version: manifest.version, ...build };

export const VERSION_VERBS: readonly CliVerb[] = [
  {
    words: "version",
    synopsis: "[--json]",
    summary: "says what this executable was made from",
    needsAgent: false,
    run: async ({ io, json }) => {
      const { version, commit } = BUILD;
      const facts = { schema: "fruit.version/1", version, commit, arch: process.arch, runtime: runtime() };
      io.out(
        json
          ? `${JSON.stringify(facts)}\n`
          : `fruit ${version} (${commit}), ${facts.runtime}, ${process.arch}\n`,
      );
      return EXIT.done;
    },
  },
];

function runtime(): string {
  return process.versions.bun ? `bun ${process.versions.bun}` : `node ${process.versions.node}`;
}
