declare module "bittorrent-tracker" {
  import type { Socket } from "node:dgram";
  import { EventEmitter } from "node:events";
  import type { Server as HttpServer } from "node:http";
  import type { AddressInfo } from "node:net";

  /** The tracker of `bittorrent-tracker`, as far as the tests use it. */
  export class Server extends EventEmitter {
    constructor(options: { http: boolean; udp: boolean; ws: boolean; stats: boolean; interval: number });
    readonly http: Omit<HttpServer, "address"> & { address(): AddressInfo };
    readonly udp: Socket;
    listen(port: number, host: string): void;
    close(done: () => void): void;
  }
}
