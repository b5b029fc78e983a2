/** The swarm: one seed to one node and one seed to eight, beside libtorrent on the same machine in the same run. */
import { join } from "node:path";
import { peakMib, scratch } from "../node.ts";
import { needsModule } from "../python.ts";
import { type Payload, payload } from "../swarm/payload.ts";
import { lay, spawn } from "../swarm/processes.ts";
import { usage } from "./process.ts";
import { digits, quantile, ratio, type Table } from "./table.ts";

const MiB = 1024 * 1024;
const ROUNDS = Number(process.env.FRUIT_BENCH_ROUNDS) || 3;
/** Megabytes per second that each node may send where eight share; low, so that two cores are not what is measured. */
const UP = Number(process.env.FRUIT_BENCH_UP) || 1_000_000;

const LIBTORRENT = `
import libtorrent as lt, sys, time, select
folder, target, up, first = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "first"
s = lt.session({"listen_interfaces": "127.0.0.1:0", "enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False, "enable_incoming_utp": False, "enable_outgoing_utp": False, "allow_multiple_connections_per_ip": True, "unchoke_slots_limit": 50, "upload_rate_limit": up})
flt = lt.ip_filter(); flt.add_rule("0.0.0.0", "255.255.255.255", 1); s.set_peer_class_filter(flt)
t = s.add_torrent({"ti": lt.torrent_info(folder + "/payload.torrent"), "save_path": target})
if first: t.set_flags(lt.torrent_flags.super_seeding)
while s.listen_port() == 0: time.sleep(0.01)
while str(t.status().state) in ("checking_files", "checking_resume_data"): time.sleep(0.01)
print('{"port": %d}' % s.listen_port(), flush=True)
was = t.status().is_seeding
while True:
    if not was and t.status().is_seeding:
        was = True
        print('{"whole": %f}' % (time.time() * 1000), flush=True)
    if select.select([sys.stdin], [], [], 0.01)[0]:
        line = sys.stdin.readline()
        if not line: break
        t.connect_peer((line.split(":")[0], int(line.split(":")[1])))
print('{"sent": %d}' % t.status().total_payload_upload, flush=True)
`;

/** A program that takes part: how it is started, by folder of the payload, its own folder or the payload, and its limit. */
interface Client {
  name: string;
  command(folder: string, own: string, isSeed: boolean, up: number, isFirst: boolean, one: Payload): string[];
}

const runner = join(import.meta.dir, "../swarm/runner.ts");

const FRUIT: Client = {
  name: "fruit",
  command: (folder, _own, isSeed, up, isFirst, one) => [
    process.execPath,
    runner,
    folder,
    String(one.pieceBytes),
    isSeed ? `${folder}/payload-5` : "NONE",
    String(up),
    isFirst ? "first" : "",
  ],
};

const THEIRS: Client = {
  name: "libtorrent 2",
  command: (folder, own, isSeed, up, isFirst) => [
    "/usr/bin/python3",
    "-c",
    LIBTORRENT,
    folder,
    isSeed ? folder : own,
    String(up),
    isFirst ? "first" : "",
  ],
};

/** What one run found. */
interface Run {
  seconds: number;
  /** Payloads that the seed sent. */
  copies: number;
  /** Most memory of any node but the seed, MiB. */
  peak: number;
  /** Of the processor, all nodes together: steadier than the time on a machine that does other things. */
  cpuMs: number;
}

