import { expect, test } from "bun:test";
import Ajv, { type ValidateFunction } from "ajv/dist/2020";
import { topicOf } from "../agent/console/sealings.ts";
import { KINDS } from "../agent/messages.ts";
import { asyncApi, channels, jsonSchemas } from "../agent/mqtt/schema.ts";
import { METRICS } from "../agent/telemetry/metrics.ts";

interface Document {
  $schema: string;
  $id: string;
  $defs: Record<string, { $comment: string; description: string }>;
}
const document = jsonSchemas() as unknown as Document;
const ajv = new Ajv({ strict: true, allowUnionTypes: true, formats: { "date-time": true } });
ajv.addSchema(document, document.$id);

/** The check of one kind, as any consumer would get it out of the document. */
function check(kind: string): ValidateFunction {
  return ajv.compile({ $ref: `${document.$id}#/$defs/${kind.replaceAll("/", "~1")}` });
}

test("there is a definition for every kind of message, with its topic, QoS and retain in words", () => {
  const heard = ["cmd", "set/outlet", "set/identify"];
  const expected = [
    ...Object.keys(KINDS),
    ...heard,
    "console/out",
    "console/in",
    "all/cmd",
    "all/head",
    "reply",
  ];
  expect(Object.keys(document.$defs)).toEqual(expected);
  expect(document.$schema).toBe("https://json-schema.org/draft/2020-12/schema");
  expect(document.$defs["tele/net"]).toMatchObject({
    $comment: "fruit/v1/{site}/{node}/tele/net/{instance}",
    description: expect.stringContaining("QoS 0, not retained."),
  });
  expect(document.$defs.status?.$comment).toBe("fruit/v1/{site}/{node}/status");
  expect(document.$defs["state/outlet"]?.description).toContain("QoS 1, retained.");
});

test("an announcement is bytes that the broker keeps for all", () => {
  expect(document.$defs["all/head"]).toMatchObject({
    $comment: "fruit/v1/{site}/all/head/{instance}",
    description: expect.stringContaining("QoS 1, retained."),
    contentMediaType: "application/octet-stream",
  });
});

test("console sessions are bytes, and their topics are the ones that both ends use", () => {
  const place = { site: "{site}", node: "{node}", id: "{instance}" };
  const api = asyncApi("1") as Record<string, Record<string, unknown>>;
  const messages = (api.components as Record<string, Record<string, unknown>>).messages;
  for (const way of ["in", "out"] as const) {
    expect(document.$defs[`console/${way}`]).toMatchObject({
      $comment: topicOf(place, way),
      description: expect.stringContaining("QoS 1, not retained."),
      type: "string",
      contentMediaType: "application/octet-stream",
    });
    expect(messages?.[`console-${way}`]).toMatchObject({ contentType: "application/octet-stream" });
    const action = way === "in" ? "receive" : "send";
    expect(api.operations?.[`${action}-console-${way}`]).toMatchObject({
      action,
      bindings: { mqtt: { qos: 1, retain: false } },
    });
  }
  expect(messages?.status).toMatchObject({ contentType: "text/plain" });
  expect(messages?.info).toMatchObject({ contentType: "application/json" });
});

const outlet = {
  v: 1,
  outlet: "0.1",
  supply: "on",
  host: "running",
  busy: null,
  lock: null,
  verbs: ["off", "cycle"],
  cause: "operator",
  source: "board",
  read_at: "2026-11-23T04:30:00.000Z",
};
const command = {
  id: "c1",
  verb: "power.cycle",
  site: "lab",
  node: "pi1",
  args: { outlets: ["0.1"] },
  iat: 1,
  exp: 60,
};

