/**
 * `fruit release publish`: one command that brings a release to a fleet. The head goes out by every way there is (DHT, own network, MQTT),
 * the payload is given as its first seed, and once enough others have all of it nobody needs this machine any more.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { type Head, parseHead } from "../../boot/head.ts";
import type { SwarmStatus } from "../swarm/frames.ts";
import { CliError, type CliVerb, EXIT, type Exit, type Io, printable, table } from "../terminal.ts";
import { megabytes } from "../update/running.ts";
import { giving, type InHand, readInHand } from "../update/seed.ts";
import { Swarm } from "../update/swarm.ts";
import { onlyFile } from "./files.ts";
import { explainHead, HEAD_FLAGS, headBeside, makeHead, readSignedHead } from "./heads.ts";
import { Out, WAYS, type Ways, waysOf } from "./ways.ts";

type Context = Parameters<CliVerb["run"]>[0];

/** How often it is looked at, and told. */
const LOOK_MS = 500;
const SAY_MS = 5000;
/** How long a head alone is said where nobody says how long. */
const HEAD_SECONDS = 60;
const SCHEMA = "fruit.release-publish/1";

/** Publishes a release, or a head that was made before. */
export async function publish({ args, io, json }: Context): Promise<Exit> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: { ...HEAD_FLAGS, ...WAYS, payload: { type: "string" }, side: { type: "string" } },
  });
  const path = onlyFile(positionals);
  const ways = waysOf(values);
  if (path.endsWith(".head")) return sayHead(await readSignedHead(path), path, ways, io, json);
  // Before anything is said: it must be there to be given
  const hand = await readInHand(path, values, io.signal);
  const file = values.out ?? headBeside(path);
  if (values.key !== undefined) await makeHead(path, values, io, false);
  const head = await readSignedHead(file);
  if (head.infohash !== hand.file.infohash)
    throw new CliError(
      EXIT.refused,
      `refused: ${file}: it names ${head.infohash}, ${path} is ${hand.file.infohash}`,
    );
  return giveAndSay(hand, head, file, ways, io, json);
}

/** Makes the head that calls a release back, and with `--publish` says it to everybody. */
export async function withdraw({ args, io, json }: Context): Promise<Exit> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: { ...HEAD_FLAGS, ...WAYS, publish: { type: "boolean", default: false } },
  });
  const ways = waysOf(values);
  const { out, bytes } = await makeHead(onlyFile(positionals), values, io, true);
  return values.publish
    ? sayHead(parseHead(bytes), out, ways, io, json)
    : explainHead({ io, json }, out, bytes);
}

/** Gives the payload and says the head, until enough others have all of it or the time is over. */
function giveAndSay(
  hand: InHand,
  head: Head,
  file: string,
  ways: Ways,
  io: Io,
  json: boolean,
): Promise<Exit> {
  const out = new Out(head, ways, io);
  const { infohash, info } = hand.file;
  return giving(
    hand,
    { ...out.settings(), announced: out.heard },
    io,
    async ({ swarm, share, magnet, port }) => {
      const fixed = { infohash, version: String(head.version), head: file };
      if (json) io.out(`${JSON.stringify({ schema: SCHEMA, phase: "giving", ...fixed, port, magnet })}\n`);
      else
        io.out(
          `${printable(info.name)}, version ${head.version}, ${megabytes(info.length)} MB, at port ${port}\n${magnet}\n`,
        );
      const brokers = out.begin(swarm);
      const pieces = Math.ceil(info.length / info.pieceLength);
      const copies = await untilCopies(
        () => share.status?.peers ?? [],
        { pieces, ways, say: (text) => json || io.err(text), told: () => out.told() },
        io.signal,
      );
      await brokers;
      const isEnough = copies >= ways.copies;
      const facts = { copies, up: share.status?.up ?? 0, ...out.facts() };
      if (json) io.out(`${JSON.stringify({ schema: SCHEMA, phase: "over", ...fixed, ...facts })}\n`);
      else
        io.out(`${out.told()}\n${copies} others have all of it${isEnough ? ": this machine may go" : ""}\n`);
      if (out.lost.length > 0) return EXIT.unreachable;
      return isEnough ? EXIT.done : EXIT.unconfirmed;
    },
  );
}

/** Says a head without a payload, until the DHT has it or the time is over. */
async function sayHead(head: Head, file: string, ways: Ways, io: Io, json: boolean): Promise<Exit> {
  const out = new Out(head, ways, io);
  const stop = new AbortController();
  const swarm = new Swarm({
    ...out.settings(),
    files: [],
    announced: out.heard,
    log: (level, what, fields) => {
      if (level === "warn") io.err(`fruit: ${what}: ${fields?.why ?? ""}\n`);
    },
  });
  const running = swarm.run(AbortSignal.any([io.signal, stop.signal]));
  try {
    const brokers = out.begin(swarm);
    const endMs = performance.now() + (ways.limitSeconds ?? HEAD_SECONDS) * 1000;
    const isOver = () => io.signal.aborted || performance.now() >= endMs;
    // Who names a time wants it said that long
    while (!isOver() && (ways.limitSeconds !== undefined || out.nodes === 0)) await pause(io.signal);
    await brokers;
  } finally {
    stop.abort();
    await running;
  }
  const { version, isWithdrawn } = head;
  const facts = { head: file, version: String(version), withdrawn: isWithdrawn, ...out.facts() };
  if (json) io.out(`${JSON.stringify({ schema: SCHEMA, phase: "over", ...facts })}\n`);
  else io.out(`version ${version}${isWithdrawn ? ", WITHDRAWN" : ""}: ${out.told()}\n`);
  if (out.lost.length > 0) return EXIT.unreachable;
  return out.nodes > 0 || out.taken.length > 0 ? EXIT.done : EXIT.unconfirmed;
}

/** Looks on until enough peers have all of it or the time is over; how many have. */
async function untilCopies(
  peers: () => SwarmStatus["peers"],
  { pieces, ways, say, told }: { pieces: number; ways: Ways; say(text: string): void; told(): string },
  signal: AbortSignal,
): Promise<number> {
  const endMs = performance.now() + (ways.limitSeconds ?? Number.POSITIVE_INFINITY) * 1000;
  let saidMs = performance.now();
  let before = "";
  for (;;) {
    const now = peers();
    // One that is connected by two addresses is one copy
    const copies = new Set(now.filter(({ has }) => has >= pieces).map(({ id }) => id)).size;
    const text = table(
      now.map(({ address, has, up, upRate }) => [
        address,
        `${Math.floor((has / pieces) * 100)} %`,
        `${megabytes(up)} MB from here, ${megabytes(upRate)} MB/s`,
      ]),
    );
    if (text !== before && performance.now() - saidMs > SAY_MS) {
      [saidMs, before] = [performance.now(), text];
      say(`${text}${told()}\n`);
    }
    const isEnough = ways.copies > 0 && copies >= ways.copies;
    if (isEnough || signal.aborted || performance.now() >= endMs) return copies;
    await pause(signal);
  }
}

const pause = (signal: AbortSignal) => sleep(LOOK_MS, undefined, { signal }).catch(() => undefined);
