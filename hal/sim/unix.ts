/** What the simulated lines that cross processes have in common: a Unix socket that one serves and others open. */
import { chmodSync, rmSync } from "node:fs";
import { connect, createServer, type Socket } from "node:net";
import { HalError, type HalErrorCode } from "../ports.ts";

/** Serves `path` until the signal aborts; returns those who are there. A path that is left over is taken. */
export async function serveUnix(
  path: string,
  came: (socket: Socket) => void,
  signal: AbortSignal,
): Promise<ReadonlySet<Socket>> {
  rmSync(path, { force: true });
  const open = new Set<Socket>();
  const server = createServer((socket) => {
    open.add(socket);
    came(socket);
    socket.on("error", () => socket.destroy());
    socket.once("close", () => open.delete(socket));
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(path, resolve);
  });
  chmodSync(path, 0o600);
  signal.addEventListener("abort", () => {
    server.close();
    for (const socket of open) socket.destroy();
    rmSync(path, { force: true });
  });
  return open;
}

/** Opens what is served on `path`. Throws `HalError` with this code and these words where nobody serves it. */
export function openUnix(path: string, code: HalErrorCode, nobody: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const opening = connect(path);
    opening.once("connect", () => resolve(opening));
    opening.once("error", (cause) => reject(new HalError(code, `${path}: ${nobody}`, { cause })));
  });
}
