/** In which order things leave, whatever the broker does; with a broker whose every packet is in the test's hands. */
import { expect, test } from "bun:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Node, obey, scripted, until } from "./broker.ts";

const STATUS = "fruit/v1/lab/pi1/status";
const url = ({ port }: { port: number }) => `mqtt://127.0.0.1:${port}`;

/** Forty commands begin, all end; as `id state`. */
const life = (state: string) => Array.from({ length: 40 }, (_, id) => `${id} ${state}`);

test("no result overtakes another while the window is full; what is live waits for no clock and is not marked", async () => {
  const heard: string[] = [];
  const held: (() => void)[] = [];
  await using broker = await scripted((packet, say) => {
    if (packet.cmd === "connect") say({ cmd: "connack", reasonCode: 0, sessionPresent: false });
    if (packet.cmd !== "publish" || packet.topic === STATUS) return obey(packet, say);
    heard.push(String(packet.payload));
    if (held.push(() => obey(packet, say)) > 20) throw new Error("more than the window");
    return undefined;
  });
  await using node = new Node({ url: url(broker) });
  await node.online();
  const said = [...life("running"), ...life("done")];
  for (const text of said.slice(0, 50)) node.say("res/1", text, { class: "result" });
  await until("the window is full", () => held.length === 20);
  // Each acknowledgement makes room for one, and then there is a new one: the room is not the new one's.
  for (const text of said.slice(50)) {
    held.shift()?.();
    await sleep(1);
    node.say("res/1", text, { class: "result" });
  }
  const events = 200;
  for (let seq = 1; seq <= events; seq++) node.say("event/test", JSON.stringify({ seq }));
  const startedAt = performance.now();
  await until("all came", () => {
    for (const acknowledge of held.splice(0)) acknowledge();
    return heard.length === said.length + events;
  });
  expect(heard.slice(0, said.length)).toEqual(said);
  expect(heard.slice(said.length)).toEqual(Array.from({ length: events }, (_, at) => `{"seq":${at + 1}}`));
  // At 20 a second they would take 10 s.
  expect(performance.now() - startedAt).toBeLessThan(9000);
});

test("a live event waits for those that happened while the broker was away", async () => {
  const heard: string[] = [];
  await using broker = await scripted((packet, say) => {
    if (packet.cmd === "connect") say({ cmd: "connack", reasonCode: 0, sessionPresent: false });
    if (packet.cmd === "publish" && packet.topic !== STATUS) heard.push(String(packet.payload));
    obey(packet, say);
  });
  await using node = new Node({ url: url(broker) });
  for (let seq = 1; seq <= 3; seq++) node.say("event/test", JSON.stringify({ seq }));
  await node.online();
  node.say("event/test", '{"seq":4}');
  node.say("tele/cpu/main", "{}", { class: "tele", qos: 0 });
  await until("all came", () => heard.length === 5);
  const events = heard.filter((text) => text !== "{}");
  expect(events).toEqual([...[1, 2, 3].map((seq) => `{"seq":${seq},"buffered":1}`), '{"seq":4}']);
  // A live sample is not held up by them.
  expect(heard.indexOf("{}")).toBeLessThan(3);
});

test("what was lost on the way is sent again before what waited behind it", async () => {
  const heard: string[] = [];
  let connects = 0;
  await using broker = await scripted((packet, say, socket) => {
    if (packet.cmd === "connect") {
      connects += 1;
      say({ cmd: "connack", reasonCode: 0, sessionPresent: false, properties: { receiveMaximum: 3 } });
    }
    if (packet.cmd !== "publish" || packet.topic === STATUS) return obey(packet, say);
    if (connects > 1) {
      heard.push(String(packet.payload));
      return obey(packet, say);
    }
    // The first connection takes three and acknowledges none.
    if (heard.push(String(packet.payload)) < 3) return undefined;
    heard.length = 0;
    socket.destroy();
    return undefined;
  });
  await using node = new Node({ url: url(broker) });
  await node.online();
  for (let seq = 1; seq <= 6; seq++) {
    node.say("res/1", `{"n":${seq}}`, { class: "result" });
    node.say("event/test", JSON.stringify({ seq }));
  }
  await until("all came", () => heard.length === 12);
  expect(heard.map((text) => JSON.parse(text))).toEqual([
    ...[1, 2, 3, 4, 5, 6].map((n) => ({ n })),
    ...[1, 2, 3, 4, 5, 6].map((seq) => ({ seq, buffered: 1 })),
  ]);
  expect(await node.session.flush(2000)).toBe(true);
  expect(node.session.stats).toMatchObject({ buffered: 0, dropped: 0, sent: 14 });
});

