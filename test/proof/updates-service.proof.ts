/** From an announcement to a slot that is tried, and everything that may come between. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { readInstalling } from "../../agent/boot/updates.ts";
import { holdFolder } from "../../agent/hold.ts";
import type { UpdateStatus } from "../../agent/update/commands.ts";
import { Swarm } from "../../agent/update/swarm.ts";
import { hashPrefix } from "../../boot/admit.ts";
import { parseUpdate } from "../../boot/updatefile.ts";
import { until } from "../node.ts";
import { toyCommand } from "../swarm/toy.ts";
import { announcementOf, peerWith, releaseOf, UpdateNode } from "../updatenode.ts";

const NINE = releaseOf(9n);
const TEN = releaseOf(10n);
/** So slow that there is time to do something meanwhile. */
const SLOW = { slowMs: 150 };
const hour = (ahead: number) => String((new Date().getUTCHours() + ahead) % 24).padStart(2, "0");
/** A window that is closed whenever this runs. */
const LATER = `${hour(5)}:00-${hour(6)}:00`;
const now = () => Math.floor(Date.now() / 1000);
const withdrawn = (release: typeof NINE) =>
  announcementOf(release, { issued: now() - 30, isWithdrawn: true });
const isBlamed = ({ dataDir }: UpdateNode, { update }: typeof NINE) =>
  readFileSync(join(dataDir, "boot/quarantine.json"), "utf8").includes(
    hashPrefix(parseUpdate(update).info.piecesRoot),
  );

/** A node that is fetching version 9. */
async function fetching(node: UpdateNode, peer: { address: string }): Promise<void> {
  await node.start([peer.address]);
  await node.announce(announcementOf(NINE));
  await until("it is being written", () => node.other.state === "writing", 20_000);
}
const tried = (node: UpdateNode) =>
  until("it is tried", () => (node.running?.reboots ?? 0) > 0 && node.other.state === "trying", 20_000);

test("what is announced is learnt, fetched, staged and tried, and the history tells it", async () => {
  await using peer = await peerWith([NINE]);
  await using node = new UpdateNode();
  await node.start([peer.address]);
  await node.announce(announcementOf(NINE));
  await tried(node);
  expect(node.other.version).toBe(9n);
  expect(node.told.filter((line) => !line.startsWith("waits"))).toEqual([
    "announced 9 announced",
    "installed 9",
    "fetched 9",
    "armed 9",
  ]);
  const { evidence } = node.slots.history.find(({ what }) => what === "fetched") ?? {};
  expect(evidence).toEqual([`0 bytes from the slots, ${NINE.payload.length} from peers, 0 from web seeds`]);
  expect(node.slots.history.find(({ what }) => what === "armed")?.by).toBe("update");
}, 40_000);

test("while it is fetched the status says from whom, how far and why, and so do the peers", async () => {
  await using peer = await peerWith([NINE], SLOW);
  await using node = new UpdateNode();
  await fetching(node, peer);
  const status = await until("some of it", async () => {
    const { result } = await node.run("update.status");
    const found = result as UpdateStatus;
    return (found.installing?.bytes_from_peers ?? 0) > 0 && found.doing?.peers === 1 ? found : undefined;
  });
  expect(status).toMatchObject({
    policy: "automatic",
    target: "fruitos/stable",
    announced: { version: "9", infohash: NINE.infohash, signers: ["anna"], withdrawn: false },
    wanted: { what: "fetch", code: "fetching" },
    doing: { what: "fetch", infohash: NINE.infohash },
    installing: { phase: "downloading", version: "9", bytes_total: NINE.payload.length },
  });
  const { result } = await node.run("update.peers");
  expect((result as { peers: object[] }).peers).toMatchObject([
    { address: peer.address, infohash: NINE.infohash, wrong: 0 },
  ]);
  const { sentences } = (await node.run("update.explain")).result as { sentences: string[] };
  expect(sentences).toContain("Version 9 is newer and may be installed.");
  await until("it is told", () => node.running?.updates.at(-1)?.bytes_from_peers !== undefined, 10_000);
  expect(node.service?.following).toMatchObject({ reason: "fetching", latest: 9n, target: "fruitos/stable" });
}, 40_000);

