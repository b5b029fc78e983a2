/**
 * The stream under MQTT: TCP, or TLS to a broker that has proved who it is.
 *
 * Invariants
 * - With `mqtts` only the site's CA is trusted, the certificate must be valid now and name the host (RFC 9525; an IP
 *   address needs an IP SAN). Neither the password nor the client certificate leaves before that was shown.
 * - Nobody gets a TLS stream to talk on before `authorized` and the name have been checked here again:
 *   Bun has had releases that accepted what they should not (oven-sh/bun#23556, #43684).
 * - Certificates and the password are read at every connect: renewing them needs no restart.
 */
import { readFileSync } from "node:fs";
import { connect as connectTcp, isIP, type Socket } from "node:net";
import { type ConnectionOptions, checkServerIdentity, connect as connectTls, type TLSSocket } from "node:tls";
import type { Config } from "../config.ts";

/** How this node reaches its broker. */
export type MqttConfig = NonNullable<Config["mqtt"]>;

/** How a connection came to nothing, or to its end; the retry policy branches on it. */
export type EndingKind =
  /** No TCP connection: name, route, refusal, files of ours that cannot be read. */
  | "unreachable"
  /** One of the two certificates did not satisfy the other side, or ours cannot be used. */
  | "tls"
  /** CONNACK with a code other than 0. */
  | "refused"
  /** Connected, and no CONNACK in time. */
  | "silent"
  /** The broker closed it, with or without a code. */
  | "closed"
  /** Broken on the way, or by rubbish. */
  | "lost";

/** Why there is no connection; the message names the broker. */
export class LinkError extends Error {
  readonly kind: EndingKind;
  /** MQTT's reason or return code, where the broker gave one. */
  readonly reason: number | undefined;
  constructor(kind: EndingKind, message: string, reason?: number, options?: ErrorOptions) {
    super(message, options);
    this.name = "LinkError";
    this.kind = kind;
    this.reason = reason;
  }
}

/** Where the broker is, out of `mqtt.url`. */
export function endpoint(url: string): { host: string; port: number; isTls: boolean; name: string } {
  const { protocol, hostname, port } = new URL(url);
  const isTls = protocol === "mqtts:";
  const host = hostname.replace(/^\[(.*)\]$/, "$1");
  const number = Number(port || (isTls ? 8883 : 1883));
  return { host, port: number, isTls, name: `${hostname}:${number}` };
}

/** User name and password for CONNECT. Throws `LinkError` when the password file cannot be read. */
export function credentials(config: MqttConfig): { username?: string; password?: Buffer } {
  if (!config.username) return {};
  if (!config.password_file) return { username: config.username };
  const password = readOwn(config.password_file, "mqtt.password_file").toString().trimEnd();
  return { username: config.username, password: Buffer.from(password) };
}

/** Opens the stream within `limitMs`. Throws `LinkError`; never hands out a broker that was not verified. */
export async function openStream(config: MqttConfig, limitMs: number, signal: AbortSignal): Promise<Socket> {
  const { host, port, isTls, name } = endpoint(config.url);
  signal.throwIfAborted();
  let socket: Socket | undefined;
  try {
    // Throws at once for files that are no certificate or no pair: a renewal that is half done, and over at a later try.
    socket = isTls ? connectTls(tlsOptions(config, host, port)) : connectTcp({ host, port });
    await opened(socket, isTls ? "secureConnect" : "connect", limitMs, signal);
    if (isTls) verify(socket as TLSSocket, host);
  } catch (cause) {
    socket?.on("error", () => undefined);
    socket?.destroy();
    throw failure(name, socket || !isTls ? cause : unusable(config, cause));
  }
  socket.setNoDelay(true);
  return socket;
}

function tlsOptions(config: MqttConfig, host: string, port: number): ConnectionOptions {
  return {
    host,
    port,
    ...(isIP(host) ? {} : { servername: host }),
    ...(config.ca ? { ca: readOwn(config.ca, "mqtt.ca") } : {}),
    ...(config.cert ? { cert: readOwn(config.cert, "mqtt.cert") } : {}),
    ...(config.key ? { key: readOwn(config.key, "mqtt.key") } : {}),
    minVersion: "TLSv1.2",
    // Said explicitly: NODE_TLS_REJECT_UNAUTHORIZED=0 in the environment only changes the default.
    rejectUnauthorized: true,
  };
}

/** Names the files, as OpenSSL does not. */
function unusable({ ca, cert, key }: MqttConfig, cause: unknown): unknown {
  if (cause instanceof LinkError) return cause;
  const files = Object.entries({ ca, cert, key }).flatMap(([name, file]) =>
    file ? `mqtt.${name} ${file}` : [],
  );
  return new LinkError("tls", `cannot use ${files.join(", ")}: ${messageOf(cause)}`, undefined, { cause });
}

function opened(socket: Socket, event: string, limitMs: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = () => settle(signal.reason);
    const timer = setTimeout(() => settle(new Error(`no connection within ${limitMs / 1000} s`)), limitMs);
    const close = () => settle(new Error("closed while connecting"));
    const done = () => settle();
    function settle(error?: unknown) {
      clearTimeout(timer);
      signal.removeEventListener("abort", abort);
      socket.off(event, done).off("error", settle).off("close", close);
      if (error === undefined) resolve();
      else reject(error);
    }
    signal.addEventListener("abort", abort);
    socket.on(event, done).on("error", settle).on("close", close);
  });
}

function verify(socket: TLSSocket, host: string): void {
  if (!socket.authorized) {
    throw new LinkError("tls", `the broker's certificate is not valid: ${socket.authorizationError}`);
  }
  const mismatch = checkServerIdentity(host, socket.getPeerCertificate());
  if (mismatch) throw new LinkError("tls", mismatch.message);
}

/** Puts the broker's name in front, and tells certificates from cables. */
function failure(name: string, cause: unknown): LinkError {
  const error = cause instanceof Error ? cause : new Error(String(cause));
  const isTls = (error instanceof LinkError && error.kind === "tls") || isTlsError(error);
  const said = error.message || codeOf(error);
  return new LinkError(isTls ? "tls" : "unreachable", `${name}: ${said}`, undefined, { cause });
}

/** Whether an error of a stream is about certificates or the handshake: alerts can come after it, too (TLS 1.3). */
export function isTlsError(error: Error): boolean {
  return /CERT|SIGNATURE|SSL|TLS|ALTNAME|ISSUER/.test(codeOf(error));
}

function codeOf(error: Error): string {
  return "code" in error ? String(error.code) : "";
}

function readOwn(file: string, key: string): Buffer {
  try {
    return readFileSync(file);
  } catch (cause) {
    throw new LinkError("unreachable", `${key}: ${messageOf(cause)}`, undefined, { cause });
  }
}

function messageOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}
