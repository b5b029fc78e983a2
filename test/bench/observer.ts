/** A stranger at the broker who hears everything and keeps the books: `mosquitto_sub` in a process of its own. */
import type { CommandResult } from "../../agent/commands.ts";

/** What one node was heard to say. */
export interface Heard {
  isOnline: boolean;
  /** Messages of each telemetry topic. */
  telemetry: Map<string, number>;
  /** Longest time between two telemetry sets, and when the last came. */
  longestMs: number;
  lastMs: number | undefined;
  /** Events, the last `seq`, and how many numbers were left out before it. */
  events: number;
  lastSeq: number;
  gaps: number;
  /** Final results of commands. */
  finals: number;
  /** Lost or still waiting, in the node's own words. */
  dropped: number;
}

/** Listens until it is disposed of. */
export class Observer implements AsyncDisposable {
  readonly nodes = new Map<string, Heard>();
  /** Every message, whoever sent it, and those of them that were sent to be retained. */
  messages = 0;
  retained = 0;
  readonly #child: Bun.Subprocess<"ignore", "pipe", "inherit">;

  constructor(port: number) {
    this.#child = Bun.spawn(
      [
        "mosquitto_sub",
        "-p",
        String(port),
        "-q",
        "1",
        "-t",
        "fruit/#",
        "-t",
        "homeassistant/#",
        "-V",
        "5",
        "--retain-as-published",
        "-F",
        "%r %t %p",
      ],
      { stdin: "ignore", stdout: "pipe", stderr: "inherit" },
    );
    void this.#listen();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill();
    await this.#child.exited;
  }

  async #listen(): Promise<void> {
    let rest = "";
    for await (const chunk of this.#child.stdout.pipeThrough(new TextDecoderStream())) {
      const lines = (rest + chunk).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) this.#hear(line);
    }
  }

  #hear(line: string): void {
    this.messages++;
    if (line.startsWith("1")) this.retained++;
    const end = line.indexOf(" ", 2);
    const [root, , , name = "", kind, ...instance] = line.slice(2, end).split("/");
    if (root !== "fruit" || name === "all") return;
    const node = this.nodes.get(name) ?? newcomer();
    this.nodes.set(name, node);
    const payload = line.slice(end + 1);
    if (kind === "status") node.isOnline = payload === "online";
    else if (kind === "tele") hearTelemetry(node, instance, payload);
    else if (kind === "event") hearEvent(node, JSON.parse(payload) as { seq: number });
    else if (kind === "res") {
      const { state } = JSON.parse(payload) as CommandResult;
      if (state !== "accepted" && state !== "running") node.finals++;
    }
  }
}

function newcomer(): Heard {
  return {
    isOnline: false,
    telemetry: new Map(),
    longestMs: 0,
    lastMs: undefined,
    events: 0,
    lastSeq: 0,
    gaps: 0,
    finals: 0,
    dropped: 0,
  };
}

function hearTelemetry(node: Heard, instance: readonly string[], payload: string): void {
  const topic = instance.join("/");
  node.telemetry.set(topic, (node.telemetry.get(topic) ?? 0) + 1);
  // The last group of a set.
  if (instance[0] !== "agent") return;
  const nowMs = performance.now();
  if (node.lastMs !== undefined) node.longestMs = Math.max(node.longestMs, nowMs - node.lastMs);
  node.lastMs = nowMs;
  const { dropped_total = 0, events_buffered = 0 } = JSON.parse(payload) as Record<string, number>;
  node.dropped = dropped_total + events_buffered;
}

function hearEvent(node: Heard, { seq }: { seq: number }): void {
  node.events++;
  node.gaps += Math.max(0, seq - node.lastSeq - 1);
  node.lastSeq = seq;
}