test.each([
  { kind: "status", what: "a word of its own", good: "online", bad: "up" },
  { kind: "state/outlet", what: "an unknown supply", good: outlet, bad: { ...outlet, supply: "unknwon" } },
  {
    kind: "tele/cpu",
    what: "text for a number",
    good: { ts: 1787650332, usage_ratio: 0.25 },
    bad: { usage_ratio: "25 %" },
  },
  {
    kind: "alarm",
    what: "no severity",
    good: { id: "bus-0", severity: "critical", message: "x" },
    bad: { id: "bus-0", message: "x" },
  },
  {
    kind: "event",
    what: "no sequence number",
    good: { seq: 1, boot: "b", anything: [1] },
    bad: { boot: "b" },
  },
  {
    kind: "event",
    what: "a flag that is no 1",
    good: { seq: 1, boot: "b", buffered: 1 },
    bad: { seq: 1, boot: "b", buffered: true },
  },
  {
    kind: "res",
    what: "an unknown state",
    good: { id: "c1", verb: "x", state: "refused", code: "rule.P3" },
    bad: { id: "c1", verb: "x", state: "ok" },
  },
  { kind: "cmd", what: "no end of its life", good: command, bad: { ...command, exp: undefined } },
  {
    kind: "cmd",
    what: "unknown keys",
    good: { p: "e30=", s: "-----BEGIN", k: `SHA256:${"a".repeat(43)}` },
    bad: { ...command, extra: 1 },
  },
  { kind: "set/outlet", what: "lower case", good: "ON", bad: "on" },
])("$kind takes what is right and not $what", ({ kind, good, bad }) => {
  const validate = check(kind);
  expect(validate(good), JSON.stringify(validate.errors)).toBe(true);
  expect(validate(JSON.parse(JSON.stringify(bad)))).toBe(false);
});

test.each(Object.entries(METRICS))(
  "every number of tele/%s is described, flat and optional",
  (group, { keys }) => {
    const validate = check(`tele/${group}`);
    expect(validate({})).toBe(true);
    for (const key of Object.keys(keys)) {
      expect(validate({ [key]: 1.5 })).toBe(true);
      expect(validate({ [key]: { nested: 1 } })).toBe(false);
    }
  },
);

test("the AsyncAPI document has a channel, an operation and a message for everything, and no reference leads nowhere", () => {
  const api = asyncApi("1.2.3") as Record<string, Record<string, Record<string, unknown>>>;
  expect(api).toMatchObject({ asyncapi: "3.0.0", info: { version: "1.2.3" } });
  for (const part of ["channels", "operations"])
    expect(Object.keys(api[part] ?? {})).toHaveLength(channels().length);
  let references = 0;
  const follow = (value: unknown): void => {
    if (typeof value !== "object" || value === null) return;
    for (const [key, inner] of Object.entries(value)) {
      if (key !== "$ref") {
        follow(inner);
        continue;
      }
      references++;
      const target = String(inner)
        .slice(2)
        .split("/")
        .reduce<unknown>((at, step) => (at as Record<string, unknown> | undefined)?.[step], api);
      expect([inner, typeof target]).toEqual([inner, "object"]);
    }
  };
  follow(api);
  expect(references).toBeGreaterThan(3 * channels().length);
});

test("its channels carry the address with its parameters, its operations QoS and retain, its server the last will", () => {
  const { channels: all, operations, servers } = asyncApi("1") as Record<string, Record<string, unknown>>;
  expect(all?.["state-outlet"]).toMatchObject({
    address: "fruit/v1/{site}/{node}/state/outlet/{instance}",
    parameters: { site: {}, node: {}, instance: { description: "<board>.<pi>" } },
  });
  expect(Object.keys((all as Record<string, { parameters: object }>).status?.parameters ?? {})).toEqual([
    "site",
    "node",
  ]);
  expect(operations?.["send-state-outlet"]).toMatchObject({
    action: "send",
    bindings: { mqtt: { qos: 1, retain: true, bindingVersion: "0.2.0" } },
  });
  expect(operations?.["receive-cmd"]).toMatchObject({
    action: "receive",
    bindings: { mqtt: { qos: 1, retain: false } },
    reply: { channel: { $ref: "#/channels/res" } },
  });
  expect(servers?.site).toMatchObject({
    bindings: {
      mqtt: {
        lastWill: { topic: "fruit/v1/{site}/{node}/status", message: "offline", qos: 1, retain: true },
      },
    },
  });
});
