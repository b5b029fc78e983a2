/**
 * `fruit boot probe`: what this board, its firmware and its card can do about starting a slot on trial, as a ledger that can be
 * kept, signed and compared. It restarts nothing; so whether the firmware does what it says, only a trial shows.
 */
import { join } from "node:path";
import { parseArgs } from "node:util";
import { SLOTS } from "../../boot/layout.ts";
import type { BootRecord } from "../../boot/record.ts";
import { makeAutoboot } from "../../boot/tryboot/autoboot.ts";
import { checkBootSet, findAutoboot } from "../../boot/tryboot/sector.ts";
import { TRYBOOT_FLAG, TrybootSwitch } from "../../boot/tryboot/switch.ts";
import type { Hal, Machine } from "../../hal/ports.ts";
import { type Check, fail, ok, warn } from "../doctor/check.ts";
import { openHardware } from "../hardware.ts";
import { nodeIdOf } from "../identity.ts";
import { Store } from "../store.ts";
import { cellOf, textOf } from "../telemetry/cursor.ts";
import { type CliVerb, EXIT, type Exit } from "../terminal.ts";
import { slotsData } from "./kernel.ts";
import {
  boardOf,
  CAN_TRYBOOT,
  CAN_TRYBOOT_A_B,
  dayOf,
  judgeBoard,
  judgeFirmware,
  judgeMailbox,
  judgeTrials,
  type Ledger,
  ledgerText,
  present,
  UNSHOWN,
} from "./ledger.ts";
import { configOf } from "./offline.ts";
import { type NodeCard, openNodeCard } from "./open.ts";

type Context = Parameters<CliVerb["run"]>[0];

/** Runs the verb: prints the ledger and keeps it in `DATA/boot/ledger.json`. */
export async function probeBoot({ args, io, json }: Context): Promise<Exit> {
  const { values } = parseArgs({
    args,
    options: { try: { type: "boolean", default: false }, disk: { type: "string" } },
  });
  const config = configOf(io);
  const hal = await openHardware(undefined, io.env, config);
  try {
    const found = await openNodeCard(hal, values.disk ?? config.boot.disk, "read").catch(
      (error: Error) => error,
    );
    try {
      const ledger = await probe(hal, found, { tries: values.try, node: config.node });
      io.out(json ? `${JSON.stringify(ledger)}\n` : ledgerText(ledger));
      const isKept = await keep(ledger, join(slotsData(hal.machine, config.data_dir), "boot")).catch(
        (error: Error) => error,
      );
      if (isKept instanceof Error) io.err(`fruit: the ledger was not kept: ${isKept.message}\n`);
      return ledger.findings.some(({ level }) => level === "FAIL") ? EXIT.hardware : EXIT.done;
    } finally {
      if (found && !(found instanceof Error)) await found.disk.close();
    }
  } finally {
    await hal.close();
  }
}

async function keep(ledger: Ledger, dir: string): Promise<void> {
  await new Store(dir, () => undefined).save("ledger", ledger);
}

/** Looks at everything. With `tries` the flag is set, read back and cleared, unless it is set already. */
export async function probe(
  { machine, kind }: Pick<Hal, "machine" | "kind">,
  card: NodeCard | Error | undefined,
  options: { tries: boolean; node?: string | undefined },
): Promise<Ledger> {
  const cell = (name: string) => cellOf(machine.read(`/proc/device-tree/chosen/bootloader/${name}`));
  const text = (path: string) => textOf(machine.read(path));
  const board = boardOf(cellOf(machine.read("/proc/device-tree/system/linux,revision")));
  const [eepromBuilt, word, rsts] = [cell("build-timestamp"), cell("capabilities"), cell("rsts")];
  const mailbox = tryFlag(machine, options.tries);
  const ledger: Ledger = {
    schema: "fruit.boot.probe/1",
    evidence: "model only",
    node: options.node ?? nodeIdOf(machine),
    at: new Date().toISOString(),
    clock_synced: machine.clock().synced,
    hardware: kind,
    board: present({
      model: text("/proc/device-tree/model"),
      revision: board?.code,
      eeprom: board?.hasEeprom,
    }),
    firmware: present({
      built: dayOf(machine.firmwareBuilt()),
      eeprom_built: dayOf(eepromBuilt),
      eeprom_version: text("/proc/device-tree/chosen/bootloader/version"),
    }),
    ...(word === undefined
      ? {}
      : {
          capabilities: {
            word: `0x${word.toString(16)}`,
            tryboot: (word & CAN_TRYBOOT) !== 0,
            tryboot_a_b: (word & CAN_TRYBOOT_A_B) !== 0,
          },
        }),
    started: present({
      partition: cell("partition"),
      tryboot: cell("tryboot"),
      rsts: rsts === undefined ? undefined : `0x${rsts.toString(16)}`,
    }),
    mailbox,
    card: {},
    findings: [
      ...judgeBoard(board),
      ...judgeFirmware(board, { word, eepromBuilt, built: machine.firmwareBuilt() }),
      judgeMailbox(mailbox, options.tries),
    ],
  };
  return { ...ledger, ...(await withCard(ledger, card)) };
}