test("what is withdrawn while it is fetched is broken off, blamed and not taken again", async () => {
  await using peer = await peerWith([NINE], SLOW);
  await using node = new UpdateNode();
  await fetching(node, peer);
  await node.announce(withdrawn(NINE));
  await until("it is dropped", () => node.other.state === "failed", 10_000);
  await until("it is told", () => node.told.some((line) => line.startsWith("dropped 9 withdrawn: anna")));
  expect([isBlamed(node, NINE), node.other.reason, node.running?.reboots]).toEqual([true, "by-hand", 0]);
  await until("nothing more", async () => node.code === "withdrawn" && !node.told.includes("armed 9"));
  expect(await readInstalling(node.slots.runDir)).toBeUndefined();
}, 40_000);

test("what is withdrawn while it is on trial is left, and the node comes back to what it had", async () => {
  await using peer = await peerWith([NINE]);
  await using node = new UpdateNode();
  await node.start([peer.address]);
  await node.announce(announcementOf(NINE));
  await tried(node);
  await node.off();
  node.slots.worlds.b.broker = false; // so that the trial is not decided by itself
  const trial = await node.start([peer.address]);
  expect(trial.slot).toBe("b");
  await until("on trial", () => node.code === "on-trial", 10_000);
  await node.announce(withdrawn(NINE));
  await until("it goes down", () => trial.reboots > 0, 10_000);
  expect([node.other.state, isBlamed(node, NINE)]).toEqual(["failed", true]);
  await node.off();
  const back = await node.start([peer.address]);
  expect(back.slot).toBe("a");
  await until("nothing is taken", () => node.code === "withdrawn", 10_000);
}, 40_000);

test("a newer one that comes while another is fetched takes its place", async () => {
  await using peer = await peerWith([NINE, TEN], SLOW);
  await using node = new UpdateNode();
  await fetching(node, peer);
  await node.announce(announcementOf(TEN));
  await tried(node);
  expect([node.other.version, node.told.includes("fetched 9")]).toEqual([10n, false]);
}, 40_000);

test("policy manual waits for a person's word, which outlasts a restart of the agent", async () => {
  await using peer = await peerWith([NINE], SLOW);
  await using node = new UpdateNode({ policy: "manual" });
  await node.start([peer.address]);
  await node.announce(announcementOf(NINE));
  await until("it waits", () => node.code === "waits-for-word", 10_000);
  await until("it is told", () => node.told.includes("waits 9 waits-for-word"));
  expect([node.other.state, (await node.running?.status())?.last]).toEqual(["empty", undefined]);
  expect(node.run("update.now", { release: "5".repeat(40) })).rejects.toThrow("is not what is announced");
  expect((await node.run("update.now")).state).toBe("done");
  await until("it is being written", () => node.other.state === "writing", 10_000);
  await node.stopUpdates();
  await node.startUpdates([peer.address]);
  await tried(node);
}, 40_000);

test("policy window fetches at once and tries only while it is open", async () => {
  await using peer = await peerWith([NINE]);
  await using node = new UpdateNode({ policy: "window", window: LATER });
  await node.start([peer.address]);
  await node.announce(announcementOf(NINE));
  await until("it waits", () => node.code === "window-closed", 20_000);
  expect([node.other.state, node.running?.reboots]).toEqual(["staged", 0]);
}, 40_000);

