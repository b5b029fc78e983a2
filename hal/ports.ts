/**
 * What a node can touch, as interfaces, and the one error they throw.
 *
 * Invariants
 * - Only `hal/linux.ts` and `hal/sim/` open anything; everybody else is handed what is declared here.
 * - A driver receives a link and never opens one.
 * - `unknown` is an answer; it is never shown as `off`.
 */

/** One switchable supply, `<board>.<pi>`: `3.1` is the second Pi of board 3. */
export type OutletId = `${number}.${number}`;

/** Electrical truth as the board tells it. */
export type Supply = "on" | "off" | "unknown";

/** Why the hardware could not do what was asked; callers choose between retry, `unknown` and a refusal by it. */
export type HalErrorCode = "absent" | "busy" | "timeout" | "bad-reply" | "refused" | "io";

/** Thrown by everything in `hal/`; the message names the bus, the board and the value. */
export class HalError extends Error {
  readonly code: HalErrorCode;
  constructor(code: HalErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "HalError";
    this.code = code;
  }
}

/** A half-duplex serial bus with one request in flight (RS-485). */
export interface SerialLink {
  /**
   * Drops what was unread, writes, then collects until `isWhole(collected)` or `limitMs` has passed.
   * Returns all that arrived (perhaps nothing, perhaps garbage in front): the protocol judges it.
   */
  exchange(
    write: Uint8Array,
    isWhole: (collected: Uint8Array) => boolean,
    limitMs: number,
  ): Promise<Uint8Array>;
  close(): Promise<void>;
}

/** How a serial line talks. Baud rates are any the adapter can make, not only the named ones. */
export interface LineSettings {
  baud: number;
  data_bits: 5 | 6 | 7 | 8;
  parity: "none" | "even" | "odd";
  stop_bits: 1 | 2;
  flow: "none" | "rtscts" | "xonxoff";
}

/** What an open serial line tells, as it happens. Neither may throw. */
export interface LineEvents {
  /** Bytes as they came, and only then; the array is the receiver's to keep. */
  bytes(chunk: Uint8Array): void;
  /** Unplugged, hung up or failed: nothing comes any more. Said once, never after `close`. */
  gone(error: HalError): void;
}

/** The control lines of a serial line that the far side drives; true is asserted. */
export interface ModemLines {
  cts: boolean;
  dsr: boolean;
  dcd: boolean;
  ri: boolean;
}

/** A serial line as a stream in both directions: a console. What is written arrives in the order of the calls. */
export interface SerialLine {
  /** Resolves when the kernel has taken all of it. Rejects: `io` when the line is gone, `timeout` when it took nothing for 10 s (flow control). */
  write(bytes: Uint8Array): Promise<void>;
  /** Holds the line in its break state. */
  sendBreak(ms: number): Promise<void>;
  /** Sets the lines that are named and leaves the other. */
  setLines(lines: { dtr?: boolean; rts?: boolean }): Promise<void>;
  change(settings: Partial<LineSettings>): Promise<void>;
  /** How the far side holds its control lines now; rejects `refused` where the driver has none (a pseudo-terminal). Absent where there cannot be any. */
  modemLines?(): Promise<ModemLines>;
  close(): Promise<void>;
}

/** What the kernel says of one GPIO line, by its number on the SoC (BCM). */
export interface GpioFacts {
  gpio: number;
  /** Name in the device tree: `GPIO17`, `ID_SDA`. */
  name?: string;
  /** Who holds it: a driver of the kernel, or a program. */
  consumer?: string;
  direction: "in" | "out" | "unknown";
}

/** How a GPIO line is opened. `as-is` changes nothing: the way to a relay that must not click when an agent starts. */
export type GpioUse =
  | { direction: "as-is" }
  | { direction: "in"; edge?: "rising" | "falling" | "both"; bias?: "pull-up" | "pull-down" | "none" }
  | { direction: "out"; initial: 0 | 1 };

/** An open GPIO line. Levels are those of the pin, whatever `active_low` says elsewhere. */
export interface GpioLine {
  readonly gpio: number;
  read(): Promise<0 | 1>;
  /** Whether it is driven, asked of the kernel now. */
  direction(): Promise<"in" | "out">;
  /** Drives the line; one that is an input becomes an output at once with this level. */
  write(value: 0 | 1): Promise<void>;
  /** Calls back at each edge it was opened for, until closed; edges that the kernel merged are told once. */
  onEdge(happened: (value: 0 | 1) => void): void;
  /** Gives the line back. One that was opened `in` is an input again; any other keeps its level where the kernel lets it. */
  close(): Promise<void>;
}

/** A heartbeat on a GPIO line, from a thread of its own. */
export interface Heart {
  /** The event loop lives; without this for `deadMs` the heart stops, and starts again with the next. Throws `io` once the line has failed. */
  alive(): void;
  /** The line is low and given back. */
  close(): Promise<void>;
}

