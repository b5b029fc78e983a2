/**
 * The contract for programs that read or command nodes, made from the schemas the agent itself checks with:
 * JSON Schemas (2020-12) and an AsyncAPI 3.0 document with MQTT bindings 0.2.0.
 */
import { type ConversionConfig, type JsonSchema, toJsonSchema } from "@valibot/to-json-schema";
import * as v from "valibot";
import { HEAD_MAX_BYTES } from "../../boot/head.ts";
import { CommandResult } from "../commands.ts";
import { FRAME_MAX } from "../console/sealed.ts";
import { CommandPayload, KINDS, type Kind, ROOT, SignedEnvelope } from "../messages.ts";

/** One topic of the tree as a consumer sees it. */
export interface Channel {
  /** `tele/cpu`, `cmd`, `console/out`: its levels without the instance. */
  name: string;
  /** With `{site}`, `{node}` and `{instance}`. */
  address: string;
  /** What stands for `{instance}`; absent where there is no such level. */
  instance?: string;
  /** Seen from the node. */
  direction: "send" | "receive";
  qos: 0 | 1;
  retain: boolean;
  summary: string;
  /** Absent: bytes that only the two ends of a session can read. */
  schema?: v.GenericSchema;
}

const Switch = v.picklist(["ON", "OFF"]);
const Command = v.union([CommandPayload, SignedEnvelope]);

/** What a node listens to; what it says stands in `KINDS`. */
const HEARD: Omit<Channel, "address">[] = [
  {
    name: "cmd",
    instance: "<verb>",
    direction: "receive",
    qos: 1,
    retain: false,
    summary: "A command, plain or signed; never retained, at most 16 KiB",
    schema: Command,
  },
  {
    name: "set/outlet",
    instance: "<board>.<pi>",
    direction: "receive",
    qos: 1,
    retain: false,
    summary: "Plain text, for outlets that the node's own policy lists; never retained",
    schema: Switch,
  },
  {
    name: "set/identify",
    instance: "main",
    direction: "receive",
    qos: 1,
    retain: false,
    summary: "Any text makes the node visible",
    schema: v.string(),
  },
];

/** Sealed console sessions (agent/console/sealed.ts). */
const SESSIONS: Channel[] = (["out", "in"] as const).map((way) => ({
  name: `console/${way}`,
  address: `${ROOT}/{site}/{node}/console/{instance}/${way}`,
  instance: "<command id>",
  direction: way === "out" ? "send" : "receive",
  qos: 1,
  retain: false,
  summary: `Console session opened by a signed command: sealed frames ${way === "out" ? "from" : "to"} the node, at most ${FRAME_MAX} bytes`,
}));

/** Every topic of the tree. */
export function channels(): Channel[] {
  const said = Object.entries<Kind>(KINDS).map(([name, kind]) => ({
    name,
    direction: "send" as const,
    ...kind,
    address: `${ROOT}/{site}/{node}/${name}${kind.instance ? "/{instance}" : ""}`,
  }));
  const heard = HEARD.map((channel) => ({
    ...channel,
    address: `${ROOT}/{site}/{node}/${channel.name}/{instance}`,
  }));
  const shared = [
    {
      name: "all/cmd",
      instance: "<verb>",
      direction: "receive" as const,
      qos: 1 as const,
      retain: false,
      summary: "A command to every node of the site; harmless verbs only, answered after 0 to 5 s",
      schema: CommandPayload,
      address: `${ROOT}/{site}/all/cmd/{instance}`,
    },
    {
      name: "all/head",
      instance: "<40 hexadecimal digits>",
      direction: "receive" as const,
      qos: 1 as const,
      retain: true,
      summary: `What a signer announces, a BEP 44 item of at most ${HEAD_MAX_BYTES} bytes that proves itself; nodes hear it, and say it where they know better`,
      address: `${ROOT}/{site}/all/head/{instance}`,
    },
    {
      name: "reply",
      instance: "<user>/<anything>",
      direction: "send" as const,
      qos: 1 as const,
      retain: false,
      summary: "Answer to a command whose MQTT 5 Response Topic lies here, with its Correlation Data",
      schema: CommandResult,
      address: `${ROOT}/{site}/reply/{instance}`,
    },
  ];
  return [...said, ...heard, ...SESSIONS, ...shared];
}

