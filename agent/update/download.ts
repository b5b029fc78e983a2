/** A payload from the swarm into a slot. */
import { LEAF_BYTES } from "../../boot/content.ts";
import { Judge, type Leaves } from "../../boot/leaf.ts";
import type { Source } from "../../boot/source.ts";
import type { SlotWriter } from "../../boot/writer.ts";
import type { Holding, Share } from "./share.ts";

/** A leaf that reads back wrongly is fetched again; nobody waits for it longer. */
const AGAIN_MS = 120_000;

/** What is poured, and from whom. */
export interface Download {
  share: Share;
  update: Uint8Array;
  leaves: Leaves;
  size: number;
  /** Web servers and trackers that its release names. */
  webSeeds: readonly string[];
  trackers: readonly string[];
  signal: AbortSignal;
  /** Told how many bytes of each came that were missing. */
  came(from: "peers" | "web", bytes: number): void;
}

/** The swarm as a source of leaves; gives what is there already to others from the first moment, and goes on with it when all has come. */
export function swarmSource(download: Download): Source {
  const judge = new Judge(download.size, download.leaves);
  const again = new Map<number, (bytes: Uint8Array) => void>();
  return {
    isFar: true,
    pour: async (writer) => {
      const { share, update, webSeeds, trackers, signal } = download;
      const whole = Promise.withResolvers<void>();
      const holding = intoWriter(writer, download, judge, again, whole.resolve);
      const stop = () => whole.reject(signal.reason);
      signal.addEventListener("abort", stop, { once: true });
      try {
        signal.throwIfAborted();
        share.begin(update, holding, whole.reject, { webSeeds, trackers });
        if (writer.left === 0) return;
        await whole.promise;
      } finally {
        signal.removeEventListener("abort", stop);
      }
    },
    again: (leaf) => {
      const came = Promise.withResolvers<Uint8Array>();
      again.set(leaf, came.resolve);
      const late = setTimeout(
        () => came.reject(new Error(`leaf ${leaf} came from nobody once more within ${AGAIN_MS / 1000} s`)),
        AGAIN_MS,
      );
      const stop = () => came.reject(download.signal.reason);
      download.signal.addEventListener("abort", stop, { once: true });
      download.share.beginAnew();
      return came.promise.finally(() => {
        clearTimeout(late);
        download.signal.removeEventListener("abort", stop);
        again.delete(leaf);
      });
    },
  };
}

/** What the child hears of a slot that is being written. */
function intoWriter(
  writer: SlotWriter,
  { size, came }: Download,
  judge: Judge,
  again: ReadonlyMap<number, (bytes: Uint8Array) => void>,
  whole: () => void,
): Holding {
  return {
    size,
    has: (leaf) => !writer.needs(leaf) && !again.has(leaf),
    put: async (leaf, bytes, from) => {
      if (!writer.needs(leaf)) {
        // Whoever sent it is judged all the same. Not by the writer, which may be finishing
        await judge.check(leaf, bytes);
        again.get(leaf)?.(Uint8Array.from(bytes));
        return;
      }
      await writer.put(leaf, bytes);
      came(from, bytes.length);
      if (writer.left === 0) whole();
    },
    read: async (at, length) => {
      const bytes = new Uint8Array(length);
      const [first, last] = [Math.floor(at / LEAF_BYTES), Math.floor((at + length - 1) / LEAF_BYTES)];
      for (let leaf = first; leaf <= last; leaf++) {
        const held = await writer.read(leaf);
        const from = Math.max(at - leaf * LEAF_BYTES, 0);
        const part = held.subarray(from, at + length - leaf * LEAF_BYTES);
        bytes.set(part, leaf * LEAF_BYTES + from - at);
      }
      return bytes;
    },
  };
}
