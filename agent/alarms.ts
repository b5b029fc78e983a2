import type { Publish, RaiseAlarm, Tell } from "./messages.ts";

/**
 * The alarms that stand. An alarm is published when it is raised, when its words change, and when it clears,
 * and each of these moments is also an event. The same state twice is said once.
 */
export function createAlarms(publish: Publish, tell: Tell, clock: () => { synced: boolean }): RaiseAlarm {
  const standing = new Map<string, string>();
  return (id, alarm) => {
    const words = alarm ? `${alarm.severity} ${alarm.message}` : undefined;
    if (standing.get(id) === words) return;
    if (alarm && words !== undefined) {
      standing.set(id, words);
      publish("alarm", id, { id, ...alarm, ...(clock().synced ? { since: new Date().toISOString() } : {}) });
      tell("alarm.raised", { alarm: id, ...alarm });
    } else {
      standing.delete(id);
      publish("alarm", id, null);
      tell("alarm.cleared", { alarm: id });
    }
  };
}
