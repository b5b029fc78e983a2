/** This node's end of the link to its site: what it says, what it hears, and who it hears it from. */
import { randomBytes } from "node:crypto";
import type { Machine } from "../hal/ports.ts";
import { createAlarms } from "./alarms.ts";
import type { Config } from "./config.ts";
import { Sealings } from "./console/sealings.ts";
import type { OpenSealed } from "./console/service.ts";
import type { Dispatcher } from "./dispatch.ts";
import { createGate } from "./gate.ts";
import { factsOf } from "./identity.ts";
import type { Log } from "./log.ts";
import { type Publish, type RaiseAlarm, ROOT, type Tell } from "./messages.ts";
import { Discovery } from "./mqtt/discovery.ts";
import { discoveryFacts } from "./mqtt/facts.ts";
import type { SendProblem } from "./mqtt/link.ts";
import type { Incoming, Subscription } from "./mqtt/message.ts";
import { openSession, type Session } from "./mqtt/session.ts";
import { type NodeKey, openNodeKey } from "./nodekey.ts";
import type { Part } from "./parts.ts";
import type { PowerService } from "./power/service.ts";
import { createPublisher } from "./publisher.ts";
import { FailureLimit } from "./sign/limit.ts";
import { SignerFile } from "./sign/signers.ts";
import type { Store } from "./store.ts";
import type { HeadLink } from "./update/broker.ts";
import { BUILD } from "./version.ts";

/** Topics of other nodes that the controller of their supply reads. */
const NEIGHBOUR_KINDS = ["status", "state/boot", "state/update"] as const;

/** Who and where this node is, and what it is made of. */
export interface UplinkOptions {
  config: Config;
  node: string;
  hal: "linux" | "sim";
  machine: Machine;
  clock: () => { synced: boolean };
  store: Store;
  log: Log;
}

/** Speaks from the first moment on; listens once `listen` has said who answers. */
export interface Uplink {
  publish: Publish;
  tell: Tell;
  alarm: RaiseAlarm;
  /** The broker is reached, and greeted. */
  readonly isOnline: boolean;
  /** Figures for `tele/agent`. */
  numbers(): { mqtt_reconnects_total: number; dropped_total: number; events_buffered: number };
  /** Publishes `info`, and says who runs the commands that come in. `signal` aborts when they no longer may. */
  listen(dispatcher: Dispatcher, power: PowerService, signal: AbortSignal): void;
  /** Begins a console session over MQTT. */
  openSealed: OpenSealed;
  /** Heads of releases, as the broker keeps them for all nodes of the site. */
  heads: HeadLink & { listen(heard: (head: Uint8Array) => void): void };
  /** Publishes `info` again: the clock, or the challenge, has changed. */
  introduce(): void;
  /** The connection; to be stopped last, so that what the other parts say in the end still goes out. */
  part: Part;
  /** Keeps Home Assistant's view true. */
  announce: Part;
}

/** Makes the link. Without a broker in the configuration it says nothing and hears nothing. */
export function createUplink(options: UplinkOptions): Uplink {
  const { config, node, machine, clock, store, log } = options;
  const { site, mqtt } = config;
  let hear: (incoming: Incoming) => void = () => undefined;
  let introduce: () => void = () => undefined;
  let hearHead: (head: Uint8Array) => void = () => undefined;
  const headTopic = `${ROOT}/${site}/all/head/`;
  let session: Session | undefined;
  let discovery: Discovery | undefined;

  const { publish, tell, topicOf } = createPublisher(
    { site, node, boot: machine.bootId },
    clock,
    (message) => {
      discovery?.observe(message);
      session?.publish(message);
    },
  );
  const alarm = createAlarms(publish, tell, clock);
  const facts = factsOf(machine);
  const key = nodeKey(options);
  const { allowed_signers } = config.commands;
  const signers = allowed_signers === undefined ? undefined : new SignerFile(allowed_signers, log);
  const sealed = new Sealings({
    site,
    node,
    key,
    signers,
    frames: {
      get hasRoom() {
        return session?.hasRoom ?? false;
      },
      send: (topic, frame, done) =>
        session?.sendFrame(topic, frame, (problem) => done(problem && inWords(problem, topic))),
    },
  });
  if (mqtt) {
    session = openSession({
      config: mqtt,
      clientId: `fruit-${node}`,
      statusTopic: topicOf("status", ""),
      subscriptions: subscriptionsOf(config, node),
      onMessage: (incoming) => {
        if (incoming.topic.startsWith(headTopic)) hearHead(incoming.payload);
        else if (!sealed.heard(incoming)) hear(incoming);
      },
      onRoom: () => sealed.proceed(),
      onLost: (why) => sealed.lose(`the node lost its broker: ${why}`),
      alarm,
      log,
    });
  }
  const idle: Part = (signal) =>
    new Promise((resolve) => {
      if (signal.aborted) resolve();
      signal.addEventListener("abort", () => resolve(), { once: true });
    });

  return {
    publish,
    tell,
    alarm,
    get isOnline() {
      return session?.isOnline ?? false;
    },
    numbers: () => {
      const { reconnects = 0, dropped = 0, buffered = 0 } = session?.stats ?? {};
      return { mqtt_reconnects_total: reconnects, dropped_total: dropped, events_buffered: buffered };
    },
    openSealed: sealed.open,
    heads: {
      get isOnline() {
        return session?.isOnline ?? false;
      },
      publish: (id, head) => {
        if (!session?.hasRoom) return false;
        session.sendFrame(`${headTopic}${id}`, head, () => undefined, true);
        return true;
      },
      listen: (heard) => {
        hearHead = heard;
      },
    },
    introduce: () => introduce(),
    part: session?.part ?? idle,
    announce: (signal) => discovery?.part(signal) ?? idle(signal),
    listen: (dispatcher, power, signal) => {
      const challenge = createChallenge();
      introduce = () =>
        publish("info", "", {
          v: 1,
          node,
          site,
          ...(config.name === undefined ? {} : { name: config.name }),
          fruit: { version: BUILD.version, commit: BUILD.commit },
          hal: options.hal,
          boot_id: machine.bootId,
          clock: clock().synced ? "synced" : "unsynced",
          ...(clock().synced ? {} : { challenge: challenge.current() }),
          signed: true,
          ...(key ? { key: key.fingerprint } : {}),
          verbs: dispatcher.verbs,
          outlets: [...power.outlets],
          intervals: {
            telemetry_seconds: config.telemetry.interval_seconds,
            power_seconds: config.power.poll_seconds,
          },
          ...facts,
        });
      if (!session) return;
      const speaker = session;
      const announcer = new Discovery({
        isEnabled: mqtt?.discovery ?? false,
        facts: discoveryFacts(config, node, facts, power.outlets),
        session,
        store,
        log,
      });
      discovery = announcer;
      const gate = createGate({
        site,
        node,
        dispatcher,
        signers,
        failures: new FailureLimit(),
        verifications: new FailureLimit({ burst: 200, secondsEach: 1 / 200 }),
        refusals: new FailureLimit(),
        clock,
        challenge: {
          current: challenge.current,
          renew: () => {
            challenge.renew();
            introduce();
          },
        },
        unsignedOutlets: new Set(config.commands.unsigned_outlets),
        reply: ({ topic, correlation }, result) =>
          speaker.publish({
            topic,
            payload: JSON.stringify(result),
            qos: 1,
            retain: false,
            class: "result",
            ...(correlation === undefined ? {} : { correlation }),
          }),
        tell,
        log,
        signal,
      });
      hear = (incoming) => {
        if (!announcer.heard(incoming) && !hearNeighbour(power, site, node, incoming)) void gate(incoming);
      };
      introduce();
    },
  };
}

