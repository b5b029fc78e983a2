/**
 * What `fruit boot probe` found, and what it means; nothing here touches anything.
 * Facts: raspberrypi/documentation (device-tree.adoc, bootflow-eeprom.adoc), rpi-eeprom release notes, "Raspberry Pi revision codes".
 */
import type { BootRecord } from "../../boot/record.ts";
import { TRYBOOT_FLAG } from "../../boot/tryboot/switch.ts";
import type { Hal } from "../../hal/ports.ts";
import { type Check, fail, lineOf, ok, warn } from "../doctor/check.ts";
import { printable, table } from "../terminal.ts";
import type { NodeCard } from "./open.ts";

/** What was found. Numbers that the firmware gives are in its own notation; dates are UTC. */
export interface Ledger {
  schema: "fruit.boot.probe/1";
  /** What stands behind the switch `tryboot` as a whole: until it was run on boards, a model of the firmware. */
  evidence: "model only";
  node: string;
  at: string;
  clock_synced: boolean;
  hardware: Hal["kind"];
  board: { model?: string; revision?: string; eeprom?: boolean };
  firmware: { built?: string; eeprom_built?: string; eeprom_version?: string };
  capabilities?: { word: string; tryboot: boolean; tryboot_a_b: boolean };
  /** What the firmware says of this start. Nothing is decided by it: before the Pi 4 its partition is always 0. */
  started: { partition?: number; tryboot?: number; rsts?: string };
  mailbox: { device: boolean; flags?: number; tried?: "kept-and-cleared" | "not-kept" | "not-cleared" };
  card: { disk?: string; switch?: NodeCard["boot"]["kind"]; running?: string };
  findings: Check[];
}

/** Bits of `chosen/bootloader/capabilities` (device-tree.adoc). */
export const CAN_TRYBOOT_A_B = 1 << 2;
export const CAN_TRYBOOT = 1 << 3;

/** What a revision code says of a board. */
export interface Board {
  code: string;
  hasEeprom: boolean;
  /** Pi 4 Model B of revision 1.0 or 1.1, which keep the flag in the EEPROM. */
  keepsFlagInEeprom: boolean;
}

/** From the revision code: bit 23 new style, 15–12 processor, 11–4 type, 3–0 revision. */
export function boardOf(code: number | undefined): Board | undefined {
  if (code === undefined) return undefined;
  const isNew = ((code >>> 23) & 1) === 1;
  const [processor, type, revision] = [(code >>> 12) & 0xf, (code >>> 4) & 0xff, code & 0xf];
  return {
    code: code.toString(16).padStart(4, "0"),
    hasEeprom: isNew && processor >= BCM2711,
    keepsFlagInEeprom: isNew && type === PI_4B && revision <= 1,
  };
}

const BCM2711 = 3;
const PI_4B = 0x11;

/** When EEPROMs learnt or unlearnt something, Unix seconds (rpi-eeprom release notes). */
const EEPROM = { tryboot_a_b: Date.UTC(2022, 10, 25) / 1000, partition32: Date.UTC(2025, 9, 8) / 1000 };
/** No date is written down from which bootcode.bin reads `[tryboot]`; products with it appeared then. */
const OLD_FIRMWARE = Date.UTC(2023, 0, 1) / 1000;

/** What the board means. */
export function judgeBoard(board: Board | undefined): Check[] {
  if (!board)
    return [
      fail(
        "board",
        "not a Raspberry Pi, or one that does not say which",
        "tryboot is the Raspberry Pi firmware's",
      ),
    ];
  if (!board.keepsFlagInEeprom) return [ok("board", `revision ${board.code}`)];
  return [
    warn(
      "board",
      `revision ${board.code} keeps the flag in its EEPROM`,
      "its EEPROM must not be write-protected, or no trial ever starts",
    ),
  ];
}

