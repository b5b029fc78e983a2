import { expect, test } from "bun:test";
import { closeSync, openSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Holding } from "../../agent/update/share.ts";
import { Swarm, type SwarmOptions } from "../../agent/update/swarm.ts";
import { LEAF_BYTES } from "../../boot/content.ts";
import { Judge } from "../../boot/leaf.ts";
import { openSide } from "../../boot/side.ts";
import { SOURCES, scratch, until } from "../node.ts";
import { believed, inMemory, makePayload, makeRelease } from "../releases.ts";
import { type Lies, toyCommand } from "../swarm/toy.ts";

const made = makeRelease({ payload: makePayload({ rootBytes: 900_000 }) });
const release = believed(made);
const SIZE = made.payload.length;
const LEAVES = Math.ceil(SIZE / LEAF_BYTES);

/** A swarm of this process whose child is a toy unless said otherwise. */
function swarm(options: Partial<SwarmOptions> & { lies?: Lies } = {}) {
  const { lies, ...rest } = options;
  const stop = new AbortController();
  const log: string[] = [];
  const swarm = new Swarm({
    ...{
      user: 65_534,
      memoryMib: 512,
      files: [],
      settings: { port: 0, lan: false, dht: false, bootstrap: [] },
    },
    command: toyCommand(lies),
    log: (_, what, fields) => log.push(`${what} ${JSON.stringify(fields)}`),
    ...rest,
  });
  const running = swarm.run(stop.signal);
  return {
    ...{ swarm, log },
    async [Symbol.asyncDispose]() {
      stop.abort();
      await running;
    },
  };
}

/** A holding in memory that judges each leaf. */
async function memory(whole = false) {
  const judge = new Judge(SIZE, await openSide(inMemory(made.side), release));
  const bytes = whole ? Buffer.from(made.payload) : Buffer.alloc(SIZE);
  const has = new Set(whole ? Array(LEAVES).keys() : []);
  const puts: number[] = [];
  const holding: Holding = {
    size: SIZE,
    has: (leaf) => has.has(leaf),
    put: async (leaf, part) => {
      await judge.check(leaf, part);
      puts.push(leaf);
      bytes.set(part, leaf * LEAF_BYTES);
      has.add(leaf);
    },
    read: async (at, length) => bytes.subarray(at, at + length),
  };
  return { holding, bytes, has, puts, isWhole: () => has.size === LEAVES };
}

const unfailing = (cause: Error) => {
  throw cause;
};

/** A swarm that gives all of it, and its address. */
async function seed(lies?: Lies) {
  const at = swarm(lies ? { lies } : {});
  const share = at.swarm.share(release.infohash);
  share.begin(made.update, (await memory(true)).holding, unfailing);
  share.offer({
    bytes: made.side.length,
    read: async (from, length) => made.side.subarray(from, from + length),
  });
  return { ...at, share, address: `127.0.0.1:${await at.swarm.port}` };
}

test("a payload goes from one process's child to another's, and each leaf was judged", async () => {
  await using giver = await seed();
  await using taker = swarm();
  const kept = await memory();
  const share = taker.swarm.share(release.infohash);
  share.begin(made.update, kept.holding, unfailing);
  share.meet(giver.address);
  await until("all of it", kept.isWhole);
  expect(kept.bytes.equals(made.payload)).toBe(true);
  expect(kept.puts.length).toBe(LEAVES);
  await until("status", () => share.status?.phase === "whole" && share.status.down === SIZE);
});

/** `fruit swarm` itself. */
const REAL = [...SOURCES.command, "swarm"];

test("whole files are given from descriptors that can only be read, by the program itself", async () => {
  using folder = scratch();
  const path = join(folder.path, "payload");
  writeFileSync(path, Buffer.concat([Buffer.alloc(4096, 9), made.payload]), { mode: 0o600 });
  const file = openSync(path, "r");
  using _ = { [Symbol.dispose]: () => closeSync(file) };
  const side = openSync(folder.file("side", ""), "r+");
  writeFileSync(side, made.side);
  using __ = { [Symbol.dispose]: () => closeSync(side) };
  await using giver = swarm({ files: [file, side], command: REAL });
  const given = giver.swarm.share(release.infohash);
  given.begin(made.update, (await memory(true)).holding, unfailing, { file: { number: 3, at: 4096 } });
  given.offer({ bytes: made.side.length, number: 4 });
  await using taker = swarm({ command: REAL });
  const kept = await memory();
  const share = taker.swarm.share(release.infohash);
  share.meet(`127.0.0.1:${await giver.swarm.port}`);
  const { signal } = new AbortController();
  const update = await share.fetch("update", {}, async () => "good", signal);
  expect(
    Buffer.from(await share.fetch("side", release.side, async () => "good", signal)).equals(made.side),
  ).toBe(true);
  share.begin(update, kept.holding, unfailing);
  await until("all of it", kept.isWhole);
  expect(kept.bytes.equals(made.payload)).toBe(true);
});

