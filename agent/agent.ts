/**
 * One node: builds its parts from configuration and hardware, runs them together, stops them together.
 *
 * Invariants
 * - Starting, stopping, crashing or upgrading the agent issues no power command.
 * - A command that a crash interrupted is reported `unconfirmed` at the next start, never redone.
 * - SIGTERM is obeyed within two seconds, with `offline` published.
 */
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Hal } from "../hal/ports.ts";
import { openPower } from "../hal/power.ts";
import { createAlarms } from "./alarms.ts";
import { Audit } from "./audit.ts";
import { createClock } from "./clock.ts";
import type { CommandResult } from "./commands.ts";
import type { Config } from "./config.ts";
import { Dispatcher } from "./dispatch.ts";
import { createGate } from "./gate.ts";
import { factsOf, nodeIdOf } from "./identity.ts";
import { Journal } from "./journal.ts";
import type { Log } from "./log.ts";
import { type Publish, ROOT } from "./messages.ts";
// import { Discovery } from "./mqtt/discovery.ts";
import type { Incoming, Subscription } from "./mqtt/message.ts";
import { openSession, type Session } from "./mqtt/session.ts";
import { nodeCommands } from "./node.ts";
import { type Part, together } from "./parts.ts";
import { createPowerService, type PowerService } from "./power/service.ts";
import { createPublisher } from "./publisher.ts";
import { FailureLimit } from "./sign/limit.ts";
import { SignerFile } from "./sign/signers.ts";
import { openSocket } from "./socket.ts";
import { Store } from "./store.ts";
import { telemetry } from "./telemetry/part.ts";
import { createSampler } from "./telemetry/sampler.ts";
import { BUILD } from "./version.ts";

/** Running commands have this long to report that they were interrupted; the connection's own end needs the rest of two seconds. */
const STOP_MS = 300;
/** How often the clock is looked at again; a change is published in `info`. */
const WATCH_MS = 10_000;
const AUDIT_HEAD_MS = 3_600_000;

/** Topics of other nodes that the controller of their supply reads. */
const NEIGHBOUR_KINDS = ["status", "state/boot", "state/update"] as const;

/** Runs the node until the signal aborts; rejects when a part cannot go on. */
export async function runAgent(config: Config, hal: Hal, log: Log, signal: AbortSignal): Promise<void> {
  const { machine } = hal;
  const { site } = config;
  const node = config.node ?? nodeIdOf(machine);
  const clock = createClock(machine);
  const store = new Store(join(config.data_dir, "state"), log);
  const audit = await Audit.open(join(config.data_dir, "audit"), {
    boot: machine.bootId,
    clock: () => (clock().synced ? "synced" : "unsynced"),
  });
  const journal = await Journal.open(join(config.data_dir, "journal"), {
    nowSeconds: () => Date.now() / 1000,
    log,
  });

  // The session is told what to say from its first moment on, so whoever speaks is made before it.
  let session: Session | undefined;
  const { publish, tell, topicOf } = createPublisher({ site, node, boot: machine.bootId }, clock, (message) =>
    session?.publish(message),
  );
  const alarm = createAlarms(publish, tell, clock);
  const controllers = await Promise.all(config.power.buses.map((bus) => openPower(hal, bus)));
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
    log,
  });
  const sampler = createSampler(machine, {
    filesystems: config.telemetry.filesystems,
    nowMs: () => performance.now(),
  });
  const numbers = telemetry({
    sampler,
    publish,
    config: config.telemetry,
    clock,
    extra: { agent: () => ownNumbers(session, power) },
    log,
  });

  const working = new AbortController();
  const dispatcher = new Dispatcher({
    table: [...power.commands, ...nodeCommands({ machine, journal, boost: numbers.boost })],
    journal,
    audit,
    refusalLimit: new FailureLimit({ burst: 60, secondsEach: 10 }),
    clock,
    log,
    signal: working.signal,
  });
  const facts = factsOf(machine);
  const challenge = createChallenge();
  const publishInfo = () =>
    publish("info", "", {
      v: 1,
      node,
      site,
      ...(config.name === undefined ? {} : { name: config.name }),
      fruit: { version: BUILD.version, commit: BUILD.commit },
      hal: hal.kind,
      boot_id: machine.bootId,
      clock: clock().synced ? "synced" : "unsynced",
      ...(clock().synced ? {} : { challenge: challenge.current() }),
      signed: true,
      verbs: dispatcher.verbs,
      outlets: [...power.outlets],
      intervals: {
        telemetry_seconds: config.telemetry.interval_seconds,
        power_seconds: config.power.poll_seconds,
      },
      ...facts,
    });
  const gate = createGate({
    site,
    node,
    dispatcher,
    signers:
      config.commands.allowed_signers === undefined
        ? undefined
        : new SignerFile(config.commands.allowed_signers, log),
    failures: new FailureLimit(),
    refusals: new FailureLimit(),
    clock,
    challenge: {
      current: challenge.current,
      renew: () => {
        challenge.renew();
        publishInfo();
      },
    },
    unsignedOutlets,
    reply: (to, result) =>
      session?.publish({
        topic: to.topic,
        payload: JSON.stringify(result),
        qos: 1,
        retain: false,
        class: "result",
        ...(to.correlation === undefined ? {} : { correlation: to.correlation }),
      }),
    tell,
    log,
    signal: working.signal,
  });

  if (config.mqtt) {
    session = openSession({
      config: config.mqtt,
      clientId: `fruit-${node}`,
      statusTopic: topicOf("status", ""),
      subscriptions: subscriptionsOf(config, node),
      onMessage: (incoming) => {
        if (!hearNeighbour(power, site, incoming)) void gate(incoming);
      },
      alarm,
      log,
    });
  }
  publishInfo();
  await reportInterrupted(journal, audit, publish, log);
  const door = await openSocket(config.socket, dispatcher, log);
  log("info", "agent.started", { node, site, version: BUILD.version, commit: BUILD.commit, hal: hal.kind });
  tell("agent.started", { version: BUILD.version });

  const connected = new AbortController();
  const link = session?.part(connected.signal) ?? Promise.resolve();
  const stopped = AbortSignal.any([signal, working.signal]);
  const parts = together(
    [door, power.part, numbers.part, watchClock(clock, publishInfo), publishAuditHead(audit, publish)],
    stopped,
  );
  try {
    await Promise.race([parts, failureOf(link)]);
  } finally {
    working.abort();
    await Promise.race([Promise.allSettled([parts, dispatcher.idle()]), sleep(STOP_MS)]);
    connected.abort();
    await link;
    for (const open of [...controllers, journal, audit]) await open.close().catch(() => undefined);
    log("info", "agent.stopped", {});
  }
}

