import { KINDS, type Publish, ROOT, type Tell } from "./messages.ts";
import type { Outgoing } from "./mqtt/message.ts";

/** Which of what the broker has not heard yet is dropped first, by the first level of the kind. */
const CLASSES: Record<string, Outgoing["class"]> = {
  status: "status",
  tele: "tele",
  alarm: "alarm",
  event: "event",
  res: "result",
};

/** Makes the one way this node speaks: the table of messages decides topic, QoS and retain. */
export function createPublisher(
  place: { site: string; node: string; boot: string },
  clock: () => { synced: boolean },
  send: (message: Outgoing) => void,
): { publish: Publish; tell: Tell; topicOf(kind: string, instance: string): string } {
  const topicOf = (kind: string, instance: string) =>
    `${ROOT}/${place.site}/${place.node}/${kind}${instance ? `/${instance}` : ""}`;
  const now = () => (clock().synced ? { ts: Math.floor(Date.now() / 1000) } : {});
  const publish: Publish = (kind, instance, payload) => {
    const { qos, retain } = KINDS[kind];
    const isTelemetry = kind.startsWith("tele/");
    const text =
      payload === null
        ? ""
        : typeof payload === "string"
          ? payload
          : JSON.stringify(isTelemetry ? { ...now(), ...(payload as object) } : payload);
    send({
      topic: topicOf(kind, instance),
      payload: text,
      qos,
      retain,
      class: CLASSES[kind.split("/")[0] ?? ""] ?? "state",
    });
  };
  let seq = 0;
  const tell: Tell = (type, facts) =>
    publish("event", type, { ...facts, seq: ++seq, boot: place.boot, ...now() });
  return { publish, tell, topicOf };
}
