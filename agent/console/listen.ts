/**
 * Consoles for programs: raw TCP and RFC 2217 on loopback, for labgrid, conserver, pyserial and the like.
 *
 * Invariants
 * - Between the line and a program nothing is added, and nothing is left out unless the program reads too slowly. Marks stay outside;
 *   of skipped bytes an RFC 2217 client is told that asked for it (NOTIFY-LINESTATE, overrun).
 * - Whoever first types or sets something may write, everybody else reads; when nobody writes any more, whoever types next does (`Attachment`).
 * - Each who comes and goes is on record and seen by all; so that a program that connects in a loop fills neither, those who come too
 *   often wait for their turn.
 */
import { createServer, isIPv6, type Socket } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import type { Config } from "../config.ts";
import type { Log } from "../log.ts";
import { loopback } from "../loopback.ts";
import type { RaiseAlarm } from "../messages.ts";
import { type Part, together } from "../parts.ts";
import { FailureLimit } from "../sign/limit.ts";
import { Client, type Speech } from "./client.ts";
import type { Console } from "./port.ts";
import { rfc2217 } from "./rfc2217.ts";

/** Programs at once on one port. */
const MOST_CLIENTS = 4;
/** Programs that may come to one port one after the other, and then one each so many seconds. */
const ARRIVALS = { burst: 20, secondsEach: 2 };

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
  /** How long a line may take nothing of what a program sends. */
  stuckMs?: number;
}

/** Listens on every port that the consoles' configuration names. */
export function openListeners({ consoles, config, log, stuckMs, ...means }: ListenerOptions): Part {
  const parts = [...consoles.values()].flatMap((console) => {
    const ports = config[console.name];
    return DOORS.flatMap((door) => {
      const port = ports?.[door];
      if (port === undefined) return [];
      const arrivals = new Arrivals();
      const serve = async (socket: Socket) => {
        // One too many is turned away already
        if (!(await arrivals.turn(socket))) return;
        const client = new Client(socket, console, { who: `${door}:${addressOf(socket)}`, log, stuckMs });
        client.serve(door, door === "raw" ? raw(client) : rfc2217(client, console));
      };
      const id = `listener-${console.name}-${door}`;
      const name = `console ${console.name}, ${door}`;
      const create = () => createServer({ allowHalfOpen: door === "raw" }, serve);
      return [loopback({ port, name, id, most: MOST_CLIENTS, create, log, ...means })];
    });
  });
  return (signal) => together(parts, signal);
}

/** Lets those who come to one port in, some at once and more in their time. */
class Arrivals {
  readonly #limit = new FailureLimit(ARRIVALS);
  #last: Promise<unknown> = Promise.resolve();

  /** Resolves when it is somebody's turn, at once for all but a crowd; with false when they have left. */
  turn(socket: Socket): Promise<boolean> {
    const turn = this.#last.then(async () => {
      while (!socket.destroyed && !this.#limit.take())
        await sleep(ARRIVALS.secondsEach * 1000, undefined, { ref: false });
      return !socket.destroyed;
    });
    this.#last = turn;
    return turn;
  }
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
