/** Somebody at a terminal who runs the program, and a node in the test's hands for them to talk to. */
import { closeSync, constants, openSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import type { CommandResult } from "../agent/commands.ts";
import type { Ask, Channel } from "../agent/console/channel.ts";
import { streamChannel } from "../agent/console/stream.ts";
import type { ConsoleState } from "../agent/messages.ts";
import { ioctl } from "../hal/native/libc.ts";
import { type Executable, FRUIT, until } from "./node.ts";
import { Pty } from "./pty.ts";

const TCSETS = 0x5402;
/** As a shell leaves a terminal: echo, lines, signals, newlines mapped both ways; and a flag that few have, IUTF8. */
const COOKED = [0x4500, 0x5, 0xbf, 0x8a3b];

/** A terminal with the program in it. */
export class Visitor implements AsyncDisposable {
  readonly pty = new Pty("tty");
  readonly before: string;
  readonly exited: Promise<number>;
  readonly #child: Bun.Subprocess;
  #shown: Buffer[] = [];

  constructor(
    args: string[],
    options: { socket: string; env?: Record<string, string>; executable?: Executable },
  ) {
    const { executable = FRUIT } = options;
    this.pty.onBytes = (chunk) => this.#shown.push(chunk);
    const file = openSync(this.pty.device, constants.O_RDWR | constants.O_NOCTTY);
    const cooked = this.pty.termios;
    cooked.set(COOKED);
    ioctl(file, TCSETS, cooked);
    this.before = this.flags;
    this.#child = Bun.spawn([...executable.command, ...args], {
      stdin: file,
      stdout: file,
      stderr: file,
      env: {
        PATH: process.env.PATH ?? "",
        HOME: "/nonexistent",
        USER: "alice",
        TZ: "UTC",
        FRUIT_SOCKET: options.socket,
        ...executable.env,
        ...options.env,
      },
    });
    closeSync(file);
    this.exited = this.#child.exited;
  }

  /** How the terminal is set: all its flags and special characters. */
  get flags(): string {
    return Buffer.from(this.pty.termios.buffer).toString("hex");
  }

  /** What the screen was sent, byte for byte. */
  get bytes(): Buffer {
    const all = Buffer.concat(this.#shown);
    this.#shown = [all];
    return all;
  }

  get text(): string {
    return this.bytes.toString();
  }

  /** Waits until this stands on the screen. */
  async sees(what: string | RegExp): Promise<void> {
    const isThere = () => (typeof what === "string" ? this.text.includes(what) : what.test(this.text));
    await until(`${what} on the screen`, isThere).catch((error) => {
      throw new Error(`${error.message}; it shows ${JSON.stringify(this.text.slice(-2000))}`);
    });
  }

  type(keys: string | Uint8Array): Promise<void> {
    return this.pty.write(keys);
  }

  kill(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#child.exited;
    this.pty[Symbol.dispose]();
  }
}

/** What somebody asked the node for. */
export interface Asked {
  verb: string;
  args: Record<string, unknown>;
  reason?: string;
  as?: string;
}

/** A session on the node's side. */
export class Session {
  readonly channel: Channel;
  readonly socket: Socket;
  readonly asks: Ask[] = [];
  /** What is answered to each request. */
  answers: (ask: Ask) => { refused: string } | { result?: unknown } = () => ({});
  /** While this is pending, nothing more is taken. */
  hold: Promise<void> = Promise.resolve();
  view: ConsoleState;
  #heard: Uint8Array[] = [];

  constructor(socket: Socket, view: ConsoleState) {
    this.socket = socket;
    this.view = view;
    this.channel = streamChannel(socket);
    this.channel.receive(async (message) => {
      await this.hold;
      if (message.kind === "bytes") this.#heard.push(message.bytes);
      if (message.kind !== "ask") return;
      this.asks.push(message.ask);
      await this.channel.send({ kind: "answer", n: message.n, ...this.answers(message.ask) });
    });
  }

  /** What was typed. */
  get heard(): Buffer {
    const all = Buffer.concat(this.#heard);
    this.#heard = [all];
    return all;
  }

  say(said: string | Uint8Array, at?: number): Promise<void> {
    return this.channel.send({
      kind: "bytes",
      bytes: Buffer.from(said),
      ...(at === undefined ? {} : { at }),
    });
  }

  mark(text: string, at = Date.UTC(2026, 10, 23, 7)): Promise<void> {
    return this.channel.send({ kind: "mark", mark: { at, kind: "notice", text } });
  }

  look(change: Partial<ConsoleState> = {}, mayWrite = true): Promise<void> {
    this.view = { ...this.view, ...change };
    return this.channel.send({ kind: "view", view: this.view, mayWrite });
  }
}

/** A node that does what the test says. */
export class ScriptedNode implements Disposable {
  readonly path: string;
  readonly asked: Asked[] = [];
  readonly sessions: Session[] = [];
  /** What is answered to each command; what opens a session says so with `done`. */
  answers: (asked: Asked) => Partial<CommandResult> = () => ({ state: "done", result: { session: "s-1" } });
  /** What a session begins with. */
  begins: (session: Session) => Promise<void> = (session) => session.look();
  /** Whoever asks is left waiting for the end of what they asked for. */
  staysSilent = false;
  readonly #server: Server;

  constructor(path: string) {
    this.path = path;
    this.#server = createServer((socket) => {
      socket.on("error", () => undefined);
      socket.once("data", (chunk) => this.#serve(socket, JSON.parse(String(chunk)) as Asked));
    }).listen(path);
  }

  /** The session that somebody has begun. */
  session(n = 0): Promise<Session> {
    return until("a session", () => this.sessions[n]);
  }

  [Symbol.dispose](): void {
    this.#server.close();
    for (const { socket } of this.sessions) socket.destroy();
  }

  #serve(socket: Socket, asked: Asked): void {
    this.asked.push(asked);
    const answer = { id: "c-1", verb: asked.verb, ...this.answers(asked) };
    socket.write(`${JSON.stringify(answer)}\n`);
    if (this.staysSilent) return;
    if (asked.verb !== "console.open" || answer.state !== "done") {
      socket.end();
      return;
    }
    const session = new Session(socket, {
      v: 1,
      name: String(asked.args.console),
      device: "/dev/ttyUSB0",
      baud: 115_200,
      state: "up",
      writer: "local:alice",
      readers: 0,
    });
    this.sessions.push(session);
    void this.begins(session).catch(() => undefined);
  }
}
