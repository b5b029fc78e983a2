/** A person's stay at a console: how long a node may say nothing. */
import { afterEach, beforeEach, expect, jest, test } from "bun:test";
import type { Channel, Message } from "../agent/console/channel.ts";
import { Visit } from "../agent/console/visit.ts";

beforeEach(() => void jest.useFakeTimers());
afterEach(() => void jest.useRealTimers());

/** A stay whose node says what the test says, with a screen in the test's hands. */
function stay() {
  let screen = Promise.withResolvers<void>();
  screen.resolve();
  let hear: (message: Message) => unknown = () => undefined;
  const channel: Channel = {
    send: async () => undefined,
    receive: (message) => {
      hear = message;
    },
    close: () => undefined,
    ended: new Promise(() => undefined),
  };
  const visit = new Visit(channel, {
    console: "a",
    show: () => screen.promise,
    signal: new AbortController().signal,
  });
  const said: string[] = [];
  void visit.begin().then(
    () => said.push("begun"),
    (error: Error) => said.push(error.message),
  );
  return {
    said,
    say: (message: object) => void hear(message as Message),
    hold: () => {
      screen = Promise.withResolvers();
    },
    release: () => screen.resolve(),
    pass: async (seconds: number) => {
      for (let n = 0; n < seconds; n++) {
        jest.advanceTimersByTime(1000);
        for (let turn = 0; turn < 20; turn++) await undefined;
      }
    },
  };
}

const BYTES = { kind: "bytes", bytes: new Uint8Array(1), at: 0 };

test("a node that says nothing for 15 s is given up", async () => {
  const { said, say, pass } = stay();
  await pass(10);
  say(BYTES);
  await pass(14);
  expect(said).toEqual([]);
  await pass(2);
  expect(said).toEqual(["console a: the node has said nothing for 15 s"]);
});

test("whoever reads slowly, in a pager, is waited for", async () => {
  const { said, say, hold, release, pass } = stay();
  hold();
  say(BYTES);
  await pass(608);
  release();
  await pass(10);
  say({ kind: "view", view: {}, mayWrite: false });
  await pass(1);
  expect(said).toEqual(["begun"]);
});
