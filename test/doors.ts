/** A site in the test's hands: boards that outlive the agent, people with keys, and somebody who asks over MQTT. */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createConnection } from "node:net";
import { join } from "node:path";
import type { IPublishPacket } from "mqtt";
import type { CommandResult } from "../agent/commands.ts";
import { type CommandPayload, ROOT } from "../agent/messages.ts";
import { sealCommand } from "../agent/sign/envelope.ts";
import { makeKey } from "../agent/sign/keygen.ts";
import { openKey, type SigningKey } from "../agent/sign/keys.ts";
import { type OpName, opName } from "../hal/pistack.ts";
import { Rs485Link } from "../hal/sim/rs485.ts";
import { SimStack } from "../hal/sim/stack.ts";
import { serveBus } from "../hal/sim/wire.ts";
import { Tap } from "./broker.ts";
import { type Agent, startAgent, until } from "./node.ts";

export const SITE = "lab";
export const NODE = "pi1";

/** A Mosquitto for anybody; without the second line Nagle's algorithm adds 40 ms to every answer. */
export const OPEN = ["allow_anonymous true", "set_tcp_nodelay true"];

/** Ops that change what a Pi lives on. */
const SWITCHING: ReadonlySet<OpName> = new Set(["on", "off", "forceOff", "signal", "setOnAtStart"]);

/**
 * Boards of this process on a bus that agents reach by its socket: killing an agent leaves them alone. Their Pis run,
 * and are down at once when asked, so that a test need not wait for them.
 */
export class Boards implements Disposable {
  readonly stack: SimStack;
  readonly device: string;
  /** What was said on the bus, in order: `powered 0.1`, `bootCount 0`. */
  readonly said: string[] = [];
  /** Called before the boards hear it. */
  onRequest: (what: string) => void = () => undefined;
  readonly #end = new AbortController();

  private constructor(stack: SimStack, device: string) {
    this.stack = stack;
    this.device = device;
  }

  static async serve(
    folder: string,
    { boards = [0], wireTime = false }: { boards?: number[]; wireTime?: boolean } = {},
  ): Promise<Boards> {
    // Without heartbeats the current decides that a Pi is down: seconds less than a board takes to miss one.
    const stack = new SimStack({ boards, seed: 1, faults: ["no-heartbeat"] });
    const served = new Boards(stack, join(folder, "rs485.sock"));
    for (const outlet of stack.outlets) {
      stack.on(outlet);
      stack.attach(outlet, {
        powered: () => stack.report(outlet, "running"),
        cut: () => undefined,
        signalled: () => stack.report(outlet, "halted"),
      });
      stack.report(outlet, "running");
    }
    const bus = new Rs485Link(stack, served.device, wireTime);
    const answer = (request: Uint8Array) => {
      served.#hear(request);
      return bus.exchange(request, isReply, 300);
    };
    await serveBus(served.device, answer, isRequest, served.#end.signal);
    return served;
  }

  /** The configuration of an agent that holds this bus; impatient. */
  get power() {
    return {
      buses: [{ driver: "pistack-rs485", device: this.device, boards: this.stack.boards }],
      poll_seconds: 1,
      min_on_seconds: 0,
      off_time_seconds: 2,
      stagger_seconds: 0.2,
      changes_per_hour: 1000,
    };
  }

  /** Every supply as it truly is: `0.0 on, 0.1 off`. */
  get supplies(): string {
    return this.stack.outlets.map((id) => `${id} ${this.stack.pi(id).supply ? "on" : "off"}`).join(", ");
  }

  /** What was said that changes power. */
  get switched(): string[] {
    return this.said.filter((what) => SWITCHING.has(what.split(" ")[0] as OpName));
  }

  /** Waits until the agent has looked at every board once more, from now on. */
  async looked(times = 1): Promise<void> {
    const from = this.said.length;
    const last = this.stack.boards.at(-1);
    await until(
      "the boards were looked at",
      () => this.said.slice(from).filter((what) => what === `bootCount ${last}`).length >= times,
    );
  }

  #hear(request: Uint8Array): void {
    const [code = 0, board = 0, length = 0] = request;
    const op = opName(code) ?? `0x${code.toString(16)}`;
    const what = length > 3 ? `${op} ${board}.${request[3]}` : `${op} ${board}`;
    this.said.push(what);
    this.onRequest(what);
  }

  [Symbol.dispose](): void {
    this.#end.abort();
  }
}

const isRequest = (bytes: Uint8Array) => bytes.length > 3 && bytes.length > (bytes[2] ?? 0);
const isReply = (bytes: Uint8Array) => bytes.length > 3 && bytes.length > (bytes[2] ?? 0);

/** People who may command, each with a key of their own: writes `allowed_signers` and the keys into the folder. */
export async function signers(
  folder: string,
  rights: Record<string, string | undefined>,
): Promise<{ file: string; keys: Record<string, SigningKey>; keyFile(name: string): string }> {
  const file = join(folder, "allowed_signers");
  const keys: Record<string, SigningKey> = {};
  const lines: string[] = [];
  const keyFile = (name: string) => join(folder, `key-${name}`);
  for (const [name, granted] of Object.entries(rights)) {
    const { privateFile, publicLine } = makeKey(name);
    writeFileSync(keyFile(name), privateFile, { mode: 0o600 });
    keys[name] = await openKey(keyFile(name));
    const [type, base64] = publicLine.split(" ");
    if (granted !== undefined) lines.push(`${name} namespaces="fruit-cmd@v1" ${type} ${base64} ${granted}`);
  }
  writeFileSync(file, lines.map((line) => `${line}\n`).join(""));
  return { file, keys, keyFile };
}

