/** What `fruit update install` is given: a file, an infohash, or a magnet link (BEP 9) with peers in it. */
import { shown } from "../../boot/bencode.ts";
import { readAddress, textOf } from "../swarm/address.ts";
import { UsageError } from "../terminal.ts";

/** Longest magnet link, and most peers in it that are looked at. */
const MOST_LENGTH = 4096;
const MOST_PEERS = 32;
const BASE32 = "abcdefghijklmnopqrstuvwxyz234567";

/** A release that is somewhere in the swarm. */
export interface Link {
  /** Hex. */
  infohash: string;
  /** `192.0.2.1:6881` */
  peers: readonly string[];
}

/** Reads an infohash or a magnet link; undefined for what can only be a file. Throws `UsageError` for a link that is none of a release. */
export function readLink(text: string): Link | undefined {
  if (/^[0-9a-fA-F]{40}$/.test(text)) return { infohash: text.toLowerCase(), peers: [] };
  if (!text.startsWith("magnet:")) return undefined;
  if (text.length > MOST_LENGTH || !text.startsWith("magnet:?"))
    throw new UsageError(`${shown(text)} is no magnet link`);
  const words = new URLSearchParams(text.slice("magnet:?".length));
  const topics = words.getAll("xt").filter((topic) => topic.startsWith("urn:btih:"));
  const infohash = topics.length === 1 ? infohashOf((topics[0] ?? "").slice("urn:btih:".length)) : undefined;
  if (infohash === undefined) throw new UsageError(`${shown(text)} names no infohash, xt=urn:btih:…`);
  // Foreign ones may have names instead of addresses: those are passed over
  const peers = words
    .getAll("x.pe")
    .slice(0, MOST_PEERS)
    .flatMap((peer) => readAddress(peer) ?? []);
  return { infohash, peers: peers.map(textOf) };
}

/** A link that others can be given. */
export function magnetOf({ infohash, peers }: Link, name: string): string {
  const from = peers.map((peer) => `&x.pe=${peer}`).join("");
  return `magnet:?xt=urn:btih:${infohash}&dn=${encodeURIComponent(name)}${from}`;
}

/** The addresses of `--peer`, or of another flag. */
export function readPeers(words: readonly string[], flag = "peer"): string[] {
  return words.map((word) => {
    const address = readAddress(word);
    if (address) return textOf(address);
    throw new UsageError(`--${flag}: "${word}" is no address such as 192.0.2.1:6881 or [2001:db8::1]:6881`);
  });
}

/** 40 hexadecimal digits, or the same 20 bytes in Base32 (RFC 4648). */
function infohashOf(text: string): string | undefined {
  const word = text.toLowerCase();
  if (/^[0-9a-f]{40}$/.test(word)) return word;
  if (!/^[a-z2-7]{32}$/.test(word)) return undefined;
  let bits = 0n;
  for (const letter of word) bits = (bits << 5n) | BigInt(BASE32.indexOf(letter));
  return bits.toString(16).padStart(40, "0");
}