/** One document with a definition per kind; `$comment` is its topic. */
export function jsonSchemas(): Record<string, unknown> {
  const definitions = channels().map((channel) => [
    channel.name,
    {
      title: channel.name,
      description: describe(channel),
      $comment: channel.address,
      ...convert(channel.schema, "draft-2020-12"),
    },
  ]);
  return {
    $schema: "https://json-schema.org/draft/2020-12/schema",
    $id: "urn:fruit:v1",
    title: `Messages under ${ROOT}`,
    $defs: Object.fromEntries(definitions),
  };
}

/** The whole tree as AsyncAPI 3.0; `version` is the program's. */
export function asyncApi(version: string): Record<string, unknown> {
  const all = channels();
  const keyOf = ({ name }: Channel) => name.replaceAll("/", "-");
  return {
    asyncapi: "3.0.0",
    info: {
      title: "fruit",
      version,
      description: "What a node says on its site's broker, and what it can be asked.",
    },
    defaultContentType: "application/json",
    servers: { site: server() },
    channels: Object.fromEntries(
      all.map((channel) => [
        keyOf(channel),
        {
          address: channel.address,
          summary: channel.summary,
          servers: [{ $ref: "#/servers/site" }],
          parameters: parametersOf(channel),
          messages: { message: { $ref: `#/components/messages/${keyOf(channel)}` } },
        },
      ]),
    ),
    operations: Object.fromEntries(
      all.map((channel) => [
        `${channel.direction}-${keyOf(channel)}`,
        {
          action: channel.direction,
          channel: { $ref: `#/channels/${keyOf(channel)}` },
          bindings: { mqtt: { qos: channel.qos, retain: channel.retain, bindingVersion: "0.2.0" } },
          ...(channel.name === "cmd" ? { reply: { channel: { $ref: "#/channels/res" } } } : {}),
        },
      ]),
    ),
    components: {
      messages: Object.fromEntries(
        all.map((channel) => [
          keyOf(channel),
          {
            name: keyOf(channel),
            summary: channel.summary,
            contentType: contentTypeOf(channel),
            payload: convert(channel.schema, "draft-07"),
          },
        ]),
      ),
    },
  };
}

function server(): Record<string, unknown> {
  return {
    host: "broker.site:8883",
    protocol: "secure-mqtt",
    protocolVersion: "5",
    description: "The site's broker; 3.1.1 works as well",
    bindings: {
      mqtt: {
        clientId: "fruit-{node}",
        cleanSession: true,
        lastWill: { topic: `${ROOT}/{site}/{node}/status`, qos: 1, message: "offline", retain: true },
        keepAlive: 60,
        bindingVersion: "0.2.0",
      },
    },
  };
}

function parametersOf({ address, instance }: Channel): Record<string, unknown> {
  const descriptions: Record<string, string | undefined> = {
    site: "The place, 1 to 32 of a-z, 0-9 and -",
    node: "`pi` and the serial number without leading zeros, unless configured",
    instance,
  };
  const used = Object.entries(descriptions).filter(([name]) => address.includes(`{${name}}`));
  return Object.fromEntries(used.map(([name, description]) => [name, { description }]));
}

function describe({ summary, qos, retain }: Channel): string {
  return `${summary}. QoS ${qos}, ${retain ? "retained" : "not retained"}.`;
}

const BYTES = "application/octet-stream";

function contentTypeOf({ schema }: Channel): string {
  if (!schema) return BYTES;
  return schema.type === "picklist" || schema.type === "string" ? "text/plain" : "application/json";
}

function convert(schema: Channel["schema"], target: "draft-07" | "draft-2020-12"): JsonSchema {
  if (!schema) return { type: "string", contentMediaType: BYTES };
  const options: ConversionConfig = { target, typeMode: "input" };
  const { $schema: _, ...converted } = toJsonSchema(schema, options);
  return converted;
}
