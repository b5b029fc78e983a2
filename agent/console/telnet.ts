/**
 * Telnet as a serial port server speaks it: what belongs to the line and what is said about it, told apart, in both directions.
 *
 * Facts: RFC 854 (commands, the NVT's CR NUL, which holds where a side declines BINARY), RFC 855 (options), RFC 856 (BINARY), RFC 857 (ECHO), RFC 858 (SGA), RFC 1143
 * (never answer what is so already, so that two servers cannot argue for ever).
 */

const SE = 240;
const BRK = 243;
const SB = 250;
const WILL = 251;
const WONT = 252;
const DO = 253;
const DONT = 254;
const IAC = 255;
const NUL = 0;
const LF = 10;
const CR = 13;

const BINARY = 0;
const ECHO = 1;
const SUPPRESS_GO_AHEAD = 3;
/** RFC 2217. */
export const COM_PORT = 44;

/** What this side does, and what it wants the other to do; everything else is declined. */
const OURS: ReadonlySet<number> = new Set([BINARY, ECHO, SUPPRESS_GO_AHEAD, COM_PORT]);
const THEIRS: ReadonlySet<number> = new Set([BINARY, SUPPRESS_GO_AHEAD, COM_PORT]);

/** Longest subnegotiation, bytes: an RFC 2217 client's signature is the longest that means anything. A longer one is dropped. */
const SUB_MAX = 256;

/** What was heard; called in the order in which it came. */
export interface TelnetEvents {
  /** For the line. The array may be a part of the one that was received. */
  bytes(bytes: Uint8Array): void;
  /** What the protocol itself has to answer. */
  send(bytes: Uint8Array): void;
  /** A subnegotiation, unescaped; its option does not belong to the body. */
  sub(option: number, body: Uint8Array): void;
  /** IAC BRK, as telnet's `send brk` and conserver's `l0` say it. */
  breakAsked(): void;
}

/** Bytes of the line as telnet carries them: IAC is doubled. The same array where there is none. */
export function escaped(bytes: Uint8Array): Uint8Array {
  let count = 0;
  for (let at = bytes.indexOf(IAC); at >= 0; at = bytes.indexOf(IAC, at + 1)) count += 1;
  if (count === 0) return bytes;
  const out = new Uint8Array(bytes.length + count);
  let to = 0;
  let from = 0;
  for (let at = bytes.indexOf(IAC); at >= 0; at = bytes.indexOf(IAC, from)) {
    out.set(bytes.subarray(from, at + 1), to);
    to += at + 1 - from;
    out[to++] = IAC;
    from = at + 1;
  }
  out.set(bytes.subarray(from), to);
  return out;
}

/** Bytes for an NVT, whose CR alone is CR NUL. At the end of a chunk CR counts as alone: CR NUL, LF is CR, LF too. */
function padded(bytes: Uint8Array): Uint8Array {
  if (!bytes.includes(CR)) return bytes;
  const out: number[] = [];
  for (const [at, byte] of bytes.entries()) {
    out.push(byte);
    if (byte === CR && bytes[at + 1] !== LF) out.push(NUL);
  }
  return Uint8Array.from(out);
}

/** A subnegotiation as it goes over the wire. */
export function subnegotiation(option: number, body: Uint8Array): Uint8Array {
  return Uint8Array.of(IAC, SB, option, ...escaped(body), IAC, SE);
}

type Mode = "data" | "command" | "option" | "sub" | "sub-command";

/** One side of one connection: a server's, which offers at once what a serial port needs. */
export class Telnet {
  readonly #events: TelnetEvents;
  /** Options that are on, or that we asked for; ours and theirs. */
  readonly #ours = new Map<number, "asked" | "on">();
  readonly #theirs = new Map<number, "asked" | "on">();
  #mode: Mode = "data";
  /** Which of WILL, WONT, DO, DONT waits for its option. */
  #verb = 0;
  #isAfterCr = false;
  #sub: number[] = [];
  /** Bytes for the line out of the chunk at hand. */
  #plain = new Uint8Array();
  #length = 0;

  constructor(events: TelnetEvents) {
    this.#events = events;
  }

