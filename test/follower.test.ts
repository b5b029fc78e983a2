import { expect, test } from "bun:test";
import type { Facts } from "../agent/update/desire.ts";
import { Follower, type Hands } from "../agent/update/follower.ts";
import { until } from "./node.ts";

const NOW = 1_795_000_000;
const name = (version: bigint) => String(version).repeat(20);

/** A node whose facts a test changes, and hands that say what they do. */
function stage(hands: Partial<Hands> = {}) {
  const facts: Facts = {
    policy: "automatic",
    isMetered: false,
    now: NOW,
    isClockSet: true,
    windowOpensIn: undefined,
    head: undefined,
    running: { version: 12n },
    other: { state: "empty", version: 0n, infohash: undefined },
    trial: undefined,
    release: undefined,
    loop: undefined,
    hindered: [],
    ordered: undefined,
  };
  const done: string[] = [];
  const codes: string[] = [];
  let nowMs = 0;
  const follower = new Follower({
    hands: {
      facts: async () => ({ ...facts }),
      learn: async (infohash) => {
        done.push(`learn ${infohash}`);
        facts.release = { turn: 0 };
      },
      fetch: async (infohash) => {
        done.push(`fetch ${infohash}`);
        facts.other = { state: "staged", version: facts.head?.version ?? 0n, infohash };
      },
      try: async (infohash) => {
        done.push(`try ${infohash}`);
        facts.trial = { version: facts.head?.version ?? 0n };
      },
      drop: async (infohash) => {
        done.push(`drop ${infohash}`);
        facts.other = { ...facts.other, state: "failed" };
      },
      rollBack: async (infohash) => {
        done.push(`back ${infohash}`);
        facts.trial = undefined;
      },
      ...hands,
    },
    lookMs: 5,
    changed: ({ code }) => codes.push(code),
    log: () => undefined,
    nowMs: () => nowMs,
  });
  const announce = (version: bigint, isWithdrawn = false) => {
    facts.head = { version, infohash: name(version), issued: NOW, expires: NOW + 86_400, isWithdrawn };
    follower.wake();
  };
  return {
    facts,
    done,
    codes,
    follower,
    announce,
    pass: (ms: number) => {
      nowMs += ms;
    },
  };
}

/** Runs it while the test does its part. */
async function following(follower: Follower, play: () => Promise<void>): Promise<void> {
  const stop = new AbortController();
  const run = follower.run(stop.signal);
  try {
    await play();
  } finally {
    stop.abort();
    await run;
  }
}

/** Waits for the signal. */
const forever = (signal: AbortSignal) =>
  new Promise<void>((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));

test("what is announced is learnt, fetched and tried, and nothing after it", async () => {
  const { follower, announce, done, codes } = stage();
  await following(follower, async () => {
    await until("it comes to that", () => codes.includes("no-announcement"));
    announce(13n);
    await until("it comes to that", () => codes.includes("on-trial"));
  });
  expect(done).toEqual([`learn ${name(13n)}`, `fetch ${name(13n)}`, `try ${name(13n)}`]);
  expect(codes).toEqual(["no-announcement", "announced", "fetching", "trying", "on-trial"]);
});

test("a newer release takes the place of the one that is being fetched", async () => {
  const aborted: string[] = [];
  const { follower, announce, facts, done } = stage({
    fetch: async (infohash, signal) => {
      facts.other = { state: "writing", version: facts.head?.version ?? 0n, infohash };
      if (infohash === name(14n)) {
        done.push("fetched 14");
        facts.other = { state: "staged", version: 14n, infohash };
        return;
      }
      await forever(signal).catch((why) => {
        aborted.push(String(why));
        throw why;
      });
    },
  });
  await following(follower, async () => {
    announce(13n);
    await until("it comes to that", () => follower.doing?.what === "fetch");
    facts.release = undefined;
    announce(14n);
    await until("it comes to that", () => done.includes(`try ${name(14n)}`));
  });
  expect(aborted).toEqual(["Error: Version 14 is announced; its update file is being looked for."]);
  expect(done).not.toContain(`try ${name(13n)}`);
  expect(follower.failure).toBeUndefined();
});

