/**
 * The UART of a simulated Pi in another process, on a Unix socket: what it says as it is; towards it a break is the bytes
 * ff 00, and the byte ff is ff ff.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { HalError, type LineEvents, type SerialLine } from "../ports.ts";
import { openUnix, serveUnix } from "./unix.ts";

const ESCAPE = 0xff;
const BREAK = Uint8Array.of(ESCAPE, 0);
/** A node that does not read loses what its Pi says, as on a wire. */
const MOST_WAITING = 262_144;
const WRITE_MS = 10_000;

/** What stands at the Pi's end. */
export interface UartEnd {
  typed(bytes: Uint8Array): void;
  broke(): void;
}

/** Serves a Pi's UART on `path` until the signal aborts; returns what sends to whoever is connected. */
export async function serveUart(
  path: string,
  end: UartEnd,
  signal: AbortSignal,
): Promise<(bytes: Uint8Array) => void> {
  const open = await serveUnix(
    path,
    (socket) => {
      const take = unescaped(end);
      socket.on("data", take);
    },
    signal,
  );
  return (bytes) => {
    for (const socket of open) if (socket.writableLength < MOST_WAITING) socket.write(bytes);
  };
}

/** Opens the UART served on `path` as a line. Throws `HalError` absent when nobody serves it. */
export async function openUart(path: string, events: LineEvents): Promise<SerialLine> {
  const socket = await openUnix(path, "absent", "no simulated Pi there");
  let isClosed = false;
  socket.on("data", (chunk: Buffer) => events.bytes(new Uint8Array(chunk)));
  socket.on("error", () => socket.destroy());
  socket.once("close", () => {
    if (!isClosed) events.gone(new HalError("io", `${path}: the simulated Pi is gone`));
  });
  const write = async (bytes: Uint8Array) => {
    if (socket.destroyed) throw new HalError("io", `${path}: the simulated Pi is gone`);
    const taken = new Promise<void>((resolve, reject) =>
      socket.write(bytes, (cause) =>
        cause ? reject(new HalError("io", `${path}: ${cause.message}`, { cause })) : resolve(),
      ),
    );
    const limit = new AbortController();
    const late = sleep(WRITE_MS, undefined, { signal: limit.signal }).then(() => {
      throw new HalError("timeout", `${path}: took nothing for ${WRITE_MS / 1000} s`);
    });
    await Promise.race([taken, late]).finally(() => limit.abort());
  };
  return {
    write: (bytes) => write(escaped(bytes)),
    sendBreak: () => write(BREAK),
    setLines: async () => undefined,
    change: async () => undefined,
    close: async () => {
      isClosed = true;
      socket.destroy();
    },
  };
}

function escaped(bytes: Uint8Array): Uint8Array {
  return bytes.includes(ESCAPE)
    ? Uint8Array.from([...bytes].flatMap((byte) => (byte === ESCAPE ? [ESCAPE, ESCAPE] : [byte])))
    : bytes;
}

/** Tells breaks from bytes, in whatever pieces they come. */
function unescaped(end: UartEnd): (chunk: Uint8Array) => void {
  let isEscaped = false;
  return (chunk) => {
    let plain: number[] = [];
    const handOver = () => {
      if (plain.length > 0) end.typed(Uint8Array.from(plain));
      plain = [];
    };
    for (const byte of chunk) {
      if (byte === ESCAPE && !isEscaped) {
        isEscaped = true;
        continue;
      }
      if (isEscaped && byte === 0) {
        handOver();
        end.broke();
      } else plain.push(byte);
      isEscaped = false;
    }
    handOver();
  };
}
