/**
 * One node: builds its parts from configuration and hardware, runs them together, stops them together.
 *
 * Invariants
 * - Starting, stopping, crashing or upgrading the agent issues no power command.
 * - A command that a crash interrupted is reported `unconfirmed` at the next start, never redone.
 * - SIGTERM is obeyed within two seconds, with `offline` published.
 */
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Hal } from "../hal/ports.ts";
import { openPower } from "../hal/power.ts";
import { slotsData } from "./boot/kernel.ts";
import { openNodeCard } from "./boot/open.ts";
import { createBootService } from "./boot/service.ts";
import { createClock } from "./clock.ts";
import type { CommandResult } from "./commands.ts";
import type { Config } from "./config.ts";
import { createConsoleService } from "./console/service.ts";
import { Dispatcher } from "./dispatch.ts";
import { createGpioService } from "./gpio/service.ts";
import { reportNative } from "./hardware.ts";
import { holdFolder } from "./hold.ts";
import { nodeIdOf } from "./identity.ts";
import type { Log } from "./log.ts";
import type { Publish } from "./messages.ts";
import { nodeCommands } from "./node.ts";
import { type Part, together } from "./parts.ts";
import { openRest } from "./power/rest.ts";
import { createPowerService } from "./power/service.ts";
import { Audit } from "./record/audit.ts";
import { Journal } from "./record/journal.ts";
import { openSocket } from "./socket.ts";
import { createStackRole } from "./stack/service.ts";
import { Store } from "./store.ts";
import { telemetry } from "./telemetry/part.ts";
import { createSampler } from "./telemetry/sampler.ts";
import { kernelConsoles } from "./tty.ts";
import { createUpdateService } from "./update/service.ts";
import { createUplink } from "./uplink.ts";
import { BUILD } from "./version.ts";

/** Running commands have this long to report that they were interrupted; the connection's own end needs the rest of two seconds. */
const STOP_MS = 300;
/** How often the clock is looked at again; a change is published in `info`. */
const WATCH_MS = 10_000;
const AUDIT_HEAD_MS = 3_600_000;

