import { describe, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import mqttPacket, { type Packet } from "mqtt-packet";
import { LinkError } from "../agent/mqtt/connect.ts";
import { openLink } from "../agent/mqtt/link.ts";
import {
  aedes,
  configOf,
  freePort,
  HAS_MOSQUITTO,
  Mosquitto,
  NEEDS_MOSQUITTO,
  Node,
  obey,
  scripted,
  Tap,
  tcp,
  until,
} from "./broker.ts";
import { seeded } from "./fakes.ts";

const STATUS = "fruit/v1/lab/pi1/status";
const anonymous = ["allow_anonymous true"];
const url = ({ port }: { port: number }) => `mqtt://127.0.0.1:${port}`;
const numbers = (texts: string[]) => texts.map((text) => JSON.parse(text).seq);

describe.skipIf(!HAS_MOSQUITTO)(`with Mosquitto ${NEEDS_MOSQUITTO}`, () => {
  test("speaks MQTT 5 and says online last, after its subscriptions and every retained topic", async () => {
    await using broker = await Mosquitto.start(anonymous);
    await using tap = await Tap.at(broker.port);
    await using node = new Node({ url: url(broker) });
    for (const id of ["0.0", "0.1"]) node.say(`state/outlet/${id}`, "{}", { retain: true, class: "state" });
    await node.online();
    await until("online arrived", () => tap.texts(STATUS).length > 0);
    expect(tap.heard.map(({ topic }) => topic)).toEqual([
      "fruit/v1/lab/pi1/state/outlet/0.0",
      "fruit/v1/lab/pi1/state/outlet/0.1",
      STATUS,
    ]);
    expect(node.session.stats).toMatchObject({ protocol: 5, reconnects: 0, sent: 3, dropped: 0 });
    // Somebody who comes later finds it.
    await using late = await Tap.at(broker.port);
    await until("the retained status arrived", () => late.texts(STATUS).length > 0);
    expect(late.heard.find(({ topic }) => topic === STATUS)).toMatchObject({ text: "online", retain: true });
  });

  test("stops within two seconds, with offline published and no will besides", async () => {
    await using broker = await Mosquitto.start(anonymous);
    await using tap = await Tap.at(broker.port);
    const node = new Node({ url: url(broker) });
    await node.online();
    const before = performance.now();
    await node.stop();
    expect(performance.now() - before).toBeLessThan(2000);
    tap.client.publish("end", "", { qos: 1 });
    await until("all was heard", () => tap.texts("end").length > 0);
    expect(tap.texts(STATUS)).toEqual(["online", "offline"]);
  });

  test("a command that is published retained is marked so, live; a stored one does not arrive", async () => {
    await using broker = await Mosquitto.start(anonymous);
    await using ops = await Tap.at(broker.port);
    const cmd = "fruit/v1/lab/pi1/cmd/power";
    await ops.client.publishAsync(cmd, "stored", { qos: 1, retain: true });
    await using node = new Node({ url: url(broker) });
    await node.online();
    await ops.client.publishAsync(cmd, "live", { qos: 1, retain: true });
    await ops.client.publishAsync(cmd, "good", { qos: 1 });
    await until("both arrived", () => node.heard.length >= 2);
    expect(node.heard).toEqual([
      { topic: cmd, text: "live", retain: true },
      { topic: cmd, text: "good", retain: false },
    ]);
  });

  test("what other nodes have stored does arrive where it is wanted", async () => {
    await using broker = await Mosquitto.start(anonymous);
    await using other = await Tap.at(broker.port);
    await other.client.publishAsync("fruit/v1/lab/pi2/status", "online", { qos: 1, retain: true });
    const subscriptions = [
      { filter: "fruit/v1/lab/pi1/cmd/+", wantsRetained: false },
      { filter: "fruit/v1/lab/pi2/status", wantsRetained: true },
    ];
    await using node = new Node({ url: url(broker) }, { subscriptions });
    await until("it arrived", () => node.heard.length > 0);
    expect(node.heard).toEqual([{ topic: "fruit/v1/lab/pi2/status", text: "online", retain: true }]);
  });

  test("response topic and correlation data come with the command and go with the answer", async () => {
    await using broker = await Mosquitto.start(anonymous);
    await using ops = await Tap.at(broker.port, { protocolVersion: 5 });
    const seen: unknown[] = [];
    await using node = new Node(
      { url: url(broker) },
      {
        onMessage: ({ responseTopic, correlation }) => {
          seen.push(responseTopic);
          node.session.publish({
            topic: responseTopic ?? "none",
            payload: "{}",
            qos: 1,
            retain: false,
            class: "result",
            ...(correlation ? { correlation } : {}),
          });
        },
      },
    );
    await node.online();
    const properties = { responseTopic: "fruit/v1/lab/reply/ops/1", correlationData: Buffer.from("c1") };
    ops.client.publish("fruit/v1/lab/pi1/cmd/power.status", "{}", { qos: 1, properties });
    await until("the answer arrived", () => ops.texts("fruit/v1/lab/reply/ops/1").length > 0);
    const answer = ops.heard.find(({ topic }) => topic === "fruit/v1/lab/reply/ops/1");
    expect(seen).toEqual(["fruit/v1/lab/reply/ops/1"]);
    expect(answer?.packet.properties?.correlationData?.toString()).toBe("c1");
  });

  test("after a broker that forgot everything is back, every retained topic is there again and events were kept", async () => {
    await using broker = await Mosquitto.start(anonymous);
    await using node = new Node({ url: url(broker) });
    node.say("info", '{"v":1}', { retain: true, class: "state" });
    node.say("alarm/bus-0", '{"id":"bus-0"}', { retain: true, class: "alarm" });
    await node.online();
    node.say("alarm/bus-0", "", { retain: true, class: "alarm" });
    expect(await node.session.flush(2000)).toBe(true);
    await broker.go();
    await until("the session noticed", () => !node.session.isOnline);
    node.say("event/test", '{"seq":1}');
    node.say("event/test", '{"seq":2}');
    node.say("info", '{"v":1,"name":"changed"}', { retain: true, class: "state" });
    expect(node.session.stats).toMatchObject({ buffered: 2, protocol: undefined });
    await broker.come();
    await using tap = await Tap.at(broker.port);
    await node.online();
    expect(await node.session.flush(3000)).toBe(true);
    await until("the events arrived", () => tap.texts("fruit/v1/lab/pi1/event/test").length === 2);
    expect(tap.texts("fruit/v1/lab/pi1/event/test")).toEqual([
      '{"seq":1,"buffered":1}',
      '{"seq":2,"buffered":1}',
    ]);
    expect(tap.texts("fruit/v1/lab/pi1/info")).toEqual(['{"v":1,"name":"changed"}']);
    // Cleared and acknowledged before: nothing to clear again.
    expect(tap.texts("fruit/v1/lab/pi1/alarm/bus-0")).toEqual([]);
    expect(node.session.stats).toMatchObject({ reconnects: 1, buffered: 0, dropped: 0 });
    node.say("event/test", '{"seq":3}');
    await until("a live event arrived", () => tap.texts("fruit/v1/lab/pi1/event/test").length === 3);
    expect(tap.texts("fruit/v1/lab/pi1/event/test")[2]).toBe('{"seq":3}');
  });

  test("what was buffered is replayed at no more than 20 messages a second, while live ones pass", async () => {
    await using broker = await Mosquitto.start(anonymous);
    await using tap = await Tap.at(broker.port);
    await using node = new Node({ url: url(broker) });
    for (let seq = 1; seq <= 21; seq++) node.say("event/old", JSON.stringify({ seq }));
    await node.online();
    const before = performance.now();
    node.say("res/1", "{}", { class: "result" });
    await until("the result arrived", () => tap.texts("fruit/v1/lab/pi1/res/1").length === 1);
    expect(tap.texts("fruit/v1/lab/pi1/event/old").length).toBeLessThan(21);
    await until("all arrived", () => tap.texts("fruit/v1/lab/pi1/event/old").length === 21);
    expect(performance.now() - before).toBeGreaterThan(900);
    expect(numbers(tap.texts("fruit/v1/lab/pi1/event/old"))).toEqual(
      Array.from({ length: 21 }, (_, index) => index + 1),
    );
  });

  test("the will says offline when the connection is cut", async () => {
    await using broker = await Mosquitto.start(anonymous);
    await using tap = await Tap.at(broker.port);
    await using cutter = await tcp((socket) => {
      const onward = connect(broker.port, "127.0.0.1");
      socket.pipe(onward).pipe(socket);
      onward.on("error", () => undefined);
      setTimeout(() => onward.destroy(), 300);
    });
    await using node = new Node({ url: url(cutter), backoff_max_seconds: 3600 });
    await node.online();
    await until("the will arrived", () => tap.texts(STATUS).includes("offline"));
    expect(tap.texts(STATUS).slice(0, 2)).toEqual(["online", "offline"]);
  });

  test("two clients with one identity are found out, although Mosquitto gives no reason", async () => {
    await using broker = await Mosquitto.start(anonymous);
    await using node = new Node({ url: url(broker) });
    for (let kick = 0; kick < 3; kick++) {
      await node.online();
      await using _clone = await Tap.at(broker.port, { clientId: "fruit-pi1" });
      await until("it was thrown out", () => !node.session.isOnline);
    }
    await until("the alarm was raised", () => node.alarms.length > 0);
    expect(node.alarms[0]).toMatchObject(["cloned-identity", { severity: "critical" }]);
    const { retry_seconds } = node.logged.findLast(({ what }) => what === "mqtt.down")?.fields ?? {};
    expect(retry_seconds).toBeGreaterThanOrEqual(300);
  });

  test("a wrong password is told by name, and tried again", async () => {
    await using broker = await Mosquitto.start((dir) => {
      writeFileSync(join(dir, "passwords"), "", { mode: 0o600 });
      writeFileSync(join(dir, "wrong"), "not this\n", { mode: 0o600 });
      return ["allow_anonymous false", `password_file ${join(dir, "passwords")}`];
    });
    await using node = new Node({
      url: url(broker),
      username: "pi1",
      password_file: join(broker.dir, "wrong"),
    });
    await until("it was refused", () => node.log("mqtt.down"));
    expect(node.log("mqtt.down")).toMatch(/refused by the broker: Not authorized \(0x87\)/);
    expect(node.session.isOnline).toBe(false);
  });

  test("a full broker is waited for, and MQTT 5 is not given up for it", async () => {
    await using broker = await Mosquitto.start([...anonymous, "max_connections 1"]);
    const first = await Tap.at(broker.port);
    await using node = new Node({ url: url(broker) });
    await until("it was turned away", () => node.log("mqtt.down"));
    expect(node.session.isOnline).toBe(false);
    await first[Symbol.asyncDispose]();
    await node.online();
  });
});

test("an aedes that speaks 3.1.1 only is taken at the second try, at once", async () => {
  await using broker = await aedes();
  await using tap = await Tap.at(broker.port);
  await using node = new Node({ url: url(broker) });
  await node.online();
  await until("online arrived", () => tap.texts(STATUS).length > 0);
  expect(tap.texts(STATUS)).toEqual(["online"]);
  expect(node.session.stats.protocol).toBe(4);
  expect(node.log("mqtt.down")).toContain('"retry_seconds":0');
  broker.drop("fruit-pi1");
  await until("the will arrived", () => tap.texts(STATUS).includes("offline"));
});

test("on 3.1.1 a stored command arrives marked, a live retained one cannot be told: id and exp are the guard", async () => {
  await using broker = await aedes();
  await using ops = await Tap.at(broker.port);
  const cmd = "fruit/v1/lab/pi1/cmd/power";
  await ops.client.publishAsync(cmd, "stored", { qos: 1, retain: true });
  await using node = new Node({ url: url(broker) });
  await node.online();
  await ops.client.publishAsync(cmd, "live", { qos: 1, retain: true });
  await until("both arrived", () => node.heard.length >= 2);
  expect(node.heard).toEqual([
    { topic: cmd, text: "stored", retain: true },
    { topic: cmd, text: "live", retain: false },
  ]);
});

test("being told twice that the session was taken over is a clone", async () => {
  await using broker = await scripted((packet, say) => {
    if (packet.cmd === "connect") say({ cmd: "connack", reasonCode: 0, sessionPresent: false });
    obey(packet, say);
    if (packet.cmd === "publish") say({ cmd: "disconnect", reasonCode: 0x8e });
  });
  await using node = new Node({ url: url(broker) });
  await until("the alarm was raised", () => node.alarms.length > 0);
  expect(node.alarms[0]).toMatchObject(["cloned-identity", { severity: "critical" }]);
  expect(node.log("mqtt.down")).toContain("Session taken over (0x8e)");
  expect(broker.heard.filter(({ cmd }) => cmd === "connect")).toHaveLength(2);
});

test("never more unacknowledged than the broker's Receive Maximum, and what is too large for it is not sent", async () => {
  const held: Packet[] = [];
  await using broker = await scripted((packet, say) => {
    const properties = { receiveMaximum: 2, maximumPacketSize: 1000 };
    if (packet.cmd === "connect") say({ cmd: "connack", reasonCode: 0, sessionPresent: false, properties });
    if (packet.cmd === "publish" && packet.topic.includes("/state/")) held.push(packet);
    else obey(packet, say);
    if (held.length > 2) throw new Error("three in flight");
  });
  await using node = new Node({ url: url(broker) });
  node.say("state/outlet/9.9", "x".repeat(2000), { retain: true, class: "state" });
  for (let id = 0; id < 10; id++) node.say(`state/outlet/0.${id}`, "{}", { retain: true, class: "state" });
  await until("two are held", () => held.length === 2);
  await sleep(100);
  expect(held).toHaveLength(2);
  expect(node.session.isOnline).toBe(false);
  expect(node.log("mqtt.too-large")).toContain("state/outlet/9.9");
  expect(node.session.stats.dropped).toBe(1);
});

test("a broker without retained messages or QoS 1 gets neither, in the will too", async () => {
  let tries = 0;
  await using broker = await scripted((packet, say) => {
    if (packet.cmd === "connect") {
      tries += 1;
      const reasonCode = [0x9a, 0x9b][tries - 1] ?? 0;
      const properties = { maximumQoS: 0, retainAvailable: false };
      say({ cmd: "connack", reasonCode, sessionPresent: false, properties });
    } else obey(packet, say);
  });
  await using node = new Node({ url: url(broker) });
  await node.online();
  const connects = broker.heard.filter((packet) => packet.cmd === "connect");
  expect(connects.map(({ will }) => [will?.qos, will?.retain])).toEqual([
    [1, true],
    [1, false],
    [0, false],
  ]);
  // Nothing acknowledges it: it may be written, and not have arrived yet.
  await until("online arrived", () => broker.heard.some((packet) => packet.cmd === "publish"));
  const online = broker.heard.find((packet) => packet.cmd === "publish");
  expect(online).toMatchObject({ topic: STATUS, qos: 0, retain: false });
});

test("a Server Keep Alive is obeyed, and a broker that stops answering is given up", async () => {
  let pings = 0;
  await using broker = await scripted((packet, say) => {
    const properties = { serverKeepAlive: 1 };
    if (packet.cmd === "connect") say({ cmd: "connack", reasonCode: 0, sessionPresent: false, properties });
    if (packet.cmd === "pingreq") pings += 1;
    else obey(packet, say);
  });
  await using node = new Node({ url: url(broker), keepalive_seconds: 1000 });
  await node.online();
  await until("it pinged and gave up", () => pings > 0 && node.log("mqtt.down"));
  expect(node.log("mqtt.down")).toContain("Keepalive timeout");
});

test.each([
  { what: "says nonsense", serve: "HTTP/1.1 400 Bad Request\r\n\r\n", kind: "lost" },
  { what: "announces a packet of 200 MB", serve: Uint8Array.of(0x20, 0xff, 0xff, 0xff, 0x5f), kind: "lost" },
  {
    what: "sends a length that never ends",
    serve: Uint8Array.of(0x20, 0xff, 0xff, 0xff, 0xff),
    kind: "lost",
  },
  { what: "stays silent", serve: "", kind: "silent" },
])("a server that $what is no broker, and is tried again", async ({ serve, kind }) => {
  let tries = 0;
  await using server = await tcp((socket) => {
    tries += 1;
    if (serve.length > 0) socket.write(serve);
  });
  await using node = new Node({ url: url(server), connect_timeout_seconds: 1 });
  await until("it was tried twice", () => tries >= 2);
  expect(node.logged.find(({ what }) => what === "mqtt.down")?.fields).toMatchObject({ kind });
  expect(node.session.isOnline).toBe(false);
});

test("a broker that closes without a word gets 3.1.1 after two tries with MQTT 5", async () => {
  await using broker = await scripted((packet, say, socket) => {
    if (packet.cmd !== "connect") return obey(packet, say);
    if (packet.protocolVersion === 5) socket.end();
    else say({ cmd: "connack", returnCode: 0, sessionPresent: false });
    return undefined;
  }, 4);
  await using node = new Node({ url: url(broker) });
  await node.online();
  expect(broker.heard.flatMap((p) => (p.cmd === "connect" ? [p.protocolVersion] : []))).toEqual([5, 5, 4]);
  expect(node.session.stats.protocol).toBe(4);
});

test.each([
  { what: "nobody listens there", url: async () => `mqtt://127.0.0.1:${await freePort()}`, says: "refused" },
  { what: "the name means nothing", url: async () => "mqtt://broker.invalid", says: "broker.invalid:1883" },
])("without a broker ($what) the session waits, keeps, and stops at once", async ({ url, says }) => {
  const node = new Node({ url: await url() });
  node.say("event/test", '{"seq":1}');
  await until("it was told", () => node.log("mqtt.down"));
  expect(node.log("mqtt.down").toLowerCase()).toContain(says);
  expect(await node.session.flush(1000)).toBe(false);
  expect(node.session.stats.buffered).toBe(1);
  const before = performance.now();
  await node.stop();
  expect(performance.now() - before).toBeLessThan(1000);
});

test("a password file that is gone is told as such, and leaves no connection open", async () => {
  let connections = 0;
  await using server = await tcp(() => {
    connections += 1;
  });
  await using node = new Node({ url: url(server), username: "pi1", password_file: "/nowhere/password" });
  await until("it was tried twice", () => node.logged.filter(({ what }) => what === "mqtt.down").length > 1);
  expect(node.log("mqtt.down")).toContain("mqtt.password_file");
  expect(connections).toBe(0);
});

test("a broker that never answers SUBSCRIBE is left, and one that refuses it is told about", async () => {
  await using mute = await scripted((packet, say) => {
    if (packet.cmd === "connect") say({ cmd: "connack", reasonCode: 0, sessionPresent: false });
  });
  await using deaf = new Node({ url: url(mute), connect_timeout_seconds: 1 });
  await using strict = await scripted((packet, say) => {
    if (packet.cmd === "connect") say({ cmd: "connack", reasonCode: 0, sessionPresent: false });
    if (packet.cmd === "subscribe") say({ cmd: "suback", messageId: packet.messageId ?? 0, granted: [0x87] });
    else obey(packet, say);
  });
  await using node = new Node({ url: url(strict) });
  await node.online();
  expect(node.log("mqtt.subscription-refused")).toContain("fruit/v1/lab/pi1/cmd/+");
  await until("the mute one was left", () => deaf.log("mqtt.down"));
  expect(deaf.log("mqtt.down")).toContain("no answer to SUBSCRIBE");
});

test("what was sent and not acknowledged when the connection broke is sent again, marked", async () => {
  const events: string[] = [];
  await using broker = await scripted((packet, say, socket) => {
    if (packet.cmd === "connect") say({ cmd: "connack", reasonCode: 0, sessionPresent: false });
    const isEvent = packet.cmd === "publish" && packet.topic.includes("/event/");
    if (isEvent) events.push(String(packet.payload));
    if (isEvent && events.length === 1) socket.destroy();
    else obey(packet, say);
  });
  await using node = new Node({ url: url(broker) });
  await node.online();
  node.say("event/test", '{"seq":1}');
  await until("it came again", () => events.length === 2);
  expect(events).toEqual(['{"seq":1}', '{"seq":1,"buffered":1}']);
  expect(await node.session.flush(2000)).toBe(true);
  expect(node.session.stats).toMatchObject({ dropped: 0, buffered: 0 });
});

test("a broker that lies in any byte neither crashes the node nor keeps it waiting", async () => {
  const random = seeded(5);
  const packets: Packet[] = [
    {
      cmd: "connack",
      reasonCode: 0,
      sessionPresent: false,
      properties: { receiveMaximum: 5, serverKeepAlive: 9 },
    },
    { cmd: "suback", messageId: 1, granted: [1] },
    {
      cmd: "publish",
      topic: "fruit/v1/lab/pi1/cmd/x",
      payload: "{}",
      qos: 1,
      messageId: 7,
      dup: false,
      retain: false,
    },
    { cmd: "puback", messageId: 2, reasonCode: 0 },
    { cmd: "pubrec", messageId: 3, reasonCode: 0 },
    { cmd: "disconnect", reasonCode: 0x8b },
  ];
  const honest = packets.map((packet) => mqttPacket.generate(packet, { protocolVersion: 5 }));
  await using broker = await tcp((socket) => {
    const bytes = Buffer.concat(honest);
    for (let changes = random() * 4; changes > 0; changes--)
      bytes[Math.floor(random() * bytes.length)] = random() * 256;
    socket.end(bytes.subarray(0, Math.ceil(random() * bytes.length)));
  });
  const config = configOf({ url: url(broker), connect_timeout_seconds: 1 });
  const onMessage = () => undefined;
  const options = {
    config,
    clientId: "fuzz",
    version: 5,
    abilities: { qos: 1, retain: true },
    onMessage,
  } as const;
  let connected = 0;
  for (let round = 0; round < Number(process.env.FRUIT_FUZZ ?? 5_000) / 100; round++) {
    try {
      const link = await openLink(options, new AbortController().signal);
      connected++;
      await link.subscribe([{ filter: "fruit/v1/lab/pi1/cmd/+", wantsRetained: false }]).catch(() => []);
      link.send({ topic: "t", payload: "{}", qos: 1, retain: false, class: "event" }, () => undefined);
      link.destroy();
      await link.closed;
    } catch (error) {
      expect(error).toBeInstanceOf(LinkError);
    }
  }
  expect(connected).toBeGreaterThan(0);
});

test("a slow broker that acknowledges nothing does not hold up the stop", async () => {
  await using broker = await scripted((packet, say) => {
    if (packet.cmd === "connect") say({ cmd: "connack", reasonCode: 0, sessionPresent: false });
    if (packet.cmd === "subscribe") obey(packet, say);
  });
  const node = new Node({ url: url(broker) });
  for (let id = 0; id < 40; id++) node.say(`state/outlet/0.${id}`, "{}", { retain: true, class: "state" });
  await until("the window is full", () => broker.heard.filter(({ cmd }) => cmd === "publish").length === 20);
  const before = performance.now();
  await node.stop();
  expect(performance.now() - before).toBeLessThan(2000);
});
