import type { Publish, RaiseAlarm, Tell } from "./messages.ts";

/**
 * The alarms that stand. An alarm is published when it is raised, when its words change, and when it clears,
 * and each of these moments is also an event. The same state twice is said once.
 * The first word on an alarm is always published: the broker may have it from before a restart.
 */
export function createAlarms(publish: Publish, tell: Tell, clock: () => { synced: boolean }): RaiseAlarm {
  /** The words of each alarm that was mentioned; null when it is clear. */
  const said = new Map<string, string | null>();
  return (id, alarm) => {
    const before = said.get(id);
    const words = alarm ? `${alarm.severity} ${alarm.message}` : null;
    if (before === words) return;
    said.set(id, words);
    if (alarm) {
      publish("alarm", id, { id, ...alarm, ...(clock().synced ? { since: new Date().toISOString() } : {}) });
      tell("alarm.raised", { alarm: id, ...alarm });
    } else {
      publish("alarm", id, null);
      if (before !== undefined) tell("alarm.cleared", { alarm: id });
    }
  };
}
