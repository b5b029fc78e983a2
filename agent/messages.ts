/**
 * Everything this node says on MQTT: the contract that consumers build on.
 * The JSON Schemas and the AsyncAPI document that `fruit mqtt schema` prints are made from this table,
 * and `publish` accepts nothing else.
 *
 * Topics: `fruit/v1/<site>/<node>/<kind>[/<instance>]`, fixed depth per kind. Missing means absent, never null or 0.
 * Adding a key is compatible; consumers ignore keys they do not know; anything else needs `v2` in the topic.
 */
import * as v from "valibot";
import { COMMAND_STATES, CommandResult } from "./commands.ts";
import { type Group, METRICS } from "./telemetry/metrics.ts";

/** First two levels of every topic; `v1` changes only with an incompatible shape. */
export const ROOT = "fruit/v1";

const Time = v.pipe(v.string(), v.isoTimestamp(), v.description("RFC 3339, UTC"));
const UnixSeconds = v.pipe(
  v.number(),
  v.description("Unix seconds; absent while the clock is not synchronised"),
);
const OutletName = v.pipe(v.string(), v.regex(/^\d+\.\d+$/), v.description("<board>.<pi>"));

/** Supply and host are two axes and never merged into one word. */
export const SUPPLIES = ["on", "off", "unknown"] as const;
export const HOSTS = ["off", "starting", "running", "stopping", "halted", "silent", "unknown"] as const;
export const CAUSES = [
  "operator",
  "policy-restore",
  "peer-request",
  "watchdog",
  "external",
  "unknown",
] as const;
export const POWER_VERBS = ["on", "off", "cycle", "reset", "shutdown", "identify", "policy"] as const;

export const Lock = v.object({
  outlet: OutletName,
  owner: v.string(),
  reason: v.string(),
  since: Time,
  until: Time,
});
export type Lock = v.InferOutput<typeof Lock>;

export const OutletState = v.object({
  v: v.literal(1),
  outlet: OutletName,
  name: v.optional(v.string()),
  node: v.optional(v.pipe(v.string(), v.description("The node this outlet feeds, where configured"))),
  supply: v.picklist(SUPPLIES),
  host: v.picklist(HOSTS),
  busy: v.nullable(v.pipe(v.string(), v.description("The verb under way"))),
  lock: v.nullable(v.omit(Lock, ["outlet"])),
  verbs: v.array(v.picklist(POWER_VERBS)),
  since: v.optional(Time),
  cause: v.picklist(CAUSES),
  by: v.optional(v.string()),
  reason: v.optional(v.string()),
  policy: v.optional(v.picklist(["off", "on", "last"])),
  policy_once: v.optional(v.picklist(["off", "on", "last"])),
  source: v.picklist(["board", "stale"]),
  read_at: v.optional(Time),
  error: v.optional(v.pipe(v.string(), v.description("Why the board could not be read"))),
  heartbeat: v.optional(v.boolean()),
  node_status: v.optional(
    v.pipe(v.picklist(["online", "offline"]), v.description("What the fed node says of itself on MQTT")),
  ),
  volts: v.optional(v.number()),
  amperes: v.optional(v.number()),
  watts: v.optional(v.number()),
});
export type OutletState = v.InferOutput<typeof OutletState>;

const Info = v.object({
  v: v.literal(1),
  node: v.string(),
  site: v.string(),
  name: v.optional(v.string()),
  fruit: v.object({ version: v.string(), commit: v.string() }),
  hal: v.picklist(["linux", "sim"]),
  boot_id: v.string(),
  clock: v.picklist(["synced", "unsynced"]),
  challenge: v.optional(
    v.pipe(v.string(), v.description("Must stand in a signed command while the clock is not synchronised")),
  ),
  signed: v.pipe(v.boolean(), v.description("Disruptive verbs need a signature")),
  key: v.optional(v.pipe(v.string(), v.description("Fingerprint of the node's own key"))),
  verbs: v.array(v.string()),
  outlets: v.array(OutletName),
  intervals: v.record(v.string(), v.number()),
  throttle_source: v.optional(v.string()),
  model: v.optional(v.string()),
  revision: v.optional(v.string()),
  serial: v.optional(v.string()),
  kernel: v.optional(v.string()),
  os: v.optional(v.string()),
  arch: v.optional(v.string()),
  firmware: v.optional(v.string()),
  reset_reason: v.optional(v.string()),
  hostname: v.optional(v.string()),
});

