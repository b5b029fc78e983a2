/**
 * What each attack on the wire costs a node in memory, beside an honest transfer, in a process of its own. `Target` is all that is
 * asked of it, so that the child of the executable can stand there too.
 */
import { expect, test } from "bun:test";
import { join } from "node:path";
import { peakMib, scratch, until } from "../node.ts";
import { payload } from "../swarm/payload.ts";
import { ATTACKS, type Attack, RawPeer } from "../swarm/peer.ts";
import { lay, spawn } from "../swarm/processes.ts";

const MiB = 1024 * 1024;
/** What an attack may cost; the same transfer without one is the measure. */
const MAX_MIB = 20;
const ONE = payload(24 * MiB, 256 * 1024, 5);
const UP = 16 * MiB;

/** A node under attack. */
interface Target extends AsyncDisposable {
  readonly port: number;
  /** Fetches the payload from a seed; ends when it has all of it. */
  fetch(address: string): Promise<void>;
  /** The most memory it has had, MiB. */
  peak(): number;
}

const runner = join(import.meta.dir, "../swarm/runner.ts");

/** The engine in a process of its own; `has`: it is a seed. */
async function engine(folder: string, has: string, up: number): Promise<Target> {
  const { child, hear } = spawn([process.execPath, runner, folder, String(ONE.pieceBytes), has, String(up)]);
  const port = await hear("port");
  return {
    port,
    async fetch(address) {
      child.stdin.write(`${address}\n`);
      child.stdin.flush();
      await hear("whole");
    },
    peak: () => peakMib(child.pid) ?? Number.POSITIVE_INFINITY,
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await child.exited;
    },
  };
}

/** A transfer with eight attackers of one kind beside it; how much memory it took, and how long. */
async function transfer(attack?: Attack): Promise<{ peak: number; seconds: number }> {
  using dir = scratch();
  lay(dir.path, ONE);
  await using seed = await engine(dir.path, `${dir.path}/payload-5`, UP);
  await using target = await engine(dir.path, "NONE", 0);
  const attackers: RawPeer[] = [];
  for (let n = 0; attack && n < 8; n++) {
    const peer = await RawPeer.connect(target.port, `127.0.0.${66 + n}`);
    attackers.push(peer);
    attack.run(peer, ONE);
  }
  const from = performance.now();
  await target.fetch(`127.0.0.1:${seed.port}`);
  const seconds = (performance.now() - from) / 1000;
  const peak = target.peak();
  if (attack?.ends === "banned")
    await until("all attackers are gone", () =>
      attackers.every((peer) => peer.isClosed || peer.socket.isPaused()),
    );
  for (const peer of attackers) peer[Symbol.dispose]();
  return { peak, seconds };
}

const undisturbed = await transfer();

test.each(ATTACKS)(
  "$name, eight times: the node needs less than 20 MiB more and no more than twice the time",
  async (attack) => {
    const { peak, seconds } = await transfer(attack);
    expect(peak - undisturbed.peak).toBeLessThan(MAX_MIB);
    expect(seconds).toBeLessThan(2 * undisturbed.seconds + 1);
  },
  60_000,
);
