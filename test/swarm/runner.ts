/**
 * One node in a process of its own, for benches and proofs: `bun test/swarm/runner.ts FOLDER PIECE-BYTES PAYLOAD|NONE UP [first]`.
 * Reads addresses to meet from stdin, prints `{port}` and, once it has everything, `{whole}`; on end of input what it did.
 */
import { closeSync, openSync, readFileSync, readSync, writeSync } from "node:fs";
import { createInterface } from "node:readline";
import { type Keep, openEngine } from "../../agent/swarm/engine.ts";
import { LEAF_BYTES } from "../../boot/content.ts";
import { hashLeaf } from "../../boot/merkle.ts";
import { peakMib } from "../node.ts";

const [folder = ".", pieceText = "0", has = "NONE", up = "0", first = ""] = process.argv.slice(2);
const pieceBytes = Number(pieceText);
const hashes = readFileSync(`${folder}/leaves`);
const update = readFileSync(`${folder}/payload.torrent`);
const infohash = readFileSync(`${folder}/infohash`, "utf8");
const leaves = hashes.length / 32;
const isSeed = has !== "NONE";
const fd = isSeed ? openSync(has, "r") : openSync(`${folder}/node-${process.pid}`, "w+");

const keep: Keep = {
  has: () => isSeed,
  async put(piece, bytes) {
    const wrong: number[] = [];
    for (let at = 0; at < bytes.length; at += LEAF_BYTES) {
      const leaf = (piece * pieceBytes + at) / LEAF_BYTES;
      const one = bytes.subarray(at, at + LEAF_BYTES);
      if (!Buffer.from(hashLeaf(one)).equals(hashes.subarray(leaf * 32, leaf * 32 + 32))) wrong.push(leaf);
    }
    if (wrong.length === 0) writeSync(fd, bytes, 0, bytes.length, piece * pieceBytes);
    return wrong;
  },
  async get(at, length) {
    const bytes = Buffer.allocUnsafe(length);
    if (readSync(fd, bytes, 0, length, at) !== length) throw new Error(`no ${length} bytes at ${at}`);
    return bytes;
  },
};

const print = (value: object) => process.stdout.write(`${JSON.stringify(value)}\n`);
const stop = new AbortController();
const engine = await openEngine({
  limits: { connectionsPerAddress: 60 },
  tell: (event) => {
    if (event.kind === "whole" && !isSeed) print({ whole: performance.timeOrigin + performance.now() });
    if (event.kind === "banned" || event.kind === "trouble") print(event);
  },
  signal: stop.signal,
});
if (Number(up) > 0) engine.limit({ up: Number(up) });
const member = engine.join(infohash, { isFirstSeed: first === "first" });
member.begin(update, keep);
print({ port: engine.port, leaves });
for await (const line of createInterface({ input: process.stdin })) member.meet(line.trim());
const { up: sent, down, wasted } = member.status();
const { userCPUTime, systemCPUTime } = process.resourceUsage();
print({ sent, down, wasted, peakMib: peakMib(process.pid), cpu: (userCPUTime + systemCPUTime) / 1e6 });
await engine[Symbol.asyncDispose]();
closeSync(fd);
process.exit(0);
