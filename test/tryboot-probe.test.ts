import { expect, test } from "bun:test";
import { existsSync, readFileSync } from "node:fs";
import { type Ledger, ledgerText } from "../agent/boot/ledger.ts";
import type { NodeCard } from "../agent/boot/open.ts";
import { probe } from "../agent/boot/probe.ts";
import { RECORD_OFFSETS, SECTOR } from "../boot/layout.ts";
import { encodeRecord } from "../boot/record.ts";
import { readTrybootCard } from "../boot/tryboot/layout.ts";
import { TrybootSwitch } from "../boot/tryboot/switch.ts";
import type { Image } from "./crash/disk.ts";
import { fruit, SOURCES, scratch } from "./node.ts";
import { PaperMachine } from "./paper.ts";
import { FRESH, makeCard, PLACES } from "./tryboot/card.ts";
import { MemoryDisk } from "./tryboot/disk.ts";

const BOOTLOADER = "/proc/device-tree/chosen/bootloader";

/** Four bytes, big-endian, as device trees have them. */
const cell = (word: number) =>
  String.fromCharCode(word >>> 24, (word >>> 16) & 255, (word >>> 8) & 255, word & 255);

const unixDay = (day: string) => Date.parse(`${day}T00:00:00Z`) / 1000;

/** A Pi 4 with an EEPROM of a day, and a mailbox. */
function pi4(built = "2025-11-05", capabilities = 0x7f): PaperMachine {
  return new PaperMachine()
    .write("/dev/vcio", "")
    .write(`${BOOTLOADER}/build-timestamp`, cell(unixDay(built)))
    .write(`${BOOTLOADER}/capabilities`, cell(capabilities))
    .write(`${BOOTLOADER}/partition`, cell(2))
    .write(`${BOOTLOADER}/tryboot`, cell(0));
}

/** A Pi of before the EEPROM; Zero 2 W unless said otherwise. */
function pi3(built = "2025-07-10", revision = 0x902120): PaperMachine {
  const machine = new PaperMachine().write("/dev/vcio", "");
  machine.write("/proc/device-tree/system/linux,revision", cell(revision));
  machine.built = unixDay(built);
  return machine;
}

async function cardOf(machine: PaperMachine, image: Image = makeCard()): Promise<NodeCard> {
  const disk = new MemoryDisk(image);
  const card = await readTrybootCard(disk);
  const slots = { a: card.slots.a.root, b: card.slots.b.root };
  return { disk, slots, boot: new TrybootSwitch({ disk, machine, current: "a" }, card) };
}

const probed = (machine: PaperMachine, card?: NodeCard | Error, tries = false) =>
  probe({ machine, kind: "linux" }, card, { tries });

/** Findings of a kind, `name: what`. */
const findings = ({ findings }: Ledger, level: string) =>
  findings.filter((one) => one.level === level).map(({ name, what }) => `${name}: ${what}`);

test("a Pi 4 that can is told so, and what only a trial shows is said to be unseen", async () => {
  const machine = pi4();
  const ledger = await probed(machine, await cardOf(machine), true);
  expect(ledger).toMatchObject({
    schema: "fruit.boot.probe/1",
    evidence: "model only",
    node: "pi10000000abcdef01",
    hardware: "linux",
    board: { model: "Raspberry Pi 4 Model B Rev 1.4", revision: "c03114", eeprom: true },
    firmware: { built: "2025-07-10", eeprom_built: "2025-11-05" },
    capabilities: { word: "0x7f", tryboot: true, tryboot_a_b: true },
    started: { partition: 2, tryboot: 0 },
    mailbox: { device: true, flags: 0, tried: "kept-and-cleared" },
    card: { disk: "/dev/crash", switch: "tryboot", running: "a" },
  });
  expect(machine.flags).toBe(0);
  expect(findings(ledger, "FAIL")).toEqual([]);
  expect(findings(ledger, "ok")).toEqual([
    "board: revision c03114",
    "eeprom: built 2025-11-05, TRYBOOT_A_B",
    "mailbox: the flag was set, read back and cleared",
    "selector: partition 1 can be started",
    "slot a: partition 2 can be started",
  ]);
  const [unseen, ...more] = findings(ledger, "warn");
  expect(more).toEqual([]);
  expect(unseen).toStartWith(
    "one-shot: whether the firmware starts the other slot by the flag, once and not twice, has not",
  );
});

