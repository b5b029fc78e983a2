/** What travels between the session and the rest of the agent. */

/** A message for the broker. */
export interface Outgoing {
  topic: string;
  /** A JSON object for the class `event`. Empty clears what is retained. */
  payload: string | Uint8Array;
  qos: 0 | 1;
  retain: boolean;
  /**
   * Decides what is dropped first while the broker is away: `tele` before `event` before `result`. Retained ones are never
   * dropped: their latest value is kept. A `frame` is worth nothing later: it goes at once or not at all.
   */
  class: "status" | "state" | "tele" | "alarm" | "event" | "result" | "frame";
  /** MQTT 5 Correlation Data of the request this answers. */
  correlation?: Uint8Array;
}

/** A message from the broker, as it came; whether it may do anything is decided elsewhere. */
export interface Incoming {
  topic: string;
  payload: Uint8Array;
  /** As published (MQTT 5), or "was stored before we subscribed" (3.1.1). */
  retain: boolean;
  /** The broker may have sent it before. */
  duplicate: boolean;
  responseTopic?: string;
  correlation?: Uint8Array;
}

/** A topic filter to listen to, always QoS 1. */
export interface Subscription {
  filter: string;
  /** Send what is stored, too: wanted for other nodes' status, never for commands. 3.1.1 always sends it. */
  wantsRetained: boolean;
  /** Send what this client published itself, too. */
  wantsOwn?: boolean;
}

/** How many bytes a message takes, as UTF-8. */
export function bytesOf({ topic, payload, correlation }: Outgoing): number {
  return Buffer.byteLength(topic) + Buffer.byteLength(payload) + (correlation?.length ?? 0);
}
