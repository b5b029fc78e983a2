/**
 * Runs a whole update once, then breaks it at every step in every way of `faults.ts`, and says what no longer holds:
 *
 * - I1 something starts, and not the rescue
 * - I2 what starts is the whole old or the whole new system, byte for byte
 * - I3 at most two restarts, besides the tries a trial has left, lead to a node that stays up
 * - I4 the update can be done again and ends
 * - I5 a slot that may be started never holds anything but a signed payload, whole
 * - I6 the record says why it is as it is, and a slot that failed why it did
 *
 * Where a card did more than lose what was not flushed, one of these cannot hold at every moment, only in the end:
 * - `lie`, a flush that was none: a slot may be called staged and not be whole. U-Boot or the trial finds out; it is never
 *   confirmed. With the records themselves lost the node falls back to what it was before.
 *   What was confirmed before it got lost is another matter: of those cards (`Examiner.beyond` counts them) only this is claimed. They
 *   come to an end within I3's restarts. No slot is started whose kernel or initramfs is damaged. Where that shows, or that its first
 *   block is, the other slot takes over if it is good and whole, and the rescue starts only if it is not. Damage elsewhere in the root
 *   nobody has looked for when it is started: then it runs (`unnoticed`), and can be updated as ever.
 * - `rot` in the slot on trial: the same.
 * - `data`, a data partition that lost what was flushed: the trial has no papers and fails, and so would one of the same release
 *   again until somebody insists (I4).
 * - `read-only`: a card that takes nothing any more cannot be updated (I4), and what it cannot note it does not note (I6).
 */
import type { SlotName } from "../../boot/layout.ts";
import type { CrashDisk, Image, Step } from "./disk.ts";
import { type Cut, cutsAt, imagesOf, type Live, type Proviso } from "./faults.ts";
import type { Folder } from "./folder.ts";
import { Node, TurnMemory, type World } from "./node.ts";
import { TRY } from "./orders.ts";

/** An update from beginning to end. */
export interface Scenario {
  name: string;
  world: World;
  card(): Image;
  /** At which sectors its long writes are torn: at all of them in one update, at every third in the others. */
  tornEvery: 1 | 3;
  /** Whether the card also fails while it goes on (`liveFaults`). */
  isMeddledWith: boolean;
  /** All of it, on a node that has just been switched on. */
  run(node: Node): Promise<void>;
}

/** A scenario as it went. */
export interface Recording {
  scenario: Scenario;
  base: Image;
  journal: readonly Step[];
  images: readonly Image[];
  /** The data folder after every step, the first before any. */
  folders: readonly Folder[];
  /** How often the disk was called. */
  calls: Readonly<CrashDisk["calls"]>;
}

/** Runs a scenario and keeps every step. */
export async function record(scenario: Scenario): Promise<Recording> {
  const base = scenario.card();
  const folders: Folder[] = [];
  using node = new Node(base.copy(), scenario.world, { onStep: (here) => folders.push(here.snapshot()) });
  folders.push(node.snapshot());
  await scenario.run(node);
  const { journal, calls } = node.disk;
  return { scenario, base, journal, images: imagesOf(base, journal), folders, calls };
}

/** Every case of a recording. */
export function* casesOf({ journal, images, scenario }: Recording): Generator<Cut> {
  for (let k = 0; k <= journal.length; k++) yield* cutsAt(journal, images, k, scenario.tornEvery);
}

/** Starts of a node before the power cut are numbered below this. */
const AFTER_CUT = 100;

/** Finds out what does not hold after a power cut; remembers what it has seen, since many cuts leave the same card. */
export class Examiner {
  readonly #recording: Recording;
  readonly #memory = new TurnMemory();
  readonly #seen = new Map<string, readonly string[]>();
  readonly #folders = new Map<Folder, number>();

  constructor(recording: Recording) {
    this.#recording = recording;
  }

  /** Cards that have lost what was flushed, read back and confirmed, by what they end with. */
  readonly beyond: Record<Beyond, number> = { whole: 0, rescue: 0, unnoticed: 0 };

  /** Cards that differed. */
  get distinct(): number {
    return this.#seen.size;
  }

