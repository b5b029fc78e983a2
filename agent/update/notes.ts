/** Decisions about updates in the history of the slots, so that there is one story of a release. */
import { type Happening, LOOK_BACK } from "../boot/history.ts";
import type { Kept } from "../boot/slots.ts";
import type { Desire, Facts } from "./desire.ts";

/** So many are remembered, so as not to look for them in the file. */
const MOST = 100;

/** What a decision is called there; what is not listed is told by whoever does it, or is no news. */
const CALLED: Record<string, Happening["what"]> = {
  announced: "announced",
  refused: "refused",
  blamed: "refused",
  withdrawn: "withdrawn",
  "runs-withdrawn": "withdrawn",
  "waits-for-word": "waits",
  "window-closed": "waits",
  "not-yet-its-turn": "waits",
  "not-its-turn": "waits",
  "reboot-loop": "waits",
  hindered: "waits",
};

/** Writes down what is new: each code of each release once, however often it comes back. */
export class Notes {
  #noted = new Set<string>();

  async add(
    { code, because }: Desire,
    { head }: Facts,
    { keeper, history }: Pick<Kept, "keeper" | "history">,
  ): Promise<void> {
    const what = CALLED[code];
    const name = `${code} ${head?.infohash}`;
    if (!what || !head || this.#noted.has(name)) return;
    this.#noted = new Set([...[...this.#noted].slice(1 - MOST), name]);
    const version = String(head.version);
    const lines = await history.tail(LOOK_BACK);
    if (lines.some((line) => line.what === what && line.version === version && line.cause === code)) return;
    await keeper.note({ what, version, cause: code, evidence: because });
  }
}