test("update file and side file come from peers, from another where the first one lies", async () => {
  await using liar = await seed({ side: true });
  await using giver = await seed();
  await using taker = swarm();
  const share = taker.swarm.share(release.infohash);
  share.meet(liar.address);
  const { signal } = new AbortController();
  const side = share.fetch("side", release.side, async () => "good", signal);
  await until("its ban", () =>
    taker.log.find(
      (line) => line.startsWith("swarm.banned") && line.includes("its side file is not that of"),
    ),
  );
  share.meet(giver.address);
  expect(Buffer.from(await side).equals(made.side)).toBe(true);
  const update = await share.fetch("update", {}, async () => "good", signal);
  expect(Buffer.from(update).equals(made.update)).toBe(true);
});

test("an update file that the agent does not believe is not taken from that peer again", async () => {
  await using giver = await seed();
  await using taker = swarm();
  const share = taker.swarm.share(release.infohash);
  share.meet(giver.address);
  let asked = 0;
  const stop = new AbortController();
  const update = share.fetch(
    "update",
    {},
    async () => {
      asked++;
      return "unwelcome";
    },
    stop.signal,
  );
  await until("the verdict", () => asked > 0);
  await Bun.sleep(300);
  stop.abort(new Error("enough"));
  await expect(update).rejects.toThrow("enough");
  expect(asked).toBe(1);
});

test("wrong leaves are named to the child, and only they are missing", async () => {
  await using liar = await seed({ leaf: 5 });
  await using taker = swarm();
  const kept = await memory();
  const share = taker.swarm.share(release.infohash);
  share.begin(made.update, kept.holding, unfailing);
  share.meet(liar.address);
  await until("the others", () => kept.has.size === LEAVES - 1);
  expect(kept.has.has(5)).toBe(false);
  await using giver = await seed();
  share.meet(giver.address);
  await until("all of it", kept.isWhole);
});

test("a child that dies is started anew and fetches only what is missing", async () => {
  await using giver = await seed({ slowMs: 20 });
  await using taker = swarm();
  const kept = await memory();
  const share = taker.swarm.share(release.infohash);
  share.begin(made.update, kept.holding, unfailing);
  share.meet(giver.address);
  await until("some of it", () => kept.has.size > 8);
  const { pid } = taker.swarm;
  process.kill(pid ?? 0, "SIGKILL");
  await until("another child", () => taker.swarm.pid !== undefined && taker.swarm.pid !== pid);
  await until("all of it", kept.isWhole);
  expect(kept.bytes.equals(made.payload)).toBe(true);
  expect(taker.log).toContain('swarm.died {"why":"SIGKILL","rest_s":1}');
  // A piece that was under way when it died may come twice
  expect(kept.puts.length).toBeLessThan(LEAVES + 4 * 5);
});

test("what the slot cannot take ends the download with its reason", async () => {
  await using giver = await seed();
  await using taker = swarm();
  const kept = await memory();
  const failed = Promise.withResolvers<Error>();
  const holding = {
    ...kept.holding,
    put: async () => {
      throw new Error("the card is full");
    },
  };
  const share = taker.swarm.share(release.infohash);
  share.begin(made.update, holding, failed.resolve);
  share.meet(giver.address);
  expect((await failed.promise).message).toBe("the card is full");
});

/** A child that says something else than it should: a script that is given `say(kind, head, bodyBytes)`. */
const lying = (script: string) => [
  process.execPath,
  "-e",
  `const say = (kind, head, body = 0) => { const json = Buffer.from(JSON.stringify(head)); const start = Buffer.alloc(9);
    start.writeUInt32BE(5 + json.length + body); start[4] = kind; start.writeUInt32BE(json.length, 5);
    process.stdout.write(Buffer.concat([start, json, Buffer.alloc(body)])); };
  const infohash = "${release.infohash}", user = process.getuid() === 0 ? 65534 : process.getuid();
  ${script}; setTimeout(() => {}, 60000)`,
];