  /** What does not hold, in words; nothing where all does. */
  async examine(cut: Cut): Promise<readonly string[]> {
    const folder = this.#folderOf(cut);
    const image = cut.make();
    const key = `${image.digest} ${this.#numberOf(folder)} ${cut.proviso}`;
    const known = this.#seen.get(key);
    if (known) return known;
    const { scenario } = this.#recording;
    using node = new Node(image.copy(), scenario.world, { folder, memory: this.#memory, starts: AFTER_CUT });
    const found = await this.#revive(node, cut.proviso);
    this.#seen.set(key, found);
    return found;
  }

  /** The same for a card and a data folder as somebody found them. */
  async examineCard(image: Image, folder: Folder): Promise<readonly string[]> {
    using node = new Node(image, this.#recording.scenario.world, { folder, starts: AFTER_CUT });
    return await this.#revive(node, "none");
  }

  /** The same for an update on a card that has a fault while it runs: it may fail, and then the power does. */
  async examineLive({ fault, isLasting }: Live): Promise<readonly string[]> {
    const { scenario, base } = this.#recording;
    // A slot that is not whole and may be started is wrong at any moment, whatever becomes of it
    const wrong = new Set<string>();
    const onStep = ({ unsound, disk }: Node) => {
      for (const { slot, state, held } of unsound)
        wrong.add(`I5: slot ${slot} is ${state} and holds ${held} after step ${disk.journal.length}`);
    };
    using before = new Node(base.copy(), scenario.world, { onStep });
    before.disk.faults = [fault];
    await Promise.race([scenario.run(before).catch(() => undefined), before.disk.hung]);
    if (wrong.size > 0) return [...wrong];
    const options = { folder: before.snapshot(), memory: this.#memory, starts: AFTER_CUT };
    if (!isLasting) {
      using node = new Node(before.disk.image.copy(), scenario.world, options);
      return await this.#revive(node, "none");
    }
    using node = new Node(before.disk.image.copy(), scenario.world, {
      folder: options.folder,
      starts: AFTER_CUT,
    });
    node.disk.faults = [{ fault: "EROFS", on: "write", at: 0 }];
    return await this.#revive(node, "read-only");
  }

  async #revive(node: Node, proviso: Proviso): Promise<readonly string[]> {
    const revival = new Revival(node, this.#recording.scenario, proviso);
    const found = await revival.run();
    if (revival.beyond) this.beyond[revival.beyond]++;
    return found;
  }

  #folderOf({ k, dataBehind = 0 }: Cut): Folder {
    if (dataBehind === "all") return NOTHING;
    return this.#recording.folders[k - dataBehind] ?? NOTHING;
  }

  #numberOf(folder: Folder): number {
    const number = this.#folders.get(folder) ?? this.#folders.size;
    this.#folders.set(folder, number);
    return number;
  }
}

const NOTHING: Folder = new Map();

/** What becomes of a card that has lost what was confirmed: a whole slot, the rescue, or a slot of which nobody knows that it is damaged. */
export type Beyond = "whole" | "rescue" | "unnoticed";

/** A node after a power cut, until it stays up and was updated. */
class Revival {
  readonly #node: Node;
  readonly #scenario: Scenario;
  readonly #proviso: Proviso;
  readonly #found: string[] = [];
  /** Where it has lost what was confirmed. */
  beyond: Beyond | undefined;
  #unnoticed: SlotName | undefined;

  constructor(node: Node, scenario: Scenario, proviso: Proviso) {
    this.#node = node;
    this.#scenario = scenario;
    this.#proviso = proviso;
  }

  async run(): Promise<readonly string[]> {
    try {
      const primary = this.#node.record()?.primary;
      if (this.#proviso === "lie" && primary !== undefined && !this.#node.held(primary)) {
        this.beyond = await this.#endBeyond();
        return this.#found;
      }
      this.#checkSlots("as it was found");
      const running = await this.#settle("after the cut");
      if (running && this.#proviso !== "read-only") await this.#updateAgain(running);
    } catch (error) {
      this.#found.push(`threw ${error instanceof Error ? error.stack : error}`);
    }
    return this.#found;
  }

  /** Starts it until it stays up. Returns the slot that runs. */
  async #settle(
    when: string,
    command?: { verb: string; args: Record<string, unknown> },
  ): Promise<SlotName | undefined> {
    const before = this.#node.record();
    const most = 2 + (before?.trial?.triesLeft ?? 0);
    let why = "";
    for (let restarts = 0; restarts <= most; restarts++) {
      const { start, end } = await this.#node.turn(command);
      const { boots } = start;
      const which = `${when}, start ${restarts + 1}`;
      if (boots !== "a" && boots !== "b") {
        this.#say("I1", `${which} ends in ${boots} (${start.args})`);
        return undefined;
      }
      const isTrial = start.args.includes("fruit.trial=");
      if (!this.#node.held(boots) && boots !== this.#unnoticed && !(isTrial && this.#isLoose))
        this.#say("I2", `${which} is slot ${boots}, which is not whole`);
      this.#checkSlots(which);
      if (end.is === "trouble") this.#say("I4", `${which}, the agent: ${end.why}`);
      if (end.is === "rescue") {
        this.#say("I1", `${which} ends in the rescue`);
        return undefined;
      }
      if (end.is === "again") {
        why = `slot ${boots}: ${end.why}`;
        continue;
      }
      this.#checkEnd(boots, when);
      return boots;
    }
    this.#say("I3", `${when}, it still restarts after ${most} times, last by ${why}`);
    return undefined;
  }

  /** What may be said of a node whose card has lost what was confirmed. */
  async #endBeyond(): Promise<Beyond | undefined> {
    const most = 3 + (this.#node.record()?.trial?.triesLeft ?? 0);
    for (let restarts = 0; restarts <= most; restarts++) {
      const { start, end } = await this.#node.turn();
      const which = `beyond help, start ${restarts + 1}`;
      if (end.is === "trouble") this.#say("I4", `${which}, the agent: ${end.why}`);
      if (end.is === "rescue") return this.#rescuedBeyond(which);
      const { boots } = start;
      if (boots !== "a" && boots !== "b") this.#say("I1", `${which}: nothing starts`);
      else if (!this.#node.canBoot(boots))
        this.#say("I1", `${which} is slot ${boots}, whose boot files are damaged`);
      else if (end.is === "up") return await this.#runsBeyond(boots);
    }
    this.#say("I3", `beyond help, it still restarts after ${most} times`);
    return undefined;
  }

  #rescuedBeyond(which: string): Beyond {
    for (const [slot, { state }] of Object.entries(this.#node.record()?.slots ?? {}))
      if (state === "good" && this.#node.held(slot as SlotName))
        this.#say("I1", `${which} is the rescue, though slot ${slot} is good and whole`);
    return "rescue";
  }

  async #runsBeyond(running: SlotName): Promise<Beyond> {
    if (!this.#node.held(running)) this.#unnoticed = running;
    await this.#updateAgain(running);
    return this.#unnoticed ? "unnoticed" : "whole";
  }

  /** What runs is what the next start would start, and nothing more would be written. */
  #checkEnd(boots: SlotName, when: string): void {
    const record = this.#node.record();
    if (!record) {
      this.#say("I6", `${when}, no record is valid`);
      return;
    }
    if (record.primary !== boots) this.#say("I2", `${when}, slot ${boots} runs and is not primary`);
    if (!this.#node.held(boots) && boots !== this.#unnoticed)
      this.#say("I2", `${when}, slot ${boots} is not whole`);
    if (record.reason === "none") this.#say("I6", `${when}, the record has no reason`);
    for (const [name, { state, reason }] of Object.entries(record.slots))
      if (state === "failed" && reason === "none")
        this.#say("I6", `${when}, slot ${name} failed for no reason`);
    if (record.trial) return;
    const { start, writes } = this.#node.foresee();
    if (start.boots !== boots || writes > 0)
      this.#say("I3", `${when}, the next start would be ${start.boots} and not ${boots}, or write`);
  }

  async #updateAgain(running: SlotName): Promise<void> {
    const { world } = this.#scenario;
    const runs = this.#node.held(running);
    const next = world.findLast(({ payload, health }) => health === "well" && payload !== runs)?.payload;
    if (!next) throw new Error("there is nothing to update to");
    await this.#node.install(next, running);
    this.#checkSlots("after the next install");
    // A trial whose papers are gone ends at its deadline, and the release is tried again only by force
    const force = this.#proviso === "data";
    await this.#settle("when it is to be tried", { ...TRY, args: { ...TRY.args, force } });
    const end = await this.#settle("after the next update");
    if (!end || this.#node.held(end) !== next)
      this.#say("I4", `the next update ends with slot ${end}, not with ${next.name}`);
  }

  /** The card may have spoilt what nobody wrote since. */
  get #isLoose(): boolean {
    return this.#proviso === "rot" || this.#proviso === "lie";
  }

  /** I5: what may be started is whole, and was signed. */
  #checkSlots(when: string): void {
    for (const { slot, state, held } of this.#node.unsound)
      if (slot !== this.#unnoticed && (!this.#isLoose || slot === this.#node.record()?.primary))
        this.#say("I5", `${when}, slot ${slot} is ${state} and holds ${held}`);
  }

  #say(invariant: string, what: string): void {
    this.#found.push(`${invariant}: ${what}`);
  }
}
