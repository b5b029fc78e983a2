/** What the child really talks to peers with. */
import type { Parts } from "./child.ts";
import { openDiscovery } from "./discovery.ts";
import { openEngine } from "./engine.ts";
import { trackerFinder } from "./finders.ts";

/** The engine on `webtorrent`, and every way of discovery there is. */
export const PARTS: Parts = {
  openEngine: ({ port, files, tell, signal }) => openEngine({ port, extensions: [files], tell, signal }),
  openDiscovery,
  trackers: (urls, tell) => trackerFinder(urls, { tell }),
};