test("a frame goes out at once or not at all: never later, and behind whatever else waits", async () => {
  const heard: string[] = [];
  const held: (() => void)[] = [];
  await using broker = await scripted((packet, say) => {
    if (packet.cmd === "connect") say({ cmd: "connack", reasonCode: 0, sessionPresent: false });
    if (packet.cmd !== "publish" || packet.topic === STATUS) return obey(packet, say);
    heard.push(String(packet.payload));
    held.push(() => obey(packet, say));
    return undefined;
  });
  const problems: (string | undefined)[] = [];
  let rooms = 0;
  await using node = new Node({ url: url(broker) }, { onRoom: () => void rooms++ });
  const frame = (text: string) =>
    node.session.sendFrame("console/c1/out", Buffer.from(text), (problem) => problems.push(problem?.kind));
  expect(node.session.hasRoom).toBe(false);
  frame("before there is a broker");
  expect(problems).toEqual(["lost"]);
  await node.online();
  expect(node.session.hasRoom).toBe(true);
  for (let n = 0; n < 20; n++) frame(`frame ${n}`);
  await until("the window is full", () => held.length === 20);
  expect(node.session.hasRoom).toBe(false);
  frame("one too many");
  expect(problems).toEqual(["lost", "lost"]);
  for (const seq of [1, 2]) node.say("event/test", JSON.stringify({ seq }));
  rooms = 0;
  held.shift()?.();
  await until("the first event went", () => heard.length === 21);
  expect([rooms, node.session.hasRoom]).toEqual([0, false]);
  while (held.length > 0) {
    for (const acknowledge of held.splice(0)) acknowledge();
    await sleep(5);
  }
  await until("all was answered", () => problems.length === 22);
  expect(rooms).toBeGreaterThan(0);
  expect(problems.slice(2)).toEqual(Array(20).fill(undefined));
  expect(heard).toEqual([...Array.from({ length: 20 }, (_, n) => `frame ${n}`), '{"seq":1}', '{"seq":2}']);
});

test("frames on a connection that breaks are lost, said so, and not sent again on the next", async () => {
  const heard: string[] = [];
  let hangUp: () => void = () => undefined;
  await using broker = await scripted((packet, say, socket) => {
    hangUp = () => void socket.destroy();
    if (packet.cmd === "connect") say({ cmd: "connack", reasonCode: 0, sessionPresent: false });
    if (packet.cmd === "publish" && packet.topic !== STATUS) heard.push(String(packet.payload));
    else obey(packet, say);
  });
  const problems: (string | undefined)[] = [];
  const losses: string[] = [];
  await using node = new Node({ url: url(broker) }, { onLost: (why) => void losses.push(why) });
  await node.online();
  node.session.sendFrame("console/c1/out", Buffer.from("frame"), (problem) => problems.push(problem?.kind));
  node.say("event/test", '{"seq":1}');
  await until("both arrived", () => heard.length === 2);
  hangUp();
  await until("the session noticed", () => losses.length === 1);
  expect(problems).toEqual(["lost"]);
  await until("the event came again", () => heard.length === 3);
  expect(heard).toEqual(["frame", '{"seq":1}', '{"seq":1,"buffered":1}']);
});