const Alarm = v.object({
  id: v.string(),
  severity: v.picklist(["warning", "critical"]),
  message: v.string(),
  since: v.optional(Time),
});

/** What happened, once; `seq` counts events of this boot so that a gap is visible. */
const Event = v.looseObject({
  seq: v.number(),
  boot: v.string(),
  ts: v.optional(UnixSeconds),
  buffered: v.optional(v.pipe(v.literal(1), v.description("Sent later than it happened"))),
  message: v.optional(v.string()),
});

const SlotSummary = v.object({
  state: v.pipe(v.string(), v.description("empty, writing, staged, trying, good or failed")),
  version: v.optional(v.string()),
  hash: v.optional(v.pipe(v.string(), v.description("First 16 bytes of the content hash, hex"))),
  reason: v.optional(v.pipe(v.string(), v.description("Why it failed"))),
});

const BootState = v.object({
  active: v.picklist(["a", "b"]),
  trial: v.pipe(v.boolean(), v.description("The running release is not confirmed yet")),
  tries_left: v.optional(v.number()),
  confirmed: v.optional(v.boolean()),
  switch: v.optional(
    v.pipe(v.string(), v.description("What decides which slot is started: uboot or tryboot")),
  ),
  slots: v.optional(v.record(v.string(), SlotSummary)),
  last: v.optional(
    v.pipe(
      v.object({ what: v.string(), version: v.optional(v.string()), reason: v.optional(v.string()) }),
      v.description("What happened to a slot last"),
    ),
  ),
  loop: v.optional(
    v.pipe(v.number(), v.description("Starts in a row without health; nothing is tried by itself")),
  ),
});

const UpdateState = v.object({
  phase: v.pipe(v.string(), v.description("`idle` when nothing is under way")),
  installed_version: v.optional(v.string()),
  latest_version: v.optional(v.string()),
  bytes_done: v.optional(v.number()),
  bytes_total: v.optional(v.number()),
  rate: v.optional(v.pipe(v.number(), v.description("Bytes a second"))),
  eta_s: v.optional(v.pipe(v.number(), v.description("Seconds left, as far as can be told"))),
  peers: v.optional(v.pipe(v.number(), v.description("Peers that it is connected to"))),
  bytes_from_slots: v.optional(v.number()),
  bytes_from_peers: v.optional(v.number()),
  bytes_from_web: v.optional(v.number()),
  reason: v.optional(
    v.pipe(v.string(), v.description("Why it is done, or nothing is: `up-to-date`, `waits-for-word` …")),
  ),
  target: v.optional(v.pipe(v.string(), v.description("Whose releases this node follows"))),
  channel: v.optional(v.string()),
});

export const CONSOLE_STATES = ["up", "gone"] as const;
export const ConsoleState = v.object({
  v: v.literal(1),
  name: v.string(),
  device: v.string(),
  baud: v.number(),
  outlet: v.optional(OutletName),
  state: v.picklist(CONSOLE_STATES),
  error: v.optional(v.pipe(v.string(), v.description("Why the line is gone"))),
  writer: v.nullable(v.pipe(v.string(), v.description("Who may type"))),
  readers: v.pipe(v.number(), v.description("Attached, the writer not counted")),
  since: v.optional(v.pipe(Time, v.description("Since when it is up or gone"))),
});
export type ConsoleState = v.InferOutput<typeof ConsoleState>;

const StackState = v.object({
  v: v.literal(1),
  hat: v.optional(v.pipe(v.string(), v.description("What the HAT's EEPROM says it is"))),
  role: v.pipe(
    v.boolean(),
    v.description("This node beats the heart of a Pi Stack and obeys its shutdown line"),
  ),
  beating: v.boolean(),
  goes_down: v.optional(v.pipe(v.string(), v.description("Why this node is shutting down, while it is"))),
  error: v.optional(v.string()),
});
export type StackState = v.InferOutput<typeof StackState>;

/** How one kind of message travels and what is in it. */
export interface Kind {
  schema: v.GenericSchema;
  qos: 0 | 1;
  retain: boolean;
  instance?: string;
  summary: string;
}

const tele = Object.fromEntries(
  Object.entries(METRICS).map(([group, { keys, instance, summary }]) => [
    `tele/${group}`,
    {
      schema: v.object({
        ts: v.optional(UnixSeconds),
        ...Object.fromEntries(
          Object.entries(keys).map(([key, metric]) => [
            key,
            v.optional(v.pipe(v.number(), v.description(metric.help))),
          ]),
        ),
      }),
      qos: 0,
      retain: false,
      instance,
      summary,
    } satisfies Kind,
  ]),
) as unknown as { [G in Group as `tele/${G}`]: Kind & { schema: v.GenericSchema<Record<string, number>> } };

