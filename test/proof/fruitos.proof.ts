/**
 * fruitos on an emulated Pi 3: the image as it is built, the stock U-Boot, the arm64 executable, a Mosquitto on this machine. A good
 * release is installed and kept; each bad one is given up by the node itself, which then says why; and a node whose power is cut at
 * any moment of all this comes back to a system that is whole, by the hash of every byte.
 *
 * Emulation, not hardware: the SD card takes every write that it acknowledged, and the watchdog is the kernel's own (softdog).
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { otherSlot, SLOTS, type SlotName } from "../../boot/layout.ts";
import { HAS_MOSQUITTO, Mosquitto, NEEDS_MOSQUITTO, Tap } from "../broker.ts";
import { missingForEmulator } from "../emulator/cache.ts";
import { copyCard, Fruitos, lookAtCard } from "../emulator/fruitos.ts";
import {
  DATA_MIB,
  kernelThatResets,
  type Payload,
  type Release,
  stageInto,
  Workshop,
} from "../emulator/releases.ts";
import { seeded } from "../fakes.ts";
import { until } from "../node.ts";

const MINUTE = 60_000;
/** Longest for anything the node does by itself: a trial with its start, a roll-back with two. */
const PATIENCE = 8 * MINUTE;
/** Power cuts; each is at a moment of its own. */
const CUTS = Number(process.env.FRUIT_CUTS ?? 20);
const SEED = Number(process.env.FRUIT_SEED ?? 4);

const missing = missingForEmulator() ?? (HAS_MOSQUITTO ? undefined : NEEDS_MOSQUITTO);