test.each([
  { what: "says garbage", script: 'process.stdout.write("x".repeat(5000))', why: "a frame cannot have" },
  { what: "says something unknown", script: "say(77, {})", why: "there is no report of kind 77" },
  {
    what: "sends a piece there is not",
    script: `say(2, { id: 1, infohash, piece: ${LEAVES}, from: "peers" }, 65536)`,
    why: "piece",
  },
  {
    what: "sends a piece that is too short",
    script: 'say(2, { id: 1, infohash, piece: 0, from: "peers" }, 100)',
    why: "with 100 bytes",
  },
  {
    what: "reads beyond the payload",
    script: `say(3, { id: 1, infohash, what: "payload", at: ${SIZE}, length: 1 })`,
    why: "1 bytes at",
  },
  {
    what: "sends a file from its middle",
    script: 'say(4, { infohash, what: "side", at: 5, of: 10, from: "192.0.2.1:1" }, 1)',
    why: "of a side file",
  },
  {
    what: "sends a longer side file",
    script: `say(4, { infohash, what: "side", at: 0, of: ${made.side.length + 1}, from: "192.0.2.1:1" }, 1)`,
    why: "of a side file",
  },
  {
    what: "asks without waiting",
    script:
      'for (let id = 0; id < 9; id++) say(3, { id, infohash, what: "payload", at: 0, length: 4 << 20 })',
    why: "wait to be read already",
    slow: true,
  },
  {
    what: "tells more heads than an honest one",
    script: 'for (let n = 0; n < 200; n++) say(8, { from: "dht" }, 100)',
    why: "it tells too many heads",
  },
  {
    what: "takes too much memory",
    script: "globalThis.x = Buffer.alloc(300 << 20, 1)",
    why: "MiB of memory, 200 are allowed",
  },
  {
    what: "is still the superuser",
    script: "say(1, { port: 1, user: 0 })",
    why: "it runs as user 0, not 65534",
    root: true,
  },
  { what: "cannot be started", script: undefined, why: "ENOENT" },
  {
    what: "ends with last words",
    script: 'console.error("oh no"); process.exit(3)',
    why: "exit code 3: oh no",
  },
])("a child that $what is ended, and told why", async ({ script, why, slow, root }) => {
  if (root && process.getuid?.() !== 0) return;
  await using at = swarm({
    command: script === undefined ? ["/nonexistent/fruit"] : lying(script),
    memoryMib: 200,
  });
  const share = at.swarm.share(release.infohash);
  const { holding } = await memory(true);
  const read = slow ? () => new Promise<Uint8Array>(() => undefined) : holding.read;
  const reads = slow ? { size: 800_000 * 100, read } : {};
  share.begin(made.update, { ...holding, ...reads }, unfailing);
  share.fetch("side", release.side, async () => "good", new AbortController().signal).catch(() => undefined);
  await until("its end", () => at.log.find((line) => line.startsWith("swarm.died")));
  expect(at.log.find((line) => line.startsWith("swarm.died"))).toContain(why);
});

/** The facts of one thread of a process. */
const facts = (pid: number, thread: string) =>
  Object.fromEntries(
    [...readFileSync(`/proc/${pid}/task/${thread}/status`, "utf8").matchAll(/^(\w+):\t*(.*)$/gm)].map(
      ([, key, value]) => [key, value?.trim()],
    ),
  );

test("the child has no privileges left in any of its threads, no core file, few files, and is the first to go", async () => {
  await using at = swarm({ command: REAL });
  await at.swarm.port;
  const pid = at.swarm.pid ?? 0;
  const user = process.getuid?.() === 0 ? "65534" : String(process.getuid?.());
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    const { Uid, Gid, Groups, NoNewPrivs, CapEff, CapPrm } = facts(pid, thread);
    expect([Uid, NoNewPrivs, CapEff, CapPrm]).toEqual([
      Array(4).fill(user).join("\t"),
      "1",
      "0000000000000000",
      "0000000000000000",
    ]);
    if (user === "65534") expect([Gid, Groups]).toEqual([Array(4).fill(user).join("\t"), ""]);
  }
  expect(readFileSync(`/proc/${pid}/oom_score_adj`, "utf8").trim()).toBe("1000");
  const limits = readFileSync(`/proc/${pid}/limits`, "utf8");
  expect(limits).toMatch(/^Max core file size +0 +0 /m);
  expect(limits).toMatch(/^Max open files +512 +512 /m);
});

test("the child dies with whoever started it, however that dies", async () => {
  using folder = scratch();
  const script = folder.file(
    "parent.ts",
    `import { Swarm } from "${join(import.meta.dir, "../../agent/update/swarm.ts")}";
     const swarm = new Swarm({ user: 65534, memoryMib: 512, files: [], settings: { port: 0, lan: false, dht: false, bootstrap: [] },
       command: ${JSON.stringify(REAL)}, log: () => {} });
     void swarm.run(new AbortController().signal);
     await swarm.port;
     console.log(swarm.pid);`,
  );
  const parent = Bun.spawn([process.execPath, script], { stdout: "pipe", stderr: "inherit" });
  const { value } = await parent.stdout.getReader().read();
  const pid = Number(Buffer.from(value ?? []).toString());
  expect(pid).toBeGreaterThan(1);
  // It cannot hear of its pipe's end
  process.kill(pid, "SIGSTOP");
  parent.kill("SIGKILL");
  await parent.exited;
  await until("its end", () => {
    try {
      return readFileSync(`/proc/${pid}/status`, "utf8").includes("\nState:\tZ");
    } catch {
      return true;
    }
  });
});

test("the verb is not for people, and help does not name it", async () => {
  const child = Bun.spawnSync([...REAL, "--user", "0"], { stdin: "ignore" });
  expect([child.exitCode, child.stderr.toString()]).toEqual([
    2,
    expect.stringContaining('--user: "0" is no user a child may have'),
  ]);
  expect(Bun.spawnSync([...SOURCES.command, "help"]).stdout.toString()).not.toContain("swarm");
});
