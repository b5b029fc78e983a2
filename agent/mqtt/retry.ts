/**
 * What to do after a connection ended: how long to wait, which version of MQTT to try, whether somebody else uses
 * this node's identity. Pure: no timers, no sockets.
 *
 * - Waiting: full jitter below a ceiling that doubles from 1 s to the configured maximum, so that 800 nodes do not come
 *   back in the same second; from the start again after 60 s of good connection.
 * - Version: MQTT 5. A broker that says it does not speak it (0x84, or 1 from a 3.1.1 broker) gets 3.1.1 at once and for
 *   an hour. Some just close: after two such closes in a row one try is made with 3.1.1, and the hour starts if it works.
 *   (Not after one: a full or restarting MQTT 5 broker closes as well.)
 * - Clones: told "session taken over" (0x8E) twice within a minute. 3.1.1 has no such code and Mosquitto 2.0 does not
 *   send it: closed by the broker without a reason within 10 s of connecting, three times within a minute, is the
 *   suspicion there. From then on five minutes between tries, until a connection has lasted ten.
 */
import type { EndingKind } from "./connect.ts";

const FIRST_MS = 1_000;
const GOOD_MS = 60_000;
const BUSY_MS = 5_000;
const FALLBACK_MS = 3_600_000;
const CLONE_WINDOW_MS = 60_000;
const CLONE_WAIT_MS = 300_000;
const KICK_MS = 10_000;
/** A connection this long (ms) proves that no clone fights for the name. */
export const UNDISPUTED_MS = 600_000;

const UNSUPPORTED_VERSION = [0x84, 0x01];
const TAKEN_OVER = 0x8e;
/** Server unavailable, busy, quota exceeded, connection rate exceeded; 3 is 3.1.1's "server unavailable". */
const BUSY = [0x88, 0x89, 0x97, 0x9f, 0x03];

/** How a try ended. `livedMs` counts from CONNACK; undefined when there was none. */
export interface Ending {
  kind: EndingKind;
  reason: number | undefined;
  version: 5 | 4;
  livedMs: number | undefined;
}

/** The policy and its memory. `now` is monotonic, in milliseconds. */
export class Retry {
  readonly #maxMs: number;
  readonly #wanted: 5 | 4;
  readonly #now: () => number;
  readonly #random: () => number;
  #tries = 0;
  #closes = 0;
  #fallbackUntil = 0;
  #kicks: { at: number; weight: 2 | 3 }[] = [];
  #isCloned = false;

  constructor(options: { maxMs: number; version: 5 | 4; now: () => number; random: () => number }) {
    this.#maxMs = options.maxMs;
    this.#wanted = options.version;
    this.#now = options.now;
    this.#random = options.random;
  }

  /** The version to try now. */
  get version(): 5 | 4 {
    if (this.#wanted === 4 || this.#now() < this.#fallbackUntil) return 4;
    return this.#closes === 2 ? 4 : 5;
  }

  /** Takes note of how it ended and says how long to wait before the next try. */
  next(ending: Ending): { waitMs: number; isCloned: boolean } {
    const fellBack = this.#chooseVersion(ending);
    this.#suspect(ending);
    if ((ending.livedMs ?? 0) >= GOOD_MS) this.#tries = 0;
    if (fellBack) return { waitMs: 0, isCloned: false };
    const ceiling = Math.min(this.#maxMs, FIRST_MS * 2 ** Math.min(this.#tries, 30));
    this.#tries += 1;
    const jittered = this.#random() * ceiling;
    if (this.#isCloned) return { waitMs: CLONE_WAIT_MS + jittered, isCloned: true };
    const isBusy = ending.kind === "refused" && BUSY.includes(ending.reason ?? 0);
    return { waitMs: isBusy ? Math.min(this.#maxMs, BUSY_MS + jittered) : jittered, isCloned: false };
  }

  /** True when the other version is worth trying at once. */
  #chooseVersion({ kind, reason, version, livedMs }: Ending): boolean {
    if (kind === "refused" && UNSUPPORTED_VERSION.includes(reason ?? 0)) {
      this.#closes = 0;
      this.#fallbackUntil = version === 5 ? this.#now() + FALLBACK_MS : 0;
      return version === 5;
    }
    if (livedMs !== undefined) {
      if (version === 4 && this.#closes === 2) this.#fallbackUntil = this.#now() + FALLBACK_MS;
      this.#closes = 0;
    } else if (kind === "closed") {
      this.#closes = (this.#closes + 1) % 3;
    }
    return false;
  }

  #suspect({ kind, reason, livedMs }: Ending): void {
    if (livedMs === undefined) return;
    if (livedMs >= UNDISPUTED_MS) this.#isCloned = false;
    const isTold = kind === "closed" && reason === TAKEN_OVER;
    const isKick = kind === "closed" && reason === undefined && livedMs <= KICK_MS;
    if (!isTold && !isKick) return;
    const since = this.#now() - CLONE_WINDOW_MS;
    // Being told weighs 3, being thrown out 2; 6 is enough.
    this.#kicks = [
      ...this.#kicks.filter(({ at }) => at >= since),
      { at: this.#now(), weight: isTold ? 3 : 2 },
    ];
    const weight = this.#kicks.reduce((sum, kick) => sum + kick.weight, 0);
    if (weight >= 6) this.#isCloned = true;
  }
}
