/**
 * Consoles for programs: raw TCP and RFC 2217 on loopback, for labgrid, conserver, pyserial and the like.
 *
 * Invariants
 * - Between the line and a program nothing is added, and nothing is left out unless the program reads too slowly. Marks stay outside;
 *   of skipped bytes an RFC 2217 client is told that asked for it (NOTIFY-LINESTATE, overrun).
 * - The first who comes may write, everybody else reads; when nobody writes any more, whoever types next does (`Attachment`).
 */
import { createServer, isIPv6, type Socket } from "node:net";
import type { Config } from "../config.ts";
import type { Log } from "../log.ts";
import { loopback } from "../loopback.ts";
import type { RaiseAlarm } from "../messages.ts";
import { type Part, together } from "../parts.ts";
import { Client, type Speech } from "./client.ts";
import type { Console } from "./port.ts";
import { rfc2217 } from "./rfc2217.ts";

/** Programs at once on one port. */
const MOST_CLIENTS = 4;

const DOORS = ["rfc2217", "raw"] as const;

/** What the listeners need of the agent. */
export interface ListenerOptions {
  consoles: ReadonlyMap<string, Console>;
  /** Names the ports. */
  config: Config["consoles"];
  alarm: RaiseAlarm;
  log: Log;
  /** How long until a port is tried again that could not be had. */
  retryMs?: number;
}

/** Listens on every port that the consoles' configuration names. */
export function openListeners({ consoles, config, log, ...means }: ListenerOptions): Part {
  const parts = [...consoles.values()].flatMap((console) => {
    const ports = config[console.name];
    // As a line has them when it was opened
    const signals = { dtr: true, rts: true };
    return DOORS.flatMap((door) => {
      const port = ports?.[door];
      if (port === undefined) return [];
      const serve = (socket: Socket) => {
        // One too many, and turned away already
        if (socket.destroyed) return;
        const client = new Client(socket, console, `${door}:${addressOf(socket)}`, log);
        client.serve(door, door === "raw" ? raw(client) : rfc2217(client, console, signals));
      };
      const id = `listener-${console.name}-${door}`;
      const name = `console ${console.name}, ${door}`;
      const create = () => createServer(serve);
      return [loopback({ port, name, id, most: MOST_CLIENTS, create, log, ...means })];
    });
  });
  return (signal) => together(parts, signal);
}

/** Bytes and nothing else. */
function raw(client: Client): Speech {
  return {
    heard: (chunk) => client.type(chunk),
    take: async (item) => {
      if (item.kind === "bytes" && !client.send(item.bytes)) await client.drained();
    },
  };
}

function addressOf({ remoteAddress = "", remotePort = 0 }: Socket): string {
  return isIPv6(remoteAddress) ? `[${remoteAddress}]:${remotePort}` : `${remoteAddress}:${remotePort}`;
}