test("the ledger reads the same back from JSON, and for people it begins with what stands behind it", async () => {
  const ledger = await probed(pi4(), undefined);
  expect(JSON.parse(JSON.stringify(ledger))).toEqual(ledger);
  const text = ledgerText(ledger);
  expect(text).toStartWith("tryboot: model only; no board has shown it yet\n");
  for (const said of [
    "pi10000000abcdef01",
    "revision c03114",
    "EEPROM 2025-11-05",
    "0x7f: tryboot yes, a/b yes",
  ])
    expect(text).toContain(said);
});

test.each<{ what: string; machine: () => PaperMachine; level: "FAIL" | "warn" | "ok"; says: string }>([
  {
    what: "34: an EEPROM that lacks the capability",
    machine: () => pi4("2022-08-02", 0x7b),
    level: "FAIL",
    says: "eeprom: its capabilities 0x7b lack TRYBOOT_A_B",
  },
  {
    what: "34: an EEPROM of before 2022-11-25 that claims to",
    machine: () => pi4("2022-11-24"),
    level: "FAIL",
    says: "eeprom: built 2022-11-24, before 2022-11-25",
  },
  {
    what: "34: a Pi 4 of revision 1.1, whose EEPROM must be writable",
    machine: () => pi4().write("/proc/device-tree/system/linux,revision", cell(0xb03111)),
    level: "warn",
    says: "board: revision b03111 keeps the flag in its EEPROM",
  },
  {
    what: "33: an EEPROM that may ask for partition 32",
    machine: () => pi4("2025-10-07"),
    level: "warn",
    says: "eeprom: built 2025-10-07: before 2025-10-08 a reset by the watchdog may start the rescue (rpi-eeprom#758)",
  },
  {
    what: "an EEPROM that says nothing of itself",
    machine: () => {
      const machine = pi4();
      machine.files.delete(`${BOOTLOADER}/capabilities`);
      return machine;
    },
    level: "warn",
    says: "eeprom: says nothing of its capabilities",
  },
  {
    what: "29: a Zero 2 W with current firmware",
    machine: () => pi3(),
    level: "ok",
    says: "firmware: built 2025-07-10",
  },
  {
    what: "a Pi 3 with old firmware",
    machine: () => pi3("2020-02-12", 0xa02082),
    level: "warn",
    says: "firmware: built 2020-02-12",
  },
  {
    what: "a Pi 1 with a revision code of the old style",
    machine: () => pi3("2025-07-10", 0x000e),
    level: "ok",
    says: "board: revision 000e",
  },
  {
    what: "37: no /dev/vcio",
    machine: () => {
      const machine = pi4();
      machine.files.delete("/dev/vcio");
      machine.flags = undefined;
      return machine;
    },
    level: "FAIL",
    says: "mailbox: there is no /dev/vcio",
  },
  {
    what: "37: firmware that does not know the tag",
    machine: () => {
      const machine = pi4();
      machine.flags = undefined;
      return machine;
    },
    level: "FAIL",
    says: "mailbox: the firmware does not know its reboot flags",
  },
  {
    what: "something that is no Raspberry Pi",
    machine: () => {
      const machine = pi4();
      machine.files.delete("/proc/device-tree/system/linux,revision");
      return machine;
    },
    level: "FAIL",
    says: "board: not a Raspberry Pi, or one that does not say which",
  },
])("$what is found", async ({ machine, level, says }) => {
  expect(findings(await probed(machine()), level)).toContain(says);
});

test("without --try nothing is set, and that it was not tried is said", async () => {
  const machine = pi4();
  let isSet = false;
  machine.rebootFlags = (set?: number) => {
    isSet ||= set !== undefined;
    return 0;
  };
  expect(findings(await probed(machine), "warn")).toContain(
    "mailbox: the flag can be read; whether it can be set was not tried",
  );
  expect(isSet).toBe(false);
});

test("a trial that waits for its start keeps its flag, whoever probes", async () => {
  const machine = pi4();
  machine.flags = 1;
  const ledger = await probed(machine, undefined, true);
  expect(machine.flags).toBe(1);
  expect(findings(ledger, "warn")).toContain("mailbox: the flag is set: the next start is a trial");
});

test("the firmware's other flags are left as they are", async () => {
  const machine = pi4();
  machine.flags = 0x10;
  expect((await probed(machine, undefined, true)).mailbox.tried).toBe("kept-and-cleared");
  expect(machine.flags).toBe(0x10);
});

