/**
 * Alpine's packages and indexes as files: gzip members one after the other (signature, control, data), each a part of a tar.
 *
 * Source: Alpine wiki, "Apk spec" (version 2); apk-tools, src/package.c. A signature (RSA, PKCS #1 1.5; `RSA` over SHA-1, `RSA256`
 * over SHA-256) covers the compressed bytes of the member behind it. In a package that is the control member, whose `.PKGINFO`
 * names the SHA-256 of the data member.
 *
 * Invariants
 * - Nothing of a file is unpacked to a tree before its signature and its hashes held.
 * - What a member unpacks to has a limit that is known before.
 */
import { createHash, createVerify } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { inflateRawSync } from "node:zlib";
import { readTar } from "../tar.ts";
import { BuildError } from "../tools.ts";
import { bytesOf } from "../tree.ts";

/** Limits, bytes: unpacked metadata, an unpacked package. */
export const MOST = { metadata: 64 << 20, package: 1 << 30 };

/** Public keys by their file name, `alpine-devel@example.org-1234.rsa.pub`. */
export type Keys = ReadonlyMap<string, string>;

/** Reads the keys in a folder. */
export function readKeys(folder: string): Keys {
  const names = readdirSync(folder).filter((name) => name.endsWith(".rsa.pub"));
  if (names.length === 0) throw new BuildError(`${folder}: no key there: no *.rsa.pub`);
  return new Map(names.map((name) => [name, readFileSync(join(folder, name), "utf8")]));
}

/** One gzip member: its own bytes, and what they unpack to. */
interface GzipMember {
  packed: Buffer;
  unpacked: Buffer;
}

/** Cuts a file into its gzip members. `limits` has the most bytes that each may unpack to; one more member than that is refused. */
export function gzipMembers(bytes: Buffer, limits: readonly number[], name: string): GzipMember[] {
  const members: GzipMember[] = [];
  for (let at = 0; at < bytes.length; ) {
    const limit = limits[members.length];
    if (limit === undefined) throw new BuildError(`${name}: more than ${limits.length} parts`);
    const from = deflateAt(bytes, at, name);
    const { unpacked, length } = inflate(bytes.subarray(from), limit, name);
    const end = from + length + 8;
    if (end > bytes.length) throw new BuildError(`${name}: cut off: its last part has no checksum`);
    // The CRC-32 is not looked at: what counts is a signature or a SHA-256 over the packed bytes
    members.push({ packed: bytes.subarray(at, end), unpacked });
    at = end;
  }
  return members;
}

/** Where the deflated bytes of a member begin. Source: RFC 1952 §2.3. */
function deflateAt(bytes: Buffer, at: number, name: string): number {
  const flags = bytes[at + 3] ?? 0;
  if (at + 18 > bytes.length || bytes.readUInt32BE(at) >>> 8 !== 0x1f8b08)
    throw new BuildError(`${name}: no gzip at byte ${at}`);
  let from = at + 10;
  if ((flags & 4) !== 0) from += 2 + (bytes[from] ?? 0) + 256 * (bytes[from + 1] ?? 0);
  for (const flag of [8, 16]) {
    if ((flags & flag) === 0) continue;
    const end = bytes.indexOf(0, from);
    if (end < 0) throw new BuildError(`${name}: cut off within a gzip header`);
    from = end + 1;
  }
  return (flags & 2) === 0 ? from : from + 2;
}

function inflate(bytes: Buffer, limit: number, name: string): { unpacked: Buffer; length: number } {
  try {
    // `info` is Node's (zlib, "Class: Options") and says how much of the input was used; its types lack it
    const options = { maxOutputLength: limit, info: true } as object;
    const done = inflateRawSync(bytes, options) as unknown as {
      buffer: Buffer;
      engine: { bytesWritten: number };
    };
    return { unpacked: done.buffer, length: done.engine.bytesWritten };
  } catch (cause) {
    const why = cause instanceof RangeError ? `it unpacks to more than ${limit} bytes` : "cut off or damaged";
    throw new BuildError(`${name}: ${why}`, { cause });
  }
}

