/** Finding peers beside libtorrent: on the LAN (BEP 14, whose port is fixed, so this is no test), and through a tracker. */
import { test } from "bun:test";
import type { Finder } from "../../agent/swarm/engine.ts";
import { trackerFinder } from "../../agent/swarm/finders.ts";
import { LSD_GROUP, openLsd } from "../../agent/swarm/lsd.ts";
import { freePort, idOf } from "../dhts.ts";
import { until } from "../node.ts";
import { needsModule } from "../python.ts";
import { tracker } from "../trackers.ts";

/** Has a torrent, tells of it on the LAN or to a tracker and prints whom it tries. */
const LIBTORRENT = `
import sys, time
import libtorrent as lt
session = lt.session({
    "listen_interfaces": "127.0.0.1:" + sys.argv[1], "enable_dht": False, "enable_lsd": len(sys.argv) == 3, "enable_upnp": False, "enable_natpmp": False,
    "alert_mask": lt.alert_category.peer | lt.alert_category.connect | lt.alert_category.status | lt.alert_category.error,
})
torrent = lt.parse_magnet_uri("magnet:?xt=urn:btih:" + sys.argv[2])
torrent.save_path = "/nowhere"
torrent.flags &= ~(lt.torrent_flags.paused | lt.torrent_flags.auto_managed)
torrent.trackers = sys.argv[3:]
session.add_torrent(torrent)
while True:
    session.wait_for_alert(100)
    for alert in session.pop_alerts():
        print(alert.what(), alert.message(), flush=True)
`;

const INFOHASH = idOf("lan").toString("hex");
const tell = (text: string) => {
  throw new Error(text);
};

/** Starts libtorrent at a port; what it says. */
function libtorrent(port: number, ...trackers: string[]): AsyncDisposable & { said(): string } {
  const child = Bun.spawn(["/usr/bin/python3", "-c", LIBTORRENT, `${port}`, INFOHASH, ...trackers], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "inherit",
  });
  let said = "";
  const reading = (async () => {
    for await (const chunk of child.stdout.pipeThrough(new TextDecoderStream())) said += chunk;
  })();
  return {
    said: () => said,
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await child.exited;
      await reading;
    },
  };
}

/** A finder of ours meets libtorrent; and libtorrent us where no tracker lets it wait. */
async function meeting(
  finder: Finder,
  ports: { theirs: number; ours: number },
  trackers: string[] = [],
): Promise<void> {
  const { theirs, ours } = ports;
  const [met, stop] = [[] as string[], new AbortController()];
  const finding = finder(
    { infohash: INFOHASH, port: ours, meet: (address) => met.push(address) },
    stop.signal,
  );
  try {
    await using peer = libtorrent(theirs, ...trackers);
    await until("we hear of libtorrent", () => met.includes(`127.0.0.1:${theirs}`), 30_000);
    if (trackers.length === 0)
      await until("libtorrent hears of us", () => peer.said().includes(`127.0.0.1:${ours}`), 30_000);
  } finally {
    stop.abort();
    await finding;
  }
}

const lan = needsModule(
  "libtorrent and a node of ours find each other on the LAN",
  "libtorrent",
  "python3-libtorrent",
);

test.skipIf(lan.isSkipped)(
  lan.title,
  async () => {
    await using lsd = await openLsd({ group: LSD_GROUP, interfaces: ["lo"], everyMs: 1000, tell });
    await meeting(lsd.finder, { theirs: await freePort(), ours: await freePort() });
  },
  90_000,
);

const through = needsModule("libtorrent is found through a tracker", "libtorrent", "python3-libtorrent");

test.skipIf(through.isSkipped).each(["http", "udp"] as const)(
  `${through.title} over %s`,
  async (way) => {
    await using real = await tracker();
    const finder = trackerFinder([real[way]], { tell, bounds: { leastS: 0.5, mostS: 0.5, failedS: 0.5 } });
    await meeting(finder, { theirs: await freePort(), ours: await freePort() }, [real[way]]);
  },
  90_000,
);