test("nothing is begun while power is switched for others, or somebody else installs", async () => {
  await using peer = await peerWith([NINE]);
  await using node = new UpdateNode();
  const { worlds } = node.slots;
  worlds.a.isPowerBusy = true;
  await node.start([peer.address]);
  await node.announce(announcementOf(NINE));
  await until("it waits", () => node.code === "hindered", 10_000);
  await until("healthy", () => node.running?.slots.unrest === undefined);
  await Bun.sleep(1200); // a look or more
  expect([node.code, node.other.state]).toEqual(["hindered", "empty"]);
  const hold = `import { holdFolder } from "${join(import.meta.dir, "../../agent/hold.ts")}";
    holdFolder("${join(node.dataDir, "boot")}", "install");
    console.log("held");
    await Bun.sleep(60_000);`;
  const other = Bun.spawn([process.execPath, "-e", hold], { stdout: "pipe" });
  await other.stdout.getReader().read();
  worlds.a.isPowerBusy = false;
  const because = async () => ((await node.run("update.status")).result as UpdateStatus).wanted?.because;
  await until("it waits for the other", async () =>
    (await because())?.includes(`Process ${other.pid} installs something.`),
  );
  expect(node.other.state).toBe("empty");
  other.kill("SIGKILL");
  await tried(node);
}, 40_000);

test("what has not expired is taken, and what nobody renews raises an alarm and refuses nothing", async () => {
  await using peer = await peerWith([NINE]);
  await using node = new UpdateNode();
  await node.start([peer.address]);
  await node.announce(announcementOf(NINE, { issued: now() - 7200, expires: now() - 3600 }));
  await tried(node);
  expect(node.running?.alarms.get("update-stale")).toContain("the announcement of version 9 expired");
  await node.announce(announcementOf(NINE));
  await until("it is clear", () => !node.running?.alarms.has("update-stale"), 10_000);
}, 40_000);

test("what this node cannot take is refused with an alarm, and what runs and was withdrawn goes on with one", async () => {
  const foreign = releaseOf(9n, { stated: { boards: ["raspberrypi,4-model-b"] } });
  await using peer = await peerWith([foreign]);
  await using node = new UpdateNode();
  const running = await node.start([peer.address]);
  await node.announce(announcementOf(foreign));
  await until("it is refused", () => running.alarms.get("update-refused")?.includes("raspberrypi"), 10_000);
  expect([node.code, node.other.state]).toEqual(["refused", "empty"]);
  await until("it is told", () => node.told.includes("refused 9 refused"));
  await using older = new UpdateNode();
  const still = await older.start();
  const four = { version: 4n, infohash: "4".repeat(40) };
  await older.announce(announcementOf(four, { isWithdrawn: true }));
  await until("it is said", () => still.alarms.get("update-withdrawn")?.includes("goes on until"), 10_000);
}, 40_000);

test("an agent that is stopped in the middle goes on where it was", async () => {
  await using peer = await peerWith([NINE], SLOW);
  await using node = new UpdateNode();
  await fetching(node, peer);
  await until(
    "some of it",
    async () => ((await readInstalling(node.slots.runDir))?.bytes_from_peers ?? 0) > 200_000,
  );
  await node.stopUpdates();
  await node.startUpdates([peer.address]);
  await tried(node);
  const { evidence = [] } = node.slots.history.find(({ what }) => what === "fetched") ?? {};
  const [, bytes] = /, (\d+) from peers/.exec(evidence[0] ?? "") ?? [];
  expect(Number(bytes)).toBeGreaterThan(0);
  expect(Number(bytes)).toBeLessThan(NINE.payload.length - 150_000);
}, 40_000);

/** Somebody who fetches version 9 from a node, and how many leaves came. */
async function taker(node: UpdateNode) {
  const opened = await until("it listens", () =>
    node.running?.logged.findLast((line) => line.includes("swarm.opened")),
  );
  const [, port] = /"port":(\d+)/.exec(opened) ?? [];
  const stop = new AbortController();
  const swarm = new Swarm({
    ...{ user: 65_534, memoryMib: 512, files: [], command: toyCommand(), log: () => undefined },
    settings: { port: 0, lan: false, dht: false, bootstrap: [] },
  });
  const running = swarm.run(stop.signal);
  await swarm.port;
  const share = swarm.share(NINE.infohash);
  share.meet(`127.0.0.1:${port}`);
  const got = new Map<number, Uint8Array>();
  const holding = {
    size: NINE.payload.length,
    has: (leaf: number) => got.has(leaf),
    put: async (leaf: number, bytes: Uint8Array) => void got.set(leaf, Uint8Array.from(bytes)),
    read: () => Promise.reject(new Error("nothing")),
  };
  return {
    ...{ got, share, begin: () => share.begin(NINE.update, holding, () => undefined) },
    isWhole: () => got.size === Math.ceil(NINE.payload.length / 16_384),
    bytes: () => Buffer.concat([...got].sort(([a], [b]) => a - b).map(([, bytes]) => bytes)),
    async [Symbol.asyncDispose]() {
      stop.abort();
      await running;
    },
  };
}

