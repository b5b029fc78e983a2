/** The walk through the DHT towards a target (Kademlia's iterative lookup), bounded in questions whatever the answers say. */
import { sourceOf, textOf } from "./address.ts";
import { type Contact, compareDistance, K } from "./table.ts";

/** Questions under way at once. */
const AT_ONCE = 4;
/** Questions of one walk. */
const MOST_QUESTIONS = 96;
/** Nodes that are remembered in one walk. */
const MOST_KNOWN = 256;
/** Nodes of one source that are asked: more of them say nothing new. */
const MOST_OF_SOURCE = 16;

interface Step extends Contact {
  state: "new" | "asked" | "answered" | "silent";
}

/**
 * Asks ever nearer nodes until the nearest that answer have all been asked; these, nearest first. `ask` resolves to the nodes that the
 * asked one names, and rejects where it does not answer.
 */
export async function search(
  target: Uint8Array,
  from: readonly Contact[],
  ask: (contact: Contact) => Promise<readonly Contact[]>,
): Promise<Contact[]> {
  const walk = new Walk(target);
  walk.learn(from);
  const underWay = new Set<Promise<void>>();
  for (let questions = 0; questions < MOST_QUESTIONS; ) {
    const next = underWay.size < AT_ONCE ? walk.next() : undefined;
    if (next) {
      questions++;
      next.state = "asked";
      const one: Promise<void> = ask(next)
        .then(
          (named) => {
            next.state = "answered";
            walk.learn(named);
          },
          () => {
            next.state = "silent";
          },
        )
        .finally(() => underWay.delete(one));
      underWay.add(one);
    } else if (underWay.size > 0) await Promise.race(underWay);
    else break;
  }
  await Promise.all(underWay);
  return walk.answered();
}

class Walk {
  readonly #target: Uint8Array;
  /** By address. */
  readonly #steps = new Map<string, Step>();
  readonly #ofSource = new Map<string, number>();

  constructor(target: Uint8Array) {
    this.#target = target;
  }

  learn(contacts: readonly Contact[]): void {
    for (const { id, address } of contacts) {
      const [text, source] = [textOf(address), sourceOf(address.host)];
      const count = this.#ofSource.get(source) ?? 0;
      if (this.#steps.has(text) || this.#steps.size >= MOST_KNOWN || count >= MOST_OF_SOURCE) continue;
      this.#ofSource.set(source, count + 1);
      this.#steps.set(text, { id, address, state: "new" });
    }
  }

  /** Who is to be asked: the nearest that was not, if it is among the nearest that may answer. */
  next(): Step | undefined {
    return this.#nearest((step) => step.state !== "silent").find(({ state }) => state === "new");
  }

  answered(): Contact[] {
    return this.#nearest(({ state }) => state === "answered");
  }

  #nearest(which: (step: Step) => boolean): Step[] {
    return [...this.#steps.values()]
      .filter(which)
      .sort((a, b) => compareDistance(this.#target, a.id, b.id))
      .slice(0, K);
  }
}
