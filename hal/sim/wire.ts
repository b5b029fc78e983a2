/**
 * A simulated serial bus that several processes can reach: the boards live in one process, which serves their bus on a
 * Unix socket; a node in another process has that socket for its serial line. So a controller can be killed and the
 * boards keep their state, as real ones do.
 */
import { HalError, type SerialLink } from "../ports.ts";
import { openUnix, serveUnix } from "./unix.ts";

/** Longest reply or request on the bus, bytes; more is noise. */
const MOST_BYTES = 512;

/** Serves a bus on `path` until the signal aborts: bytes that `isRequest` calls whole are handed to the boards, one request at a time. */
export async function serveBus(
  path: string,
  boards: (request: Uint8Array) => Promise<Uint8Array>,
  isRequest: (bytes: Uint8Array) => boolean,
  signal: AbortSignal,
): Promise<void> {
  await serveUnix(
    path,
    (socket) => {
      let pending = Buffer.alloc(0);
      let last = Promise.resolve();
      socket.on("data", (chunk: Buffer) => {
        pending = Buffer.concat([pending, chunk]);
        if (pending.length > MOST_BYTES) pending = Buffer.alloc(0);
        if (!isRequest(pending)) return;
        const request = pending;
        pending = Buffer.alloc(0);
        last = last.then(async () => {
          const reply = await boards(request).catch(() => new Uint8Array());
          if (socket.writable && reply.length > 0) socket.write(reply);
        });
      });
    },
    signal,
  );
}

/** Opens the bus served on `path` as a serial line. Throws `HalError` io when nobody serves it: it may be served later. */
export async function openBus(path: string): Promise<SerialLink> {
  const socket = await openUnix(path, "io", "no simulated bus there");
  let collected = Buffer.alloc(0);
  let heard: () => void = () => undefined;
  socket.on("data", (chunk: Buffer) => {
    if (collected.length < MOST_BYTES) collected = Buffer.concat([collected, chunk]);
    heard();
  });
  socket.on("error", () => socket.destroy());
  socket.once("close", () => heard());
  return {
    async exchange(write, isWhole, limitMs) {
      if (socket.destroyed) throw new HalError("io", `${path}: the simulated bus is gone`);
      collected = Buffer.alloc(0);
      socket.write(write);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, limitMs);
        heard = () => {
          if (!isWhole(collected) && !socket.destroyed) return;
          clearTimeout(timer);
          resolve();
        };
      });
      heard = () => undefined;
      if (socket.destroyed) throw new HalError("io", `${path}: the simulated bus is gone`);
      return new Uint8Array(collected);
    },
    close: async () => void socket.destroy(),
  };
}