test("what is withdrawn while it is fetched is broken off and dropped", async () => {
  const { follower, announce, facts, done, codes } = stage({
    fetch: async (infohash, signal) => {
      facts.other = { state: "writing", version: 13n, infohash };
      await forever(signal);
    },
  });
  await following(follower, async () => {
    announce(13n);
    await until("it comes to that", () => follower.doing?.what === "fetch");
    announce(13n, true);
    await until("it comes to that", () => done.includes(`drop ${name(13n)}`) && follower.doing === undefined);
    await until("it comes to that", () => codes.filter((code) => code === "withdrawn").length > 1);
  });
  expect(done.filter((what) => what.startsWith("try"))).toEqual([]);
});

test("what is withdrawn on trial is rolled back", async () => {
  const { follower, announce, facts, done } = stage();
  facts.trial = { version: 13n };
  await following(follower, async () => {
    announce(13n);
    await until("it comes to that", () => follower.wanted?.desire.code === "on-trial");
    announce(13n, true);
    await until("it comes to that", () => done.includes(`back ${name(13n)}`));
  });
});

test("a bad moment ends nothing that has begun", async () => {
  let isBrokenOff = false;
  const { follower, announce, facts } = stage({
    fetch: (_, signal) =>
      forever(signal).catch((why) => {
        isBrokenOff = true;
        throw why;
      }),
  });
  await following(follower, async () => {
    announce(13n);
    await until("it comes to that", () => follower.doing?.what === "fetch");
    facts.hindered = ["Outlet 1.0 is being switched."];
    await until("it comes to that", () => follower.wanted?.desire.code === "hindered");
    expect(follower.doing?.what).toBe("fetch");
    expect(isBrokenOff).toBe(false);
  });
  expect(isBrokenOff).toBe(true);
});

test("what fails is tried again, later each time, and at once when somebody asks", async () => {
  let tries = 0;
  const { follower, announce, pass } = stage({
    learn: async () => {
      tries++;
      throw new Error("nobody has it");
    },
  });
  await following(follower, async () => {
    announce(13n);
    await until("it comes to that", () => follower.failure !== undefined);
    expect(follower.failure).toEqual({ why: "nobody has it", inSeconds: 15 });
    for (const rest of [15, 30, 60]) {
      expect(follower.failure?.inSeconds).toBe(rest);
      pass(rest * 1000 - 1);
      const before = tries;
      follower.wake();
      await until("it comes to that", () => follower.wanted !== undefined);
      expect(tries).toBe(before);
      pass(1);
      await until("it comes to that", () => tries > before && follower.doing === undefined);
    }
    pass(1);
    const before = tries;
    follower.wake(true);
    await until("it comes to that", () => tries > before && follower.doing === undefined);
    expect(follower.failure?.inSeconds).toBe(15);
  });
});

test("facts that cannot be had stop nothing for good", async () => {
  let isBroken = true;
  const inner = stage();
  const { follower, codes } = stage({
    facts: async () => {
      if (isBroken) throw new Error("the card does not answer");
      return inner.facts;
    },
  });
  await following(follower, async () => {
    follower.wake();
    expect(follower.wanted).toBeUndefined();
    isBroken = false;
    await until("it comes to that", () => codes.includes("no-announcement"));
  });
});

test("another release is told of, even where what is thought of it is the same", async () => {
  const { facts, follower, announce, codes, done } = stage();
  facts.release = { turn: 0, refused: "for other boards" };
  announce(13n);
  await following(follower, async () => {
    await until("the first", () => codes.length === 1);
    announce(14n);
    await until("the second", () => codes.length === 2);
  });
  expect([codes, done]).toEqual([["refused", "refused"], []]);
});
