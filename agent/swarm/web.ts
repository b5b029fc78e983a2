/**
 * Web seeds (BEP 19's idea, with none of its trust): pieces from an HTTP server by Range, where peers are slow or absent.
 *
 * Invariants
 * - Only addresses the signed release names, only https, only public addresses; no redirect is followed.
 * - An answer is taken only where it is 206 and its Content-Range is exactly what was asked for; one byte more ends it.
 * - At most one piece is in memory; headers, silence and slowness have limits; a server that lies or fails is left alone for ever longer.
 */
import { lookup } from "node:dns/promises";
import { type ClientRequest, type IncomingMessage, request as plainRequest } from "node:http";
import { request as tlsRequest } from "node:https";
import { BlockList, isIP } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { LEAF_BYTES } from "../../boot/content.ts";
import type { Bits } from "../../boot/progress.ts";

/** Until an answer begins. */
const ANSWER_MS = 15_000;
/** In each stretch of this an answer brings at least so many bytes. */
const PACE = { ms: 5000, bytes: 20_000 };
const HEADER_MAX_BYTES = 16_384;
/** Peers that give more than this a second are left to it. */
const SLOW_BYTES = 100_000;
/** How often it is looked whether peers are slow, and how often they must have been. */
const LOOK = { ms: 1000, times: 5 };
/** How long a server is left alone: after its first failure, at most, and after a lie. */
const REST_MS = { least: 5000, most: 600_000, lied: 3_600_000 };

/** A server that does not give what was asked for: unreachable, slow, or something else. */
export class WebError extends Error {
  override name = "WebError";
}

/** Networks that a release must not make a node knock at: IANA's special-purpose registries (RFC 6890), as far as they are none of the public's. */
const PRIVATE = new BlockList();
for (const [net, bits] of [
  ["0.0.0.0", 8],
  ["10.0.0.0", 8],
  ["100.64.0.0", 10],
  ["127.0.0.0", 8],
  ["169.254.0.0", 16],
  ["172.16.0.0", 12],
  ["192.0.0.0", 24],
  ["192.168.0.0", 16],
  ["198.18.0.0", 15],
  ["224.0.0.0", 3],
] as const)
  PRIVATE.addSubnet(net, bits, "ipv4");

/** Whether an address is one of the public Internet. Of IPv6 only 2000::/3 is, without 6to4, Teredo and documentation. */
export function isPublic(ip: string): boolean {
  if (isIP(ip) === 4) return !PRIVATE.check(ip, "ipv4");
  return isIP(ip) === 6 && /^[23][0-9a-f]{3}:/i.test(ip) && !/^(2002|2001:0{0,4}:|2001:0?db8):?/i.test(ip);
}

/** One stretch of a file on a server. */
export interface Range {
  url: string;
  at: number;
  length: number;
  /** Bytes of the whole file. */
  of: number;
  /** Without TLS and from any address, in tests alone. */
  anyWeb?: boolean;
  pace?: typeof PACE;
  signal: AbortSignal;
}

/** Fetches exactly this stretch. Throws `WebError`, and what the signal says. */
export async function fetchRange({
  url,
  at,
  length,
  of,
  anyWeb = false,
  pace = PACE,
  signal,
}: Range): Promise<Uint8Array> {
  const asked = await ask(url, at, length, anyWeb);
  const stop = () => asked.destroy(new WebError("given up"));
  signal.addEventListener("abort", stop, { once: true });
  try {
    signal.throwIfAborted();
    const answer = await begun(asked);
    expectRange(answer, at, length, of);
    return await gather(answer, length, pace);
  } catch (cause) {
    signal.throwIfAborted();
    const { message } = cause as Error;
    throw new WebError(`${url}: ${message}`, { cause });
  } finally {
    signal.removeEventListener("abort", stop);
    asked.destroy();
  }
}

/** Asks the server's own address, so that nobody answers otherwise when the name is looked up once more. */
async function ask(text: string, at: number, length: number, anyWeb: boolean): Promise<ClientRequest> {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (!url || !(url.protocol === "https:" || (anyWeb && url.protocol === "http:")))
    throw new WebError(`${text}: only https is used`);
  if (url.username !== "" || url.password !== "") throw new WebError(`${text}: a user stands in it`);
  const name = url.hostname.replace(/^\[|\]$/g, "");
  const all = await lookup(name, { all: true }).catch(() => []);
  const found = all.find(({ address }) => anyWeb || isPublic(address));
  if (!found)
    throw new WebError(
      `${text}: ${all[0] ? `${all[0].address} is no public address` : "its name is unknown"}`,
    );
  const send = url.protocol === "https:" ? tlsRequest : plainRequest;
  const asked = send({
    host: found.address,
    port: url.port === "" ? (url.protocol === "https:" ? 443 : 80) : Number(url.port),
    path: `${url.pathname}${url.search}`,
    headers: {
      host: url.host,
      range: `bytes=${at}-${at + length - 1}`,
      "accept-encoding": "identity",
      connection: "close",
    },
    agent: false,
    maxHeaderSize: HEADER_MAX_BYTES,
    ...(isIP(name) ? {} : { servername: name }),
  });
  asked.on("error", () => undefined); // whoever waits hears of it
  asked.end();
  return asked;
}