/** An I²C bus: write, then read `read` bytes (0 to 32) without letting go of the bus. */
export interface I2cLink {
  exchange(device: number, write: Uint8Array, read: number): Promise<Uint8Array>;
  close(): Promise<void>;
}

/** What a board says of one outlet, all of it read from the hardware now. A quantity it cannot measure is absent. */
export interface OutletReading {
  supply: Supply;
  /** The board sees the Pi's heartbeat; absent where the board cannot know. */
  heartbeat?: boolean;
  volts?: number;
  amperes?: number;
  watts?: number;
}

/** What a board says of itself. */
export interface BoardReading {
  board: number;
  hardware?: number;
  firmware?: number;
  inputVolts?: number;
  inputAmperes?: number;
  inputWatts?: number;
  railVolts?: number;
  /** Boots of the board's own controller: a change means its supply was lost. */
  bootCount?: number;
  errorCount?: number;
}

/** What a driver can do beyond reading, `on` and `off`; a board without a signal line must not offer `shutdown`. */
export type Ability = "signal" | "identify" | "start-policy" | "boot-count" | "heartbeat" | "measure";

/** How a bus fared since the agent started. */
export interface BusCounters {
  exchanges: number;
  retries: number;
  /** By kind: frames that failed their check, silence, everything else. */
  crcErrors: number;
  timeouts: number;
  otherErrors: number;
}

/**
 * One bus of boards that switch power. Nothing here is cached and nothing retries beyond the wire (3 tries);
 * confirming, pacing and refusing are `agent/power/`'s. Every method throws `HalError`.
 */
export interface PowerController {
  readonly driver: string;
  /** Every outlet this bus was configured with, in rack order. */
  readonly outlets: readonly OutletId[];
  readonly abilities: ReadonlySet<Ability>;
  readonly counters: Readonly<BusCounters>;
  read(outlet: OutletId): Promise<OutletReading>;
  readBoard(board: number): Promise<BoardReading>;
  /** Applies or cuts the supply at once. Resolves when the board took the command: not yet a fact about the supply. */
  switch(outlet: OutletId, to: "on" | "off"): Promise<void>;
  /** Asks the Pi to shut down; the supply stays. Needs `signal`. */
  signal(outlet: OutletId): Promise<void>;
  /** Makes the outlet's board visible (LEDs). Needs `identify`. */
  identify(outlet: OutletId, on: boolean): Promise<void>;
  /** What the board does with this outlet when its own supply returns. Needs `start-policy`. */
  startPolicy(outlet: OutletId): Promise<"on" | "off">;
  /** Stores it in the board (its EEPROM: only on an explicit request of a person). */
  setStartPolicy(outlet: OutletId, policy: "on" | "off"): Promise<void>;
  /** Addresses at which a board can be on this bus, configured or not. */
  readonly addresses: readonly number[];
  /** Who is at one of them; undefined where nobody answers. */
  probe(address: number): Promise<BoardReading | undefined>;
  close(): Promise<void>;
}

/** One power bus as configured. */
export interface PowerBus {
  driver: "pistack-rs485" | "pistack-i2c" | "clusterctrl" | "clusterhat" | "gpio" | "sim";
  /** What `Hal.openSerial` or `Hal.openI2c` is asked for: `/dev/ttyUSB0`, `/dev/i2c-1`; ignored by `gpio` and `sim`. */
  device: string;
  /** `pistack-rs485`: what RTS is while we send, where the adapter does not turn the bus around by itself. */
  rts?: "high" | "low" | undefined;
  /** `gpio`: the BCM line of each relay; the n-th is outlet `<board>.<n>`. */
  lines?: readonly number[] | undefined;
  /** `gpio`: a low level switches on. */
  active_low?: boolean | undefined;
  /** Board numbers on this bus, in rack order. */
  boards: readonly number[];
  /** Pi Stack hardware version, 2 or 3: the outlets' voltage dividers differ. */
  hardware: 2 | 3;
  /** First I²C address of the boards; board n answers at base + n. */
  i2c_base: number;
  /** Pis per board where models differ (ClusterCTRL, 4 when absent); a Pi Stack always has two, a Cluster HAT four. */
  pis?: number | undefined;
}

/** The partition that a root file system is on. */
export interface MountedRoot {
  /** The whole disk: `/dev/mmcblk0`. */
  disk: string;
  /** Where the partition starts on it, bytes; 0 where the file system has the whole disk. */
  offset: number;
  bytes: number;
}

