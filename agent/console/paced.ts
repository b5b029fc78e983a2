/** Changes that are closer together than this are said as one. */
const SAY_MS = 1000;

/** Says a state when it has changed: at once after a pause, else when a second has passed since it was said last. */
export class Paced<State> {
  readonly #state: () => State;
  readonly #say: (state: State) => void;
  #said = "";
  #pause: NodeJS.Timeout | undefined;
  #isOver = false;

  constructor(state: () => State, say: (state: State) => void) {
    this.#state = state;
    this.#say = say;
  }

  /** It may have changed. */
  changed(): void {
    if (!this.#pause && !this.#isOver) this.#look();
  }

  /** Says the last of it, and nothing more. */
  close(): void {
    this.#isOver = true;
    clearTimeout(this.#pause);
    this.#look();
  }

  #look(): void {
    const state = this.#state();
    const said = JSON.stringify(state);
    if (said === this.#said) return;
    this.#said = said;
    this.#say(state);
    if (this.#isOver) return;
    this.#pause = setTimeout(() => {
      this.#pause = undefined;
      this.#look();
    }, SAY_MS).unref();
  }
}
