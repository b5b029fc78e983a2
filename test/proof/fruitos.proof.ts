/**
 * fruitos on an emulated Pi 3: the image as it is built, the stock U-Boot, the arm64 executable, a Mosquitto on this machine. A good
 * release is installed and kept; each bad one is given up by the node itself, which then says why.
 *
 * Emulation, not hardware: the SD card takes every write that it acknowledged, and the watchdog is the kernel's own (softdog).
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { HAS_MOSQUITTO, NEEDS_MOSQUITTO } from "../broker.ts";
import { missingForEmulator } from "../emulator/cache.ts";
import { copyCard, type Fruitos, lookAtCard } from "../emulator/fruitos.ts";
import { flashed, Lab, report, seconds, tell } from "../emulator/lab.ts";
import { LIMITS } from "../emulator/limits.ts";
import {
  DATA_MIB,
  kernelThatResets,
  type Payload,
  type Release,
  stageInto,
  Workshop,
} from "../emulator/releases.ts";
import { until } from "../node.ts";

const PATIENCE = LIMITS.trial;

const missing = missingForEmulator() ?? (HAS_MOSQUITTO ? undefined : NEEDS_MOSQUITTO);

describe.skipIf(missing !== undefined)(`fruitos in emulation${missing ? ` [needs: ${missing}]` : ""}`, () => {
  const folder = mkdtempSync(join(tmpdir(), "fruit-proof-"));
  const path = (name: string) => join(folder, name);
  let lab: Lab;
  let workshop: Workshop;
  let server: Bun.Server<undefined>;
  /** The card as it was built; from the first test on as it is once the node has run and has reached its broker. */
  let card: string;
  let good: Release;

  beforeAll(async () => {
    lab = await Lab.open();
    const beganMs = performance.now();
    workshop = await Workshop.open(folder);
    good = await workshop.release(2n);
    card = await flashed(workshop, 1n, [good]);
    // The small files of a release come over the network, which is slow in this machine; the large one is on the card
    const served = new Map([good.update, good.side].map((file) => [`/${basename(file)}`, file]));
    server = Bun.serve({
      ...{ port: 0, hostname: "127.0.0.1" },
      fetch: ({ url }) => {
        const file = served.get(new URL(url).pathname);
        return file === undefined ? new Response(null, { status: 404 }) : new Response(Bun.file(file));
      },
    });
    tell(`a card and a release built: ${seconds(performance.now() - beganMs)}`);
  }, PATIENCE);

  afterAll(async () => {
    server?.stop(true);
    await lab?.[Symbol.asyncDispose]();
    rmSync(folder, { recursive: true, force: true });
  });

  test(
    "starts from slot a at first, takes its configuration, grows its data, and reaches its broker",
    async () => {
      await using pi = await lab.switchOn(card);
      await lab.lives(pi, "a");
      const [, mebibytes, before] = /partition 4 has (\d+) MiB now, it had (\d+)/.exec(pi.said) ?? [];
      expect(Number(before)).toBe(DATA_MIB);
      const [, blocks, kibibytes] = /is now (\d+) \((\d)k\) blocks long/.exec(pi.said) ?? [];
      expect((Number(blocks) * Number(kibibytes)) / 1024).toBe(Number(mebibytes));
      expect(await pi.output("hostname; cat /etc/fruit/release.json")).toMatch(/^pi1\n[\s\S]*"version": "1"/);
      expect(await lab.status(pi)).toMatchObject({
        running: "a",
        primary: "a",
        slots: { b: { state: "empty" } },
      });
      expect((await pi.run("fruit boot status")).out).toMatch(/^running +slot a, version 1, good$/m);
      expect(lab.said("state/boot/main").at(-1)).toMatchObject({
        active: "a",
        trial: false,
        confirmed: true,
      });
      // What a person had put onto the boot partition is on the data partition now, and only there
      const p1 =
        "mkdir -p /tmp/p1 && mount -t vfat -o ro /dev/mmcblk0p1 /tmp/p1 && ls /tmp/p1; umount /tmp/p1";
      expect(await pi.output(p1)).not.toMatch(/node\.json|trust\.json/);
      expect(await pi.output("ls /data/fruit")).toMatch(/node\.json[\s\S]*trust\.json/);
      // The yardstick of later trials
      await lab.hasBaseline(pi);
      report("first start", pi);
    },
    PATIENCE,
  );

  test(
    "installs a release from standard input into slot b, tries it, keeps it, and starts from it ever after",
    async () => {
      await using pi = await lab.switchOn(await copyCard(card, path("update.img")));
      await lab.lives(pi, "a");
      lab.forget();
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
      await lab.tries(pi);
      await pi.reached("initramfs", ({ slot, isTrial }) => slot === "b" && isTrial, { limitMs: PATIENCE });
      await until("kept", () => lab.said("event/boot.trial.confirmed").length > 0, PATIENCE);
      expect(lab.said("event/boot.trial.confirmed")).toEqual([
        expect.objectContaining({ slot: "b", version: "2", hash: good.content.hash }),
      ]);
      await pi.reached("ready", ({ isTrial }) => isTrial);
      const now = await lab.status(pi);
      expect(now).toMatchObject({ running: "b", primary: "b", slots: { a: { state: "good" } } });
      expect(now.slots.b).toMatchObject({ state: "good", hash: good.content.hash });
      await pi.run("sync; (sleep 1; reboot -f) >/dev/null 2>&1 &");
      await lab.lives(pi, "b");
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
    await using pi = await lab.switchOn(
      await copyCard(card, path("bad.img")).then((copy) => stageInto(copy, payload)),
    );
    await lab.lives(pi, "a");
    lab.forget();
    await lab.tries(pi);
    await meanwhile?.(pi);
    await lab.lives(pi, "a", 1);
    await until("said why", () => lab.said("event/boot.rolled-back").length > 0, PATIENCE);
    const now = await lab.status(pi);
    const told = (await pi.run("fruit boot explain; fruit boot status")).out;
    report(what, pi);
    tell(`told:\n${told.trim().replaceAll(/^/gm, "    ")}`);
    expect(told).toMatch(/^last +.*slot b/m);
    await pi[Symbol.asyncDispose]();
    expect(now).toMatchObject({ running: "a", primary: "a" });
    expect(now.slots.b).toMatchObject({ state: "failed", hash: payload.content.hash });
    expect((await lookAtCard(pi.card)).whole).toContain("a");
    const [event] = lab.said("event/boot.rolled-back");
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
      let onTrial = "";
      const { console: _, ...end } = await giveUp("no broker", good, (pi) =>
        lab.without(async () => {
          await pi.reached("ready", ({ isTrial }) => isTrial, { limitMs: PATIENCE });
          const isOut = async () => {
            onTrial = (await pi.run("fruit boot status")).out;
            return /^broker +bad /m.test(onTrial);
          };
          await until("its status names the broker", isOut, PATIENCE);
          await pi.reached("kernel", () => true, { after: 2, limitMs: PATIENCE });
        }),
      );
      tell(`on trial:\n${onTrial.trim().replaceAll(/^/gm, "    ")}`);
      expect(onTrial).toMatch(/^running +slot b, version 2, trying$/m);
      expect(onTrial).toMatch(/^trial +slot b, version 2: try 1, 1 try left, decided within /m);
      expect(end).toEqual({ reason: "check-failed", tries: 1 });
    },
    2 * PATIENCE,
  );
});
