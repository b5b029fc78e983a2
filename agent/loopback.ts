/**
 * TCP for programs of this machine: 127.0.0.1 and ::1, never another address.
 *
 * Invariants
 * - A port that cannot be had is an alarm and is tried again; it never ends the agent.
 * - Whoever is one too many is turned away, and nobody is kept when the agent stops.
 */
import type { Server, Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import type { Log } from "./log.ts";
import type { RaiseAlarm } from "./messages.ts";
import { type Part, together } from "./parts.ts";

const RETRY_MS = 5000;
/** A machine without IPv6 has no ::1, which is nobody's mistake. */
const NO_IPV6 = ["EADDRNOTAVAIL", "EAFNOSUPPORT"];

/** What listens, and to whom it is said when it cannot. */
export interface LoopbackOptions {
  port: number;
  /** For messages: `console serial0, raw`. */
  name: string;
  /** Id of the alarm. */
  id: string;
  /** Connections at once. */
  most: number;
  /** One server for each address. */
  create(): Server;
  /** When the agent stops, connections stay open until this resolves. */
  lastWords?: () => Promise<unknown>;
  alarm: RaiseAlarm;
  log: Log;
  retryMs?: number;
}

/** Listens until it is told to stop. */
export function loopback(options: LoopbackOptions): Part {
  const { port, name, id, alarm, log } = options;
  const open = new Set<Socket>();
  /** What is wrong, by address. */
  const problems = new Map<string, string>();
  const say = (address: string, problem?: string) => {
    if (problem !== undefined && problems.get(address) !== problem)
      log("warn", "loopback.failed", { listener: name, problem });
    if (problem === undefined) problems.delete(address);
    else problems.set(address, problem);
    const message = [...problems.values()].join("; ");
    alarm(id, message ? { severity: "warning", message: `${name}: ${message}; it is tried again` } : null);
  };
  const hold = (address: string) => async (signal: AbortSignal) => {
    while (!signal.aborted) {
      try {
        await serve(options, address, open, () => say(address), signal);
      } catch (error) {
        const { code = "", message } = error as NodeJS.ErrnoException;
        if (address === "::1" && NO_IPV6.includes(code)) return;
        say(address, `cannot listen on ${address} port ${port} (${code || message})`);
      }
      await sleep(options.retryMs ?? RETRY_MS, undefined, { signal }).catch(() => undefined);
    }
  };
  return (signal) => together(["127.0.0.1", "::1"].map(hold), signal);
}

/** Resolves when the signal aborts and everybody who came this way is gone; rejects when it cannot listen. */
async function serve(
  { port, most, create, lastWords, name, log }: LoopbackOptions,
  address: string,
  open: Set<Socket>,
  listens: () => void,
  signal: AbortSignal,
): Promise<void> {
  const server = create();
  const own = new Set<Socket>();
  // Ahead of the server's own: one that is turned away is served nothing.
  server.prependListener("connection", (socket: Socket) => {
    socket.on("error", () => undefined);
    if (open.size >= most) {
      const from = `${socket.remoteAddress}:${socket.remotePort}`;
      log("warn", "loopback.turned-away", { listener: name, from, most });
      socket.destroy();
      return;
    }
    for (const sockets of [open, own]) sockets.add(socket);
    socket.once("close", () => {
      for (const sockets of [open, own]) sockets.delete(socket);
    });
  });
  const over = Promise.withResolvers<void>();
  const stop = () => over.resolve();
  signal.addEventListener("abort", stop);
  server.once("error", over.reject);
  try {
    if (signal.aborted) return;
    server.listen({ port, host: address }, listens);
    await over.promise;
  } finally {
    signal.removeEventListener("abort", stop);
    server.close();
    await lastWords?.();
    for (const socket of own) socket.destroy();
  }
}