/** One seed, so many nodes; the clock runs until the last one has everything. */
async function run(client: Client, one: Payload, nodes: number, up: number): Promise<Run> {
  using dir = scratch();
  lay(dir.path, one);
  const start = (n: number) => {
    const own = join(dir.path, String(n));
    Bun.spawnSync(["mkdir", own]);
    return spawn(client.command(dir.path, own, n === 0, up, n === 0 && nodes > 1, one));
  };
  const all = Array.from({ length: nodes + 1 }, (_, n) => start(n));
  try {
    const ports = await Promise.all(all.map(({ hear }) => hear("port")));
    const cpuMs = () => all.reduce((sum, { child }) => sum + usage(child.pid).cpuMs, 0);
    const [from, cpuFrom] = [performance.timeOrigin + performance.now(), cpuMs()];
    for (const [n, { child }] of all.entries()) {
      for (const port of ports.slice(0, n)) child.stdin.write(`127.0.0.1:${port}\n`);
      child.stdin.flush();
    }
    const whole = await Promise.all(all.slice(1).map(({ hear }) => hear("whole")));
    const peak = Math.max(...all.slice(1).map(({ child }) => peakMib(child.pid) ?? 0));
    const cpu = cpuMs() - cpuFrom;
    for (const { child } of all) child.stdin.end();
    const sent = await all[0]?.hear("sent");
    const seconds = (Math.max(...whole) - from) / 1000;
    return { seconds, copies: (sent ?? 0) / one.bytes.length, peak, cpuMs: cpu };
  } finally {
    for (const { child } of all) child.kill("SIGKILL");
    await Promise.all(all.map(({ child }) => child.exited));
  }
}

/** Both kinds of run, of both programs in turn. */
export async function swarm(): Promise<Table> {
  const { isSkipped, title } = needsModule("", "libtorrent", "python3-libtorrent");
  const clients = isSkipped ? [FRUIT] : [FRUIT, THEIRS];
  const mib = Number(process.env.FRUIT_BENCH_MB) || 256;
  const pair = payload(mib * MiB, 256 * 1024, 5);
  const crowd = payload(16 * MiB, 64 * 1024, 5);
  const nodes = 8;
  const bound = Math.max(crowd.bytes.length / UP, (nodes * crowd.bytes.length) / (UP * (nodes + 1)));
  const pairs: Run[][] = clients.map(() => []);
  const crowds: Run[][] = clients.map(() => []);
  for (let round = 0; round < ROUNDS; round++)
    for (const [n, client] of clients.entries()) {
      pairs[n]?.push(await run(client, pair, 1, 0));
      crowds[n]?.push(await run(client, crowd, nodes, UP));
    }
  const middle = (runs: Run[] | undefined, of: (one: Run) => number) => quantile((runs ?? []).map(of), 0.5);
  const speed = (n: number) => pair.bytes.length / 1e6 / middle(pairs[n], ({ seconds }) => seconds);
  return {
    title: `Swarm: ${mib} MiB to one node, 16 MiB to ${nodes} at ${UP / 1e6} MB/s each`,
    head: ["", "1:1 MB/s", "CPU ms/MB", "peak RSS MiB", `1:${nodes} s`, "× bound", "copies sent"],
    rows: clients.map(({ name }, n) => [
      name,
      digits(speed(n), 0),
      digits(middle(pairs[n], ({ cpuMs }) => cpuMs) / (pair.bytes.length / 1e6), 1),
      digits(
        middle(pairs[n], ({ peak }) => peak),
        0,
      ),
      digits(
        middle(crowds[n], ({ seconds }) => seconds),
        1,
      ),
      digits(middle(crowds[n], ({ seconds }) => seconds) / bound, 2),
      digits(
        middle(crowds[n], ({ copies }) => copies),
        2,
      ),
    ]),
    notes: [
      `medians of ${ROUNDS} interleaved rounds over loopback; fruit checks SHA-256 of each leaf and writes a file, libtorrent SHA-1 of each piece`,
      isSkipped
        ? `without libtorrent${title}`
        : `speed of one to one, fruit over libtorrent: ${ratio(speed(0), speed(1))}`,
      `the bound is max(F/u, N·F/(N+1)·u) = ${digits(bound, 1)} s; a central server of the same uplink takes ${digits((nodes * crowd.bytes.length) / UP, 0)} s`,
    ],
  };
}
