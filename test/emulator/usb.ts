/**
 * A USB device that lives in the test and is plugged into a machine: the far side of QEMU's `usb-redir`, by the usbredir
 * protocol 0.7 (spice-space.org/usbredir, usbredirproto.h) with no capability beyond its first version. Control transfers only.
 */
import type { Line } from "./line.ts";

/** A control transfer as the machine asks for it (USB 2.0 §9.3). */
export interface ControlRequest {
  isRead: boolean;
  type: number;
  request: number;
  value: number;
  index: number;
  length: number;
  /** What is written. */
  data: Uint8Array;
}

/** What a device is and does. */
export interface UsbDevice {
  vendor: number;
  product: number;
  /** A control transfer of the vendor's own: what is read; undefined stalls. */
  control(request: ControlRequest): Promise<Uint8Array | undefined>;
}

/** Kinds of packets. */
const KIND = {
  hello: 0,
  connect: 1,
  reset: 3,
  interfaces: 4,
  endpoints: 5,
  setConfiguration: 6,
  getConfiguration: 7,
  configuration: 8,
  setAlternative: 9,
  getAlternative: 10,
  alternative: 11,
  control: 100,
} as const;
/** Kind, length, id; then the body. */
const HEAD_BYTES = 12;
const CONTROL_BYTES = 10;
const FULL_SPEED = 1;
const VENDOR_CLASS = 0xff;
const NO_ENDPOINT = 0xff;
const STALLED = 4;
const VENDOR_TYPE = 0x40;
const GET_DESCRIPTOR = 6;
const DESCRIPTOR = { device: 1, configuration: 2, string: 3 };

/** What is answered to a packet: another of the same id, or several of none. */
type Packet = [kind: number, body: Uint8Array];

/** Answers for a device on a line that QEMU's `usb-redir` is connected to. */
export function serveUsb(line: Line, device: UsbDevice): void {
  let pending = Buffer.alloc(0);
  let last: Promise<void> = Promise.resolve();
  const take = async (packet: Buffer): Promise<void> => {
    const answer = ANSWERS.get(packet.readUInt32LE(0));
    if (!answer) throw new Error(`usb: no answer to packet ${packet.readUInt32LE(0)}`);
    for (const [kind, body] of await answer(device, packet.subarray(HEAD_BYTES))) {
      const head = Buffer.alloc(HEAD_BYTES);
      head.writeUInt32LE(kind, 0);
      head.writeUInt32LE(body.length, 4);
      head.writeUInt32LE(packet.readUInt32LE(8), 8);
      line.write(Buffer.concat([head, body]));
    }
  };
  line.read((chunk) => {
    pending = Buffer.concat([pending, chunk]);
    while (pending.length >= HEAD_BYTES) {
      const length = HEAD_BYTES + pending.readUInt32LE(4);
      if (pending.length < length) break;
      const packet = Buffer.from(pending.subarray(0, length));
      pending = pending.subarray(length);
      last = last.then(() => take(packet));
    }
  });
}

type Answer = (device: UsbDevice, body: Buffer) => Packet[] | Promise<Packet[]>;

/** There is one configuration and one setting of it. */
const configured: Answer = () => [[KIND.configuration, Uint8Array.of(0, 1)]];
const alternative: Answer = (_, [number = 0]) => [[KIND.alternative, Uint8Array.of(0, number, 0)]];

const ANSWERS: ReadonlyMap<number, Answer> = new Map<number, Answer>([
  [KIND.hello, (device) => [hello(), ...introduction(device)]],
  [KIND.reset, () => []],
  [KIND.setConfiguration, configured],
  [KIND.getConfiguration, configured],
  [KIND.setAlternative, alternative],
  [KIND.getAlternative, alternative],
  [KIND.control, async (device, body) => [[KIND.control, await control(device, body)]]],
]);

/** A name of 64 bytes and no capabilities. */
const hello = (): Packet => [KIND.hello, Buffer.from("fruit test".padEnd(64 + 4, "\0"))];

/** One interface without endpoints of its own, and the device. */
function introduction({ vendor, product }: UsbDevice): Packet[] {
  const interfaces = Buffer.alloc(4 + 4 * 32);
  interfaces.writeUInt32LE(1, 0);
  interfaces[4 + 32] = VENDOR_CLASS;
  const endpoints = Buffer.alloc(3 * 32);
  endpoints.fill(NO_ENDPOINT, 0, 32);
  // Endpoint 0 in both directions is for control.
  endpoints[0] = endpoints[16] = 0;
  const connect = Buffer.alloc(8);
  connect.writeUInt8(FULL_SPEED, 0);
  connect.writeUInt8(VENDOR_CLASS, 1);
  connect.writeUInt16LE(vendor, 4);
  connect.writeUInt16LE(product, 6);
  return [
    [KIND.interfaces, interfaces],
    [KIND.endpoints, endpoints],
    [KIND.connect, connect],
  ];
}

async function control(device: UsbDevice, body: Buffer): Promise<Uint8Array> {
  const head = Buffer.from(body.subarray(0, CONTROL_BYTES));
  const type = head.readUInt8(2);
  const isRead = (type & 0x80) !== 0;
  const request: ControlRequest = {
    isRead,
    type,
    request: head.readUInt8(1),
    value: head.readUInt16LE(4),
    index: head.readUInt16LE(6),
    length: head.readUInt16LE(8),
    data: body.subarray(CONTROL_BYTES),
  };
  const answer = (type & 0x60) === VENDOR_TYPE ? await device.control(request) : standard(device, request);
  const data = answer?.subarray(0, request.length) ?? new Uint8Array();
  head.writeUInt8(answer ? 0 : STALLED, 3);
  head.writeUInt16LE(isRead ? data.length : request.length, 8);
  return isRead ? Buffer.concat([head, data]) : head;
}

/** What every device answers (USB 2.0 §9.4). */
function standard(device: UsbDevice, { request, value, isRead }: ControlRequest): Uint8Array | undefined {
  if (!isRead) return new Uint8Array();
  if (request !== GET_DESCRIPTOR) return undefined;
  const { vendor, product } = device;
  const word = (number: number) => [number & 0xff, number >> 8];
  if (value >> 8 === DESCRIPTOR.device)
    return Uint8Array.of(
      ...[18, DESCRIPTOR.device, ...word(0x0110), VENDOR_CLASS, 0, 0, 8],
      ...[...word(vendor), ...word(product), ...word(0x0205), 0, 0, 0, 1],
    );
  if (value >> 8 === DESCRIPTOR.configuration)
    return Uint8Array.of(
      ...[9, DESCRIPTOR.configuration, ...word(18), 1, 1, 0, 0x80, 50],
      ...[9, 4, 0, 0, 0, VENDOR_CLASS, 0, 0, 0],
    );
  return undefined;
}