/** The files of one part of a tar, by name. */
function filesOf(part: Buffer, name: string): Map<string, Buffer> {
  const files = new Map<string, Buffer>();
  for (const member of readTar(part, { name }))
    if ("node" in member && member.node.type === "file")
      files.set(member.path, Buffer.from(bytesOf(member.node.content)));
  return files;
}

/** Throws unless one of the signatures is a known key's and holds. */
function checkSignature(signature: Buffer, signed: Buffer, keys: Keys, name: string): void {
  const found = [...filesOf(signature, name)].flatMap(([file, bytes]) => {
    const [, kind, key = ""] = /^\.SIGN\.(RSA|RSA256)\.([^/]+)$/.exec(file) ?? [];
    return kind === undefined ? [] : [{ hash: kind === "RSA" ? "sha1" : "sha256", key, bytes }];
  });
  if (found.length === 0) throw new BuildError(`${name}: not signed`);
  const known = found.filter(({ key }) => keys.has(key));
  if (known.length === 0)
    throw new BuildError(
      `${name}: signed with ${found.map(({ key }) => key).join(", ")}, which is not among the keys`,
    );
  for (const { hash, key, bytes } of known) {
    const isGood = createVerify(hash)
      .update(signed)
      .verify(keys.get(key) ?? "", bytes);
    if (!isGood) throw new BuildError(`${name}: the signature of ${key} does not match: it was changed`);
  }
}

/** The text of a signed `APKINDEX.tar.gz`. */
export function openIndex(bytes: Buffer, keys: Keys, name: string): string {
  const [signature, index, ...rest] = gzipMembers(bytes, [MOST.metadata, MOST.metadata], name);
  if (!signature || !index || rest.length > 0) throw new BuildError(`${name}: not signed`);
  checkSignature(signature.unpacked, index.packed, keys, name);
  const text = filesOf(index.unpacked, name).get("APKINDEX");
  if (!text) throw new BuildError(`${name}: no APKINDEX in it`);
  return text.toString();
}

/** A package whose signature and hashes held. */
export interface OpenPackage {
  /** `.PKGINFO`: what stands behind a key, in order. */
  info: ReadonlyMap<string, readonly string[]>;
  /** `Q1…` as the index has it: SHA-1 of the control member. */
  checksum: string;
  /** SHA-256 of the whole file, hex. */
  sha256: string;
  /** Scripts that an installation would run. */
  scripts: string[];
  /** Its files as a tar. */
  data: Buffer;
}

/** Opens a package. */
export function openPackage(bytes: Buffer, keys: Keys, name: string): OpenPackage {
  const limits = [MOST.metadata, MOST.metadata, MOST.package];
  const [signature, control, data] = gzipMembers(bytes, limits, name);
  if (!signature || !control || !data)
    throw new BuildError(`${name}: a part is missing: not signed, or cut off`);
  checkSignature(signature.unpacked, control.packed, keys, name);
  const files = filesOf(control.unpacked, name);
  const info = parseInfo(files.get(".PKGINFO")?.toString() ?? "");
  const [promised] = info.get("datahash") ?? [];
  const found = createHash("sha256").update(data.packed).digest("hex");
  if (promised !== found)
    throw new BuildError(
      `${name}: its files have the SHA-256 ${found}, signed is ${promised ?? "none"}: it was changed`,
    );
  return {
    info,
    checksum: `Q1${createHash("sha1").update(control.packed).digest("base64")}`,
    sha256: createHash("sha256").update(bytes).digest("hex"),
    scripts: [...files.keys()].filter((file) => file !== ".PKGINFO"),
    data: data.unpacked,
  };
}

function parseInfo(text: string): Map<string, string[]> {
  const info = new Map<string, string[]>();
  for (const line of text.split("\n")) {
    const [, key = "", value = ""] = /^([a-z_]+) = (.*)$/.exec(line) ?? [];
    if (key !== "") info.set(key, [...(info.get(key) ?? []), value]);
  }
  return info;
}
