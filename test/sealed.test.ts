/** Both ends of a sealed console session without a broker, and somebody between them. */
import { afterEach, beforeEach, describe, expect, jest, test } from "bun:test";
import { agree, ephemeral } from "../agent/console/agreement.ts";
import type { Message } from "../agent/console/channel.ts";
import { Sealer } from "../agent/console/frames.ts";
import { FRAME_MAX, type Limits, SealedChannel } from "../agent/console/sealed.ts";
import { seeded } from "./fakes.ts";

const text = (bytes: Uint8Array) => Buffer.from(bytes).toString();
const bytesOf = (words: string): Message => ({ kind: "bytes", bytes: Buffer.from(words) });

/** What is between the two ends: it may do with a frame what it likes; the returned ones go on. */
type Between = (frame: Uint8Array, number: number) => Uint8Array[];

/** One end, with what it heard and how it ended. */
class End {
  channel: SealedChannel;
  readonly frames: Uint8Array[] = [];
  readonly heard: Message[] = [];
  between: Between = (frame) => [frame];
  hasRoom = true;
  problem: string | undefined;
  ended: string | undefined;
  other: End | undefined;

  constructor(
    isPerson: boolean,
    keys: { toNode: Uint8Array; toPerson: Uint8Array },
    limits?: Partial<Limits>,
  ) {
    const end = this;
    this.channel = new SealedChannel({
      keys: isPerson
        ? { send: keys.toNode, receive: keys.toPerson }
        : { send: keys.toPerson, receive: keys.toNode },
      way: {
        get hasRoom() {
          return end.hasRoom;
        },
        send: (frame, done) => end.#carry(frame, done),
      },
      peer: isPerson ? "node pi1" : "key:alice@desk",
      isPerson,
      ...(limits ? { limits } : {}),
    });
    void this.channel.ended.then((why) => {
      this.ended = why;
    });
  }

  listen(hear: (message: Message) => void | Promise<void> = () => undefined): void {
    this.channel.receive((message) => {
      this.heard.push(message);
      return hear(message);
    });
  }

  /** All bytes heard so far. */
  get bytes(): Buffer {
    return Buffer.concat(
      this.heard.map((message) => (message.kind === "bytes" ? message.bytes : Buffer.alloc(0))),
    );
  }

  #carry(frame: Uint8Array, done: (problem?: string) => void): void {
    this.frames.push(frame);
    const passed = this.problem === undefined ? this.between(frame, this.frames.length) : [];
    queueMicrotask(() => {
      for (const one of passed) this.other?.channel.hear(one);
      done(this.problem);
    });
  }
}

/** Both ends; the person's is made last, since it speaks at once. */
function session(limits?: Partial<Limits>) {
  const [one, other] = [ephemeral(), ephemeral()];
  const transcript = Buffer.from("transcript");
  const { publicKey } = one;
  const node = new End(false, agree(one, other.publicKey, transcript), limits);
  const person = new End(true, agree(other, publicKey, transcript), limits);
  node.other = person;
  person.other = node;
  node.listen();
  person.listen();
  return { node, person };
}

/** Lets everything happen that needs no time, or `ms` of it. */
async function settle(ms = 0): Promise<void> {
  const turn = async () => {
    for (let n = 0; n < 50; n++) await Promise.resolve();
  };
  await turn();
  for (let at = 0; at < ms; at += 5) {
    jest.advanceTimersByTime(5);
    await turn();
  }
}

