/** Two command lines update each other, with nothing in between but a link: whole, killed at any moment, and lied to. */
import { expect, test } from "bun:test";
import { existsSync, readFileSync, rmSync } from "node:fs";
import { Swarm } from "../../agent/update/swarm.ts";
import { parseUpdate } from "../../boot/updatefile.ts";
import { SLOT_OFFSETS } from "../crash/card.ts";
import { until } from "../node.ts";
import { childOf, ended, readable, seeding, started } from "../swarm/commands.ts";
import { desk, made } from "../updates.ts";

const SIZE = made.payload.length;

/** A desk that has a card, whom to trust, and no release. */
function bare() {
  const at = desk();
  for (const name of ["fruitos-9", "fruitos-9.side", "fruitos-9.fruit"]) rmSync(at.file(name));
  return {
    ...at,
    from: (magnet: string, ...more: string[]) => at.words("--json", ...more).with(2, magnet),
    isHeld: () => Buffer.compare(at.card.read(SLOT_OFFSETS.b, SIZE), made.payload) === 0,
    progress: () => {
      try {
        return JSON.parse(readFileSync(at.file("run/update.json"), "utf8"));
      } catch {
        return undefined;
      }
    },
    [Symbol.dispose]: () => at[Symbol.dispose](),
  };
}

test("a card gets a release from nothing but a link, and says where its bytes came from", async () => {
  using fruit = readable();
  using giver = desk();
  using taker = bare();
  await using from = await seeding(fruit, giver.file("fruitos-9.fruit"));
  const { exit, err, result } = await ended(started(fruit, taker.from(from.magnet)));
  expect([exit, err]).toEqual([0, ""]);
  expect(result).toMatchObject({
    slot: "b",
    version: "9",
    bytes: SIZE,
    bytes_from_peers: SIZE,
    bytes_from_web: 0,
  });
  expect([taker.isHeld(), taker.card.record.slots.b.state]).toEqual([true, "staged"]);
  expect(readFileSync(taker.file("data/releases/b.fruit")).equals(giver.release.update)).toBe(true);
  expect(readFileSync(taker.file("data/releases/b.side")).equals(giver.release.side)).toBe(true);
  expect([
    existsSync(taker.file("data/releases/fetched.side")),
    existsSync(taker.file("run/update.json")),
  ]).toEqual([false, false]);
}, 60_000);

test("a file in hand whose payload is not asks the peers it is told", async () => {
  using fruit = readable();
  using giver = desk();
  using taker = desk();
  rmSync(taker.file("fruitos-9"));
  await using from = await seeding(fruit, giver.file("fruitos-9.fruit"));
  const { exit, result } = await ended(started(fruit, taker.words("--peer", from.peer, "--json")));
  expect([exit, result?.bytes_from_peers]).toEqual([0, SIZE]);
}, 60_000);

test("its child killed again and again, the install goes on by itself", async () => {
  using fruit = readable();
  using giver = desk();
  using taker = bare();
  await using from = await seeding(fruit, giver.file("fruitos-9.fruit"), "--up", "250000");
  const child = started(fruit, taker.from(from.magnet));
  const seen: number[] = [];
  for (let kill = 0; kill < 3; kill++) {
    const least = (kill * SIZE) / 4;
    await until(
      "some of it",
      () => {
        const { phase, bytes_done = 0 } = taker.progress() ?? {};
        if (phase === "downloading") seen.push(bytes_done);
        return (kill === 0 ? childOf(child.pid) : bytes_done > least) || child.exitCode !== null;
      },
      60_000,
    );
    const pid = child.exitCode === null ? childOf(child.pid) : undefined;
    if (pid !== undefined) process.kill(pid, "SIGKILL");
  }
  const { exit, err, result } = await ended(child);
  expect([exit, taker.isHeld(), taker.card.record.slots.b.state]).toEqual([0, true, "staged"]);
  expect(err).toContain("swarm.died: SIGKILL");
  expect(result.bytes_from_peers).toBe(SIZE);
  expect(seen).toEqual(seen.toSorted((a, b) => a - b));
}, 120_000);

test.each(["writer.begun", "writer.leaf:20", "writer.before-first-leaf", "writer.before-staged"])(
  "killed at %s, the same command goes on where it was",
  async (point) => {
    using fruit = readable();
    using giver = desk();
    using taker = bare();
    await using from = await seeding(fruit, giver.file("fruitos-9.fruit"));
    const before = taker.card.start();
    const first = started(fruit, taker.from(from.magnet), { FRUIT_FAILPOINT: point });
    await first.exited;
    expect(first.signalCode).toBe("SIGKILL");
    expect(taker.card.start()).toEqual(before);
    const { exit, result } = await ended(started(fruit, taker.from(from.magnet)));
    expect([exit, taker.isHeld(), taker.card.record.slots.b.state]).toEqual([0, true, "staged"]);
    if (point.startsWith("writer.before")) expect(result.bytes_from_peers).toBe(16_384);
  },
  60_000,
);

