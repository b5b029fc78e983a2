/** A desk where a release is installed on a card in a file, by `fruit update install`. */
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { run } from "../agent/cli.ts";
import { publicKeyOf } from "../boot/ed25519.ts";
import { keyLine } from "../boot/trust.ts";
import { FileCard } from "./card.ts";
import { scratch } from "./node.ts";
import { BOARD, makePayload, makeRelease, seedOf } from "./releases.ts";

/** What is installed. */
export const made = makePayload({ version: 9n, name: "fruitos-9", rootBytes: 700_000 });
/** A desk with a card in a file, a release beside it, and a node's data folder. */
export function desk(options: Parameters<typeof makeRelease>[0] = {}) {
  const folder = scratch();
  const card = new FileCard(join(folder.path, "card.img"));
  const release = makeRelease({
    payload: made,
    stated: { expires: 4_000_000_000, ...options.stated },
    ...options,
  });
  const data = join(folder.path, "data");
  mkdirSync(data);
  const put = (name: string, bytes: string | Uint8Array) => writeFileSync(join(folder.path, name), bytes);
  put("fruitos-9", release.payload);
  put("fruitos-9.side", release.side);
  put("fruitos-9.fruit", release.update);
  put(
    "data/trust.json",
    JSON.stringify({
      schema: "fruit.trust/1",
      version: 1,
      threshold: { release: 1 },
      signers: [{ id: "anna", key: keyLine(publicKeyOf(seedOf("anna"))), roles: ["release"] }],
    }),
  );
  put(
    "node.json",
    JSON.stringify({ site: "lab", data_dir: data, boot: { run_dir: join(folder.path, "run") } }),
  );
  const words = (...more: string[]) => [
    ...["update", "install", join(folder.path, "fruitos-9.fruit"), "--disk", card.path],
    ...["--config", join(folder.path, "node.json"), "--board", BOARD, ...more],
  ];
  return {
    ...{ folder, card, release, data, put, words },
    file: (name: string) => join(folder.path, name),
    /** The verb in this process. */
    install: (...more: string[]) => command(words(...more)),
    [Symbol.dispose]: () => folder[Symbol.dispose](),
  };
}

/** A command line in this process. */
export async function command(
  args: string[],
  options: { signal?: AbortSignal; heard?: (line: string) => void } = {},
) {
  const { signal = new AbortController().signal, heard } = options;
  let [out, err] = ["", ""];
  const exit = await run(args, {
    out: (text) => (out += text),
    err: (text) => {
      err += text;
      heard?.(text);
    },
    env: {},
    isTerminal: false,
    stdin: async () => new Uint8Array(),
    signal,
  });
  return { exit, out, err };
}