describe("a session", () => {
  beforeEach(() => void jest.useFakeTimers());
  afterEach(() => void jest.useRealTimers());

  test("carries every kind of message in both directions, in order", async () => {
    const { node, person } = session();
    const view = {
      v: 1,
      name: "rack1-a",
      device: "/dev/ttyS1",
      baud: 9600,
      state: "up",
      writer: null,
      readers: 1,
    };
    const said: Message[] = [
      { kind: "view", view: view as never, mayWrite: true },
      { kind: "bytes", bytes: Uint8Array.of(0, 255, 10, 13), at: 1_787_650_332_123 },
      { kind: "mark", mark: { at: 5, kind: "break", text: "break" } },
      { kind: "answer", n: 1, result: { who: [] } },
    ];
    for (const message of said) await node.channel.send(message);
    const asked: Message[] = [
      { kind: "ask", n: 1, ask: { do: "who" } },
      { kind: "bytes", bytes: Uint8Array.of(3) },
    ];
    for (const message of asked) await person.channel.send(message);
    await settle();
    const plain = (messages: Message[]) =>
      messages.map((message) => ("bytes" in message ? { ...message, bytes: [...message.bytes] } : message));
    expect(plain(person.heard)).toEqual(plain(said));
    expect(plain(node.heard)).toEqual(plain(asked));
  });

  test("says nothing to a person who has not spoken, and then everything", async () => {
    const [one, other] = [ephemeral(), ephemeral()];
    const { publicKey } = one;
    const node = new End(false, agree(one, other.publicKey, Buffer.from("t")));
    void node.channel.send(bytesOf("login: "));
    await settle(5000);
    expect(node.frames).toEqual([]);
    const person = new End(true, agree(other, publicKey, Buffer.from("t")));
    person.listen();
    node.other = person;
    for (const frame of person.frames) node.channel.hear(frame);
    await settle();
    expect(text(person.bytes)).toBe("login: ");
  });

  test("a person who speaks only after it was closed is told why, and nothing of what waited", async () => {
    const [one, other] = [ephemeral(), ephemeral()];
    const { publicKey } = one;
    const node = new End(false, agree(one, other.publicKey, Buffer.from("t")));
    void node.channel.send(bytesOf("login: "));
    node.channel.close("16 are attached");
    await settle(100);
    expect(node.frames).toEqual([]);
    const person = new End(true, agree(other, publicKey, Buffer.from("t")));
    person.listen();
    node.other = person;
    for (const frame of person.frames) node.channel.hear(frame);
    await settle();
    expect([person.heard, person.ended, node.ended]).toEqual([[], "16 are attached", "16 are attached"]);
  });

  test("a person who never speaks is given up after 10 s", async () => {
    const node = new End(false, agree(ephemeral(), ephemeral().publicKey, Buffer.from("t")));
    await settle(9_900);
    expect(node.ended).toBeUndefined();
    await settle(200);
    expect(node.ended).toBe("nothing heard from key:alice@desk for 10 s");
  });

  test("more than fits in a frame is cut and whole again, and waits for whoever is slow", async () => {
    const { node, person } = session();
    const random = seeded(7);
    const all = Buffer.from(Array.from({ length: 300_000 }, () => Math.floor(random() * 256)));
    const slow = Promise.withResolvers<void>();
    let held = true;
    person.channel.receive((message) => {
      person.heard.push(message);
      return held ? slow.promise : undefined;
    });
    let isSent = false;
    void node.channel.send({ kind: "bytes", bytes: all }).then(() => {
      isSent = true;
    });
    await settle(500);
    // One is being heard, the others wait: no more than the window and one message are under way.
    const underWay = node.frames.reduce((sum, frame) => sum + frame.length, 0);
    expect(underWay).toBeGreaterThan(60_000);
    expect(underWay).toBeLessThan(65_536 + FRAME_MAX / 8);
    expect(isSent).toBe(false);
    held = false;
    slow.resolve();
    await settle(500);
    expect(isSent).toBe(true);
    expect(person.bytes.equals(all)).toBe(true);
    expect(Math.max(...node.frames.map(({ length }) => length))).toBeLessThan(4096 + 64);
  });

  test("single bytes count for more than they are: no more than 512 frames are under way", async () => {
    const { node, person } = session({ batchMs: 0 });
    person.channel.receive(() => new Promise(() => undefined));
    void (async () => {
      for (let n = 0; n < 5000; n++) await node.channel.send(bytesOf("x"));
    })().catch(() => undefined);
    await settle(2000);
    expect(node.frames.length).toBeGreaterThan(400);
    expect(node.frames.length).toBeLessThanOrEqual(513);
  });

  test("a single byte goes at once; those that follow closely go together", async () => {
    const { node, person } = session({ batchMs: 100 });
    const letters = (from: End) =>
      from.heard.map((message) => ("bytes" in message ? text(message.bytes) : message.kind));
    for (const letter of "abc") await node.channel.send(bytesOf(letter));
    await settle();
    expect(letters(person)).toEqual(["a"]);
    await settle(100);
    expect(letters(person)).toEqual(["a", "bc"]);
    // Whatever else is said does not wait, nor overtake them.
    await node.channel.send(bytesOf("d"));
    await node.channel.send({ kind: "mark", mark: { at: 1, kind: "notice", text: "x" } });
    await settle();
    expect(letters(person)).toEqual(["a", "bc", "d", "mark"]);
    await settle(200);
    for (let n = 0; n < 5; n++) await node.channel.send({ kind: "bytes", bytes: Buffer.alloc(3000, n) });
    await settle();
    const lengths = person.heard.slice(4).map((message) => ("bytes" in message ? message.bytes.length : 0));
    expect(lengths).toEqual([3000, 3000, 3000, 3000]);
    await settle(100);
    expect(person.bytes).toHaveLength(4 + 15_000);
  });

  test("bytes of another moment travel under a date of their own", async () => {
    const { node, person } = session({ batchMs: 100 });
    for (const [at, words] of [
      [1000, "a"],
      [2000, "b"],
      [2050, "c"],
      [9000, "d"],
    ] as const)
      await node.channel.send({ kind: "bytes", bytes: Buffer.from(words), at });
    await settle(200);
    const dated = person.heard.map((message) =>
      "bytes" in message ? [message.at, text(message.bytes)] : [],
    );
    expect(dated).toEqual([
      [1000, "a"],
      [2000, "bc"],
      [9000, "d"],
    ]);
  });

  test("waits for room on the way and then goes on", async () => {
    const { node, person } = session();
    await settle();
    node.hasRoom = false;
    const sent = node.frames.length;
    await node.channel.send(bytesOf("later"));
    await settle(1000);
    expect(node.frames).toHaveLength(sent);
    node.hasRoom = true;
    node.channel.proceed();
    await settle();
    expect(text(person.bytes)).toBe("later");
  });

  const TAMPERED = "something on the way loses or forges what travels, so the session is over";
  const flipped = (frame: Uint8Array) => Uint8Array.from(frame, (byte, at) => (at === 20 ? byte ^ 4 : byte));
  let kept: Uint8Array | undefined;
  const reordered: Between = (frame, number) => {
    if (number !== 3) return kept && number === 4 ? [frame, kept] : [frame];
    kept = frame;
    return [];
  };
  const cases: { what: string; between: Between; says: string }[] = [
    {
      what: "repeated",
      between: (frame, number) => (number === 3 ? [frame, frame] : [frame]),
      says: "frame 3 came again",
    },
    {
      what: "dropped",
      between: (frame, number) => (number === 3 ? [] : [frame]),
      says: "frame 3 is missing",
    },
    {
      what: "dropped in a row",
      between: (frame, number) => (number === 3 || number === 4 ? [] : [frame]),
      says: "frames 3 to 4 are missing",
    },
    { what: "swapped", between: reordered, says: "frame 3 is missing" },
    {
      what: "altered",
      between: (frame, number) => [number === 3 ? flipped(frame) : frame],
      says: "frame 3 was altered",
    },
    {
      what: "made up",
      between: (frame, number) => (number === 3 ? [Buffer.alloc(80, 7)] : [frame]),
      says: "is no frame of the session",
    },
    {
      what: "longer than any",
      between: (frame, number) => (number === 3 ? [Buffer.alloc(FRAME_MAX + 1)] : [frame]),
      says: `what has ${FRAME_MAX + 1} bytes is no frame`,
    },
  ];
  for (const from of ["person", "node"] as const)
    test.each(cases)(
      `a frame of the ${from} that was $what ends it on both sides, and both are told`,
      async (row) => {
        const ends = session();
        await settle();
        const sender = ends[from];
        const receiver = from === "person" ? ends.node : ends.person;
        const base = sender.frames.length;
        sender.between = (frame, number) => row.between(frame, number - base + 2);
        for (const words of ["one", "two", "three", "four"])
          await sender.channel
            .send({ kind: "mark", mark: { at: 1, kind: "notice", text: words } })
            .catch(() => undefined);
        await settle(20);
        const said = row.says.replace(/\d+/g, (digits) =>
          digits.length > 2 ? digits : String(Number(digits) + base - 2),
        );
        const name = from === "person" ? "key:alice@desk" : "node pi1";
        expect(receiver.ended).toEndWith(`${said} (from ${name}): ${TAMPERED}`);
        expect(sender.ended).toBe(receiver.ended as string);
        // What had come before is good; nothing after it was heard.
        expect(receiver.heard.length).toBeLessThan(4);
        expect(
          receiver.heard.map((message) => ("mark" in message ? message.mark.text : message.kind)),
        ).toEqual(["one", "two", "three"].slice(0, receiver.heard.length));
        await expect(receiver.channel.send(bytesOf("x"))).rejects.toThrow(said);
      },
    );

  test("the last words reach somebody who takes nothing, once they do", async () => {
    const { node, person } = session();
    const slow = Promise.withResolvers<void>();
    person.channel.receive(() => slow.promise);
    void node.channel.send({ kind: "bytes", bytes: Buffer.alloc(200_000) }).catch(() => undefined);
    await settle(100);
    node.channel.hear(Buffer.alloc(50));
    await settle(100);
    expect(person.ended).toBeUndefined();
    slow.resolve();
    await settle(100);
    expect(person.ended).toBe(node.ended as string);
    expect(person.ended).toContain("is no frame of the session");
  });

  test("the last words wait for room on the way, but not for long", async () => {
    for (const isRoom of [true, false]) {
      const { node, person } = session();
      await settle();
      node.hasRoom = false;
      node.channel.hear(Buffer.alloc(50));
      await settle(1000);
      expect([node.ended, person.ended]).toEqual([undefined, undefined]);
      node.hasRoom = isRoom;
      node.channel.proceed();
      await settle(1100);
      expect(node.ended).toContain("is no frame of the session");
      expect(person.ended).toBe(isRoom ? node.ended : undefined);
      person.channel.lose("over");
    }
  });

  test("a retained frame ends it on both sides", async () => {
    const { node, person } = session();
    await settle();
    node.channel.refuse("a retained frame came");
    await settle();
    expect(node.ended).toBe(`a retained frame came (from key:alice@desk): ${TAMPERED}`);
    expect(person.ended).toBe(node.ended as string);
  });

  test("a frame of one direction is none of the other", async () => {
    const { node, person } = session();
    await settle();
    person.channel.hear(person.frames[0] as Uint8Array);
    await settle();
    expect(person.ended).toContain("what came as frame 1 is no frame of the session");
    expect(node.ended).toBe(person.ended as string);
  });

  test("says 'end' last, after all that waited, and the other side hears it after all that came before", async () => {
    const { node, person } = session();
    const slow = Promise.withResolvers<void>();
    person.channel.receive((message) => {
      person.heard.push(message);
      return person.heard.length === 1 ? slow.promise : undefined;
    });
    for (const letter of "abcdef") await node.channel.send(bytesOf(letter));
    node.channel.close("kicked by bob");
    await settle(100);
    expect(node.ended).toBe("kicked by bob");
    expect(person.ended).toBeUndefined();
    slow.resolve();
    await settle();
    expect(text(person.bytes)).toBe("abcdef");
    expect(person.ended).toBe("kicked by bob");
    await expect(person.channel.send(bytesOf("x"))).rejects.toThrow("kicked by bob");
    await expect(node.channel.send(bytesOf("x"))).rejects.toThrow("kicked by bob");
  });

  test("whoever leaves is shown nothing more, and need not wait for somebody who takes nothing", async () => {
    const { node, person } = session();
    node.channel.receive(() => new Promise(() => undefined));
    void person.channel.send({ kind: "bytes", bytes: Buffer.alloc(200_000) }).catch(() => undefined);
    await settle(50);
    person.channel.close();
    await node.channel.send(bytesOf("too late"));
    await settle(1900);
    expect(person.ended).toBeUndefined();
    await settle(200);
    expect(person.ended).toBe("the session was left");
    expect(person.heard).toEqual([]);
  });

  test("silence ends it on the side that hears nothing; signs of life keep it", async () => {
    const { node, person } = session();
    await settle(10 * 60_000);
    expect([node.ended, person.ended]).toEqual([undefined, undefined]);
    // Thirty frames each in ten minutes: one in twenty seconds.
    expect(node.frames.length).toBeGreaterThan(25);
    expect(node.frames.length).toBeLessThan(35);
    node.between = () => [];
    await settle(61_000);
    expect(person.ended).toBe("nothing heard from node pi1 for 60 s");
    expect(node.ended).toBe("nothing heard from node pi1 for 60 s");
  }, 30_000);

  test("a way that is gone ends it with why, and what had come is still heard", async () => {
    const { node, person } = session();
    await settle();
    node.problem = "the broker does not take it";
    await node.channel.send(bytesOf("x"));
    await settle();
    expect(node.ended).toBe("the broker does not take it");
    person.channel.lose("the connection to the broker ended");
    await settle();
    expect(person.ended).toBe("the connection to the broker ended");
  });

  test("a handler that fails ends it for both, with its words", async () => {
    const { node, person } = session();
    node.channel.receive(() => Promise.reject(new Error("the line is gone")));
    await person.channel.send(bytesOf("x"));
    await settle(100);
    expect([node.ended, person.ended]).toEqual(["the line is gone", "the line is gone"]);
  });

  test("whoever does not wait for room is stopped before it costs much", async () => {
    const { node, person } = session();
    person.channel.receive(() => new Promise(() => undefined));
    for (let n = 0; n < 300; n++)
      void node.channel.send({ kind: "bytes", bytes: Buffer.alloc(4096) }).catch(() => undefined);
    await settle(100);
    expect(node.ended).toBe("more than 524288 bytes wait to be sent");
  });

  test("somebody who has the keys and breaks the rules is told from somebody who has not", async () => {
    const [one, other] = [ephemeral(), ephemeral()];
    const { publicKey } = one;
    const node = new End(false, agree(one, other.publicKey, Buffer.from("t")));
    node.listen();
    const sealer = new Sealer(agree(other, publicKey, Buffer.from("t")).toNode);
    node.channel.hear(sealer.seal(Buffer.from([0, 0, 0, 0, 1, 0])));
    await settle();
    expect(node.ended).toBe("key:alice@desk speaks no console: it took 256 of 0, after 0");
  });

  test("somebody who has the keys cannot fill this side's memory", async () => {
    const [one, other] = [ephemeral(), ephemeral()];
    const { publicKey } = one;
    const node = new End(false, agree(one, other.publicKey, Buffer.from("t")));
    node.listen(() => new Promise(() => undefined));
    const sealer = new Sealer(agree(other, publicKey, Buffer.from("t")).toNode);
    const body = Buffer.concat([Buffer.alloc(6), Uint8Array.of(1), Buffer.alloc(8000)]);
    for (let n = 0; n < 100; n++) node.channel.hear(sealer.seal(body));
    await settle(2000);
    expect(node.ended).toMatch(
      /^key:alice@desk speaks no console: 2\d{5} bytes are on their way, of at most 65536$/,
    );
  });

  test.each([
    { what: "shorter than any", body: [0, 0], says: "a body of 2 bytes" },
    { what: "no message", body: [0, 0, 0, 0, 0, 0, 5, 123], says: "a message of type 5 that is not JSON" },
  ])("a body that is $what ends it", async ({ body, says }) => {
    const [one, other] = [ephemeral(), ephemeral()];
    const { publicKey } = one;
    const node = new End(false, agree(one, other.publicKey, Buffer.from("t")));
    node.channel.hear(new Sealer(agree(other, publicKey, Buffer.from("t")).toNode).seal(Buffer.from(body)));
    await settle();
    expect(node.ended).toBe(`key:alice@desk speaks no console: ${says}`);
  });
});