/** What the firmware's age means, and what it says it can do. */
export function judgeFirmware(
  board: Board | undefined,
  { word, eepromBuilt, built }: Record<"word" | "eepromBuilt" | "built", number | undefined>,
): Check[] {
  if (!board) return [];
  if (!board.hasEeprom) {
    if (built === undefined || built < OLD_FIRMWARE)
      return [
        warn(
          "firmware",
          `built ${dayOf(built) ?? "nobody knows when"}`,
          "put one of 2023 or later on partition 1",
        ),
      ];
    return [ok("firmware", `built ${dayOf(built)}`)];
  }
  if (word !== undefined && (word & CAN_TRYBOOT_A_B) === 0)
    return [
      fail("eeprom", `its capabilities 0x${word.toString(16)} lack TRYBOOT_A_B`, "run rpi-eeprom-update"),
    ];
  if (eepromBuilt !== undefined && eepromBuilt < EEPROM.tryboot_a_b)
    return [fail("eeprom", `built ${dayOf(eepromBuilt)}, before 2022-11-25`, "run rpi-eeprom-update")];
  if (word === undefined)
    return [
      warn(
        "eeprom",
        "says nothing of its capabilities",
        "look with 'vcgencmd bootloader_version' which it is",
      ),
    ];
  if (eepromBuilt !== undefined && eepromBuilt < EEPROM.partition32)
    return [
      warn(
        "eeprom",
        `built ${dayOf(eepromBuilt)}: before 2025-10-08 a reset by the watchdog may start the rescue (rpi-eeprom#758)`,
        "run rpi-eeprom-update",
      ),
    ];
  return [ok("eeprom", `built ${dayOf(eepromBuilt) ?? "nobody knows when"}, TRYBOOT_A_B`)];
}

/** What became of the flag. */
export function judgeMailbox({ device, flags, tried }: Ledger["mailbox"], tries: boolean): Check {
  if (flags === undefined)
    return device
      ? fail(
          "mailbox",
          "the firmware does not know its reboot flags",
          "update the firmware; the kernel's vcio is there",
        )
      : fail("mailbox", "there is no /dev/vcio", "run Raspberry Pi's kernel (CONFIG_BCM_VCIO), as root");
  if (tried === "not-kept")
    return fail("mailbox", "the flag was set and reads back as not set", "use U-Boot on this board");
  if (tried === "not-cleared")
    return fail("mailbox", "the flag cannot be cleared again", "cut the power before the next start");
  if (tried) return ok("mailbox", "the flag was set, read back and cleared");
  if ((flags & TRYBOOT_FLAG) !== 0)
    return warn("mailbox", "the flag is set: the next start is a trial", "'fruit boot status' says of what");
  return tries
    ? ok("mailbox", "the flag is there")
    : warn("mailbox", "the flag can be read; whether it can be set was not tried", "add --try");
}

/** What no probe shows. */
export const UNSHOWN = warn(
  "one-shot",
  "whether the firmware starts the other slot by the flag, once and not twice, has not been seen on this board; of a Zero 2 W it is reported that it keeps the flag and ignores it",
  "install the same release into the other slot and try it: 'fruit boot try'",
);

/** A trial that was confirmed was started, by the firmware and the flag. */
export function judgeTrials(record: BootRecord | Error): Check {
  if (record instanceof Error || record.confirmed === 0) return UNSHOWN;
  return ok("one-shot", `a trial was started and confirmed on this card (id ${record.confirmed})`);
}

/** The ledger for people. */
export function ledgerText({
  node,
  at,
  hardware,
  board,
  firmware,
  capabilities,
  mailbox,
  card,
  findings,
}: Ledger): string {
  const rows = [
    ["node", `${node}, ${at}${hardware === "sim" ? ", simulated" : ""}`],
    ["board", `${board.model ?? "unknown"}${board.revision ? `, revision ${board.revision}` : ""}`],
    [
      "firmware",
      `${firmware.built ?? "unknown"}${firmware.eeprom_built ? `, EEPROM ${firmware.eeprom_built}` : ""}`,
    ],
    [
      "can",
      capabilities
        ? `${capabilities.word}: tryboot ${yes(capabilities.tryboot)}, a/b ${yes(capabilities.tryboot_a_b)}`
        : "not said",
    ],
    [
      "mailbox",
      `${mailbox.device ? "/dev/vcio" : "none"}${mailbox.flags === undefined ? "" : `, flags 0x${mailbox.flags.toString(16)}`}`,
    ],
    [
      "switch",
      card.switch ? `${card.switch} on ${card.disk}, runs from ${card.running ?? "neither slot"}` : "none",
    ],
  ];
  return [
    "tryboot: model only; no board has shown it yet\n",
    table(rows.map((row) => row.map(printable))),
    "\n",
    ...findings.map((finding) => lineOf(finding)),
  ].join("");
}

const yes = (is: boolean) => (is ? "yes" : "no");

/** `2025-07-10`; undefined where nobody knows. */
export function dayOf(unixSeconds: number | undefined): string | undefined {
  return unixSeconds === undefined ? undefined : new Date(unixSeconds * 1000).toISOString().slice(0, 10);
}

/** Without what is unknown. */
export function present<T extends object>(
  facts: { [K in keyof T]: T[K] | undefined },
): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(facts).filter(([, fact]) => fact !== undefined)) as never;
}
