/**
 * RFC 2217, the server's side: the settings of a serial line asked for and set over telnet, as codes and values.
 *
 * Invariants
 * - Every request is answered, and with what is in force then: also a value the line cannot have, and one from somebody who only reads.
 * - What is in force already is not set again.
 */
import type { LineSettings, ModemLines } from "../../hal/ports.ts";
import { ModemState } from "./modem.ts";
import { COM_PORT, subnegotiation } from "./telnet.ts";

/** Client codes; the server's answers and notifications are 100 higher (RFC 2217 §2). */
const CODE = {
  signature: 0,
  baud: 1,
  dataBits: 2,
  parity: 3,
  stopBits: 4,
  control: 5,
  lineState: 6,
  modemState: 7,
  suspend: 8,
  resume: 9,
  lineStateMask: 10,
  modemStateMask: 11,
  purge: 12,
} as const;
const SERVER = 100;

/** NOTIFY-LINESTATE: bytes were lost. */
const OVERRUN = 0x02;

/** In the order of the RFC's values, from 1. */
const PARITIES = ["none", "odd", "even"] as const;
const FLOWS = ["none", "xonxoff", "rtscts"] as const;
/** SET-CONTROL, the value that asks for each; those that set it follow. */
const CONTROL = { flow: 0, break: 4, dtr: 7, rts: 10, inbound: 13 };
/** Flow control of what comes in alone; 18 is that by DTR. */
const INBOUND: readonly number[] = [13, 14, 15, 16, 18];

/** The bauds that a request may name; what the adapter makes of it is its own business. */
const BAUD_MIN = 50;
const BAUD_MAX = 4_000_000;

/** The line, as its client may touch it. What is asked resolves when it was done or refused; it never rejects. */
export interface ComPortLine {
  settings(): Readonly<LineSettings>;
  /** DTR and RTS as they were last set. */
  lines(): Readonly<{ dtr: boolean; rts: boolean }>;
  isUp(): boolean;
  /** As `Console.modemLines`. */
  modemLines(): Promise<ModemLines | undefined> | undefined;
  change(settings: Partial<LineSettings>): Promise<unknown>;
  setLines(lines: { dtr?: boolean; rts?: boolean }): Promise<void>;
  /** False where it was refused. */
  sendBreak(): Promise<boolean>;
  /** The client wants no bytes for now, or wants them again. */
  suspend(isSuspended: boolean): void;
  send(bytes: Uint8Array): void;
}

/** One client's view of one serial line. */
export class ComPort {
  readonly #line: ComPortLine;
  readonly #signature: string;
  /** The client speaks RFC 2217; a plain telnet is told nothing that it would not understand. */
  #isSpoken = false;
  // As RFC 2217 §3 wants it at the start
  #lineStateMask = 0;
  readonly #modem: ModemState;

