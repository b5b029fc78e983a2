/** The private DHT beside libtorrent's: items and peers go both ways between its nodes and ours. */

import { expect, test } from "bun:test";
import { createHash } from "node:crypto";
import type { Dht } from "../../agent/swarm/dht.ts";
import { isSigned } from "../../agent/swarm/item.ts";
import { publicKeyOf } from "../../boot/ed25519.ts";
import { freePort, idOf, node, seedOf, signedItem } from "../dhts.ts";
import { until } from "../node.ts";
import { needsModule } from "../python.ts";

/** A node of libtorrent: it does what it reads, a line each, and prints what comes of it. It blocks an address that sends more than five datagrams a second. */
const LIBTORRENT = `
import json, sys, threading, time
import libtorrent as lt

session = lt.session({
    "listen_interfaces": "127.0.0.1:" + sys.argv[1], "enable_dht": True, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False,
    "dht_bootstrap_nodes": "", "dht_restrict_routing_ips": False, "dht_restrict_search_ips": False, "dht_enforce_node_id": False,
    "dht_ignore_dark_internet": False, "dht_prefer_verified_node_ids": False, "dht_announce_interval": 5,
    "alert_mask": lt.alert_category.dht | lt.alert_category.dht_operation,
})

def say(**what):
    print(json.dumps(what), flush=True)

def commands():
    for line in sys.stdin:
        name, *args = line.split()
        if name == "node": session.add_dht_node((args[0], int(args[1])))
        elif name == "put": session.dht_put_mutable_item(*[bytes.fromhex(a) for a in args])
        elif name == "get": session.dht_get_mutable_item(*[bytes.fromhex(a) for a in args])
        elif name == "announce":
            torrent = lt.parse_magnet_uri("magnet:?xt=urn:btih:" + args[0])
            torrent.save_path = "/nowhere"
            torrent.flags &= ~(lt.torrent_flags.paused | lt.torrent_flags.auto_managed)
            session.add_torrent(torrent)
        elif name == "again":
            for torrent in session.get_torrents(): torrent.force_dht_announce()
        elif name == "peers": session.dht_get_peers(lt.sha1_hash(bytes.fromhex(args[0])))

threading.Thread(target=commands, daemon=True).start()
while True:
    session.wait_for_alert(100)
    for alert in session.pop_alerts():
        if isinstance(alert, lt.dht_mutable_item_alert):
            say(kind="item", seq=alert.seq, text=alert.message())
        elif isinstance(alert, lt.dht_put_alert):
            say(kind="put", stored=alert.num_success, seq=alert.seq)
        elif isinstance(alert, lt.dht_get_peers_reply_alert):
            say(kind="peers", peers=["%s:%d" % peer for peer in alert.peers()])
`;

type Said = {
  kind: string;
  seq?: number;
  stored?: number;
  text?: string;
  peers?: string[];
};

/** Until libtorrent says what is wanted; it is asked again each half second. */
async function answered(
  theirs: { said: Said[]; tell(line: string): void },
  line: string,
  is: (one: Said) => boolean,
): Promise<Said> {
  for (let turn = 0; turn < 20; turn++) {
    theirs.tell(line);
    const found = await until(line, () => theirs.said.find(is), 500).catch(() => undefined);
    if (found) return found;
  }
  throw new Error(`libtorrent does not say it after ${line}: ${JSON.stringify(theirs.said)}`);
}

/** Starts a node of libtorrent. */
async function libtorrent(): Promise<
  AsyncDisposable & { port: number; said: Said[]; tell(line: string): void }
> {
  const port = await freePort();
  const child = Bun.spawn(["/usr/bin/python3", "-c", LIBTORRENT, `${port}`], {
    stdin: "pipe",
    stdout: "pipe",
    stderr: "inherit",
  });
  const said: Said[] = [];
  const reading = (async () => {
    let rest = "";
    for await (const chunk of child.stdout.pipeThrough(new TextDecoderStream())) {
      const lines = (rest + chunk).split("\n");
      rest = lines.pop() ?? "";
      said.push(...lines.map((line) => JSON.parse(line)));
    }
  })();
  return {
    port,
    said,
    tell(line) {
      child.stdin.write(`${line}\n`);
      child.stdin.flush();
    },
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await child.exited;
      await reading;
    },
  };
}

