/** How long silence may last, milliseconds. */
export interface PulseLimits {
  /** Without any frame from the other side. */
  idleMs: number;
  /** Without the first one. */
  openMs: number;
  /** Whoever said nothing for so long gives a sign of life. */
  signMs: number;
}

/** Notices that the other side of a session is gone, and lets it notice that this one is not. */
export class Pulse {
  readonly #limits: PulseLimits;
  readonly #sign: () => void;
  readonly #silent: (seconds: number) => void;
  readonly #openedAt = performance.now();
  #saidAt = this.#openedAt;
  #heardAt: number | undefined;
  #timer: NodeJS.Timeout | undefined;

  /** `sign` is called when it is time for one, until something was said; `silent` once. */
  constructor(limits: PulseLimits, sign: () => void, silent: (seconds: number) => void) {
    this.#limits = limits;
    this.#sign = sign;
    this.#silent = silent;
    this.#look();
  }

  heard(): void {
    this.#heardAt = performance.now();
  }

  said(): void {
    this.#saidAt = performance.now();
  }

  stop(): void {
    clearTimeout(this.#timer);
  }

  #look(): void {
    const { idleMs, openMs, signMs } = this.#limits;
    const now = performance.now();
    const limitMs = this.#heardAt === undefined ? openMs : idleMs;
    const leftMs = (this.#heardAt ?? this.#openedAt) + limitMs - now;
    if (leftMs <= 0) {
      this.#silent(limitMs / 1000);
      return;
    }
    this.#timer = setTimeout(() => this.#look(), Math.min(Math.ceil(leftMs), signMs / 4));
    if (now - this.#saidAt >= signMs) this.#sign();
  }
}