/** Rejects when the part fails, and otherwise never ends: its clean end is not news. */
function failureOf(part: Promise<void>): Promise<never> {
  return new Promise((_, reject) => void part.catch(reject));
}

/** What to listen to: commands to this node and to all, and what the nodes behind this node's outlets say of themselves. */
function subscriptionsOf(config: Config, node: string): Subscription[] {
  const base = `${ROOT}/${config.site}`;
  const fed = Object.values(config.power.outlets).flatMap((outlet) =>
    outlet.node && outlet.node !== node ? [outlet.node] : [],
  );
  return [
    { filter: `${base}/${node}/cmd/+`, wantsRetained: false },
    { filter: `${base}/${node}/set/+/+`, wantsRetained: false },
    { filter: `${base}/all/cmd/+`, wantsRetained: false },
    ...fed.flatMap((other) =>
      NEIGHBOUR_KINDS.map((kind) => ({
        filter: `${base}/${other}/${kind}${kind === "status" ? "" : "/main"}`,
        wantsRetained: true,
      })),
    ),
  ];
}

/** Hands what another node says of itself to the power service; false when the message is something else. */
function hearNeighbour(power: PowerService, site: string, { topic, payload }: Incoming): boolean {
  const [other = "", ...rest] = topic.slice(`${ROOT}/${site}/`.length).split("/");
  const kind = NEIGHBOUR_KINDS.find(
    (known) => rest.join("/") === (known === "status" ? known : `${known}/main`),
  );
  if (!kind) return false;
  power.heard(other, kind, Buffer.from(payload).toString("utf8"));
  return true;
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
    await journal.finish(id, result);
    await audit.append(
      { id, src: "agent", who, verb, decision: "allowed", outcome: "unconfirmed", code: "restarted" },
      { durable: true },
    );
    publish("res", id, result);
  }
}

/** Publishes `info` again when the clock begins or ceases to be right. */
function watchClock(clock: () => { synced: boolean }, publishInfo: () => void): Part {
  return async (signal) => {
    let { synced } = clock();
    while (!signal.aborted) {
      await sleep(WATCH_MS, undefined, { signal }).catch(() => undefined);
      if (clock().synced === synced) continue;
      synced = !synced;
      publishInfo();
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

function createChallenge(): { current(): string; renew(): void } {
  let current = randomBytes(16).toString("base64url");
  return {
    current: () => current,
    renew: () => {
      current = randomBytes(16).toString("base64url");
    },
  };
}

function ownNumbers(session: Session | undefined, power: PowerService) {
  const { reconnects = 0, dropped = 0, buffered = 0 } = session?.stats ?? {};
  return {
    mqtt_reconnects_total: reconnects,
    dropped_total: dropped,
    events_buffered: buffered,
    bus_errors_total: power.counters().crcErrors + power.counters().timeouts + power.counters().otherErrors,
  };
}
