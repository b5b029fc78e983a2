/** Who is kept away, and for how long: longer each time, forgotten after a day. */

const FIRST_SECONDS = 600;
const LONGEST_SECONDS = 86_400;
/** Most names remembered; the oldest goes first. */
const MAX_REMEMBERED = 512;

interface Ban {
  times: number;
  /** Milliseconds on the steady clock. */
  until: number;
}

/** `::ffff:192.0.2.1`, as a socket for both families calls it, is `192.0.2.1`. */
export const plainIp = (ip: string) => ip.replace(/^::ffff:(?=\d+\.)/i, "");

/** `192.0.2.1:6881` or `[2001:db8::1]:6881`. */
export function addressOf(ip: string, port: number): string {
  const plain = plainIp(ip);
  return plain.includes(":") ? `[${plain}]:${port}` : `${plain}:${port}`;
}

/** The address a limit counts: IPv4 as it is, IPv6 by its /64, which one subscriber has whole. */
export function household(ip: string): string {
  const plain = plainIp(ip).split("%")[0] ?? "";
  if (!plain.includes(":")) return plain;
  const [head = "", tail] = plain.toLowerCase().split("::");
  const groups = (text: string) => (text === "" ? [] : text.split(":"));
  const [first, last] = [groups(head), groups(tail ?? "")];
  const zeros = tail === undefined ? 0 : Math.max(0, 8 - first.length - last.length);
  const all = [...first, ...Array<string>(zeros).fill("0"), ...last];
  return `${all
    .slice(0, 4)
    .map((group) => group.replace(/^0+(?=.)/, ""))
    .join(":")}::/64`;
}

/** Bans by address and by peer id. */
export class Bans {
  readonly #bans = new Map<string, Ban>();
  readonly #now: () => number;

  /** `now`: milliseconds that never go back. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** Keeps an address and a peer id away: 10 minutes, doubled each time. Returns the seconds. */
  ban(ip: string, id: string | null): number {
    const names = id === null ? [household(ip)] : [household(ip), id];
    return Math.max(...names.map((name) => this.#extend(name)));
  }

  isBanned(ip: string, id: string | null = null): boolean {
    return [household(ip), id].some(
      (name) => name !== null && (this.#bans.get(name)?.until ?? 0) > this.#now(),
    );
  }

  #extend(name: string): number {
    const now = this.#now();
    const known = this.#bans.get(name);
    const isForgotten = known === undefined || known.until + LONGEST_SECONDS * 1000 < now;
    const times = isForgotten ? 1 : known.times + 1;
    const seconds = Math.min(FIRST_SECONDS * 2 ** (times - 1), LONGEST_SECONDS);
    this.#bans.delete(name);
    this.#bans.set(name, { times, until: now + seconds * 1000 });
    for (const oldest of this.#bans.keys()) {
      if (this.#bans.size <= MAX_REMEMBERED) break;
      this.#bans.delete(oldest);
    }
    return seconds;
  }
}