/** A command's payload as a correct tool makes it; the id is the caller's to choose. */
export function payload(
  id: string,
  verb: string,
  args: Record<string, unknown> = {},
  more: Partial<CommandPayload> = {},
): CommandPayload {
  const iat = Math.floor(Date.now() / 1000);
  return { id, verb, site: SITE, node: NODE, args, iat, exp: iat + 60, ...more };
}

/** The same, signed. */
export function sealed(key: SigningKey | undefined, ...from: Parameters<typeof payload>): Promise<string> {
  if (!key) throw new Error("no such key");
  return sealCommand(payload(...from), key);
}

/** Somebody at the broker who sends what they like and hears everything. */
export class Person implements AsyncDisposable {
  readonly tap: Tap;
  readonly #base: string;
  #asked = 0;

  private constructor(tap: Tap, node: string) {
    this.tap = tap;
    this.#base = `${ROOT}/${SITE}/${node}`;
  }

  static async at(port: number, { version = 5, node = NODE }: { version?: 4 | 5; node?: string } = {}) {
    return new Person(await Tap.at(port, { protocolVersion: version }), node);
  }

  /** Publishes below the node's base topic. */
  async say(
    path: string,
    text: string | Buffer,
    more: { retain?: boolean; properties?: IPublishPacket["properties"] } = {},
  ): Promise<void> {
    await this.tap.client.publishAsync(path.startsWith(ROOT) ? path : `${this.#base}/${path}`, text, {
      qos: 1,
      ...more,
    });
  }

  /** Publishes with a response topic and waits for the final answer there. */
  async ask(
    path: string,
    text: string | Buffer,
    more: { retain?: boolean; responseTopic?: string } = {},
  ): Promise<CommandResult> {
    const { responseTopic = `${ROOT}/${SITE}/reply/person/${++this.#asked}`, retain = false } = more;
    const seen = this.tap.heard.length;
    await this.say(path, text, { retain, properties: { responseTopic } });
    return this.final(responseTopic, seen);
  }

  /** Waits for the final answer on a topic, among what was heard since. */
  async final(topic: string, since = 0): Promise<CommandResult> {
    return until(`a final answer on ${topic}`, () =>
      this.tap.heard
        .slice(since)
        .filter((message) => message.topic === topic)
        .map(({ text }) => JSON.parse(text) as CommandResult)
        .find(({ state }) => state !== "accepted" && state !== "running"),
    );
  }

  /** What came on `<node>/<path>`, parsed. */
  heard(path: string): Record<string, unknown>[] {
    return this.tap
      .texts(`${this.#base}/${path}`)
      .filter((text) => text !== "")
      .map((text) => JSON.parse(text));
  }

  /** The codes of the refusals told as events. */
  get refusals(): unknown[] {
    return this.heard("event/command.refused").map(({ code }) => code);
  }

  /** Waits until the node's status is this. */
  status(wanted: "online" | "offline"): Promise<unknown> {
    return until(`status ${wanted}`, () => this.tap.texts(`${this.#base}/status`).at(-1) === wanted);
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.tap[Symbol.asyncDispose]();
  }
}

/** A node of its own with boards of its own, and somebody who talks to it. */
export async function place(
  root: string,
  node: string,
  port: number,
  options: {
    version?: 4 | 5;
    boards?: number[];
    wireTime?: boolean;
    settings?: Record<string, unknown>;
  } = {},
) {
  const { version = 5, boards: numbers = [0], wireTime = false, settings = {} } = options;
  const folder = join(root, node);
  mkdirSync(folder);
  const boards = await Boards.serve(folder, { wireTime, boards: numbers });
  const person = await Person.at(port, { version, node });
  const start = () =>
    startAgent(folder, {
      node,
      power: boards.power,
      mqtt: { url: `mqtt://127.0.0.1:${port}`, backoff_max_seconds: 1 },
      ...settings,
    });
  return {
    boards,
    person,
    start,
    folder,
    [Symbol.asyncDispose]: async () => {
      boards[Symbol.dispose]();
      await person[Symbol.asyncDispose]();
    },
  };
}

/** Says something raw on the agent's socket; resolves with all that came back when the agent has closed. */
export function rawAsk(path: string, bytes: string | Uint8Array): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = createConnection(path, () => socket.write(bytes));
    let said = "";
    socket.on("data", (chunk) => {
      said += chunk;
    });
    socket.on("error", reject);
    socket.on("close", () => resolve(said));
  });
}

/** One question on the agent's socket, and all its answers. */
export async function askSocket(
  path: string,
  verb: string,
  args: Record<string, unknown> = {},
  more: Record<string, unknown> = {},
): Promise<CommandResult[]> {
  const text = await rawAsk(path, `${JSON.stringify({ verb, args, ...more })}\n`);
  return text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as CommandResult);
}

/** What is on record of an id: the line of the journal that accepted it, and the one that says how it ended. */
export function journalOf(agent: Pick<Agent, "folder">, id: string) {
  const records = readFileSync(join(agent.folder, "data/journal/journal.jsonl"), "utf8")
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line));
  return {
    accepted: records.find((record) => record.id === id),
    finished: records.findLast((record) => record.finished?.id === id)?.finished as CommandResult | undefined,
  };
}
