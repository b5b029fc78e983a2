/** One direction of a sealed session: numbered frames that only the other side can have made. The protocol stands in sealed.ts. */
import nacl from "tweetnacl";

const NUMBER_BYTES = 8;
const NONCE_BYTES = 24;

/** What sealing adds to a body, bytes: the number, and Poly1305's tag. */
export const FRAME_OVERHEAD = NUMBER_BYTES + nacl.secretbox.overheadLength;

/** A frame that does not belong where it came; the message says which and why. */
export class FrameError extends Error {}

/** Numbers and seals what goes in one direction. */
export class Sealer {
  readonly #key: Uint8Array;
  #last = 0;

  constructor(key: Uint8Array) {
    this.#key = key;
  }

  seal(body: Uint8Array): Uint8Array {
    this.#last += 1;
    const nonce = nonceOf(this.#last);
    return Buffer.concat([nonce.subarray(-NUMBER_BYTES), nacl.secretbox(body, nonce, this.#key)]);
  }
}

/** Takes exactly what was sealed in one direction, in its order. */
export class Opener {
  readonly #key: Uint8Array;
  #next = 1;

  constructor(key: Uint8Array) {
    this.#key = key;
  }

  /** The body of the next frame. Throws `FrameError` for whatever else it is. */
  open(frame: Uint8Array): Uint8Array {
    if (frame.length < FRAME_OVERHEAD) throw new FrameError(`what has ${frame.length} bytes is no frame`);
    const view = new DataView(frame.buffer, frame.byteOffset, NUMBER_BYTES);
    const number = Number(view.getBigUint64(0));
    const body = nacl.secretbox.open(
      new Uint8Array(frame.subarray(NUMBER_BYTES)),
      nonceOf(number),
      this.#key,
    );
    const next = this.#next;
    if (!body)
      throw new FrameError(
        number === next
          ? `frame ${number} was altered`
          : `what came as frame ${number} is no frame of the session`,
      );
    if (number < next) throw new FrameError(`frame ${number} came again`);
    if (number === next + 1) throw new FrameError(`frame ${next} is missing`);
    if (number > next) throw new FrameError(`frames ${next} to ${number - 1} are missing`);
    this.#next += 1;
    return body;
  }
}

/** Each direction has a key of its own, so that the number alone makes a nonce that is never used twice. */
function nonceOf(number: number): Uint8Array {
  const nonce = new Uint8Array(NONCE_BYTES);
  new DataView(nonce.buffer).setBigUint64(NONCE_BYTES - NUMBER_BYTES, BigInt(number));
  return nonce;
}