/** Runs the node until the signal aborts; rejects when a part cannot go on. */
export async function runAgent(config: Config, hal: Hal, log: Log, signal: AbortSignal): Promise<void> {
  // Before anything of the node's is opened
  using _held = holdFolder(config.data_dir);
  const { machine } = hal;
  const node = config.node ?? nodeIdOf(machine);
  const clock = createClock(machine);
  const store = new Store(join(config.data_dir, "state"), log);
  const boot = machine.bootId;
  // Closed however this ends, last opened first
  await using opened = new AsyncDisposableStack();
  const audit = await Audit.open(join(config.data_dir, "audit"), {
    boot,
    clock: () => (clock().synced ? "synced" : "unsynced"),
  });
  opened.defer(() => audit.close());
  const journal = await Journal.open(join(config.data_dir, "journal"), {
    nowSeconds: () => Date.now() / 1000,
    log,
  });
  opened.defer(() => journal.close());
  const uplink = createUplink({ config, node, hal: hal.kind, machine, clock, store, log });
  const { publish, tell, alarm } = uplink;
  reportNative(hal, alarm, log);

  const controllers = await Promise.all(config.power.buses.map((bus) => openPower(hal, bus)));
  for (const controller of controllers) opened.defer(() => controller.close().catch(() => undefined));
  const unsignedOutlets = new Set(config.commands.unsigned_outlets);
  const power = createPowerService({
    config: config.power,
    unsignedOutlets,
    node,
    controllers,
    store,
    publish,
    alarm,
    tell,
    teleSeconds: config.telemetry.groups.power ?? config.telemetry.interval_seconds,
    log,
  });
  const role = createStackRole({ config: config.stack, hal, publish, alarm, tell, log });
  const gpio = createGpioService({ config, hal, hasStackRole: role.isOn });
  opened.defer(() => gpio.close());
  const consoles = createConsoleService({
    config: config.consoles,
    hal,
    outlets: power,
    publish,
    alarm,
    tell,
    audit: (entry) =>
      void audit
        .append(entry, { durable: false })
        .catch((error) => log("error", "audit.failed", { error: String(error) })),
    teleSeconds: config.telemetry.groups.console ?? config.telemetry.interval_seconds,
    kernelConsoles: kernelConsoles(machine),
    clock,
    log,
  });
  consoles.useSealed(uplink.openSealed);
  const { filesystems } = config.telemetry;
  const numbers = telemetry({
    sampler: createSampler(machine, { filesystems, nowMs: () => performance.now() }),
    publish,
    config: config.telemetry,
    clock,
    extra: {
      agent: () => {
        const { crcErrors, timeouts, otherErrors } = power.counters();
        return {
          ...uplink.numbers(),
          bus_errors_total: crcErrors + timeouts + otherErrors,
          serial_errors_total: consoles.errors(),
        };
      },
    },
    log,
  });

  const slots = createBootService({
    config: config.boot,
    dataDir: slotsData(machine, config.data_dir),
    socket: config.socket,
    hal,
    open: () => openNodeCard(hal, config.boot.disk, "write"),
    isBrokerReached: () => uplink.isOnline,
    buses: power.answering,
    isStackBeating: () => role.isBeating,
    isPowerBusy: () => power.isBusy,
    following: () => updates.following,
    clock,
    ...{ publish, tell, alarm, log },
  });
  const updates = createUpdateService({
    ...{ config, node, hal, clock, alarm, log, slots: slots.slots, link: uplink.heads },
    dataDir: slotsData(machine, config.data_dir),
    isPowerBusy: () => power.isBusy,
  });
  uplink.heads.listen(updates.heard);

  const working = new AbortController();
  // At once for commands too: what they say of it must still find its way through the socket.
  const stopping = AbortSignal.any([signal, working.signal]);
  const dispatcher = new Dispatcher({
    table: [
      ...power.commands,
      ...consoles.commands,
      ...gpio.commands,
      ...role.commands,
      ...slots.commands,
      ...updates.commands,
      ...nodeCommands({ machine, journal, boost: numbers.boost }),
    ],
    journal,
    audit,
    clock,
    log,
    signal: stopping,
  });
  uplink.listen(dispatcher, power, stopping);
  await reportInterrupted(journal, audit, publish, log);
  const door = await openSocket(config.socket, dispatcher, log, consoles.claim);
  const rest = await openRest(config.power.rest, dispatcher, { alarm, log });
  log("info", "agent.started", {
    node,
    site: config.site,
    version: BUILD.version,
    commit: BUILD.commit,
    hal: hal.kind,
  });
  tell("agent.started", { version: BUILD.version });
  await audit
    .append({ src: "agent", who: "agent", verb: "agent.start", decision: "allowed" }, { durable: false })
    .catch((error) => log("error", "audit.failed", { error: String(error) }));

  const connected = new AbortController();
  const link = uplink.part(connected.signal);
  const parts = together(
    [
      door,
      rest,
      power.part,
      consoles.part,
      role.part,
      slots.part,
      updates.part,
      numbers.part,
      uplink.announce,
      watchClock(clock, uplink.introduce),
      publishAuditHead(audit, publish),
    ],
    stopping,
  );
  try {
    await Promise.race([parts, failureOf(link)]);
  } finally {
    working.abort();
    await Promise.race([Promise.allSettled([parts, dispatcher.idle()]), sleep(STOP_MS)]);
    connected.abort();
    await link.catch(() => undefined);
    log("info", "agent.stopped", {});
  }
}

/** Rejects when the part fails, and otherwise never ends: its clean end is not news. */
function failureOf(part: Promise<void>): Promise<never> {
  return new Promise((_, reject) => void part.catch(reject));
}

/** Commands that the last run accepted and never finished: said once, and over. */
async function reportInterrupted(journal: Journal, audit: Audit, publish: Publish, log: Log): Promise<void> {
  for (const { id, verb, who } of journal.unfinished()) {
    const result: CommandResult = {
      id,
      verb,
      state: "unconfirmed",
      code: "restarted",
      message: "the agent stopped while this ran; look at the state before you ask again",
      by: who,
    };
    log("warn", "command.interrupted", { id, verb, who });
    publish("res", id, result);
    const entry = {
      id,
      src: "agent",
      who,
      verb,
      decision: "allowed",
      outcome: "unconfirmed",
      code: "restarted",
    } as const;
    // A full disk must not keep a node from starting; it is said again at the next start.
    await journal
      .finish(id, result)
      .then(() => audit.append(entry, { durable: true }))
      .catch((error) => log("error", "journal.failed", { id, error: String(error) }));
  }
}

/** Publishes `info` again when the clock begins or ceases to be right. */
function watchClock(clock: () => { synced: boolean }, introduce: () => void): Part {
  return async (signal) => {
    let { synced } = clock();
    while (!signal.aborted) {
      await sleep(WATCH_MS, undefined, { signal }).catch(() => undefined);
      if (clock().synced === synced) continue;
      synced = !synced;
      introduce();
    }
  };
}

/** Publishes the newest line of the audit log at once and each hour after a change. */
function publishAuditHead(audit: Audit, publish: Publish): Part {
  return async (signal) => {
    let said = 0;
    while (!signal.aborted) {
      const head = audit.head();
      if (head && head.seq !== said)
        publish("state/audit", "main", { ...head, at: new Date().toISOString() });
      said = head?.seq ?? 0;
      await sleep(AUDIT_HEAD_MS, undefined, { signal }).catch(() => undefined);
    }
  };
}
