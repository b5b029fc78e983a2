/**
 * The simulated board's controller: one request frame in, one reply frame out, for every published op.
 * The RGB debug LED is taken and lights nothing.
 */
import {
  crc8,
  errorFrame,
  OPS,
  type OpName,
  opName,
  replyFrame,
  type SETTINGS,
  toBytes,
} from "../pistack.ts";
import type { OutletId } from "../ports.ts";
import { codes } from "./board.ts";
import { measure, type PiCounts, view } from "./meter.ts";
import { FIRMWARE, HARDWARE, type SimStack } from "./stack.ts";

/** Error codes this board answers with (`error_codes.py`). */
export const ERRORS = {
  tooShort: 0x10,
  crc: 0x11,
  unknown: 0x12,
  length: 0x13,
  pi: 0x14,
  notImplemented: 0x15,
};

/** What a board answers to a frame that is addressed to it; bad frames are errors it counts. */
export function answer(stack: SimStack, board: number, frame: Uint8Array): Uint8Array {
  const fail = (code: number): Uint8Array => {
    stack.error(board, code);
    return errorFrame(code);
  };
  if (frame.length < 4) return fail(ERRORS.tooShort);
  if (crc8(frame.subarray(0, -1)) !== frame[frame.length - 1]) return fail(ERRORS.crc);
  const name = opName(frame[0] ?? 0);
  if (!name) return fail(ERRORS.unknown);
  const args = frame.subarray(3, -1);
  if (frame[2] !== frame.length - 1 || args.length !== OPS[name].args) return fail(ERRORS.length);
  const pi = HAS_PI(name) ? (args[0] ?? 0) : 0;
  if (pi > 1) return fail(ERRORS.pi);
  if (stack.faults.board("error-reply", board)) return fail(ERRORS.notImplemented);
  const asked: Asked = { stack, board, pi, outlet: `${board}.${pi}`, args };
  if (isAct(name)) {
    ACTS[name](asked);
    return replyFrame();
  }
  return replyFrame(READS[name](asked));
}

/** Does to a Pi what an op without arguments of its own does: the I²C board's commands. */
export function act(stack: SimStack, name: Act, board: number, pi: number): void {
  ACTS[name]({ stack, board, pi, outlet: `${board}.${pi}`, args: Uint8Array.of(pi) });
}

const HAS_PI = (name: OpName): boolean => OPS[name].args > 0 && name !== "rgbLed" && name !== "setPrefix";

/** One request, taken apart. */
interface Asked {
  stack: SimStack;
  board: number;
  pi: number;
  outlet: OutletId;
  args: Uint8Array;
}

/** Ops whose reply has no data. */
type Act = { [Name in OpName]: (typeof OPS)[Name]["reply"] extends 0 ? Name : never }[OpName];
type Read = Exclude<OpName, Act>;

const isAct = (name: OpName): name is Act => OPS[name].reply === 0;

const word = (value: number): Uint8Array => toBytes(value, 2);
const long = (value: number): Uint8Array => toBytes(value, 4);
const piCounts = ({ stack, board, pi }: Asked): PiCounts => measure(stack, board).pis[pi === 0 ? 0 : 1];
const setting =
  (name: keyof typeof SETTINGS) =>
  ({ stack, outlet }: Asked) => [stack.pi(outlet).live[name]];
const changing =
  (name: keyof typeof SETTINGS) =>
  ({ stack, board, outlet, args }: Asked) => {
    stack.set(outlet, name, args[1] ?? 0);
    stack.store(board);
  };

const READS: Record<Read, (asked: Asked) => ArrayLike<number>> = {
  softwareVersion: () => [FIRMWARE],
  hardwareVersion: () => [HARDWARE],
  prefix: ({ stack, board }) => [stack.board(board).prefix],
  fullId: ({ stack, board }) => [stack.address(board)],
  inputVolts: ({ stack, board }) => word(measure(stack, board).volts),
  inputAmperes: ({ stack, board }) => word(measure(stack, board).amperes),
  railVolts: ({ stack, board }) => word(measure(stack, board).rail),
  piVolts: (asked) => word(piCounts(asked).volts),
  piAmperes: (asked) => word(piCounts(asked).amperes),
  heartbeat: ({ stack, outlet }) => [Number(view(stack, outlet).heartbeat)],
  powered: ({ stack, outlet }) => [Number(stack.pi(outlet).supply)],
  heartbeatTime: setting("heartbeatTime"),
  heartbeatDelay: setting("heartbeatDelay"),
  offDelay: setting("offDelay"),
  signalOffDelay: setting("signalOffDelay"),
  onAtStart: setting("onAtStart"),
  signalWidth: setting("signalWidth"),
  readErrors: ({ stack, board }) => {
    const kept = codes(stack.board(board));
    return kept.length > 0 ? kept : [0];
  },
  errorCount: ({ stack, board }) => word(stack.board(board).errorCount),
  errorPointer: ({ stack, board }) => [stack.board(board).errorPointer],
  inputWatts: ({ stack, board }) => long(measure(stack, board).watts),
  railWatts: ({ stack, board }) => {
    const [first, second] = measure(stack, board).pis;
    return long(first.watts + second.watts);
  },
  piWatts: (asked) => long(piCounts(asked).watts),
  bootCount: ({ stack, board }) => word(stack.board(board).bootCount),
};

const ACTS: Record<Act, (asked: Asked) => void> = {
  ledsOn: ({ stack, board }) => stack.setLeds(board, true),
  ledsOff: ({ stack, board }) => stack.setLeds(board, false),
  rgbLed: () => {},
  setPrefix: ({ stack, board, args }) => {
    stack.setPrefix(board, args[0] ?? 0);
    stack.store(board);
  },
  on: ({ stack, outlet }) => stack.on(outlet),
  off: ({ stack, outlet }) => stack.off(outlet),
  forceOff: ({ stack, outlet }) => stack.cut(outlet),
  setHeartbeatTime: changing("heartbeatTime"),
  setHeartbeatDelay: changing("heartbeatDelay"),
  setOffDelay: changing("offDelay"),
  setSignalOffDelay: changing("signalOffDelay"),
  clearErrors: ({ stack, board }) => stack.clear(board, "buffer"),
  clearCounts: ({ stack, board }) => stack.clear(board, "counts"),
  signal: ({ stack, outlet }) => stack.signal(outlet),
  setOnAtStart: changing("onAtStart"),
  setSignalWidth: changing("signalWidth"),
};
