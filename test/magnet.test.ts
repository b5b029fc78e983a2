import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { EXIT } from "../agent/terminal.ts";
import { magnetOf, readLink, readPeers } from "../agent/update/magnet.ts";
import { Running } from "../agent/update/running.ts";
import { scratch } from "./node.ts";
import { command, desk, made } from "./updates.ts";

const INFOHASH = "0123456789abcdef0123456789abcdef01234567";

test.each([
  { text: INFOHASH, link: { infohash: INFOHASH, peers: [] } },
  { text: INFOHASH.toUpperCase(), link: { infohash: INFOHASH, peers: [] } },
  { text: `magnet:?xt=urn:btih:${INFOHASH}`, link: { infohash: INFOHASH, peers: [] } },
  // RFC 4648 of the same 20 bytes
  { text: "magnet:?xt=urn:btih:AERUKZ4JVPG66AJDIVTYTK6N54ASGRLH", link: { infohash: INFOHASH, peers: [] } },
  {
    text: `magnet:?dn=x&xt=urn:btih:${INFOHASH}&x.pe=192.0.2.1:6881&x.pe=[2001:DB8::1]:80&x.pe=name.example:1&tr=udp://t.example`,
    link: { infohash: INFOHASH, peers: ["192.0.2.1:6881", "[2001:db8::1]:80"] },
  },
  { text: "fruitos-9.fruit", link: undefined },
  { text: `${INFOHASH}0`, link: undefined },
])("$text is read", ({ text, link }) => {
  expect(readLink(text)).toEqual(link);
});

test.each([
  "magnet:",
  "magnet:?",
  "magnet:?xt=urn:btih:123",
  "magnet:?xt=urn:btmh:1220aa",
  `magnet:?xt=urn:btih:${INFOHASH}&xt=urn:btih:${INFOHASH.replace("0", "1")}`,
  `magnet:?xt=urn:btih:${INFOHASH}&dn=${"x".repeat(5000)}`,
])("%s is no link of a release", (text) => {
  expect(() => readLink(text)).toThrow(/magnet link|names no infohash/);
});

test("a link that is written is read, and a bad peer is named", () => {
  const link = { infohash: INFOHASH, peers: ["192.0.2.1:6881", "[2001:db8::1]:80"] };
  expect(readLink(magnetOf(link, "fruitos-9"))).toEqual(link);
  expect(readPeers(link.peers)).toEqual(link.peers);
  expect(() => readPeers(["example.com:1"])).toThrow('--peer: "example.com:1" is no address');
});

test("what cannot be what it says is not given to peers", async () => {
  using at = desk();
  at.put("fruitos-9", Buffer.from(made.payload).fill(1, 50_000, 50_001));
  const { exit, out, err } = await command(["update", "seed", at.file("fruitos-9.fruit")]);
  expect([exit, out]).toEqual([EXIT.refused, ""]);
  expect(err).toContain("refused: leaf 3 (byte 49152) is not the one that was signed");
});

test("how far an install from peers is stands in a file: phases, where bytes come from, and never less than before", () => {
  using folder = scratch();
  let nowMs = 0;
  const lines: string[] = [];
  using running = new Running({ runDir: folder.path, say: (line) => lines.push(line), nowMs: () => nowMs });
  const file = () => JSON.parse(readFileSync(join(folder.path, "update.json"), "utf8"));
  running.turn("finding");
  running.around({ peers: 0, bytes_from_peers: 0, bytes_from_web: 0 });
  expect(file()).toMatchObject({ phase: "finding", bytes_done: 0 });
  expect(file().version).toBeUndefined();
  running.turn("metadata");
  running.begins(9n);
  running.step({ phase: "copying", bytes: 100, of: 1000, from: { slots: 100, zeros: 0, payload: 0 } });
  nowMs = 1000;
  running.step({ phase: "writing", bytes: 200, of: 1000, from: { slots: 100, zeros: 0, payload: 100 } });
  nowMs = 3000;
  running.around({ peers: 2, bytes_from_peers: 60, bytes_from_web: 40 });
  running.step({ phase: "writing", bytes: 400, of: 1000, from: { slots: 100, zeros: 0, payload: 300 } });
  nowMs = 4000;
  running.around({ peers: 2, bytes_from_peers: 260, bytes_from_web: 40 });
  expect(file()).toEqual({
    ...{ phase: "downloading", version: "9", bytes_done: 400, bytes_total: 1000, rate: 67, eta_s: 9 },
    ...{ peers: 2, bytes_from_slots: 100, bytes_from_peers: 260, bytes_from_web: 40, pid: process.pid },
  });
  expect(lines.filter((line) => !line.startsWith(" "))).toEqual([
    "looking for peers that have its update file\n",
    "fetching its side file\n",
    "copying what the slots hold of it: 0.0 MB\n",
    "downloading: 0.0 MB\n",
  ]);
});