function tryFlag(machine: Machine, tries: boolean): Ledger["mailbox"] {
  const device = machine.list("/dev").includes("vcio");
  const flags = machine.rebootFlags();
  if (flags === undefined) return { device };
  // A trial that waits for its start must not lose its flag to somebody who only looks
  if (!tries || (flags & TRYBOOT_FLAG) !== 0) return { device, flags };
  const isKept = ((machine.rebootFlags(flags | TRYBOOT_FLAG) ?? 0) & TRYBOOT_FLAG) !== 0;
  const isCleared = machine.rebootFlags(flags) === flags;
  return { device, flags, tried: !isCleared ? "not-cleared" : isKept ? "kept-and-cleared" : "not-kept" };
}

/** What a card adds. */
async function withCard(
  { findings }: Ledger,
  card: NodeCard | Error | undefined,
): Promise<Pick<Ledger, "card" | "findings">> {
  if (!card || card instanceof Error) {
    const what = card?.message ?? "this machine does not run from a card with slots";
    return { card: {}, findings: [...findings, warn("card", what, "name one with --disk"), UNSHOWN] };
  }
  const { disk, boot } = card;
  const facts = present({ disk: disk.name, switch: boot.kind, running: boot.current });
  if (!(boot instanceof TrybootSwitch)) {
    const what = `${disk.name} is laid out for ${boot.kind}, which needs nothing of all this`;
    return { card: facts, findings: [...findings, ok("card", what), UNSHOWN] };
  }
  const record = await boot.read().catch((error: Error) => error);
  return {
    card: facts,
    findings: [...findings, ...(await judgeCard(card, boot, record)), judgeTrials(record)],
  };
}

async function judgeCard(
  { disk }: NodeCard,
  { card }: TrybootSwitch,
  record: BootRecord | Error,
): Promise<Check[]> {
  if (record instanceof Error)
    return [fail("card", record.message, "start the rescue, which can rebuild them")];
  const sector = await findAutoboot(disk, card.selector).catch((error: Error) => error);
  if (sector instanceof Error) return [fail("card", sector.message, "write partition 1 of the image anew")];
  const checks = sector.signs.map((sign) => warn("selector", sign, "until then nothing is tried"));
  if (sector.isDirty)
    checks.push(warn("selector", "partition 1 was written to and not unmounted", "run fsck.fat on it"));
  if (!Buffer.from(sector.bytes).equals(makeAutoboot(record.primary)))
    checks.push(
      warn(
        "selector",
        `autoboot.txt does not say slot ${record.primary}`,
        "the agent mends it when it starts",
      ),
    );
  const sets = [
    { name: "selector", partition: card.selector },
    ...SLOTS.filter((slot) => ["good", "staged", "trying"].includes(record.slots[slot].state)).map(
      (slot) => ({
        name: `slot ${slot}`,
        partition: card.slots[slot].boot,
      }),
    ),
  ];
  for (const { name, partition } of sets) {
    const problem = await checkBootSet(disk, partition).catch((error: Error) => error.message);
    checks.push(
      problem === undefined
        ? ok(name, `partition ${partition.number} can be started`)
        : fail(name, problem, "write it anew"),
    );
  }
  return checks;
}
