/** The tracker of `bittorrent-tracker`, on free ports of this machine. */
import { once } from "node:events";
import { Server } from "bittorrent-tracker";

/** Starts one; it answers over HTTP and UDP. */
export async function tracker(): Promise<AsyncDisposable & { http: string; udp: string }> {
  const server = new Server({ http: true, udp: true, ws: false, stats: false, interval: 600_000 });
  server.on("warning", () => undefined); // what strangers send it
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    http: `http://127.0.0.1:${server.http.address().port}/announce`,
    udp: `udp://127.0.0.1:${server.udp.address().port}`,
    [Symbol.asyncDispose]: () => new Promise<void>((resolve) => server.close(() => resolve())),
  };
}