/** Every kind this node publishes, by its levels without the instance. */
export const KINDS = {
  status: {
    schema: v.picklist(["online", "offline"]),
    qos: 1,
    retain: true,
    summary: "Plain text; `offline` is also the last will",
  },
  info: { schema: Info, qos: 1, retain: true, summary: "Who this node is and what it can do" },
  ...tele,
  "state/outlet": {
    schema: OutletState,
    qos: 1,
    retain: true,
    instance: "<board>.<pi>",
    summary: "One switchable supply and the host behind it",
  },
  "state/lock": {
    schema: Lock,
    qos: 1,
    retain: true,
    instance: "<board>.<pi>",
    summary: "Who has reserved an outlet; empty when nobody",
  },
  "state/audit": {
    schema: v.object({ seq: v.number(), sha256: v.string(), at: v.optional(Time) }),
    qos: 1,
    retain: true,
    instance: "main",
    summary: "Head of the audit log: makes a later cut visible to whoever keeps the broker's history",
  },
  "state/boot": {
    schema: BootState,
    qos: 1,
    retain: true,
    instance: "main",
    summary:
      "What this node runs from; published by nodes with slots, read by the controller of their supply",
  },
  "state/update": {
    schema: UpdateState,
    qos: 1,
    retain: true,
    instance: "main",
    summary: "What this node installs; published by nodes with slots, read by the controller of their supply",
  },
  "state/console": {
    schema: ConsoleState,
    qos: 1,
    retain: true,
    instance: "<name>",
    summary: "One serial line, and who is attached to it",
  },
  "state/stack": {
    schema: StackState,
    qos: 1,
    retain: true,
    instance: "main",
    summary: "This node's own place in a Pi Stack",
  },
  alarm: {
    schema: Alarm,
    qos: 1,
    retain: true,
    instance: "<id>",
    summary: "Stands while something needs a person; empty when cleared",
  },
  event: { schema: Event, qos: 1, retain: false, instance: "<type>", summary: "Something that happened" },
  res: {
    schema: CommandResult,
    qos: 1,
    retain: false,
    instance: "<command id>",
    summary: `Answer to a command: ${COMMAND_STATES.join(", ")}`,
  },
} as const satisfies Record<string, Kind>;
export type KindName = keyof typeof KINDS;
export type Payload<K extends KindName> = v.InferOutput<(typeof KINDS)[K]["schema"]>;

/** Says something on MQTT, or buffers it while the broker is away; null clears what is retained. */
export type Publish = <K extends KindName>(kind: K, instance: string, payload: Payload<K> | null) => void;

/** Raises an alarm, or clears it with null; the same state twice is said once. */
export type RaiseAlarm = (
  id: string,
  alarm: { severity: "warning" | "critical"; message: string } | null,
) => void;

/** Tells that something happened; `seq`, `boot` and `ts` are added. */
export type Tell = (type: string, facts: Record<string, unknown>) => void;

/** The command envelope as it arrives on `cmd/<verb>`: plain, or the signed form of the same bytes. */
export const CommandPayload = v.strictObject({
  id: v.pipe(v.string(), v.regex(/^[A-Za-z0-9_-]{1,64}$/)),
  verb: v.string(),
  site: v.string(),
  node: v.string(),
  args: v.optional(v.record(v.string(), v.unknown()), {}),
  iat: v.pipe(v.number(), v.integer()),
  exp: v.pipe(v.number(), v.integer()),
  reason: v.optional(v.pipe(v.string(), v.maxLength(500))),
  challenge: v.optional(v.string()),
});
export type CommandPayload = v.InferOutput<typeof CommandPayload>;

export const SignedEnvelope = v.strictObject({
  p: v.pipe(v.string(), v.base64(), v.description("The exact bytes of the payload that were signed, base64")),
  s: v.pipe(v.string(), v.description("SSHSIG over those bytes, namespace fruit-cmd@v1, armored")),
  k: v.pipe(
    v.string(),
    v.regex(/^SHA256:[A-Za-z0-9+/]{43}$/),
    v.description("Fingerprint of the signing key"),
  ),
});
export type SignedEnvelope = v.InferOutput<typeof SignedEnvelope>;
