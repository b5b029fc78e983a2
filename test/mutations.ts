/** What happens to bytes on the way of a fuzzer: cut, doubled, flipped, moved, and pieces of others put in. */

/** Bytes with one to four changes; `others` is what is put into them. */
export function mutated(
  bytes: Uint8Array,
  random: () => number,
  others: readonly Uint8Array[] = [],
): Uint8Array<ArrayBuffer> {
  const below = (n: number) => Math.floor(random() * n);
  let all: Uint8Array<ArrayBuffer> = Uint8Array.from(bytes);
  for (let changes = 1 + below(4); changes > 0; changes--) {
    const [at, length] = [below(all.length + 1), below(8)];
    const [before, rest] = [all.subarray(0, at), all.subarray(at)];
    const other = others[below(others.length)] ?? Uint8Array.of(below(256));
    const ways: (() => Uint8Array)[] = [
      () => Uint8Array.from(all, (byte, i) => (i === at ? byte ^ (1 << below(8)) : byte)),
      () => Uint8Array.from(all, (byte, i) => (i === at ? below(256) : byte)),
      () => joined(before, rest.subarray(length)),
      () => joined(before, rest.subarray(0, length), rest),
      () => joined(before, other, rest),
      () => before,
    ];
    all = Uint8Array.from(ways[below(ways.length)]?.() ?? all);
  }
  return all;
}

const joined = (...parts: Uint8Array[]) => Buffer.concat(parts);