test.each<{ kept: (set: number) => number; tried: string; says: string }>([
  { kept: () => 0, tried: "not-kept", says: "mailbox: the flag was set and reads back as not set" },
  { kept: () => 1, tried: "not-cleared", says: "mailbox: the flag cannot be cleared again" },
])("a flag that is $tried is found out", async ({ kept, tried, says }) => {
  const machine = pi4();
  let flags = 0;
  machine.rebootFlags = (set?: number) => {
    if (set !== undefined) flags = kept(set);
    return flags;
  };
  const ledger = await probed(machine, undefined, true);
  expect(ledger.mailbox.tried).toBe(tried as "not-kept");
  expect(findings(ledger, "FAIL")).toContain(says);
});

test.each<{ what: string; spoil: (image: Image) => void; level: "FAIL" | "warn"; says: string }>([
  {
    what: "a sector that does not say what the record says",
    spoil: (image) => image.write(PLACES.autoboot, new Uint8Array(SECTOR)),
    level: "warn",
    says: "selector: autoboot.txt does not say slot a",
  },
  {
    what: "25: a first partition that is none",
    spoil: (image) => image.write(PLACES.selector.offset, new Uint8Array(SECTOR)),
    level: "FAIL",
    says: "card: /dev/crash partition 1: it does not begin with a FAT file system",
  },
  {
    what: "25: a first partition that somebody wrote to",
    spoil: (image) =>
      image.write(
        PLACES.selector.offset + 32 * SECTOR + 4,
        new Uint8Array(Uint32Array.of(0x07ff_ffff).buffer),
      ),
    level: "warn",
    says: "selector: partition 1 was written to and not unmounted",
  },
  {
    what: "a good slot whose boot set is gone",
    spoil: (image) => image.write(PLACES.boot.a.offset, new Uint8Array(SECTOR)),
    level: "FAIL",
    says: "slot a: /dev/crash partition 2: it does not begin with a FAT file system",
  },
  {
    what: "no record",
    spoil: (image) => image.write(RECORD_OFFSETS[0], new Uint8Array(SECTOR)),
    level: "FAIL",
    says: "card: /dev/crash holds no valid record; 'fruit boot records' shows its places",
  },
])("$what on the card is found, and nothing is written", async ({ spoil, level, says }) => {
  const image = makeCard();
  spoil(image);
  const card = await cardOf(pi4(), image);
  expect(findings(await probed(pi4(), card), level)).toContain(says);
  expect((card.disk as MemoryDisk).writes).toEqual([]);
});

test("a card on which a trial was confirmed has shown that the flag works", async () => {
  const image = makeCard();
  image.write(RECORD_OFFSETS[0], encodeRecord({ ...FRESH, confirmed: 77 }));
  const ledger = await probed(pi4(), await cardOf(pi4(), image));
  expect(findings(ledger, "ok")).toContain(
    "one-shot: a trial was started and confirmed on this card (id 77)",
  );
});

test("a disk that is not ours is told as it is, and the rest is probed all the same", async () => {
  const ledger = await probed(pi4(), new Error("/dev/sda: no partition table"));
  expect(ledger.card).toEqual({});
  expect(findings(ledger, "warn")).toContain("card: /dev/sda: no partition table");
});

test("'fruit boot probe' prints the ledger and keeps it in the data folder", async () => {
  using folder = scratch();
  const config = folder.file("node.json", { site: "lab", data_dir: `${folder.path}/data` });
  const options = { executable: SOURCES, env: { FRUIT_CONFIG: config, FRUIT_HAL: "sim" } };
  const { out, err, exit } = await fruit(["boot", "probe", "--json"], options);
  expect({ err, exit }).toEqual({ err: "", exit: 0 });
  expect(JSON.parse(out)).toMatchObject({
    schema: "fruit.boot.probe/1",
    evidence: "model only",
    hardware: "sim",
  });
  expect(readFileSync(`${folder.path}/data/boot/ledger.json`, "utf8")).toBe(out);
  expect((await fruit(["boot", "probe"], options)).out).toContain("simulated");
});

test.skipIf(existsSync("/dev/vcio"))(
  "'fruit boot probe' exits with 11 on a machine that cannot",
  async () => {
    using folder = scratch();
    const config = folder.file("node.json", { site: "lab", data_dir: `${folder.path}/data` });
    const disk = folder.file("disk", "no card");
    const { out, exit } = await fruit(["boot", "probe", "--disk", disk], {
      executable: SOURCES,
      env: { FRUIT_CONFIG: config, FRUIT_HAL: "linux" },
    });
    expect(exit).toBe(11);
    expect(out).toContain("FAIL mailbox: there is no /dev/vcio");
    expect(out).toContain(`warn card: ${disk}`);
  },
);