describe.skipIf(missing !== undefined)(`fruitos in emulation${missing ? ` [needs: ${missing}]` : ""}`, () => {
  const folder = mkdtempSync(join(tmpdir(), "fruit-proof-"));
  const path = (name: string) => join(folder, name);
  let broker: Mosquitto;
  let tap: Tap;
  let workshop: Workshop;
  let server: Bun.Server<undefined>;
  /** The card as it was built; from the first test on as it is once the node has run and has reached its broker. */
  let card: string;
  let good: Release;

  beforeAll(async () => {
    broker = await Mosquitto.start(["allow_anonymous true"]);
    tap = await Tap.at(broker.port);
    const beganMs = performance.now();
    workshop = await Workshop.open(folder);
    good = await workshop.release(2n);
    const later = await workshop.release(3n);
    const config = {
      site: "lab",
      node: "pi1",
      mqtt: { url: `mqtt://10.0.2.2:${broker.port}`, backoff_max_seconds: 5, keepalive_seconds: 5 },
      boot: {
        ...{ tries: 2, deadline_seconds: 200, settle_seconds: 5, check_seconds: 2, agent_seconds: 5 },
        reboot_command: ["reboot", "-f"],
      },
    };
    const trust = readFileSync(workshop.trust, "utf8");
    card = await workshop.card(1n, { "node.json": JSON.stringify(config), "trust.json": trust }, [
      good,
      later,
    ]);
    // The small files of a release come over the network, which is slow in this machine; the large one is on the card
    const served = new Map([good.update, good.side].map((file) => [`/${basename(file)}`, file]));
    server = Bun.serve({
      ...{ port: 0, hostname: "127.0.0.1" },
      fetch: ({ url }) => {
        const file = served.get(new URL(url).pathname);
        return file === undefined ? new Response(null, { status: 404 }) : new Response(Bun.file(file));
      },
    });
    tell(`a card and two releases built: ${seconds(performance.now() - beganMs)}`);
  }, 5 * MINUTE);

  afterAll(async () => {
    server?.stop(true);
    await tap?.[Symbol.asyncDispose]();
    await broker?.[Symbol.asyncDispose]();
    rmSync(folder, { recursive: true, force: true });
  });

  /** What the node has said about something, in order. */
  const said = (topic: string) =>
    tap.texts(`fruit/v1/lab/pi1/${topic}`).map((text) => JSON.parse(text) as Record<string, unknown>);

  /** Switches a Pi on; what was said before is forgotten. */
  function switchOn(image: string): Promise<Fruitos> {
    tap.heard.splice(0);
    return Fruitos.on(image);
  }

  /** Waits until the node has started from a slot for good, and its agent has told the broker so. */
  async function lives(pi: Fruitos, slot: SlotName, after = 0): Promise<void> {
    await pi.reached("ready", (start) => start.slot === slot && !start.isTrial, { after, limitMs: PATIENCE });
    await until(`slot ${slot} on MQTT`, () => said("state/boot/main").at(-1)?.active === slot, PATIENCE);
  }

  /** What the node says of itself. */
  const status = async (pi: Fruitos) =>
    JSON.parse((await pi.run("fruit boot status --json")).out) as {
      running: SlotName;
      primary: SlotName;
      trial?: object;
      slots: Record<SlotName, { state: string; version?: string; hash?: string }>;
    };

  test(
    "starts from slot a at first, takes its configuration, grows its data, and reaches its broker",
    async () => {
      await using pi = await switchOn(card);
      await lives(pi, "a");
      const [, mebibytes, before] = /partition 4 has (\d+) MiB now, it had (\d+)/.exec(pi.said) ?? [];
      expect(Number(before)).toBe(DATA_MIB);
      const [, blocks, kibibytes] = /is now (\d+) \((\d)k\) blocks long/.exec(pi.said) ?? [];
      expect((Number(blocks) * Number(kibibytes)) / 1024).toBe(Number(mebibytes));
      expect(await pi.output("hostname; cat /etc/fruit/release.json")).toMatch(/^pi1\n[\s\S]*"version": "1"/);
      expect(await status(pi)).toMatchObject({
        running: "a",
        primary: "a",
        slots: { b: { state: "empty" } },
      });
      expect((await pi.run("fruit boot status")).out).toMatch(/^running +slot a, version 1, good$/m);
      expect(said("state/boot/main").at(-1)).toMatchObject({ active: "a", trial: false, confirmed: true });
      // What a person had put onto the boot partition is on the data partition now, and only there
      const p1 =
        "mkdir -p /tmp/p1 && mount -t vfat -o ro /dev/mmcblk0p1 /tmp/p1 && ls /tmp/p1; umount /tmp/p1";
      expect(await pi.output(p1)).not.toMatch(/node\.json|trust\.json/);
      expect(await pi.output("ls /data/fruit")).toMatch(/node\.json[\s\S]*trust\.json/);
      // The yardstick of later trials
      const hasBroker = async () => (await pi.run("grep -l broker /data/fruit/boot/baseline*")).exit === 0;
      await until("a baseline with the broker", hasBroker, 2 * MINUTE);
      await pi.output("sync");
      report("first start", pi);
    },
    PATIENCE,
  );

  test(
    "installs a release from standard input into slot b, tries it, keeps it, and starts from it ever after",
    async () => {
      await using pi = await switchOn(await copyCard(card, path("update.img")));
      await lives(pi, "a");
      tap.heard.splice(0);
      const beganMs = performance.now();
      const url = (file: string) => `http://10.0.2.2:${server.port}/${basename(file)}`;
      const installed = await pi.output(
        `date -s @1795000000 >/dev/null
         wget -q -O /tmp/r.fruit ${url(good.update)} && wget -q -O /tmp/r.side ${url(good.side)} &&
         fruit update install /tmp/r.fruit --side /tmp/r.side --payload - --json < /data/incoming/2`,
        PATIENCE,
      );
      expect(JSON.parse(installed)).toMatchObject({
        slot: "b",
        version: "2",
        bytes: good.content.payloadBytes,
      });
      tell(`install of ${good.content.payloadBytes >> 20} MiB: ${seconds(performance.now() - beganMs)}`);
      await pi.run("fruit boot try --reason proof");
      await pi.reached("initramfs", ({ slot, isTrial }) => slot === "b" && isTrial, { limitMs: PATIENCE });
      await until("kept", () => said("event/boot.trial.confirmed").length > 0, PATIENCE);
      expect(said("event/boot.trial.confirmed")).toEqual([
        expect.objectContaining({ slot: "b", version: "2", hash: good.content.hash }),
      ]);
      await pi.reached("ready", ({ isTrial }) => isTrial);
      const now = await status(pi);
      expect(now).toMatchObject({ running: "b", primary: "b", slots: { a: { state: "good" } } });
      expect(now.slots.b).toMatchObject({ state: "good", hash: good.content.hash });
      await pi.run("sync; (sleep 1; reboot -f) >/dev/null 2>&1 &");
      await lives(pi, "b");
      report("a good release", pi);
      await pi[Symbol.asyncDispose]();
      const { record, whole } = await lookAtCard(pi.card);
      expect(record.primary).toBe("b");
      expect(whole).toEqual(["a", "b"]);
    },
    2 * PATIENCE,
  );

  /** A node that has this in slot b is told to try it. Resolves when it is back in slot a and has told why. */
  async function giveUp(what: string, payload: Payload, meanwhile?: (pi: Fruitos) => Promise<void>) {
    await using pi = await switchOn(
      await copyCard(card, path("bad.img")).then((copy) => stageInto(copy, payload)),
    );
    await lives(pi, "a");
    tap.heard.splice(0);
    await pi.run("fruit boot try --reason proof");
    await meanwhile?.(pi);
    await lives(pi, "a", 1);
    await until("said why", () => said("event/boot.rolled-back").length > 0, PATIENCE);
    const now = await status(pi);
    const explained = (await pi.run("fruit boot explain")).out;
    report(what, pi);
    tell(explained.trim().replaceAll(/^/gm, "    "));
    await pi[Symbol.asyncDispose]();
    expect(now).toMatchObject({ running: "a", primary: "a" });
    expect(now.slots.b).toMatchObject({ state: "failed", hash: payload.content.hash });
    expect((await lookAtCard(pi.card)).whole).toContain("a");
    const [event] = said("event/boot.rolled-back");
    expect(event).toMatchObject({ slot: "b", hash: payload.content.hash });
    // Neither the first start nor the last one is a try
    return { console: pi.said, reason: String(event?.reason), tries: pi.starts.length - 2 };
  }

  test(
    "gives up a kernel that dies at once, after all its tries",
    async () => {
      const { console, ...end } = await giveUp(
        "a broken kernel",
        await workshop.withKernel(good, kernelThatResets()),
      );
      expect(console).toContain("slot b has spent its tries");
      expect(end).toEqual({ reason: "never-came-up", tries: 2 });
    },
    2 * PATIENCE,
  );

  test(
    "gives up a system whose first program ends: the kernel panics and starts again by itself",
    async () => {
      const files = { "sbin/init": { text: "#!/bin/busybox sh\nexit 1\n", mode: 0o755 } };
      const { console, ...end } = await giveUp("a broken init", await workshop.release(4n, { files }));
      expect(console).toContain("Attempted to kill init");
      expect(end).toEqual({ reason: "tries-spent", tries: 2 });
    },
    2 * PATIENCE,
  );

  test(
    "gives up a system whose agent cannot start, without that agent's help",
    async () => {
      const agent = path("no-agent");
      writeFileSync(agent, "#!/bin/busybox sh\nexit 1\n");
      const { console: _, ...end } = await giveUp("a dead agent", await workshop.release(5n, { agent }));
      expect(end).toEqual({ reason: "agent-dead", tries: 2 });
    },
    2 * PATIENCE,
  );

  test(
    "gives up a system that does not reach the broker which the old one has reached",
    async () => {
      const { console: _, ...end } = await giveUp("no broker", good, async (pi) => {
        await broker.go();
        await pi.reached("kernel", () => true, { after: 2, limitMs: PATIENCE });
        await broker.come();
        tap = await Tap.at(broker.port);
      });
      expect(end).toEqual({ reason: "check-failed", tries: 1 });
    },
    2 * PATIENCE,
  );

  /** Goes on with whatever this node has to do: install what is newer, try it, and that again. Says what it does. */
  async function goOn(pi: Fruitos, doing: (what: string) => void): Promise<void> {
    for (let after = 0; ; ) {
      doing("starting");
      const start = await pi.reached("ready", () => true, { after, limitMs: PATIENCE });
      after = pi.starts.indexOf(start) + 1;
      doing(start.isTrial ? "on trial" : "up");
      const ask = () => status(pi).catch((error) => (pi.isOn ? undefined : Promise.reject(error)));
      let now = await until("an agent", ask, PATIENCE);
      if (now.trial)
        now = await until("decided", async () => [await ask()].find((it) => it && !it.trial), PATIENCE);
      const { running, slots } = now;
      const other = otherSlot(running);
      const next = Number(slots[running].version) + 1;
      if (next > 3) return;
      if (slots[other].state !== "staged") {
        doing("installing");
        await pi.output(`date -s @1795000000; fruit update install /data/incoming/${next}.fruit`, PATIENCE);
      }
      doing("arming");
      await pi.run("fruit boot try --reason proof");
    }
  }

  /** Looks at a card whose Pi is off: what it starts from, and whatever else it may start, is whole. */
  async function examine(image: string): Promise<string> {
    const { record, whole } = await lookAtCard(image);
    expect(whole).toContain(record.primary);
    const inWords = SLOTS.map((slot) => {
      const { state } = record.slots[slot];
      if (["good", "staged", "trying"].includes(state)) expect(whole).toContain(slot);
      return `${slot} ${state}${whole.includes(slot) ? ", whole" : ""}`;
    });
    return `record ${record.sequence}: from ${record.primary}; ${inWords.join("; ")}`;
  }

  test(
    `comes back whole from ${CUTS} power cuts at any moment of installs and trials, seed ${SEED}`,
    async () => {
      const random = seeded(SEED);
      const image = await copyCard(card, path("cuts.img"));
      for (let cut = 1; cut <= CUTS; cut++) {
        const [isFromReady, waitMs] = [random() < 0.6, random() * 40_000];
        let doing = "off";
        const pi = await switchOn(image);
        const working = goOn(pi, (what) => {
          doing = what;
        }).catch((error) => error);
        if (isFromReady) await pi.reached("ready", () => true, { limitMs: PATIENCE });
        await Bun.sleep(waitMs);
        const [at, last] = [doing, Object.keys(pi.start?.atMs ?? {}).at(-1)];
        await pi[Symbol.asyncDispose]();
        await working;
        tell(`cut ${cut}: ${at} (${last}); ${await examine(image)}`);
      }
      await using pi = await switchOn(image);
      await goOn(pi, () => undefined);
      const { running, slots } = await status(pi);
      expect(slots[running]).toMatchObject({ state: "good", version: "3" });
      report("after all cuts", pi);
      await pi[Symbol.asyncDispose]();
      tell(await examine(image));
    },
    CUTS * 3 * MINUTE,
  );
});

const seconds = (ms: number) => `${(ms / 1000).toFixed(1)} s`;

/** Into the log of the run. */
function tell(line: string): void {
  process.stdout.write(`fruitos: ${line}\n`);
}

/** How long each phase of each start took. */
function report(what: string, { starts }: Fruitos): void {
  for (const [index, { slot = "?", isTrial, atMs }] of starts.entries()) {
    const phases = Object.entries(atMs).slice(1);
    const took = phases.map(([phase, ms], at) => `${phase} ${seconds(ms - (phases[at - 1]?.[1] ?? 0))}`);
    tell(`${what}: start ${index + 1}, slot ${slot}${isTrial ? " on trial" : ""}: ${took.join(", ")}`);
  }
}
