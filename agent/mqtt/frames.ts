/** Follows the packets in a stream of bytes and says no to one that is too long, before anybody collects it. */
export class PacketLimit {
  readonly #limit: number;
  /** Bytes of the running packet's body that are still to come. */
  #left = 0;
  /** Where we are in a fixed header (MQTT 5 §2.1): -1 before its first byte, then the number of length bytes read. */
  #lengthBytes = -1;
  #length = 0;

  constructor(limit: number) {
    this.#limit = limit;
  }

  /** False as soon as a packet announces more than the limit, or a length that is no length. */
  accepts(chunk: Uint8Array): boolean {
    let at = 0;
    while (at < chunk.length) {
      if (this.#left > 0) {
        const step = Math.min(this.#left, chunk.length - at);
        this.#left -= step;
        at += step;
      } else if (!this.#header(chunk[at++] ?? 0)) {
        return false;
      }
    }
    return true;
  }

  #header(byte: number): boolean {
    this.#lengthBytes += 1;
    if (this.#lengthBytes === 0) return true;
    this.#length += (byte & 0x7f) * 128 ** (this.#lengthBytes - 1);
    if (byte & 0x80) return this.#lengthBytes < 4;
    if (this.#length > this.#limit) return false;
    this.#left = this.#length;
    this.#length = 0;
    this.#lengthBytes = -1;
    return true;
  }
}
