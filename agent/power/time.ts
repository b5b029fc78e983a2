/** A clock that is steered moves by less than this between two looks; more means that it was set. */
const STEERED_MS = 1000;

/**
 * Time as the rules reckon it. A Pi has no clock of its own: its first answer from NTP may move it by years, and that must end no
 * lock and shorten no wait. So a moment is a number of milliseconds that only ever pass; it is told and kept as Unix time.
 */
export class Time {
  readonly #wall: () => number;
  readonly #elapsed: () => number;
  readonly #zero: number;
  #shift = 0;

  constructor(wall: () => number = Date.now, elapsed: () => number = () => performance.now()) {
    this.#wall = wall;
    this.#elapsed = elapsed;
    this.#zero = wall() - elapsed();
  }

  /** This moment. Moments begin as Unix milliseconds, which is how they compare with what an earlier process kept. */
  now(): number {
    return Math.round(this.#zero + this.#elapsed());
  }

  /** The Unix milliseconds of a moment, by what the clock says now. */
  unix(moment: number): number {
    const shift = Math.round(this.#wall() - this.now());
    if (Math.abs(shift - this.#shift) > STEERED_MS) this.#shift = shift;
    return moment + this.#shift;
  }

  /** The same in the form in which it is published. */
  iso(moment: number): string {
    return new Date(this.unix(moment)).toISOString();
  }
}
