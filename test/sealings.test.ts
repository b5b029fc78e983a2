/** The node's sealed sessions together: who is let in for how long, and how they share the way to the broker. */
import { afterEach, beforeEach, expect, jest, test } from "bun:test";
import type { Caller } from "../agent/commands.ts";
import { agree, ephemeral, transcriptOf } from "../agent/console/agreement.ts";
import { SealedChannel } from "../agent/console/sealed.ts";
import { Sealings, topicOf } from "../agent/console/sealings.ts";
import type { Signer } from "../agent/sign/signers.ts";

beforeEach(() => {
  jest.useFakeTimers();
  jest.setSystemTime(new Date("2026-11-23T07:00:00Z"));
});
afterEach(() => {
  jest.useRealTimers();
});

const HERE = { site: "lab", node: "pi1" };
const FINGERPRINT = "SHA256:alice";
const NOW = Date.parse("2026-11-23T07:00:00Z") / 1000;

const ALICE: Signer = {
  principal: "alice@desk",
  fingerprint: FINGERPRINT,
  publicKey: new Uint8Array(32),
  roles: new Set(["console"]),
  mayOutlet: (outlet) => outlet === "1.0",
  outlets: "1.0",
  maySign: (namespace) => namespace === "fruit-cmd@v1",
};

const CALLER: Caller = {
  door: "mqtt",
  who: "key:alice@desk",
  key: FINGERPRINT,
  roles: ALICE.roles,
  mayOutlet: ALICE.mayOutlet,
};

async function settle(): Promise<void> {
  for (let n = 0; n < 50; n++) await Promise.resolve();
}

/** All sessions of a node, on a way that takes so many frames. */
function node() {
  let signer: Signer | undefined = ALICE;
  let room = Number.POSITIVE_INFINITY;
  const sent: string[] = [];
  const people = new Map<string, SealedChannel>();
  const sealings = new Sealings({
    ...HERE,
    key: { fingerprint: "SHA256:node", publicKey: new Uint8Array(32), sign: () => "signed" },
    signers: { find: (fingerprint) => (signer?.fingerprint === fingerprint ? signer : undefined) },
    frames: {
      get hasRoom() {
        return room > 0;
      },
      send: (topic, frame, done) => {
        room--;
        sent.push(topic);
        queueMicrotask(() => {
          people.get(topic)?.hear(frame);
          done();
        });
      },
    },
  });
  return {
    sealings,
    /** The ids of those who were sent something since, in order. */
    sent: () => sent.splice(0).map((topic) => topic.split("/").at(-2)),
    allow: (count: number) => {
      room = count;
      sealings.proceed();
    },
    know: (change: Partial<Signer> | undefined) => {
      signer = change && { ...ALICE, ...change };
    },
    /** Somebody attaches; how it ended for them, once it has. */
    visit: async (id: string) => {
      const own = ephemeral();
      const opening = { session: id, id, key: own.publicKey, caller: CALLER, outlet: "1.0" as const };
      const { channel, answer } = sealings.open(opening);
      const transcript = transcriptOf({
        ...HERE,
        id,
        signer: FINGERPRINT,
        personKey: own.publicKey,
        nodeKey: answer.key ?? "",
      });
      const { toNode, toPerson } = agree(own, answer.key ?? "", transcript);
      const person = new SealedChannel({
        keys: { send: toNode, receive: toPerson },
        way: {
          hasRoom: true,
          send: (frame, done) => {
            queueMicrotask(() => {
              sealings.heard({
                topic: topicOf({ ...HERE, id }, "in"),
                payload: frame,
                retain: false,
                duplicate: false,
              });
              done();
            });
          },
        },
        peer: "node pi1",
        isPerson: true,
      });
      people.set(topicOf({ ...HERE, id }, "out"), person);
      const ended: string[] = [];
      channel.receive(() => undefined);
      person.receive(() => undefined);
      void person.ended.then((why) => ended.push(why));
      await settle();
      return { channel, person, ended };
    },
  };
}

test.each<{ what: string; change: Partial<Signer> | undefined; says: string }>([
  {
    what: "is taken out of the file",
    change: undefined,
    says: "the key is no longer among the allowed signers",
  },
  { what: "has expired", change: { validBefore: NOW + 1 }, says: "the key is no longer valid" },
  {
    what: "may sign no commands",
    change: { maySign: () => false },
    says: "the key may no longer sign commands",
  },
  {
    what: "loses the role",
    change: { roles: new Set(["read"]) },
    says: "the key no longer has the role console",
  },
  {
    what: "loses the outlet",
    change: { mayOutlet: () => false },
    says: "the key may no longer touch outlet 1.0",
  },
])("a key that $what ends its session, which says so", async ({ change, says }) => {
  const one = node();
  const { ended } = await one.visit("a");
  one.know(change);
  jest.advanceTimersByTime(2000);
  await settle();
  expect(ended).toEqual([says]);
});

test("a key that may as before keeps its session, also as admin, and is looked at again later", async () => {
  const one = node();
  const { ended } = await one.visit("a");
  one.know({ roles: new Set(["admin"]), validBefore: NOW + 100 });
  for (let n = 0; n < 20; n++) {
    jest.advanceTimersByTime(2000);
    await settle();
  }
  expect(ended).toEqual([]);
  one.know(undefined);
  jest.advanceTimersByTime(2000);
  await settle();
  expect(ended).toHaveLength(1);
});

test("while there is little room for frames, the sessions take turns", async () => {
  const one = node();
  const stays = [await one.visit("a"), await one.visit("b"), await one.visit("c")];
  one.allow(0);
  one.sent();
  for (const { channel } of stays)
    for (let n = 0; n < 3; n++)
      void channel.send({ kind: "mark", mark: { at: 0, kind: "notice", text: `${n}` } });
  await settle();
  expect(one.sent()).toEqual([]);
  const order: (string | undefined)[] = [];
  for (let n = 0; n < 6; n++) {
    one.allow(1);
    await settle();
    order.push(...one.sent());
  }
  expect(order.toSorted()).toEqual(["a", "a", "b", "b", "c", "c"]);
});

test("a ninth session is refused, and there is room when one has ended", async () => {
  const one = node();
  const stays = [];
  for (let n = 0; n < 8; n++) stays.push(await one.visit(`s${n}`));
  await expect(one.visit("late")).rejects.toThrow("8 console sessions over MQTT are open");
  stays[0]?.channel.close("left");
  await settle();
  expect((await one.visit("late")).ended).toEqual([]);
});