  /** Offers BINARY both ways, echo and COM-PORT-OPTION; whether the other side agrees is heard later. */
  open(): void {
    const offers = [BINARY, SUPPRESS_GO_AHEAD, ECHO];
    for (const option of offers) this.#ours.set(option, "asked");
    for (const option of THEIRS) this.#theirs.set(option, "asked");
    this.#events.send(
      Uint8Array.from([
        ...offers.flatMap((option) => [IAC, WILL, option]),
        ...[...THEIRS].flatMap((option) => [IAC, DO, option]),
      ]),
    );
  }

  /** The other side sends bytes as they are; until then it is an NVT, whose CR alone is CR NUL. */
  get #isBinary(): boolean {
    return this.#theirs.get(BINARY) === "on";
  }

  /** Bytes of the line as they go to the other side. */
  carried(bytes: Uint8Array): Uint8Array {
    const data = escaped(bytes);
    const ours = this.#ours.get(BINARY);
    // Asked and not answered yet is most likely a program that takes bytes for bytes; conserver declines its own direction only.
    const isNvt = ours === undefined || (ours === "asked" && !this.#theirs.has(BINARY));
    return isNvt ? padded(data) : data;
  }

  receive(chunk: Uint8Array): void {
    if (this.#mode === "data" && !chunk.includes(IAC) && this.#isBinary) {
      if (chunk.length > 0) this.#events.bytes(chunk);
      return;
    }
    this.#plain = new Uint8Array(chunk.length);
    for (const byte of chunk) this.#mode = this.#steps[this.#mode](byte);
    this.#flush();
  }

  /** What a byte means where we are, and where we are then. */
  readonly #steps: Record<Mode, (byte: number) => Mode> = {
    data: (byte) => {
      if (byte === IAC) return "command";
      this.#take(byte);
      return "data";
    },
    command: (byte) => {
      if (byte === IAC) {
        this.#take(IAC);
        return "data";
      }
      return this.#command(byte);
    },
    option: (option) => {
      this.#flush();
      this.#negotiate(option);
      return "data";
    },
    sub: (byte) => {
      if (byte === IAC) return "sub-command";
      this.#collect(byte);
      return "sub";
    },
    "sub-command": (byte) => {
      if (byte === IAC) {
        this.#collect(IAC);
        return "sub";
      }
      if (byte === SE) return this.#subEnds();
      // Another command inside: what was begun is broken off.
      return this.#command(byte);
    },
  };

  #command(byte: number): Mode {
    if (byte === SB) {
      this.#sub = [];
      return "sub";
    }
    if (byte >= WILL && byte <= DONT) {
      this.#verb = byte;
      return "option";
    }
    if (byte === BRK) {
      this.#flush();
      this.#events.breakAsked();
    }
    // Of the others none means anything to a serial line.
    return "data";
  }

  #subEnds(): Mode {
    const [option, ...body] = this.#sub;
    if (option !== undefined && this.#sub.length <= SUB_MAX) {
      this.#flush();
      this.#events.sub(option, Uint8Array.from(body));
    }
    return "data";
  }

  #collect(byte: number): void {
    if (this.#sub.length <= SUB_MAX) this.#sub.push(byte);
  }

  #take(byte: number): void {
    const isPadding = byte === NUL && this.#isAfterCr && !this.#isBinary;
    this.#isAfterCr = byte === CR;
    if (!isPadding) this.#plain[this.#length++] = byte;
  }

  #flush(): void {
    if (this.#length === 0) return;
    const bytes = this.#plain.subarray(0, this.#length);
    this.#plain = this.#plain.subarray(this.#length);
    this.#length = 0;
    this.#events.bytes(bytes);
  }

  #negotiate(option: number): void {
    const isTheirs = this.#verb === WILL || this.#verb === WONT;
    const isWish = this.#verb === WILL || this.#verb === DO;
    const states = isTheirs ? this.#theirs : this.#ours;
    const [yes, no] = isTheirs ? [DO, DONT] : [WILL, WONT];
    const before = states.get(option);
    if (isWish && !(isTheirs ? THEIRS : OURS).has(option)) {
      this.#events.send(Uint8Array.of(IAC, no, option));
    } else if (isWish) {
      states.set(option, "on");
      if (before === undefined) this.#events.send(Uint8Array.of(IAC, yes, option));
    } else {
      states.delete(option);
      if (before === "on") this.#events.send(Uint8Array.of(IAC, no, option));
    }
  }
}
