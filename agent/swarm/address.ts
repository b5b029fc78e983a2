/** Addresses of others as they are told on wires: `192.0.2.1:6881`, `[2001:db8::1]:6881`, and their compact forms (BEP 5, BEP 7). */
import { isIPv4, isIPv6 } from "node:net";

/** 4 or 6: which IP. */
export type Family = 4 | 6;

/** An IP address and a port, checked. IPv6 is written as RFC 5952 says, so that two texts are one address only if they are equal. */
export interface Address {
  readonly host: string;
  readonly port: number;
  readonly family: Family;
}

/** Lowest port that is believed when others tell it: nobody can make nodes knock at the mail or SSH servers of third ones. */
const LOWEST_TOLD = 1024;

/** `host:port` as it is written everywhere. */
export function textOf({ host, port, family }: Address): string {
  return family === 6 ? `[${host}]:${port}` : `${host}:${port}`;
}

/** Reads `host:port`; undefined for anything but an IP address that one node can have, and a port. */
export function readAddress(text: string): Address | undefined {
  const [, v6, v4, digits = ""] =
    /^(?:\[([0-9a-fA-F:.]{2,45})\]|([0-9.]{7,15})):([1-9]\d{0,4})$/.exec(text) ?? [];
  return addressOf(v6 ?? v4 ?? "", Number(digits));
}

/** An address from its parts; undefined where it is none, or one that a group or nobody has. */
export function addressOf(host: string, port: number): Address | undefined {
  if (!Number.isInteger(port) || port < 1 || port > 65_535) return undefined;
  const written = canonical(host);
  if (written === undefined) return undefined;
  return { host: written, port, family: isIPv4(written) ? 4 : 6 };
}

/**
 * Whether what `teller` says may be tried: a port of at least 1024, and this machine itself only where the teller is on it,
 * so that no stranger makes a node talk to its own services.
 */
export function isTellable(told: Address, teller: string): boolean {
  return told.port >= LOWEST_TOLD && (!isLoopback(told.host) || isLoopback(teller));
}

/** 127.0.0.0/8 and ::1. */
export function isLoopback(host: string): boolean {
  return host === "::1" || host.startsWith("127.");
}

/** Who is one source to limits and quotas: an IPv4 address, an IPv6 /64 (whoever has one has all of it). */
export function sourceOf(host: string): string {
  if (isIPv4(host)) return host;
  return `${groupsOf(host)
    .slice(0, 4)
    .map((group) => group.toString(16))
    .join(":")}::/64`;
}

/** Bytes of a compact address. */
export const compactBytes = (family: Family): number => (family === 4 ? 6 : 18);

/** The compact form: address, then port, both in network order. */
export function toCompact({ host, port, family }: Address): Buffer {
  const groups = family === 4 ? [] : groupsOf(host);
  const bytes = Buffer.alloc(compactBytes(family));
  if (family === 4) bytes.set(host.split(".").map(Number));
  for (const [index, group] of groups.entries()) bytes.writeUInt16BE(group, index * 2);
  bytes.writeUInt16BE(port, bytes.length - 2);
  return bytes;
}

/** Reads one compact address of 6 or 18 bytes; undefined where nobody can have it. */
export function fromCompact(bytes: Uint8Array): Address | undefined {
  if (bytes.length !== 6 && bytes.length !== 18) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const port = view.getUint16(bytes.length - 2);
  if (bytes.length === 6) return addressOf(bytes.subarray(0, 4).join("."), port);
  const groups = Array.from({ length: 8 }, (_, index) => view.getUint16(index * 2).toString(16));
  return addressOf(groups.join(":"), port);
}

/** The one way to write a host; undefined for 0.0.0.0/8, 224.0.0.0/3 (groups, reserved, broadcast), `::`, ff00::/8 and what is no IP address. */
function canonical(host: string): string | undefined {
  if (isIPv4(host)) return isOfOneV4(host) ? host : undefined;
  if (!isIPv6(host) || host.includes("%")) return undefined;
  const groups = groupsOf(host);
  const isMapped = groups.slice(0, 5).every((group) => group === 0) && groups[5] === 0xffff;
  if (isMapped) {
    const [high = 0, low = 0] = groups.slice(6);
    return canonical([high >> 8, high & 255, low >> 8, low & 255].join("."));
  }
  if (groups.every((group) => group === 0) || (groups[0] ?? 0) >> 8 === 0xff) return undefined;
  return new URL(`http://[${host}]`).hostname.slice(1, -1);
}

function isOfOneV4(host: string): boolean {
  const [first = 0] = host.split(".").map(Number);
  return first > 0 && first < 224;
}

/** The eight groups of an IPv6 address that `isIPv6` has accepted; a zone is passed over. */
function groupsOf(host: string): number[] {
  const written = new URL(`http://[${host.split("%")[0]}]`).hostname.slice(1, -1);
  const [front = "", back] = written.split("::");
  const numbers = (part: string) =>
    part === "" ? [] : part.split(":").map((group) => Number.parseInt(group, 16));
  if (back === undefined) return numbers(front);
  const [head, tail] = [numbers(front), numbers(back)];
  return [...head, ...Array<number>(8 - head.length - tail.length).fill(0), ...tail];
}
