import { createServer } from "node:net";
import { Aedes } from "aedes";

/** A small site broker on this machine only, and a tap on everything that is said. */
export interface DemoBroker extends AsyncDisposable {
  port: number;
}

/** Starts it on `port`, or on any free one where `port` is taken and nobody insisted. */
export async function startBroker(
  port: number | undefined,
  fallback: number,
  heard: (topic: string, payload: Uint8Array) => void,
): Promise<DemoBroker> {
  const server = createServer();
  const listen = (wanted: number) =>
    new Promise<number>((resolve, reject) => {
      server.once("error", reject);
      server.listen(wanted, "127.0.0.1", () => {
        server.removeListener("error", reject);
        resolve((server.address() as { port: number }).port);
      });
    });
  // The port first: a broker that nobody can reach would still keep the process alive.
  const used = port === undefined ? await listen(fallback).catch(() => listen(0)) : await listen(port);
  const aedes = await Aedes.createBroker();
  server.on("connection", aedes.handle);
  aedes.on("publish", (packet) => {
    // What the broker itself says is nobody's telemetry.
    if (!packet.topic.startsWith("$SYS")) heard(packet.topic, Buffer.from(packet.payload));
  });
  return {
    port: used,
    [Symbol.asyncDispose]: () =>
      new Promise<void>((resolve) => {
        aedes.close(() => server.close(() => resolve()));
      }),
  };
}
