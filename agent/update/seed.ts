/** `fruit update seed`: a release in hand, for peers. Whoever gives it need not believe it; what is given must be what it says. */
import { closeSync, openSync } from "node:fs";
import { networkInterfaces } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import * as v from "valibot";
import { LEAF_BYTES } from "../../boot/content.ts";
import { Judge } from "../../boot/leaf.ts";
import { openSide } from "../../boot/side.ts";
import type { Statement } from "../../boot/statement.ts";
import { parseUpdate, readStatement, statementToSign } from "../../boot/updatefile.ts";
import { openDisk } from "../../hal/disk.ts";
import type { BlockDevice } from "../../hal/ports.ts";
import type { Config } from "../config.ts";
import { asUsage, onlyFile, readUpdate } from "../release/files.ts";
import { CliError, type CliVerb, EXIT, type Exit, type Io, seconds, UsageError } from "../terminal.ts";
import { magnetOf } from "./magnet.ts";
import { megabytes } from "./running.ts";
import { UpdateSection } from "./section.ts";
import type { Share } from "./share.ts";
import { Swarm, type SwarmOptions } from "./swarm.ts";

type Context = Parameters<CliVerb["run"]>[0];

/** Read at once when it is checked. */
const CHECK_BYTES = 32 * LEAF_BYTES;
/** The files of the child, behind its three streams. */
const PAYLOAD = 3;
const SIDE = 4;

/** How the swarm is run on this node; `flags` are of somebody's command line. */
export function swarmOf(
  config: Partial<Config>,
  flags: { port?: number | undefined; up?: number | undefined } = {},
): Pick<SwarmOptions, "user" | "memoryMib" | "settings"> {
  const { swarm } = config.update ?? v.parse(UpdateSection, {});
  const up = flags.up ?? swarm.up_bytes_per_second;
  const down = swarm.down_bytes_per_second;
  return {
    user: swarm.user,
    memoryMib: swarm.memory_mib,
    settings: {
      port: flags.port ?? swarm.port,
      ...(up > 0 ? { up } : {}),
      ...(down > 0 ? { down } : {}),
      ...{ lan: swarm.lan, dht: swarm.dht, bootstrap: swarm.bootstrap, peers: swarm.peers },
      ...{ trackers: swarm.trackers, webSeeds: swarm.web_seeds },
    },
  };
}

/** A release in hand, all of it read and found to be what its update file says. */
export interface InHand {
  update: Buffer;
  file: ReturnType<typeof parseUpdate>;
  stated: Statement;
  paths: { payload: string; side: string };
}

/** Reads a release, the payload and the side file beside it unless they are named. Throws `UsageError`, `CliError`. */
export async function readInHand(
  path: string,
  named: { payload?: string | undefined; side?: string | undefined },
  signal: AbortSignal,
): Promise<InHand> {
  const beside = path.replace(/\.fruit$/, "");
  if (beside === path && (named.payload === undefined || named.side === undefined))
    throw new UsageError(`"${path}" does not end in .fruit: name --payload and --side`);
  const paths = { payload: named.payload ?? beside, side: named.side ?? `${beside}.side` };
  const update = await readUpdate(path);
  const file = await asUsage(async () => parseUpdate(update), path);
  const stated = await asUsage(async () => readStatement(statementToSign(file)), path);
  const { length, piecesRoot } = file.info;
  await check(paths, { size: length, piecesRoot, side: stated.side }, signal);
  return { update, file, stated, paths };
}