/** The computer itself: who it is and the kernel's files about it. */
export interface Machine {
  /** Serial number as the firmware prints it, leading zeros and all; undefined off a Pi. */
  readonly serial: string | undefined;
  /** New at every boot. */
  readonly bootId: string;
  /**
   * The content of a kernel file now (`/proc/stat`), into a buffer that the next `read` may overwrite.
   * Undefined where the file does not exist. Files stay open; nothing is started for it.
   */
  read(path: string): Uint8Array | undefined;
  /** Names in a directory, sorted; empty where it does not exist. */
  list(path: string): string[];
  /** Target of a symbolic link, undefined where there is none. */
  link(path: string): string | undefined;
  /** Where the mounted root is, by the kernel's word; undefined where it is on no partition (memory, a network). */
  root(): MountedRoot | undefined;
  /** Space of the file system that holds `path`. */
  space(path: string): { sizeBytes: number; availBytes: number } | undefined;
  /** Whether the clock was set by somebody who knows the time, and by how much it is believed to be off. */
  clock(): { synced: boolean; offsetSeconds?: number };
  /** The firmware's throttle word and where it was read; undefined where the board cannot tell. */
  throttled(): { word: number; source: "mailbox" | "sysfs" } | undefined;
  /**
   * What the firmware keeps for the next start (mailbox 0x00030064; bit 0: tryboot), read back after `set` was put there
   * (0x00038064). Undefined where the board, its firmware or the kernel cannot.
   */
  rebootFlags(set?: number): number | undefined;
  /** When the firmware that started this kernel was built, Unix seconds (mailbox 0x00000001); undefined where nobody can be asked. */
  firmwareBuilt(): number | undefined;
  /** Blinks the machine's own LED so that a person finds it. False where it has none. */
  identify(on: boolean): boolean;
  close(): void;
}

/**
 * A disk or a file that stands for one, as bytes at offsets. Whatever it cannot do whole it throws `io`, with the name, the
 * offset and the kernel's reason. `into`, where given, is memory the answer may be put into, such as that of an answer before;
 * what is returned counts.
 */
export interface BlockDevice {
  /** Path, for messages. */
  readonly name: string;
  readonly bytes: number;
  /** How `readMedium` gets past the kernel's cache, known once it was called: by O_DIRECT, by making the cache forget, or not at all. */
  readonly pastCache?: "direct" | "forgotten" | "never" | undefined;
  /** All of it; may come from the kernel's cache. The array is the caller's. */
  read(offset: number, length: number, into?: Uint8Array): Promise<Uint8Array>;
  /** What is on the medium itself, past the kernel's cache. Whole sectors of 4096 bytes. */
  readMedium(offset: number, length: number, into?: Uint8Array): Promise<Uint8Array>;
  /** Resolves when the kernel has all of it: it lasts only once `flush` has resolved after it. The bytes must not change until then. */
  write(offset: number, bytes: Uint8Array): Promise<void>;
  /** Everything written before is on the medium. */
  flush(): Promise<void>;
  /**
   * Does the work while nobody else does such work on this disk, in this program or another. Waits at most `limitMs` (10 s), then
   * throws `busy`. Work within work waits for itself.
   */
  exclusively?<T>(work: () => Promise<T>, limitMs?: number): Promise<T>;
  close(): Promise<void>;
}

/** All the hardware of one node. */
export interface Hal {
  readonly kind: "linux" | "sim";
  readonly machine: Machine;
  /** A half-duplex bus at 9600 baud 8N1, as the Pi Stack's RS-485. With `rts` the line is driven so while we send. Throws `absent` without the device, `busy`, `io`. */
  openSerial(device: string, options?: { rts?: "high" | "low" | undefined }): Promise<SerialLink>;
  /** A console's line. Throws `absent` without the device, `busy` when another program holds it, `io`. */
  openLine(device: string, settings: LineSettings, events: LineEvents): Promise<SerialLine>;
  /** Throws `absent` without the device, `io`. */
  openI2c(device: string): Promise<I2cLink>;
  /** Every GPIO line of the SoC; empty where the kernel shows none. */
  listGpio(): Promise<GpioFacts[]>;
  /** Throws `absent` for a line nobody has, `busy` for one that is taken (by whom stands in the message), `io`. */
  openGpio(gpio: number, use: GpioUse): Promise<GpioLine>;
  /** Beats on a line: high for `highMs` every `everyMs`, however busy the event loop is. */
  openHeart(gpio: number, times: { everyMs: number; highMs: number; deadMs: number }): Promise<Heart>;
  /**
   * A disk, a partition, or a file that stands for one. With `exclusive` the kernel refuses while it is mounted or another holds
   * it so. Throws `absent`, `busy`, `refused` (permission), `io`.
   */
  openDisk(path: string, how: "read" | "write" | "exclusive"): Promise<BlockDevice>;
  /** The simulated stack itself as a controller, for the driver `sim`; absent on real hardware. */
  openStack?(boards: readonly number[]): Promise<PowerController>;
  close(): Promise<void>;
}
