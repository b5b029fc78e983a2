/**
 * What this release's commands are called where the command table is not at hand: in offline tools, in doors, in messages.
 * A test holds it to the table.
 */
interface Words {
  /** As a person types it. */
  typed: string;
  /** Changes nothing. */
  isRead?: true;
}

const WORDS: Record<string, Words> = {
  "boot.confirm": { typed: "boot confirm" },
  "boot.explain": { typed: "boot explain", isRead: true },
  "boot.history": { typed: "boot history", isRead: true },
  "boot.rollback": { typed: "boot rollback" },
  "boot.status": { typed: "boot status", isRead: true },
  "boot.try": { typed: "boot try" },
  "console.break": { typed: "console break" },
  "console.kick": { typed: "console kick" },
  "console.list": { typed: "console list", isRead: true },
  "console.open": { typed: "console" },
  "console.set": { typed: "console set" },
  "console.who": { typed: "console who", isRead: true },
  "gpio.get": { typed: "gpio get", isRead: true },
  "gpio.list": { typed: "gpio list", isRead: true },
  "gpio.pulse": { typed: "gpio pulse" },
  "gpio.set": { typed: "gpio set" },
  "gpio.watch": { typed: "gpio watch", isRead: true },
  identify: { typed: "identify" },
  "job.get": { typed: "job get", isRead: true },
  "lock.clear": { typed: "unlock" },
  "lock.list": { typed: "locks", isRead: true },
  "lock.set": { typed: "lock" },
  "power.cycle": { typed: "power cycle" },
  "power.identify": { typed: "power identify" },
  "power.off": { typed: "power off" },
  "power.on": { typed: "power on" },
  "power.policy": { typed: "power policy" },
  "power.reset": { typed: "power reset" },
  "power.scan": { typed: "power scan" },
  "power.shutdown": { typed: "power shutdown" },
  "power.status": { typed: "power status", isRead: true },
  "stack.announce": { typed: "stack announce" },
  "stack.halt": { typed: "stack halt" },
  "stack.status": { typed: "stack status", isRead: true },
  "telemetry.boost": { typed: "telemetry boost" },
  "update.announce": { typed: "update announce" },
  "update.explain": { typed: "update explain", isRead: true },
  "update.history": { typed: "update history", isRead: true },
  "update.now": { typed: "update now" },
  "update.peers": { typed: "update peers", isRead: true },
  "update.status": { typed: "update status", isRead: true },
};

/** Every verb a command can have, in alphabetical order. */
export const KNOWN_VERBS: readonly string[] = Object.keys(WORDS);

/** Flags that make a command a dangerous one. */
const SHARP_FLAGS = ["force", "kick"];

/** Whether a verb only looks, whatever its arguments: nobody need wonder what became of it. */
export function isRead(verb: string): boolean {
  return WORDS[verb]?.isRead === true;
}

/** A command as a person types it, with the flags that make it dangerous: `unlock --kick`. */
export function asTyped(verb: string, args: unknown = {}): string {
  const flags = SHARP_FLAGS.filter((flag) => (args as Record<string, unknown>)[flag] === true);
  return [WORDS[verb]?.typed ?? verb, ...flags.map((flag) => `--${flag}`)].join(" ");
}
