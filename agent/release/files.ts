/** The small files that the verbs about releases read and write whole, and what people are told where they cannot. */
import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { dirname } from "node:path";
import { BencodeError, decodeBencode } from "../../boot/bencode.ts";
import { parseTrust, TRUST_MAX_BYTES, type Trust, TrustError } from "../../boot/trust.ts";
import { ReleaseError, UPDATE_MAX_BYTES } from "../../boot/updatefile.ts";
import { CliError, EXIT, UsageError } from "../terminal.ts";

/** An update file, not yet read as one. Throws `CliError`. */
export const readUpdate = (path: string): Promise<Buffer> => readSmall(path, UPDATE_MAX_BYTES);

/** The text of a `trust.json`, which must be what its bytes are: it is signed. Throws `CliError`. */
export async function readTrustText(path: string): Promise<string> {
  const bytes = await readSmall(path, TRUST_MAX_BYTES);
  const text = bytes.toString();
  if (!Buffer.from(text).equals(bytes)) throw new CliError(EXIT.config, `${path}: it is no UTF-8`);
  return text;
}

/** A `trust.json`. Throws `CliError` with all that is wrong in it. */
export async function readTrust(path: string): Promise<Trust> {
  const text = await readTrustText(path);
  try {
    return parseTrust(text);
  } catch (cause) {
    if (!(cause instanceof TrustError)) throw cause;
    throw new CliError(EXIT.config, cause.problems.map((problem) => `${path}: ${problem}`).join("\n"), {
      cause,
    });
  }
}

/** What a signed file may be. */
type Kind = "update" | "head" | "chain";
const KINDS: Record<Kind, string> = { update: "an update file", head: "a head", chain: "a chain" };

/** What a signed file is, by the keys at its top; one that is none of these is read as an update file, which says what is wrong. */
export function kindOf(bytes: Uint8Array): Kind {
  try {
    const { value } = decodeBencode(bytes, UPDATE_MAX_BYTES);
    if (value instanceof Map && value.has("k") && value.has("v")) return "head";
    if (value instanceof Map && value.has("links")) return "chain";
  } catch (cause) {
    if (!(cause instanceof BencodeError)) throw cause;
  }
  return "update";
}

/** Throws `UsageError` for a flag that has no meaning for what the file is: nobody shall believe that it was looked at. */
export function onlyAbout(kind: Kind, given: object, flags: Record<Kind, readonly string[]>): void {
  const strange = Object.keys(given).find((flag) => !flags[kind].includes(flag));
  if (strange !== undefined) throw new UsageError(`--${strange} says nothing about ${KINDS[kind]}`);
}

/** A file that must be read whole, if it is not too long for that. A pipe or a device, which may never end, is none. */
export async function readSmall(path: string, most: number): Promise<Buffer> {
  try {
    // Opening a pipe that nobody writes to would wait for ever
    const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      const stats = await file.stat();
      if (!stats.isFile()) throw new Error("it is no file");
      if (stats.size > most) throw new Error(`${stats.size} bytes; at most ${most} are read`);
      return await readUpTo(file, most);
    } finally {
      await file.close();
    }
  } catch (cause) {
    throw new CliError(EXIT.usage, `${path}: ${cause instanceof Error ? cause.message : String(cause)}`, {
      cause,
    });
  }
}

/** All of a file, of whose size not every file system tells the truth. */
async function readUpTo(file: FileHandle, most: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let length = 0;
  while (length <= most) {
    const { bytesRead, buffer } = await file.read(Buffer.alloc(Math.min(65_536, most + 1 - length)));
    if (bytesRead === 0) return Buffer.concat(chunks, length);
    chunks.push(buffer.subarray(0, bytesRead));
    length += bytesRead;
  }
  throw new Error(`more than ${most} bytes; at most ${most} are read`);
}

/** Writes a file that must not exist yet. */
export async function writeNew(path: string, text: string, mode: number): Promise<void> {
  try {
    const file = await open(path, "wx", mode);
    try {
      await file.writeFile(text);
      await file.datasync();
    } finally {
      await file.close();
    }
  } catch (cause) {
    const exists = (cause as NodeJS.ErrnoException).code === "EEXIST";
    const why = exists
      ? `it exists in ${dirname(path)} already and is not overwritten`
      : (cause as Error).message;
    throw new CliError(EXIT.usage, `${path}: ${why}`, { cause });
  }
}

/** An update file that cannot be read is wrong input here, not a decision. */
export async function asUsage<T>(work: () => Promise<T>, path: string): Promise<T> {
  try {
    return await work();
  } catch (cause) {
    if (!(cause instanceof ReleaseError)) throw cause;
    throw new CliError(EXIT.usage, `${path}: ${cause.message}`, { cause });
  }
}

/** The one file that is named on the command line, an update file unless it is another. */
export function onlyFile(positionals: string[], what = "update file"): string {
  const [path, ...more] = positionals;
  if (path === undefined || more.length > 0) throw new UsageError(`expected one ${what}`);
  return path;
}
