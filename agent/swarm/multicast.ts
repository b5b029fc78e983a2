/**
 * Datagrams to everybody on the LAN: one group of IPv4 and one of IPv6, on every interface there is.
 *
 * The sockets are bound to the groups themselves: what is sent to this node alone, from anywhere, does not come in here.
 */
import { createSocket, type Socket } from "node:dgram";
import { once } from "node:events";
import { networkInterfaces } from "node:os";
import { type Address, addressOf, type Family } from "./address.ts";

/** The two addresses of a group and its port. */
export interface Group {
  v4?: string;
  v6?: string;
  port: number;
}

/** How a group is joined. */
export interface MulticastOptions {
  group: Group;
  /** Names of interfaces; if absent every one that leads out of this machine, looked up again before each sending. */
  interfaces?: readonly string[];
  /** A datagram and who sent it. Must not throw. */
  received(bytes: Uint8Array, from: Address): void;
}

interface Member {
  family: Family;
  address: string;
  socket: Socket;
}

/** Joins both groups, or the one that this machine has. Rejects where it has neither. */
export async function openMulticast(options: MulticastOptions): Promise<Multicast> {
  const { v4, v6, port } = options.group;
  const opening = [
    ...(v4 === undefined ? [] : [open(4, v4, port)]),
    ...(v6 === undefined ? [] : [open(6, v6, port)]),
  ];
  const opened = await Promise.allSettled(opening);
  const members = opened.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
  if (members.length === 0)
    throw new Error(
      `no group on port ${port}: ${opened.map((one) => (one as PromiseRejectedResult).reason).join("; ")}`,
    );
  return new Multicast(members, options);
}

async function open(family: Family, address: string, port: number): Promise<Member> {
  const socket = createSocket({
    type: `udp${family}`,
    reuseAddr: true,
    ...(family === 6 ? { ipv6Only: true } : {}),
  });
  socket.bind({ port, address });
  await once(socket, "listening");
  return { family, address, socket };
}

export class Multicast implements Disposable {
  readonly #members: readonly Member[];
  readonly #options: MulticastOptions;
  #last: Promise<unknown> = Promise.resolve();
  #isClosed = false;

  constructor(members: readonly Member[], options: MulticastOptions) {
    this.#members = members;
    this.#options = options;
    for (const { socket } of members) {
      socket.on("message", (bytes, { address, port }) => {
        const from = addressOf(address, port);
        if (from) options.received(bytes, from);
      });
      // A network that went away: the next sending finds out what is there
      socket.on("error", () => undefined);
      socket.setMulticastTTL(1);
      socket.setMulticastLoopback(true);
    }
    this.#join();
  }

  /** Sends on every interface; how many took it. One sending at a time: the interface is the socket's. */
  send(bytes: Uint8Array): Promise<number> {
    const sending = this.#last.then(() => this.#sendAll(bytes));
    this.#last = sending;
    return sending;
  }

  [Symbol.dispose](): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    for (const { socket } of this.#members) socket.close();
  }

  async #sendAll(bytes: Uint8Array): Promise<number> {
    let sent = 0;
    for (const { family, address, socket } of this.#members)
      for (const through of this.#join(family)) {
        if (this.#isClosed) return sent;
        if (
          isDone(() => socket.setMulticastInterface(through)) &&
          (await this.#sendOne(socket, address, bytes))
        )
          sent++;
      }
    return sent;
  }

  #sendOne(socket: Socket, address: string, bytes: Uint8Array): Promise<boolean> {
    return new Promise((resolve) => {
      const isTaken = isDone(() =>
        socket.send(bytes, this.#options.group.port, address, (error) => resolve(!error)),
      );
      if (!isTaken) resolve(false);
    });
  }

  /** Joins on interfaces that are new, and returns those of a family. */
  #join(which?: Family): string[] {
    return this.#members
      .filter(({ family }) => which === undefined || family === which)
      .flatMap(({ family, address, socket }) => {
        const all = this.#interfaces(family);
        // One that has been joined already says so
        for (const one of all) isDone(() => socket.addMembership(address, one));
        return all;
      });
  }

  /** Interfaces as the sockets want them: IPv4 by their address, IPv6 by their name. */
  #interfaces(family: Family): string[] {
    const { interfaces } = this.#options;
    return Object.entries(networkInterfaces()).flatMap(([name, addresses = []]) => {
      const own = addresses.find(
        (one) => one.family === `IPv${family}` && (interfaces ? interfaces.includes(name) : !one.internal),
      );
      return own ? [family === 4 ? own.address : `::%${name}`] : [];
    });
  }
}

function isDone(what: () => void): boolean {
  try {
    what();
    return true;
  } catch {
    return false;
  }
}
