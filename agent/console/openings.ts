/** People who attach from elsewhere: from the promise that `console.open` gives to the end of their channel. */
import { randomUUID } from "node:crypto";
import { HalError } from "../../hal/ports.ts";
import { type Caller, Refusal } from "../commands.ts";
import type { Ask, Channel, Message } from "./channel.ts";
import type { SerialConsole } from "./console.ts";
import type { Attachment, AttachOptions } from "./port.ts";
import type { OpenSealed } from "./service.ts";

/** A session that was promised and is not claimed by then is forgotten. */
const CLAIM_MS = 5000;
const MOST_PROMISED = 64;
/** Whoever types where they may not is told so this often at most. */
const TELL_MS = 3000;

/** What `console.who` says of one person. */
export interface WhoLine {
  console: string;
  /** For `console.kick`. */
  number: number;
  who: string;
  door: string;
  writes: boolean;
  since: string;
  /** Seconds since they typed; absent for somebody who never did. */
  idle_seconds?: number;
  bytes_in: number;
  bytes_out: number;
}

/** Who is attached to a console. */
export function whoLines({ name, attached }: Pick<SerialConsole, "name" | "attached">): WhoLine[] {
  return attached.map(({ number, who, door, writes, since, idleMs, bytesIn, bytesOut }) => ({
    console: name,
    number,
    who,
    door,
    writes,
    since: new Date(since).toISOString(),
    ...(idleMs === undefined ? {} : { idle_seconds: Math.round(idleMs / 1000) }),
    bytes_in: bytesIn,
    bytes_out: bytesOut,
  }));
}

/** How somebody wants to attach. */
export type Wish = Pick<AttachOptions, "wants" | "force" | "replayLines" | "quiet" | "reason">;

/** The sessions of all consoles that begin elsewhere. */
export class Openings {
  readonly #promised = new Map<string, (channel: Channel) => void>();
  #openSealed: OpenSealed | undefined;

  useSealed(open: OpenSealed): void {
    this.#openSealed = open;
  }

  /** Promises a session over the connection that asked; with a key begins it at once over MQTT. Returns what is answered. */
  open(
    console: SerialConsole,
    wish: Wish,
    asked: { id: string; caller: Caller; key?: string | undefined },
  ): Record<string, string> {
    const { id, caller, key } = asked;
    // Over MQTT the frames go by the id of the command that asked
    const session = key === undefined ? randomUUID() : id;
    const { who } = caller;
    console.admit({ who, ...wish });
    if (key === undefined) {
      if (caller.door !== "socket")
        throw new Refusal("bad-args", "args.key: missing; a session over MQTT is sealed with it");
      this.#promise(session, (channel) => serve(console, { who, door: "socket", ...wish }, channel));
      return { session, console: console.name };
    }
    if (!this.#openSealed)
      throw new Refusal("bad-args", "args.key: this node carries no sessions over MQTT; use its socket");
    const { channel, answer } = this.#openSealed({ session, key, id, caller, outlet: console.outlet });
    serve(console, { who, door: "mqtt", ...wish }, channel);
    return { session, console: console.name, ...answer };
  }

  /** Begins a session that was promised; false when nobody promised it. */
  claim(session: string, channel: Channel): boolean {
    const begin = this.#promised.get(session);
    this.#promised.delete(session);
    begin?.(channel);
    return begin !== undefined;
  }

  #promise(session: string, begin: (channel: Channel) => void): void {
    if (this.#promised.size >= MOST_PROMISED)
      throw new Refusal("busy", `${MOST_PROMISED} sessions are about to begin; try again`);
    this.#promised.set(session, begin);
    setTimeout(() => this.#promised.delete(session), CLAIM_MS).unref();
  }
}

/** Ties a channel to a console until either ends. */
function serve(
  console: SerialConsole,
  options: Omit<AttachOptions, "take" | "ended">,
  channel: Channel,
): void {
  let attachment: Attachment;
  try {
    attachment = console.attach({
      ...options,
      take: (item) => channel.send(item),
      ended: (why) => channel.close(why),
    });
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    channel.close(error.message);
    return;
  }
  channel.receive(hearing(console, attachment, channel));
  void channel.ended.then((why) => attachment.detach(why));
}

/** What is done with each message from the other side. */
function hearing(
  console: SerialConsole,
  attachment: Attachment,
  channel: Channel,
): (message: Message) => Promise<void> {
  let toldAt = Number.NEGATIVE_INFINITY;
  const tell = async (why: string) => {
    if (performance.now() - toldAt < TELL_MS) return;
    toldAt = performance.now();
    await channel.send({ kind: "mark", mark: { at: Date.now(), kind: "notice", text: `not sent: ${why}` } });
  };
  return async (message) => {
    if (message.kind === "bytes") {
      const why = await refusalOf(() => attachment.write(message.bytes));
      if (why !== undefined) await tell(why);
    }
    if (message.kind === "ask") {
      let result: unknown;
      const refused = await refusalOf(async () => {
        result = await obey(console, attachment, message.ask);
      });
      const said = refused === undefined ? { result } : { refused };
      await channel.send({ kind: "answer", n: message.n, ...said });
    }
  };
}

async function obey(console: SerialConsole, attachment: Attachment, ask: Ask): Promise<unknown> {
  switch (ask.do) {
    case "break":
      return attachment.sendBreak();
    case "takeover":
      return attachment.takeOver(ask.reason);
    case "release":
      return attachment.release();
    case "who":
      return whoLines(console);
    case "replay":
      return attachment.replay(ask.lines);
  }
}

/** Why something was not done, where a person can be told; anything else is thrown on. */
async function refusalOf(act: () => Promise<void>): Promise<string | undefined> {
  try {
    await act();
    return undefined;
  } catch (error) {
    if (error instanceof Refusal || error instanceof HalError) return error.message;
    throw error;
  }
}