const { title, isSkipped } = needsModule(
  "items and peers go both ways between libtorrent's nodes and ours",
  "libtorrent",
  "python3-libtorrent",
);
const hex = (bytes: Uint8Array | string) => Buffer.from(bytes).toString("hex");

/** The expanded private key that libtorrent signs with (RFC 8032 §5.1.5). */
function expanded(seed: Uint8Array): Buffer {
  const key = createHash("sha512").update(seed).digest();
  key[0] = (key[0] ?? 0) & 248;
  key[31] = ((key[31] ?? 0) & 63) | 64;
  return key;
}

test.skipIf(isSkipped)(
  title,
  async () => {
    await using theirs = await libtorrent();
    const all: Dht[] = [];
    try {
      for (let n = 1; n <= 4; n++) {
        const routes = [`127.0.0.1:${theirs.port}`, ...all.map((one, at) => `127.0.5.${at + 1}:${one.port}`)];
        all.push(
          await node(`ours ${n}`, { host: `127.0.5.${n}`, routes, answerMs: 1000, every: { tableMs: 500 } }),
        );
      }
      const [one, two] = all as [Dht, Dht];
      theirs.tell(`node 127.0.5.1 ${one.port}`);
      await until("our nodes know theirs", () => all.every((dht) => dht.counts.nodes >= 4));

      // Ours put, theirs get: in their store it is too, for no node of ours answers for another's
      const item = signedItem({ seq: 7n });
      expect(await one.publish(item)).toBe(4);
      const get = `get ${hex(item.k)} ${hex(item.salt)}`;
      const stored = await answered(theirs, get, ({ kind, seq }) => kind === "item" && seq === 7);
      expect(stored.text).toContain("'channel': 'stable'");
      expect(stored.text).toContain(`'ih': '${hex(idOf("release 7"))}'`);

      // Theirs put, ours get
      const seed = seedOf("libtorrent");
      const own = `put ${hex(expanded(seed))} ${hex(publicKeyOf(seed))} ${hex("it is theirs")} ${hex("salt")}`;
      const put = await answered(theirs, own, ({ kind }) => kind === "put");
      expect(put.stored).toBeGreaterThanOrEqual(3);
      const got = await two.get(publicKeyOf(seed), Buffer.from("salt"));
      expect(Buffer.from(got?.v ?? []).toString()).toBe("12:it is theirs");
      expect(got && isSigned(got)).toBeTrue();

      // A node of ours alone with theirs: what it finds, theirs has kept
      for (const each of all) await each[Symbol.asyncDispose]();
      await using late = await node("late", {
        host: "127.0.5.9",
        routes: [`127.0.0.1:${theirs.port}`],
        answerMs: 1000,
      });
      await until("it knows theirs", () => late.counts.nodes === 1);
      expect((await late.get(item.k, item.salt))?.seq).toBe(7n);

      // A higher number replaces there too, a lower is refused
      expect(await late.publish(signedItem({ seq: 9n }))).toBe(1);
      await using stale = await node("stale", {
        host: "127.0.5.10",
        routes: [`127.0.0.1:${theirs.port}`],
        answerMs: 1000,
      });
      await until("it knows theirs", () => stale.counts.nodes >= 1);
      expect((await stale.get(item.k, item.salt))?.seq).toBe(9n);

      // Peers, both ways
      const infohash = hex(idOf("release"));
      await late.peers(infohash, 7001, () => undefined);
      await answered(theirs, `peers ${infohash}`, ({ peers }) => peers?.includes("127.0.5.9:7001") ?? false);
      theirs.tell(`announce ${infohash}`);
      const [met, peer] = [[] as string[], `127.0.0.1:${theirs.port}`];
      for (let turn = 0; turn < 30 && !met.includes(peer); turn++) {
        await Bun.sleep(500);
        theirs.tell("again");
        await stale.peers(infohash, undefined, (address) => met.push(address));
      }
      expect(met).toContain(peer);
    } finally {
      for (const each of all) await each[Symbol.asyncDispose]();
    }
  },
  120_000,
);
