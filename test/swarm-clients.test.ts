/** The swarm engine and BitTorrent clients that are not ours: aria2 and libtorrent fetch from it and seed to it. */
import { expect, test } from "bun:test";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { needs, scratch, until } from "./node.ts";
import { needsModule } from "./python.ts";
import { ALL, node, whole } from "./swarm/nodes.ts";
import { type Payload, payload } from "./swarm/payload.ts";

const PAYLOAD = payload(6 * 1024 * 1024 + 777, 256 * 1024, 9);
const NAME = "payload-9";
const LIMIT_MS = 30_000;

/** Puts a torrent, and the payload where it is to be seeded, into a folder. */
function lay(dir: string, one: Payload, isThere: boolean): void {
  mkdirSync(dir, { recursive: true });
  writeFileSync(`${dir}/payload.torrent`, one.update);
  if (isThere) writeFileSync(`${dir}/${NAME}`, one.bytes);
}

/** Runs a client until the block ends. */
function client(command: string[]) {
  const child = Bun.spawn(command, { stdin: "ignore", stdout: "pipe", stderr: "inherit" });
  const reader = child.stdout.getReader();
  let said = "";
  void (async () => {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      said += Buffer.from(value).toString();
    }
  })();
  return {
    said: () => said,
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await child.exited;
    },
  };
}

/** A session of libtorrent in a folder: prints its port, dials who is named, prints `whole` when it has everything. */
const LIBTORRENT = `
import libtorrent as lt, sys, time
folder, peer = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
session = lt.session({"listen_interfaces": "127.0.0.1:0", "enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False, "enable_incoming_utp": False, "enable_outgoing_utp": False, "allow_multiple_connections_per_ip": True})
torrent = session.add_torrent({"ti": lt.torrent_info(folder + "/payload.torrent"), "save_path": folder})
while session.listen_port() == 0: time.sleep(0.05)
while str(torrent.status().state) in ("checking_files", "checking_resume_data"): time.sleep(0.05)
print("port", session.listen_port(), flush=True)
if peer: torrent.connect_peer((peer.split(":")[0], int(peer.split(":")[1])))
while not torrent.status().is_seeding: time.sleep(0.05)
print("whole", flush=True)
time.sleep(60)
`;

const libtorrent = (dir: string, peer?: string) =>
  client(["/usr/bin/python3", "-c", LIBTORRENT, dir, ...(peer === undefined ? [] : [peer])]);

const aria2 = (dir: string, port: number) =>
  client([
    "aria2c",
    "--enable-dht=false",
    "--enable-dht6=false",
    "--bt-enable-lpd=false",
    "--check-integrity=true",
    `--listen-port=${port}`,
    `--dir=${dir}`,
    "--seed-ratio=0.0",
    "--summary-interval=0",
    "--file-allocation=none",
    `${dir}/payload.torrent`,
  ]);

const withLibtorrent = (title: string) => needsModule(title, "libtorrent", "python3-libtorrent");
const withAria2 = (title: string) => needs(title, { name: "aria2c", install: "aria2" });

const fetches = withLibtorrent("libtorrent fetches from the engine");
test.skipIf(fetches.isSkipped)(
  fetches.title,
  async () => {
    using dir = scratch();
    await using one = await node();
    one.share(PAYLOAD, ALL);
    lay(dir.path, PAYLOAD, false);
    await using peer = libtorrent(dir.path, `127.0.0.1:${one.engine.port}`);
    await until("libtorrent has all", () => peer.said().includes("whole"), LIMIT_MS);
    expect(readFileSync(`${dir.path}/${NAME}`).equals(PAYLOAD.bytes)).toBe(true);
  },
  LIMIT_MS,
);

const seeds = withLibtorrent("the engine fetches from libtorrent");
test.skipIf(seeds.isSkipped)(
  seeds.title,
  async () => {
    using dir = scratch();
    await using one = await node();
    const { member, keep } = one.share(PAYLOAD);
    lay(dir.path, PAYLOAD, true);
    await using peer = libtorrent(dir.path);
    const port = await until("it listens", () => /port (\d+)/.exec(peer.said())?.[1], LIMIT_MS);
    member.meet(`127.0.0.1:${port}`);
    await whole(member);
    expect(keep.bytes.equals(PAYLOAD.bytes)).toBe(true);
  },
  LIMIT_MS,
);

const superSeeds = withLibtorrent(
  "libtorrent fetches from a first seed, which shows one piece after the other",
);
test.skipIf(superSeeds.isSkipped)(
  superSeeds.title,
  async () => {
    using dir = scratch();
    await using one = await node();
    one.share(PAYLOAD, ALL, true);
    lay(dir.path, PAYLOAD, false);
    await using peer = libtorrent(dir.path, `127.0.0.1:${one.engine.port}`);
    await until("libtorrent has all", () => peer.said().includes("whole"), LIMIT_MS);
    expect(readFileSync(`${dir.path}/${NAME}`).equals(PAYLOAD.bytes)).toBe(true);
  },
  LIMIT_MS,
);

/** A port that was free a moment ago: aria2 cannot say which one it took. */
async function freePort(): Promise<number> {
  const server = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data() {} } });
  const { port } = server;
  server.stop(true);
  return port;
}

const both = withAria2("the engine fetches from aria2 and aria2 from the engine");
test.skipIf(both.isSkipped)(
  both.title,
  async () => {
    using dir = scratch();
    const [from, to] = [`${dir.path}/from`, `${dir.path}/to`];
    lay(from, PAYLOAD, true);
    lay(to, PAYLOAD, false);
    const [fromPort, toPort] = [await freePort(), await freePort()];
    await using one = await node();
    const { member, keep } = one.share(PAYLOAD);
    await using seed = aria2(from, fromPort);
    await until(
      "it is there",
      () => {
        member.meet(`127.0.0.1:${fromPort}`);
        return member.status().peers.length === 1;
      },
      LIMIT_MS,
    );
    await whole(member);
    expect(keep.bytes.equals(PAYLOAD.bytes)).toBe(true);
    await seed[Symbol.asyncDispose]();
    await using _leech = aria2(to, toPort);
    await until(
      "aria2 has all",
      () => {
        member.meet(`127.0.0.1:${toPort}`);
        return existsSync(`${to}/${NAME}`) && readFileSync(`${to}/${NAME}`).equals(PAYLOAD.bytes);
      },
      LIMIT_MS,
    );
  },
  LIMIT_MS,
);