/** The head of the answer. */
function begun(asked: ClientRequest): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new WebError(`no answer within ${ANSWER_MS / 1000} s`)), ANSWER_MS);
    asked.once("response", resolve).once("error", reject);
    asked.once("close", () => {
      clearTimeout(late);
      reject(new WebError("it hung up"));
    });
    asked.once("response", () => clearTimeout(late));
  });
}

function expectRange({ statusCode, headers }: IncomingMessage, at: number, length: number, of: number): void {
  if (statusCode !== 206) throw new WebError(`it answered ${statusCode}, not 206`);
  const range = `bytes ${at}-${at + length - 1}/${of}`;
  if (headers["content-range"] !== range)
    throw new WebError(`it gives ${String(headers["content-range"]).slice(0, 60)}, not ${range}`);
  if ((headers["content-encoding"] ?? "identity") !== "identity")
    throw new WebError(`it gives it as ${headers["content-encoding"]}`);
}

/** So many bytes, at that pace at least. */
async function gather(answer: IncomingMessage, length: number, pace: typeof PACE): Promise<Uint8Array> {
  const bytes = Buffer.alloc(length);
  let filled = 0;
  const over = new AbortController();
  const watch = async () => {
    while (!over.signal.aborted) {
      const before = filled;
      await sleep(pace.ms, undefined, { signal: over.signal, ref: false }).catch(() => undefined);
      if (!over.signal.aborted && filled - before < pace.bytes)
        answer.destroy(new WebError(`only ${filled - before} bytes in ${pace.ms / 1000} s`));
    }
  };
  void watch();
  try {
    for await (const chunk of answer as AsyncIterable<Uint8Array>) {
      if (filled + chunk.length > length)
        throw new WebError(`it gives more than the ${length} bytes asked for`);
      bytes.set(chunk, filled);
      filled += chunk.length;
      if (filled === length) break;
    }
  } finally {
    over.abort();
  }
  if (filled < length) throw new WebError(`it ended after ${filled} of ${length} bytes`);
  return bytes;
}

/** What is to be fetched, and where it goes. */
export interface WebJob {
  urls: readonly string[];
  anyWeb: boolean;
  size: number;
  pieceBytes: number;
  /** What is there, by leaf. */
  has: Bits;
  /** Whether peers give less than so many bytes a second. */
  isSlow(bytesASecond: number): boolean;
  /** The leaves that were wrong. */
  put(piece: number, bytes: Uint8Array): Promise<readonly number[]>;
  tell(text: string, url: string): void;
  signal: AbortSignal;
  /** Other waits, in tests. */
  look?: typeof LOOK;
  pace?: typeof PACE;
}

/** Fetches what peers do not give, a piece at a time, until all is there. */
export async function fetchFromWeb(job: WebJob): Promise<void> {
  const { urls, has, isSlow, signal, look = LOOK } = job;
  const servers = urls.map((url) => ({ url, restsUntilMs: 0, failures: 0 }));
  let slow = 0;
  while (!signal.aborted && has.count < has.length) {
    slow = isSlow(SLOW_BYTES) ? slow + 1 : 0;
    const server = servers.find(({ restsUntilMs }) => performance.now() >= restsUntilMs);
    const piece = slow >= look.times && server ? missing(job) : undefined;
    if (!server || piece === undefined) {
      await sleep(look.ms, undefined, { signal }).catch(() => undefined);
      continue;
    }
    // Those that rest least come first; the one that served well keeps its turn
    const restMs = await serve(job, server.url, piece, server.failures);
    server.failures = restMs === 0 ? 0 : server.failures + 1;
    server.restsUntilMs = restMs === 0 ? 0 : performance.now() + restMs;
  }
}

/** Fetches a piece from a server. How long it is to be left alone, ms. */
async function serve(job: WebJob, url: string, piece: number, failures: number): Promise<number> {
  const { size, pieceBytes, anyWeb, pace = PACE, signal } = job;
  const at = piece * pieceBytes;
  try {
    const length = Math.min(pieceBytes, size - at);
    const bytes = await fetchRange({ url, at, length, of: size, anyWeb, pace, signal });
    const wrong = await job.put(piece, bytes);
    if (wrong.length === 0) return 0;
    job.tell(`${wrong.length} leaves of piece ${piece} are not those that were signed`, url);
    return REST_MS.lied;
  } catch (cause) {
    if (signal.aborted) return 0;
    job.tell((cause as Error).message, url);
    return Math.min(REST_MS.least * 2 ** failures, REST_MS.most);
  }
}

/** A piece with a leaf that is not there, any of them: peers begin elsewhere. */
function missing({ has, size, pieceBytes }: WebJob): number | undefined {
  const pieces = Math.ceil(size / pieceBytes);
  const leaves = pieceBytes / LEAF_BYTES;
  const start = Math.floor(Math.random() * pieces);
  for (let turn = 0; turn < pieces; turn++) {
    const piece = (start + turn) % pieces;
    const end = Math.min((piece + 1) * leaves, has.length);
    for (let leaf = piece * leaves; leaf < end; leaf++) if (!has.has(leaf)) return piece;
  }
  return undefined;
}
