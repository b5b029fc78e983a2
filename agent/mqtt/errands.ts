/** What a person does at a broker with a node's own identity: find out why it does not work, and tidy up after a node. */
import { randomBytes } from "node:crypto";
import { lookup } from "node:dns/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { ROOT } from "../messages.ts";
import { counted, EXIT, type Exit } from "../terminal.ts";
import { endpoint, type MqttConfig, openStream } from "./connect.ts";
import { dial } from "./dial.ts";
import type { Link, SendProblem } from "./link.ts";
import type { Incoming } from "./message.ts";

/** Whose errand it is. */
export interface Place {
  config: MqttConfig;
  site: string;
  node: string;
}

/** Says how one step went. */
export type Say = (step: string, isGood: boolean, message: string) => void;

/** What is stored at the broker comes at once; when nothing came for this time, that was all. */
const QUIET_MS = 500;
/** A busy node that is cleared by force is never quiet. */
const STORED_MS = 10_000;
/** A message that has not come back by then does not come back. */
const ECHO_MS = 1_500;
const CLOSE_MS = 500;

/** Goes the agent's way to the broker step by step, and tries the door that must be shut. */
export async function tryBroker({ config, site, node }: Place, say: Say, signal: AbortSignal): Promise<Exit> {
  const { host, isTls, name } = endpoint(config.url);
  const echoes = new Set<string>();
  let link: Link;
  let step = "resolve";
  try {
    const { address } = await lookup(host).catch((cause: Error) => {
      throw new Error(`${host}: ${cause.message}`, { cause });
    });
    say(step, true, host === address ? host : `${host} is ${address}`);
    step = isTls ? "tls" : "tcp";
    const stream = await openStream(config, config.connect_timeout_seconds * 1000, signal);
    stream.destroy();
    say(step, true, isTls ? `${name}: the certificate is the broker's and valid` : `${name} answers`);
    step = "mqtt";
    const onMessage = ({ topic, payload }: Incoming) => void echoes.add(`${topic} ${Buffer.from(payload)}`);
    link = await dial({ config, node, role: "test", onMessage }, signal);
    say(
      step,
      true,
      `connected as ${config.username ?? (config.cert ? "the certificate's name" : "nobody")}, MQTT ${link.version === 5 ? "5" : "3.1.1"}`,
    );
  } catch (error) {
    say(step, false, error instanceof Error ? error.message : String(error));
    return EXIT.unreachable;
  }
  try {
    return await tryTopics(link, { site, node, echoes }, say);
  } finally {
    await link.close(CLOSE_MS);
  }
}

async function tryTopics(
  link: Link,
  { site, node, echoes }: { site: string; node: string; echoes: Set<string> },
  say: Say,
): Promise<Exit> {
  const echo = async (topic: string) => {
    const mark = randomBytes(8).toString("hex");
    const refused = await link.subscribe([{ filter: topic, wantsRetained: false, wantsOwn: true }]);
    if (refused.length > 0) return { isBack: false, why: "the subscription was refused" };
    const problem = await sent(link, topic, mark, false);
    if (problem) return { isBack: false, why: problem.message };
    const until = performance.now() + ECHO_MS;
    while (!echoes.has(`${topic} ${mark}`) && performance.now() < until) await sleep(20);
    return { isBack: echoes.has(`${topic} ${mark}`), why: "it did not come back" };
  };
  const own = `${ROOT}/${site}/${node}/test/main`;
  const mine = await echo(own);
  say("publish", mine.isBack, mine.isBack ? `${own}: written and read back` : `${own}: ${mine.why}`);
  const foreign = `${ROOT}/${site}/not-${node}/test/main`;
  const theirs = await echo(foreign);
  say(
    "acl",
    !theirs.isBack,
    theirs.isBack
      ? `${foreign}: came back; this broker lets every node write for every other (see image/site/mosquitto.acl)`
      : `${foreign}: ${theirs.why}, as it should be`,
  );
  return mine.isBack && !theirs.isBack ? EXIT.done : EXIT.failed;
}

/** Clears every retained topic of a node, its discovery included. */
export async function forget(
  { config, site, node }: Place,
  options: { isForced: boolean; prefix: string },
  say: Say,
  signal: AbortSignal,
): Promise<Exit> {
  const base = `${ROOT}/${site}/${node}`;
  const stored = new Map<string, string>();
  let heardAt = performance.now();
  const onMessage = ({ topic, payload, retain }: Incoming) => {
    heardAt = performance.now();
    if (retain && payload.length > 0) stored.set(topic, Buffer.from(payload).toString());
  };
  const link = await dial({ config, node, role: "forget", onMessage }, signal);
  try {
    const kinds = ["status", "info", "state/#", "alarm/#"].map((kind) => `${base}/${kind}`);
    const filters = [...kinds, `${options.prefix}/device/${node}/#`];
    const refused = await link.subscribe(filters.map((filter) => ({ filter, wantsRetained: true })));
    for (const filter of refused) say("subscribe", false, `${filter}: refused`);
    const until = performance.now() + STORED_MS;
    while (performance.now() < Math.min(heardAt + QUIET_MS, until)) await sleep(QUIET_MS / 5);
    if (stored.get(`${base}/status`) === "online" && !options.isForced) {
      say("status", false, `${node} is online and would publish it all again; stop it first, or --force`);
      return EXIT.refused;
    }
    let isGood = refused.length === 0;
    for (const topic of [...stored.keys()].sort()) {
      const problem = await sent(link, topic, "", true);
      isGood &&= !problem;
      say("clear", !problem, problem ? `${topic}: ${problem.message}` : topic);
    }
    say("forget", isGood, `${counted(stored.size, "retained topic")} of ${node}`);
    return isGood ? EXIT.done : EXIT.failed;
  } finally {
    await link.close(CLOSE_MS);
  }
}

function sent(link: Link, topic: string, payload: string, retain: boolean): Promise<SendProblem | undefined> {
  return new Promise((resolve) => link.send({ topic, payload, qos: 1, retain, class: "state" }, resolve));
}