test("the installer killed while it downloads has kept what came", async () => {
  using fruit = readable();
  using giver = desk();
  using taker = bare();
  await using from = await seeding(fruit, giver.file("fruitos-9.fruit"), "--up", "250000");
  const first = started(fruit, taker.from(from.magnet));
  await until(
    "half of it",
    () => (taker.progress()?.bytes_done ?? 0) > SIZE / 2 || first.exitCode !== null,
    60_000,
  );
  first.kill("SIGINT");
  await first.exited;
  const { exit, result } = await ended(started(fruit, taker.from(from.magnet)));
  expect([exit, taker.isHeld()]).toEqual([0, true]);
  expect(result.bytes_from_peers).toBeLessThan(SIZE * 0.75);
}, 120_000);

test("a peer that poisons, in update file, side file and payload, costs nothing but its own bytes", async () => {
  using fruit = readable();
  using giver = desk();
  using taker = bare();
  const { update, side } = giver.release;
  const stop = new AbortController();
  const liar = new Swarm({
    ...{
      user: 65_534,
      memoryMib: 512,
      files: [],
      command: [...fruit.command, "swarm"],
      log: () => undefined,
    },
    env: { PATH: process.env.PATH, ...fruit.env },
    settings: { port: 0, lan: false, dht: false, bootstrap: [] },
  });
  const running = liar.run(stop.signal);
  const foul = (bytes: Uint8Array) =>
    Uint8Array.from(bytes, (byte, at) => (at % 4096 === 9 ? byte ^ 1 : byte));
  const share = liar.share(parseUpdate(update).infohash);
  const unkept = async () => undefined;
  const read = async (at: number, length: number) => foul(made.payload.subarray(at, at + length));
  share.begin(update, { size: SIZE, has: () => true, put: unkept, read }, () => undefined);
  share.offer({ bytes: side.length, read: async (at, length) => foul(side.subarray(at, at + length)) });
  const port = await liar.port;
  await using from = await seeding(fruit, giver.file("fruitos-9.fruit"));
  const words = taker.from(from.magnet.replace("&x.pe=", `&x.pe=127.0.0.1:${port}&x.pe=`));
  const { exit, result } = await ended(started(fruit, words));
  stop.abort();
  await running;
  expect([exit, taker.isHeld(), taker.card.record.slots.b.state]).toEqual([0, true, "staged"]);
  expect(result.bytes_from_peers).toBe(SIZE);
}, 60_000);

test("with no peer at all, a web server that the release names has it", async () => {
  using fruit = readable();
  const web = Bun.serve({
    port: 0,
    fetch: (request) => {
      const [from = 0, to = 0] =
        /=(\d+)-(\d+)/
          .exec(request.headers.get("range") ?? "")
          ?.slice(1)
          .map(Number) ?? [];
      const headers = { "content-range": `bytes ${from}-${to}/${SIZE}` };
      return new Response(made.payload.subarray(from, to + 1), { status: 206, headers });
    },
  });
  const stop = new AbortController();
  const taker = new Swarm({
    ...{
      user: 65_534,
      memoryMib: 512,
      files: [],
      command: [...fruit.command, "swarm"],
      log: () => undefined,
    },
    env: { PATH: process.env.PATH, ...fruit.env },
    settings: { port: 0, lan: false, dht: false, bootstrap: [], anyWeb: true },
  });
  const running = taker.run(stop.signal);
  using at = desk();
  const share = taker.share(parseUpdate(at.release.update).infohash);
  const kept = new Map<number, Uint8Array>();
  const from = new Set<string>();
  const holding = {
    ...{
      size: SIZE,
      has: (leaf: number) => kept.has(leaf),
      read: () => Promise.reject(new Error("asked by nobody")),
    },
    put: async (leaf: number, bytes: Uint8Array, whence: string) => {
      kept.set(leaf, Uint8Array.from(bytes));
      from.add(whence);
    },
  };
  share.begin(at.release.update, holding, () => undefined, {
    webSeeds: [`http://127.0.0.1:${web.port}/fruitos-9`],
  });
  await until("all of it", () => kept.size === Math.ceil(SIZE / 16_384), 60_000);
  const all = Array.from({ length: kept.size }, (_, leaf) => kept.get(leaf) ?? new Uint8Array());
  expect([Buffer.concat(all).equals(made.payload), [...from]]).toEqual([true, ["web"]]);
  await until("its status", () => share.status?.web === SIZE && share.status.phase === "whole");
  stop.abort();
  await running;
  await web.stop(true);
}, 90_000);