/** Gives a release in hand as its first seed as long as `use` takes; the port it is given at is open when that begins. */
export async function giving<T>(
  { update, file, stated, paths }: InHand,
  options: Omit<SwarmOptions, "files" | "log">,
  io: Pick<Io, "err" | "signal">,
  use: (given: { swarm: Swarm; share: Share; magnet: string; port: number }) => Promise<T>,
): Promise<T> {
  const { infohash, info } = file;
  const stop = new AbortController();
  const signal = AbortSignal.any([io.signal, stop.signal]);
  const files = [openSync(paths.payload, "r"), openSync(paths.side, "r")];
  const swarm = new Swarm({
    ...options,
    files,
    log: (level, what, fields) => {
      if (level === "warn") io.err(`fruit: ${what}: ${fields?.why ?? ""}\n`);
    },
  });
  const running = swarm.run(signal);
  try {
    const share = swarm.share(infohash, { isFirstSeed: true });
    const holding = {
      size: info.length,
      has: () => true,
      put: () => Promise.reject(new Error("all of it is there")),
      read: () => Promise.reject(new Error("the child reads it by itself")),
    };
    const { trackers = [] } = stated;
    share.begin(update, holding, () => undefined, { file: { number: PAYLOAD, at: 0 }, trackers });
    share.offer({ bytes: stated.side.bytes, number: SIDE });
    const port = await Promise.race([swarm.port, running]);
    if (port === undefined) throw new CliError(EXIT.failed, "the swarm did not open");
    const peers = addresses().map((address) => `${address}:${port}`);
    return await use({ swarm, share, magnet: magnetOf({ infohash, peers }, info.name), port });
  } finally {
    stop.abort();
    await running;
    for (const one of files) closeSync(one);
  }
}

/** Gives a release until told to stop. */
export async function updateSeed({ args, io, json }: Context): Promise<Exit> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      payload: { type: "string" },
      side: { type: "string" },
      port: { type: "string", default: "0" },
      up: { type: "string", default: "0" },
      for: { type: "string" },
    },
  });
  const path = onlyFile(positionals);
  const [port, up] = [whole("--port", values.port, 65_535), whole("--up", values.up, 1e12)];
  const limitMs = values.for === undefined ? undefined : seconds("--for", values.for) * 1000;
  const hand = await readInHand(path, values, io.signal);
  const { infohash, info } = hand.file;
  return giving(hand, swarmOf({}, { port, up }), io, async ({ magnet, port: opened }) => {
    if (json)
      io.out(`${JSON.stringify({ schema: "fruit.update-seed/1", infohash, port: opened, magnet })}\n`);
    else io.out(`${info.name}, ${megabytes(info.length)} MB, at port ${opened}\n${magnet}\n`);
    await sleep(limitMs ?? 2 ** 31 - 1, undefined, { signal: io.signal }).catch(() => undefined);
    return EXIT.done;
  });
}

/** Reads all of it once. Throws `SideError`, `WrongLeaf`, `CliError`. */
async function check(
  paths: { payload: string; side: string },
  release: Parameters<typeof openSide>[1],
  signal: AbortSignal,
): Promise<void> {
  await using open = new AsyncDisposableStack();
  const opened = async (path: string): Promise<BlockDevice> => {
    const file = await openDisk(path, "read");
    open.defer(() => file.close());
    return file;
  };
  try {
    const side = await openSide(await opened(paths.side), release);
    const payload = await opened(paths.payload);
    if (payload.bytes < release.size)
      throw new Error(`${payload.name} has ${payload.bytes} bytes, the payload ${release.size}`);
    const judge = new Judge(release.size, side);
    for (let at = 0; at < release.size; at += CHECK_BYTES) {
      signal.throwIfAborted();
      const bytes = await payload.read(at, Math.min(CHECK_BYTES, release.size - at));
      for (let from = 0; from < bytes.length; from += LEAF_BYTES)
        await judge.check((at + from) / LEAF_BYTES, bytes.subarray(from, from + LEAF_BYTES));
    }
  } catch (cause) {
    throw new CliError(EXIT.refused, `refused: ${cause instanceof Error ? cause.message : String(cause)}`, {
      cause,
    });
  }
}

/** Where others reach this machine; itself alone where there is nobody. */
function addresses(): string[] {
  const all = Object.values(networkInterfaces()).flatMap((one) => one ?? []);
  const found = all.filter(({ internal, family }) => !internal && family === "IPv4");
  return found.length > 0 ? found.map(({ address }) => address) : ["127.0.0.1"];
}

/** A whole number of a command line. Throws `UsageError`. */
export function whole(flag: string, text: string, most: number): number {
  if (/^\d{1,13}$/.test(text) && Number(text) <= most) return Number(text);
  throw new UsageError(`${flag}: "${text}" is no whole number up to ${most}`);
}
