/** Payloads that come in order, from a file or a stream, into a slot. */
import type { BlockDevice } from "../hal/ports.ts";
import { LEAF_BYTES } from "./content.ts";
import type { SlotWriter } from "./writer.ts";

/** Bytes read from a file at once; two of these are in memory. */
const PIECE_BYTES = 512 * 1024;
const LEAVES_A_PIECE = PIECE_BYTES / LEAF_BYTES;

/** A payload that is not as long as its release says. */
export class SourceError extends Error {
  override name = "SourceError";
}

/** Where the leaves of a payload come from. */
export interface Source {
  /** Brings every leaf that the writer needs. Throws `SourceError`, `WrongLeaf`, `HalError`, and what the writer's signal says. */
  pour(writer: SlotWriter): Promise<void>;
  /** It comes over a network: to look through a whole slot for parts of it is cheaper. */
  isFar?: boolean;
  /** A leaf once more; absent where what went by is gone. */
  again?: (leaf: number) => Promise<Uint8Array>;
}

/** A payload in a file or on a disk. Throws `SourceError` where it is not `size` bytes long. */
export function fileSource(file: BlockDevice, size: number): Source {
  if (file.bytes !== size)
    throw new SourceError(
      `${file.name} has ${file.bytes} bytes, the payload of this release ${size}: ${file.bytes < size ? "it is cut short" : "it is another"}`,
    );
  const piece = (from: number, into?: Uint8Array) => {
    const at = from * LEAF_BYTES;
    return file.read(at, Math.min(PIECE_BYTES, size - at), into);
  };
  return {
    pour: async (writer) => {
      const froms = piecesNeeded(writer);
      const memory = [new Uint8Array(PIECE_BYTES), new Uint8Array(PIECE_BYTES)];
      const ask = async (turn: number) => {
        const from = froms[turn];
        return from === undefined ? undefined : { from, bytes: await piece(from, memory[turn % 2]) };
      };
      let next = ask(0);
      try {
        for (const [turn] of froms.entries()) {
          const got = await next;
          next = ask(turn + 1);
          next.catch(() => undefined); // told when its turn comes
          if (got) await putAll(writer, got.from, got.bytes);
        }
      } finally {
        // Nobody may close the file under it
        await next.catch(() => undefined);
      }
    },
    again: (leaf) => file.read(leaf * LEAF_BYTES, Math.min(LEAF_BYTES, size - leaf * LEAF_BYTES)),
  };
}

/** A payload that arrives in pieces of any size, such as standard input. `name` is for messages. */
export function streamSource(name: string, pieces: AsyncIterable<Uint8Array>): Source {
  return {
    pour: async (writer) => {
      let number = 0;
      for await (const leaf of cut(name, pieces, writer.size)) await putOne(writer, number++, leaf);
    },
  };
}

/** The leaves of a stream; one is the caller's until the next is asked for. */
async function* cut(name: string, pieces: AsyncIterable<Uint8Array>, size: number) {
  const leaf = new Uint8Array(LEAF_BYTES);
  /** Bytes that came, and how many of them wait in `leaf`. */
  let [came, filled] = [0, 0];
  for await (const piece of pieces) {
    came += piece.length;
    if (came > size)
      throw new SourceError(`${name} has more than the ${size} bytes of this release's payload`);
    for (let at = 0; at < piece.length; ) {
      const part = piece.subarray(at, at + LEAF_BYTES - filled);
      at += part.length;
      if (part.length === LEAF_BYTES) {
        yield part;
        continue;
      }
      leaf.set(part, filled);
      filled = (filled + part.length) % LEAF_BYTES;
      if (filled === 0) yield leaf;
    }
  }
  if (came < size)
    throw new SourceError(
      `${name} ended after ${came} of ${size} bytes; what came is kept: begin again with a whole one`,
    );
  if (filled > 0) yield leaf.subarray(0, filled);
}

/** The pieces of a file with a leaf that has yet to come, by their first leaf. */
function piecesNeeded(writer: SlotWriter): number[] {
  const froms: number[] = [];
  for (let from = 0; from < writer.count; from += LEAVES_A_PIECE) {
    const to = Math.min(from + LEAVES_A_PIECE, writer.count);
    for (let leaf = from; leaf < to; leaf++)
      if (writer.needs(leaf)) {
        froms.push(from);
        break;
      }
  }
  return froms;
}

async function putAll(writer: SlotWriter, from: number, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length; at += LEAF_BYTES)
    await putOne(writer, from + at / LEAF_BYTES, bytes.subarray(at, at + LEAF_BYTES));
}

async function putOne(writer: SlotWriter, leaf: number, bytes: Uint8Array): Promise<void> {
  if (writer.needs(leaf)) await writer.put(leaf, bytes);
}
