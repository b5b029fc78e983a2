import * as v from "valibot";
import type { Log } from "../log.ts";
import { CAUSES } from "../messages.ts";
import type { Store } from "../store.ts";
import { present } from "./fields.ts";
import type { Time } from "./time.ts";

const Known = v.picklist(["on", "off"]);
const Why = { cause: v.picklist(CAUSES), by: v.optional(v.string()), reason: v.optional(v.string()) };

/** Moments (see `Time`) while the agent runs, Unix milliseconds on the disk. */
const Remembered = v.object({
  /** Last supply that is explained: commanded, or taken note of as changed from outside. */
  supply: v.optional(Known),
  /** When it changed. */
  since: v.optional(v.number()),
  ...Why,
  /** The switch commands of the last hour. */
  changes: v.array(v.number()),
  /** A switch command that was about to be sent: explains the supply when the agent died before it could read back. */
  intent: v.optional(v.object({ supply: Known, at: v.number(), ...Why })),
  /** Kept by us because boards only know on and off. */
  policy: v.optional(v.literal("last")),
  /** Used up by the next return of the mains. */
  once: v.optional(v.picklist(["off", "on", "last"])),
});

/** Why a supply is as it is. */
export interface Reason {
  cause: (typeof CAUSES)[number];
  by?: string | undefined;
  reason?: string | undefined;
}

/** What is kept about one outlet over restarts of the agent. */
export type Remembered = v.InferOutput<typeof Remembered>;

const Document = v.object({
  outlets: v.record(v.string(), Remembered),
  /** Boot counts of the boards: a change means that their supply was lost. */
  boards: v.record(v.string(), v.number()),
});

/** What must be known after a restart to tell our own doing from somebody else's, and to keep the limits. */
export class Memory {
  readonly #store: Store;
  readonly #log: Log;
  readonly #time: Time;
  readonly #document: v.InferOutput<typeof Document>;
  #writing: Promise<void> = Promise.resolve();
  #next: Promise<void> | undefined;

  constructor(store: Store, log: Log, time: Time) {
    this.#store = store;
    this.#time = time;
    this.#log = log;
    this.#document = store.load("power", Document, { outlets: {}, boards: {} });
  }

  outlet(id: string): Remembered {
    this.#document.outlets[id] ??= { cause: "unknown", changes: [] };
    return this.#document.outlets[id];
  }

  get boards(): Record<string, number> {
    return this.#document.boards;
  }

  /** Resolves when all that was changed before is on the disk; askers that come meanwhile share one write. */
  save(): Promise<void> {
    this.#next ??= this.#writing.then(() => {
      this.#next = undefined;
      this.#writing = this.#store
        .save("power", this.#kept())
        // A full disk must not keep anybody from cutting power: the limits then start anew with the agent.
        .catch((error) => this.#log("error", "power.not-kept", { error: String(error) }));
      return this.#writing;
    });
    return this.#next;
  }

  #kept(): v.InferOutput<typeof Document> {
    const unix = (moment: number) => this.#time.unix(moment);
    const kept = (outlet: Remembered): Remembered => ({
      ...outlet,
      changes: outlet.changes.map(unix),
      ...present({
        since: outlet.since === undefined ? undefined : unix(outlet.since),
        intent: outlet.intent && { ...outlet.intent, at: unix(outlet.intent.at) },
      }),
    });
    const { outlets, boards } = this.#document;
    return {
      outlets: Object.fromEntries(Object.entries(outlets).map(([id, outlet]) => [id, kept(outlet)])),
      boards,
    };
  }
}
