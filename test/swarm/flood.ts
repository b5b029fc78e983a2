/** Sends announcements that nobody asked for, as fast as it can, to a group or to a node of the DHT; prints how many and what that cost. */
import { createSocket, type Socket } from "node:dgram";
import { once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { encodeItem, fieldsOf, type Item } from "../../agent/swarm/item.ts";
import { readMessage } from "../../agent/swarm/krpc.ts";
import { encodeBencode } from "../../boot/bencode.ts";
import { question, signedItem } from "../dhts.ts";
import { FOLLOWED } from "../fleet.ts";

const { by, from, kind, group, port, seconds } = JSON.parse(process.argv[2] ?? "{}");
/** Addresses of this machine that it comes from. */
const HOSTS = from === "many" ? Array.from({ length: 64 }, (_, n) => `127.0.2.${n + 1}`) : ["127.0.2.1"];
/** Datagrams that are sent before it is looked whether they have gone out. */
const BURST = 32;

const sockets: Socket[] = [];
for (const host of HOSTS) {
  const socket = createSocket("udp4").bind(0, host);
  await once(socket, "listening");
  if (by === "beacon") socket.setMulticastInterface("127.0.0.1");
  socket.on("error", () => undefined);
  sockets.push(socket);
}

/** Of the key that is followed, each newer than the last, its signature none. */
const [key = ""] = FOLLOWED.keys;
const template: Item = {
  ...signedItem({ salt: FOLLOWED.target }),
  k: Buffer.from(key, "hex"),
};
/** What lets an address put something: it has to be asked for, so a put gets as far as its signature. */
const tokens = new Map<Socket, Uint8Array>();
if (by === "dht") await Promise.all(sockets.map(askForToken));
const [any] = sockets;
const copy = datagram(template, any);
let seq = 1000n;

async function askForToken(socket: Socket): Promise<void> {
  socket.on("message", (bytes) => {
    try {
      const message = readMessage(bytes);
      if (message.kind === "reply" && message.values.has("token"))
        tokens.set(socket, Buffer.from(message.values.bytes("token")));
    } catch {
      // an answer to what comes later
    }
  });
  for (let ask = 0; ask < 10 && !tokens.has(socket); ask++) {
    socket.send(encodeBencode(question("get", { target: Buffer.alloc(20) })), port, "127.0.0.1");
    await sleep(200);
  }
}

function datagram(item: Item, socket: Socket | undefined): Uint8Array {
  if (by === "beacon") return encodeItem(item);
  const token = (socket && tokens.get(socket)) ?? Buffer.alloc(8);
  return encodeBencode(question("put", { ...fieldsOf(item), token }));
}

const [to, host] = by === "beacon" ? [group.port, group.v4] : [port, "127.0.0.1"];
let sent = 0;
const before = process.cpuUsage();
const endMs = performance.now() + seconds * 1000;
while (performance.now() < endMs) {
  const sending: Promise<void>[] = [];
  for (let n = 0; n < BURST; n++) {
    const socket = sockets[sent++ % sockets.length];
    const bytes = kind === "copies" ? copy : datagram({ ...template, seq: seq++ }, socket);
    sending.push(new Promise((resolve) => socket?.send(bytes, to, host, () => resolve())));
  }
  await Promise.all(sending);
}
const { user, system } = process.cpuUsage(before);
for (const socket of sockets) socket.close();
process.stdout.write(JSON.stringify({ sent, tokens: tokens.size, cpu: (user + system) / 1e6 }));
