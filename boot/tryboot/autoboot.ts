/**
 * `autoboot.txt`, the one sector that says which slot the firmware starts from: 512 bytes, made from the record and nothing else,
 * read as the firmware reads it. Proven against a model of the firmware only.
 * Source: raspberrypi/documentation, config_txt/autoboot.adoc (512 bytes; filters `all`, `none`, `tryboot`) and
 * config_txt/what_is_config_txt.adoc (one `property=value` a line, `#` comments, 98 characters a line).
 */
import { otherSlot, SECTOR, type SlotName } from "../layout.ts";
import { slotOfBoot, TRYBOOT_PARTITIONS } from "./layout.ts";

/** Name of the file in the first partition. */
export const AUTOBOOT = "autoboot.txt";

/** What the firmware takes from it for one way of starting. */
export interface Choice {
  /** `boot_partition`; undefined leaves it to the firmware: the first one it can start from. */
  partition: number | undefined;
  /** `tryboot_a_b`: on trial, too, the other partition's ordinary `config.txt` is read. */
  whole: boolean;
}

/** The file for a node that starts from `primary`: always the same 512 bytes. */
export function makeAutoboot(primary: SlotName): Uint8Array {
  const { boot } = TRYBOOT_PARTITIONS;
  const head = `[all]
tryboot_a_b=1
boot_partition=${boot[primary]}
[tryboot]
boot_partition=${boot[otherSlot(primary)]}
# slot ${primary}; made by fruit from the boot record: 512 bytes, written over in place
`;
  const comment = `${"#".repeat(63)}\n`.repeat(SECTOR / 64);
  return new Uint8Array(Buffer.from(head + comment.slice(head.length - SECTOR), "latin1"));
}

/** What the firmware makes of any bytes in that file, for an ordinary start and for one with the tryboot flag. */
export function parseAutoboot(bytes: Uint8Array): { ordinary: Choice; trial: Choice } {
  const text = Buffer.from(bytes.subarray(0, SECTOR)).toString("latin1");
  const lines = text.split(/[\r\n\0]/).map((line) => line.slice(0, LINE_MOST).trim());
  return { ordinary: choose(lines, ["all"]), trial: choose(lines, ["all", "tryboot"]) };
}

/** Where the lines lead whose filter passes; a filter that is not known passes nobody. */
function choose(lines: readonly string[], passing: readonly string[]): Choice {
  const choice: Choice = { partition: undefined, whole: false };
  let isRead = true;
  for (const line of lines) {
    const [, filter, key, value] = /^(?:\[(.*)\]|(boot_partition|tryboot_a_b)=(\d{1,3}))$/.exec(line) ?? [];
    if (filter !== undefined) isRead = passing.includes(filter);
    else if (isRead && key === "boot_partition") choice.partition = Number(value) || undefined;
    else if (isRead && key === "tryboot_a_b") choice.whole = Number(value) === 1;
  }
  return choice;
}

/** The slot an ordinary start leads to by these bytes; undefined where it is none of ours or the trial is not the other one, whole. */
export function primaryOf(bytes: Uint8Array): SlotName | undefined {
  const { ordinary, trial } = parseAutoboot(bytes);
  const slot = slotOfBoot(ordinary.partition);
  const isPair = slot !== undefined && slotOfBoot(trial.partition) === otherSlot(slot) && trial.whole;
  return isPair ? slot : undefined;
}

/** Characters of a line that the firmware looks at. */
const LINE_MOST = 98;
