/** Versions of `trust.json`, chains from one to the next, and heads, signed by keys that are the same every time. */
import { publicKeyOf, signEd25519 } from "../boot/ed25519.ts";
import { type Announced, encodeHead, encodeV, headBytes } from "../boot/head.ts";
import { encodeChain, linkBytes } from "../boot/rotation.ts";
import { keyLine, parseTrust, type TrustRole } from "../boot/trust.ts";
import { seedOf, TIMES } from "./releases.ts";

/** Who is listed, and what for; the key is that of the name unless `=` names another. */
export type Listed = Record<string, readonly TrustRole[]>;

/** The public key of a signer, hex. */
export const keyHex = (signer: string) => Buffer.from(publicKeyOf(seedOf(signer))).toString("hex");

/** The text of a `trust.json`. `"anna=eve"` is anna's id with eve's key. */
export function trustText(
  version: number,
  signers: Listed,
  threshold: Partial<Record<TrustRole, number>> = { release: 1, trust: 1, head: 1 },
): string {
  return JSON.stringify({
    schema: "fruit.trust/1",
    version,
    threshold,
    signers: Object.entries(signers).map(([name, roles]) => {
      const [id, of = id] = name.split("=");
      return { id, key: keyLine(publicKeyOf(seedOf(of ?? ""))), roles };
    }),
  });
}

/** The same, read. */
export const trustOf = (...given: Parameters<typeof trustText>) => parseTrust(trustText(...given));

/** One link of a chain. */
export function linkOf(text: string, ...signers: string[]) {
  const signatures = signers.map((one): [string, Uint8Array] => [
    keyHex(one),
    signEd25519(seedOf(one), linkBytes(text)),
  ]);
  return { text, signatures: new Map(signatures) };
}

/** A chain of them. */
export const chainOf = (...links: ReturnType<typeof linkOf>[]) => encodeChain(links);

const DAY = 86_400;

/** What a head says, if nothing else. */
export const SAID: Announced = {
  target: "fruitos/stable",
  channel: "stable",
  version: 7n,
  infohash: "5".repeat(40),
  issued: TIMES.now - DAY,
  expires: TIMES.now + 6 * DAY,
  isWithdrawn: false,
};
/** What a node follows that hears it. */
export const FOLLOWING = { target: SAID.target, channel: SAID.channel };

/** A head. */
export function headOf(signer: string, more: Partial<Announced> = {}): Buffer {
  const said = { ...SAID, ...more };
  const v = encodeV(said);
  const signature = signEd25519(seedOf(signer), headBytes(said.target, said.version, v));
  return encodeHead(said, { publicKey: publicKeyOf(seedOf(signer)), signature, v });
}

/** The same signature with S + L: what some libraries take for another good one. */
export function malleable(signature: Uint8Array): Buffer {
  const order = 2n ** 252n + 27742317777372353535851937790883648493n;
  const s = BigInt(`0x${Buffer.from(signature.subarray(32)).reverse().toString("hex")}`) + order;
  return Buffer.concat([
    signature.subarray(0, 32),
    Buffer.from(s.toString(16).padStart(64, "0"), "hex").reverse(),
  ]);
}
