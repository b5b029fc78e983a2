/** What the child really talks to peers with. */
import { randomBytes } from "node:crypto";
import type { Finders, Parts } from "./child.ts";
import { openEngine } from "./engine.ts";
import { dhtFinder, trackerFinder } from "./finders.ts";

/** The engine on `webtorrent`, and every finder there is. A network that has no groups or takes no datagrams costs that one only. */
export const PARTS: Parts = {
  openEngine: ({ port, files, tell, signal }) => openEngine({ port, extensions: [files], tell, signal }),
  finders: async ({ lan, dht, bootstrap }, { port, tell, signal }) => {
    const found: Record<string, Finders[string]> = {};
    const failed = (name: string) => (cause: unknown) => tell(`${name}: ${cause}`);
    if (lan) {
      const { openLsd } = await import("./lsd.ts");
      const opened = await openLsd({ tell }).catch(failed("lan"));
      signal.addEventListener("abort", () => void opened?.[Symbol.asyncDispose](), { once: true });
      if (opened) found.lan = opened.finder;
    }
    if (dht) {
      const { openDht } = await import("./dht.ts");
      const options = { id: randomBytes(20), port, routes: bootstrap, tell };
      const opened = await openDht(options).catch(failed("dht"));
      signal.addEventListener("abort", () => void opened?.[Symbol.asyncDispose](), { once: true });
      if (opened) found.dht = dhtFinder(opened);
    }
    return found;
  },
  trackers: (urls, tell) => trackerFinder(urls, { tell }),
};