  constructor(line: ComPortLine, signature: string) {
    this.#line = line;
    this.#signature = signature;
    this.#modem = new ModemState({
      isUp: () => line.isUp(),
      modemLines: () => line.modemLines(),
      tell: (state) => this.#answer(CODE.modemState, [state]),
    });
  }

  /** Obeys and answers one request: the body of a COM-PORT-OPTION subnegotiation. Resolves when it was answered. */
  async obey(body: Uint8Array): Promise<void> {
    const [code, ...value] = body;
    if (code === undefined) return;
    this.#isSpoken = true;
    this.#modem.begin();
    await this.#requests[code]?.(value);
  }

  /** Whether a request waits for the line, or can be answered past all that waits. */
  static isPatient(body: Uint8Array): boolean {
    const code = body[0] ?? CODE.signature;
    return code >= CODE.baud && code <= CODE.control;
  }

  /** Tells that the line came or went. */
  tellState(): void {
    this.#modem.lineChanged();
  }

  /** The client has left. */
  end(): void {
    this.#modem.end();
  }

  /** Tells that bytes were left out, which must not be said among the bytes. */
  tellSkipped(): void {
    const state = OVERRUN & this.#lineStateMask;
    if (this.#isSpoken && state !== 0) this.#answer(CODE.lineState, [state]);
  }

  readonly #requests: Record<number, (value: number[]) => void | Promise<void>> = {
    [CODE.signature]: (value) => {
      // With a value it is the client's own, which nobody wants to know.
      if (value.length === 0) this.#answer(CODE.signature, Buffer.from(this.#signature));
    },
    [CODE.baud]: async (value) => {
      const baud = value.length === 4 ? Buffer.from(value).readUInt32BE() : 0;
      if (baud >= BAUD_MIN && baud <= BAUD_MAX) await this.#change({ baud });
      const answer = Buffer.alloc(4);
      answer.writeUInt32BE(this.#line.settings().baud);
      this.#answer(CODE.baud, answer);
    },
    [CODE.dataBits]: async ([value = 0]) => {
      if (isDataBits(value)) await this.#change({ data_bits: value });
      this.#answer(CODE.dataBits, [this.#line.settings().data_bits]);
    },
    [CODE.parity]: async ([value = 0]) => {
      const parity = PARITIES[value - 1];
      if (parity) await this.#change({ parity });
      this.#answer(CODE.parity, [PARITIES.indexOf(this.#line.settings().parity) + 1]);
    },
    [CODE.stopBits]: async ([value = 0]) => {
      if (value === 1 || value === 2) await this.#change({ stop_bits: value });
      this.#answer(CODE.stopBits, [this.#line.settings().stop_bits]);
    },
    [CODE.control]: async ([value = 0]) => this.#answer(CODE.control, [await this.#control(value)]),
    [CODE.modemState]: () => this.#modem.ask(),
    [CODE.suspend]: () => this.#line.suspend(true),
    [CODE.resume]: () => this.#line.suspend(false),
    [CODE.lineStateMask]: ([mask = 0]) => {
      this.#lineStateMask = mask;
      this.#answer(CODE.lineStateMask, [mask]);
    },
    [CODE.modemStateMask]: ([mask = 0]) => {
      this.#modem.mask = mask;
      this.#answer(CODE.modemStateMask, [mask]);
    },
    // Nothing is kept for one client that could be thrown away for it alone.
    [CODE.purge]: ([which = 0]) => this.#answer(CODE.purge, [which]),
  };

  /** Does what SET-CONTROL says and returns what is then in force. */
  async #control(value: number): Promise<number> {
    // One flow control for both directions is all that a line has.
    if (INBOUND.includes(value)) return CONTROL.inbound + 1 + FLOWS.indexOf(this.#line.settings().flow);
    // The line's break has a length of its own: nobody who leaves between on and off can hold it.
    if (value === CONTROL.break + 1 && (await this.#line.sendBreak())) return value;
    if (value >= CONTROL.break && value < CONTROL.dtr) return CONTROL.break + 2;
    if (value >= CONTROL.dtr && value < CONTROL.rts) return this.#signal("dtr", CONTROL.dtr, value);
    if (value >= CONTROL.rts && value < CONTROL.inbound) return this.#signal("rts", CONTROL.rts, value);
    const flow = FLOWS[value - 1];
    if (flow) await this.#change({ flow });
    return CONTROL.flow + 1 + FLOWS.indexOf(this.#line.settings().flow);
  }

  /** `first` asks, the next is on, the one after it off. */
  async #signal(name: "dtr" | "rts", first: number, value: number): Promise<number> {
    const isOn = value === first + 1;
    if (value !== first && this.#line.lines()[name] !== isOn) await this.#line.setLines({ [name]: isOn });
    return first + (this.#line.lines()[name] ? 1 : 2);
  }

  async #change(settings: Partial<LineSettings>): Promise<void> {
    const now = this.#line.settings();
    const isSo = Object.entries(settings).every(([key, value]) => now[key as keyof LineSettings] === value);
    if (!isSo) await this.#line.change(settings);
  }

  #answer(code: number, value: ArrayLike<number>): void {
    this.#line.send(subnegotiation(COM_PORT, Uint8Array.of(code + SERVER, ...Array.from(value))));
  }
}

function isDataBits(value: number): value is LineSettings["data_bits"] {
  return value >= 5 && value <= 8;
}
