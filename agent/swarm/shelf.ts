/**
 * Things of strangers, kept for a while in bounded room. When the room is full, the oldest thing of whoever has most there gives way,
 * and whoever has most gets nothing more: to push out others' things takes as many addresses as they have.
 */

/** Where a thing belongs and who brought it. */
export interface Owner {
  /** What shares a part of the room: an infohash, a public key. */
  group: string;
  /** Who brought it, as `sourceOf` says. */
  source: string;
}

/** How much there is room for, and for how long. */
export interface Room {
  entries: number;
  ofGroup: number;
  ofSource: number;
  ageMs: number;
}

interface Entry<T> extends Owner {
  value: T;
  at: number;
}

export class Shelf<T> {
  readonly #room: Room;
  readonly #now: () => number;
  /** Oldest first. */
  readonly #entries = new Map<string, Entry<T>>();

  /** `now` in milliseconds. */
  constructor(room: Room, now: () => number) {
    this.#room = room;
    this.#now = now;
  }

  get size(): number {
    this.#expire();
    return this.#entries.size;
  }

  /** Keeps a thing, or keeps it longer; it stays with who brought it first. False where there is no room for it. */
  put(key: string, owner: Owner, value: T): boolean {
    this.#expire();
    const before = this.#entries.get(key);
    if (!before && !this.#makeRoom(owner)) return false;
    const { group, source } = before ?? owner;
    this.#entries.delete(key);
    this.#entries.set(key, { group, source, value, at: this.#now() });
    return true;
  }

  get(key: string): T | undefined {
    this.#expire();
    return this.#entries.get(key)?.value;
  }

  /** The things of a group, oldest first. */
  of(group: string): T[] {
    this.#expire();
    return [...this.#entries.values()].filter((entry) => entry.group === group).map(({ value }) => value);
  }

  #makeRoom({ group, source }: Owner): boolean {
    const { entries, ofGroup, ofSource } = this.#room;
    const all = [...this.#entries];
    if (all.filter(([, entry]) => entry.source === source).length >= ofSource) return false;
    const inGroup = all.filter(([, entry]) => entry.group === group);
    if (inGroup.length >= ofGroup) return this.#dropFrom(inGroup, source);
    return all.length < entries || this.#dropFrom(all, source);
  }

  /** Takes the oldest thing of whoever has most among these, unless that is who wants to come in. */
  #dropFrom(among: readonly [string, Entry<T>][], source: string): boolean {
    const counts = new Map<string, number>();
    for (const [, entry] of among) counts.set(entry.source, (counts.get(entry.source) ?? 0) + 1);
    const [most = "", count = 0] = [...counts].reduce<[string, number]>(
      (a, b) => (b[1] > a[1] ? b : a),
      ["", 0],
    );
    if (count <= (counts.get(source) ?? 0)) return false;
    const oldest = among.find(([, entry]) => entry.source === most);
    if (oldest) this.#entries.delete(oldest[0]);
    return oldest !== undefined;
  }

  #expire(): void {
    const limit = this.#now() - this.#room.ageMs;
    for (const [key, { at }] of this.#entries) {
      if (at > limit) return;
      this.#entries.delete(key);
    }
  }
}
