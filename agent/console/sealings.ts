/**
 * The node's end of all console sessions over MQTT: opens them for signed commands, and gives each the frames that come
 * on its topic. The protocol stands in sealed.ts.
 *
 * Invariants
 * - What comes for a session that is not open costs one look into a map: nothing is computed, answered or logged.
 * - When the connection to the broker ends, so do all sessions; nobody's frames wait for the next one.
 * - A session lasts no longer than the right to open it: a key that was taken out of `allowed_signers`, may no more or has expired
 *   is noticed within seconds.
 */
import type { OutletId } from "../../hal/ports.ts";
import { Refusal } from "../commands.ts";
import { ROOT } from "../messages.ts";
import type { Incoming } from "../mqtt/message.ts";
import type { NodeKey } from "../nodekey.ts";
import { COMMAND_NAMESPACE } from "../sign/envelope.ts";
import { isValidAt, type Signers } from "../sign/signers.ts";
import { AgreementError, agree, CONSOLE_NAMESPACE, ephemeral, transcriptOf } from "./agreement.ts";
import { type Limits, SealedChannel, type Way } from "./sealed.ts";
import type { OpenSealed } from "./service.ts";

/** Sessions at once; each may have 64 KiB on its way in either direction. */
const MOST = 8;
/** How often it is looked whether those inside still may be; the file is small and in the page cache. */
const CHECK_MS = 2000;

/** What the sessions are made of. */
export interface SealingsOptions {
  site: string;
  node: string;
  /** How the node proves itself; absent where it has no key, and then nobody gets in. */
  key: NodeKey | undefined;
  /** Who may command; asked again and again while sessions are open. */
  signers: Signers | undefined;
  /** The broker: a frame goes out at once or not at all. */
  frames: {
    readonly hasRoom: boolean;
    send(topic: string, frame: Uint8Array, done: (problem?: string) => void): void;
  };
  limits?: Partial<Limits>;
}

/** The topic of one direction of a session, seen from the node. */
export function topicOf(
  { site, node, id }: { site: string; node: string; id: string },
  direction: "in" | "out",
): string {
  return `${ROOT}/${site}/${node}/console/${id}/${direction}`;
}

/** An open session and whose it is. */
interface Sealing {
  channel: SealedChannel;
  fingerprint: string;
  outlet: OutletId | undefined;
}

/** All sealed sessions of one node. */
export class Sealings {
  readonly #options: SealingsOptions;
  /** By the topic that leads to the node. */
  readonly #open = new Map<string, Sealing>();
  #checking: NodeJS.Timeout | undefined;

  constructor(options: SealingsOptions) {
    this.#options = options;
  }

  /** Begins a session. Throws `Refusal` without a signature, for a key that is none, and when too many are open. */
  open: OpenSealed = ({ key: personKey, id, caller, outlet }) => {
    const { site, node, key, limits } = this.#options;
    if (caller.key === undefined)
      throw new Refusal("unauthorised", "a console session over MQTT needs a signed command");
    if (!key)
      throw new Refusal(
        "failed",
        "this node has no key to prove itself with; its log says why (console.no-key)",
      );
    if (this.#open.size >= MOST)
      throw new Refusal("busy", `${MOST} console sessions over MQTT are open; try again later`);
    const own = ephemeral();
    const opening = { site, node, id, signer: caller.key, personKey, nodeKey: own.publicKey };
    try {
      const transcript = transcriptOf(opening);
      const { toNode, toPerson } = agree(own, personKey, transcript);
      const channel = new SealedChannel({
        keys: { send: toPerson, receive: toNode },
        way: this.#way(topicOf(opening, "out")),
        peer: caller.who,
        isPerson: false,
        ...(limits ? { limits } : {}),
      });
      this.#add(topicOf(opening, "in"), { channel, fingerprint: caller.key, outlet });
      return { channel, answer: { key: own.publicKey, proof: key.sign(CONSOLE_NAMESPACE, transcript) } };
    } catch (cause) {
      if (!(cause instanceof AgreementError)) throw cause;
      throw new Refusal("bad-args", `args.key: ${cause.message}`);
    }
  };

  /** Hands a frame to its session; false when the message is something else. */
  heard({ topic, payload, retain }: Incoming): boolean {
    const { site, node } = this.#options;
    const channel = this.#open.get(topic)?.channel;
    if (channel && retain) channel.refuse("a retained frame came");
    else if (channel) channel.hear(payload);
    return channel !== undefined || topic.startsWith(`${ROOT}/${site}/${node}/console/`);
  }

  /** There is room for frames again: the sessions take turns in being the first. */
  proceed(): void {
    const [first, ...others] = this.#open;
    if (!first) return;
    this.#open.delete(first[0]);
    this.#open.set(...first);
    for (const [, { channel }] of [first, ...others]) channel.proceed();
  }

  /** The connection to the broker has ended. */
  lose(why: string): void {
    for (const { channel } of this.#open.values()) channel.lose(why);
  }

  #add(topic: string, sealing: Sealing): void {
    this.#open.set(topic, sealing);
    void sealing.channel.ended.then(() => this.#open.delete(topic));
    this.#checking ??= this.#checkLater();
  }

  #checkLater(): NodeJS.Timeout {
    return setTimeout(() => {
      for (const sealing of this.#open.values()) {
        const why = this.#lapse(sealing);
        if (why !== undefined) sealing.channel.close(why);
      }
      this.#checking = this.#open.size > 0 ? this.#checkLater() : undefined;
    }, CHECK_MS).unref();
  }

  /** Why the key of a session would not open it now; undefined while it would. */
  #lapse({ fingerprint, outlet }: Sealing): string | undefined {
    const signer = this.#options.signers?.find(fingerprint);
    if (!signer) return "the key is no longer among the allowed signers";
    if (!isValidAt(signer, Date.now() / 1000)) return "the key is no longer valid";
    if (!signer.maySign(COMMAND_NAMESPACE)) return "the key may no longer sign commands";
    if (!signer.roles.has("console") && !signer.roles.has("admin"))
      return "the key no longer has the role console";
    if (outlet !== undefined && !signer.mayOutlet(outlet))
      return `the key may no longer touch outlet ${outlet}`;
    return undefined;
  }

  #way(topic: string): Way {
    const { frames } = this.#options;
    return {
      get hasRoom() {
        return frames.hasRoom;
      },
      send: (frame, done) => frames.send(topic, frame, done),
    };
  }
}