const hasConsoles = ({ consoles }: Config) => Object.keys(consoles).length > 0;

/** The node's own key, where it has something to prove with it. Without one it goes on: a person has to see to it. */
function nodeKey({ config, node, log }: UplinkOptions): NodeKey | undefined {
  if (!config.mqtt || !hasConsoles(config)) return undefined;
  try {
    const key = openNodeKey(config.data_dir, `${config.site}/${node}`);
    log("info", "console.key", { fingerprint: key.fingerprint });
    return key;
  } catch (error) {
    log("error", "console.no-key", { error: error instanceof Error ? error.message : String(error) });
    return undefined;
  }
}

/** Why a frame did not get out, for whoever is at the other end of the line. */
function inWords({ kind, message }: SendProblem, topic: string): string {
  return kind === "lost"
    ? `the node lost its broker: ${message}`
    : `the node's broker does not take ${topic}: ${message}`;
}

/** What to listen to: commands to this node and to all, heads of what it follows, console sessions, Home Assistant's birth, and what the nodes behind this node's outlets say of themselves. */
function subscriptionsOf(config: Config, node: string): Subscription[] {
  const base = `${ROOT}/${config.site}`;
  const fed = Object.values(config.power.outlets).flatMap((outlet) =>
    outlet.node && outlet.node !== node ? [outlet.node] : [],
  );
  return [
    { filter: `${base}/${node}/cmd/+`, wantsRetained: false },
    { filter: `${base}/${node}/set/+/+`, wantsRetained: false },
    { filter: `${base}/all/cmd/+`, wantsRetained: false },
    ...(config.update.target === undefined ? [] : [{ filter: `${base}/all/head/+`, wantsRetained: true }]),
    ...(hasConsoles(config) ? [{ filter: `${base}/${node}/console/+/in`, wantsRetained: false }] : []),
    ...(config.mqtt?.discovery
      ? [{ filter: `${config.mqtt.discovery_prefix}/status`, wantsRetained: false }]
      : []),
    ...fed.flatMap((other) =>
      NEIGHBOUR_KINDS.map((kind) => ({
        filter: `${base}/${other}/${kind}${kind === "status" ? "" : "/main"}`,
        wantsRetained: true,
      })),
    ),
  ];
}

/** Hands what another node says of itself to the power service; false when the message is something else. */
function hearNeighbour(
  power: PowerService,
  site: string,
  node: string,
  { topic, payload }: Incoming,
): boolean {
  const [other = "", ...rest] = topic.slice(`${ROOT}/${site}/`.length).split("/");
  const kind = NEIGHBOUR_KINDS.find(
    (known) => rest.join("/") === (known === "status" ? known : `${known}/main`),
  );
  if (!kind || other === node) return false;
  power.heard(other, kind, Buffer.from(payload).toString("utf8"));
  return true;
}

function createChallenge(): { current(): string; renew(): void } {
  const fresh = () => randomBytes(16).toString("base64url");
  let current = fresh();
  return {
    current: () => current,
    renew: () => {
      current = fresh();
    },
  };
}
