/** A small fruitos card as a file: partition table, records, slots. A node that is tested runs from it as from a card. */
import { closeSync, ftruncateSync, openSync, readSync, writeSync } from "node:fs";
import { RECORD_OFFSETS, SECTOR, type SlotName } from "../boot/layout.ts";
import { type BootRecord, decodeRecord, encodeRecord } from "../boot/record.ts";
import { newestOf } from "../boot/records.ts";
import { CARD_BYTES, cardWith, type Payload, payloadOf, SLOT_OFFSETS } from "./crash/card.ts";
import { type Medium, type Start, start } from "./crash/model.ts";

/** A card in a file. */
export class FileCard implements Medium {
  readonly path: string;

  /** Makes the card that the image builder leaves: slot a good, slot b empty, or good too. */
  constructor(path: string, a: Payload = payloadOf(4n, 200_000), b?: Payload) {
    this.path = path;
    const file = openSync(path, "w");
    try {
      ftruncateSync(file, CARD_BYTES);
      for (const { offset, bytes } of cardWith(a, b).written())
        writeSync(file, bytes, 0, bytes.length, offset);
    } finally {
      closeSync(file);
    }
  }

  read(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    const file = openSync(this.path, "r");
    try {
      readSync(file, bytes, 0, length, offset);
    } finally {
      closeSync(file);
    }
    return bytes;
  }

  write(offset: number, bytes: Uint8Array): boolean {
    const file = openSync(this.path, "r+");
    try {
      writeSync(file, bytes, 0, bytes.length, offset);
    } finally {
      closeSync(file);
    }
    return true;
  }

  /** What U-Boot does with it now, by its model. */
  start(): Start {
    return start(this);
  }

  /** The record that counts. */
  get record(): BootRecord {
    const all = RECORD_OFFSETS.map((offset, place) => {
      const bytes = this.read(offset, SECTOR);
      const record = decodeRecord(bytes);
      return { place, offset, bytes, ...(typeof record === "string" ? { why: record } : { record }) };
    });
    const newest = newestOf(all);
    if (!newest) throw new Error(`${this.path} holds no record`);
    return newest.record;
  }

  /** Puts a record into all four places, as no agent would. */
  put(change: (record: BootRecord) => BootRecord): BootRecord {
    const next = change(this.record);
    for (const [place, offset] of RECORD_OFFSETS.entries())
      this.write(offset, encodeRecord({ ...next, sequence: next.sequence + place }));
    return next;
  }

  /** A payload whole in a slot, and the record says so: what an installer leaves. */
  stage(slot: SlotName, payload: Payload): void {
    this.write(SLOT_OFFSETS[slot], payload.bytes);
    this.put((record) => ({
      ...record,
      reason: "install-staged",
      slots: { ...record.slots, [slot]: { ...payload.content, state: "staged", reason: "none" } },
    }));
  }
}