test("what a slot holds whole is given to others, until somebody begins to install there", async () => {
  await using peer = await peerWith([NINE]);
  await using node = new UpdateNode({ policy: "window", window: LATER });
  await node.start([peer.address]);
  await node.announce(announcementOf(NINE));
  await until("staged", () => node.other.state === "staged", 20_000);
  await using first = await taker(node);
  const { signal } = new AbortController();
  expect(NINE.update.equals(await first.share.fetch("update", {}, async () => "good", signal))).toBe(true);
  first.begin();
  await until("all of it", first.isWhole, 10_000);
  expect(first.bytes().equals(NINE.payload)).toBe(true);
  // Another process, which says nothing to this agent
  using _ = holdFolder(join(node.dataDir, "boot"), "install");
  await using late = await taker(node);
  late.begin();
  await Bun.sleep(500);
  expect(late.got.size).toBe(0);
}, 40_000);

test("outside the hours in which it may give, a node gives nothing", async () => {
  await using peer = await peerWith([NINE]);
  const swarm = { up_window: LATER };
  await using node = new UpdateNode({ policy: "window", window: LATER, swarm });
  await node.start([peer.address]);
  await node.announce(announcementOf(NINE));
  await until("staged", () => node.other.state === "staged", 20_000);
  await until("decided", () => node.code === "window-closed", 10_000);
  expect(((await node.run("update.status")).result as UpdateStatus).given).toEqual([]);
}, 40_000);

test("the release that runs is given from the running slot, and what was withdrawn is not", async () => {
  await using peer = await peerWith([NINE]);
  await using node = new UpdateNode();
  await node.start([peer.address]);
  await node.announce(announcementOf(NINE));
  await tried(node);
  await node.off();
  await node.start();
  await until("it is good", () => node.other.state === "good", 20_000);
  await using first = await taker(node);
  await until("it is given", async () => {
    const { given } = (await node.run("update.status")).result as UpdateStatus;
    return given.some(({ slot }) => slot === "b");
  });
  first.begin();
  await until("all of it", first.isWhole, 10_000);
  expect(first.bytes().equals(NINE.payload)).toBe(true);
  await node.announce(withdrawn(NINE));
  await until("it is not given", async () => {
    const { given } = (await node.run("update.status")).result as UpdateStatus;
    return given.length === 0;
  });
}, 40_000);

test("what a person went back from is not taken again by itself", async () => {
  const nine = releaseOf(9n, { stated: { floor: 4n } });
  await using peer = await peerWith([nine]);
  await using node = new UpdateNode();
  await node.start([peer.address]);
  await node.announce(announcementOf(nine));
  await tried(node);
  await node.off();
  const newer = await node.start([peer.address]);
  await until("it is good", () => node.other.state === "good", 20_000);
  expect((await newer.run("boot.rollback", {})).state).toBe("done");
  await node.off();
  expect((await node.start([peer.address])).slot).toBe("a");
  await until("it is left alone", () => node.code === "blamed", 10_000);
  expect(node.other.state).toBe("good");
}, 40_000);

test("without a target nothing is followed, and the status says so", async () => {
  await using node = new UpdateNode({ target: undefined });
  const running = await node.start();
  await running.settled();
  const { result } = await node.run("update.status");
  expect([(result as UpdateStatus).target, node.service?.following]).toEqual([undefined, undefined]);
  expect(node.announce(announcementOf(NINE))).rejects.toThrow("this node follows no target");
  expect(running.logged.some((line) => line.includes("swarm."))).toBe(false);
}, 40_000);
