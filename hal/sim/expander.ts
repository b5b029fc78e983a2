/**
 * The stack seen through a Cluster HAT: the expander's pins 0 to 3 switch the stack's first four outlets in rack order,
 * pin 6 all boards' LEDs. The registers are those of `clusterhat.ts`. It starts as `clusterctrl` has set it up, with
 * outputs that match the supplies. Not modelled: the reset of the expander; the hub, the LEDs' supply, the EEPROM.
 */
import type { I2cDevice } from "./i2c.ts";
import type { SimStack } from "./stack.ts";

const REGISTER = { in: 0x00, out: 0x01, direction: 0x03 };
const PIS = 4;
const ALERT = 1 << 6;
/** LEDs' supply and EEPROM's write protection. */
const SET_UP = (1 << 4) | (1 << 7);

/** The expander's registers, and the supplies that its pins switch. */
export class ExpanderDevice implements I2cDevice {
  readonly boards: readonly number[];
  readonly #stack: SimStack;
  readonly #wired: SimStack["outlets"];
  #out: number;
  /** A bit that is 1 is an input. */
  #direction = 0x00;

  constructor(stack: SimStack) {
    this.boards = stack.boards;
    this.#stack = stack;
    this.#wired = stack.outlets.slice(0, PIS);
    this.#out = SET_UP | this.#supplies();
  }

  /** An error reply is not in an expander's power: it does nothing, and its registers show it. */
  write(register: number, value: number): void {
    if (this.boards.some((board) => this.#stack.faults.board("error-reply", board))) return;
    if (register === REGISTER.out) this.#out = value;
    if (register === REGISTER.direction) this.#direction = value;
    this.#drive();
  }

  read(register: number, length: number): Uint8Array {
    const bank = new Uint8Array(256);
    const undriven = ~(2 ** this.#wired.length - 1);
    bank[REGISTER.in] = this.#supplies() | (this.#out & undriven);
    bank[REGISTER.out] = this.#out;
    bank[REGISTER.direction] = this.#direction;
    return Uint8Array.from({ length }, (_, i) => bank[register + i] ?? 0);
  }

  #supplies(): number {
    return this.#wired.reduce(
      (bits, outlet, pin) => bits | (Number(this.#stack.pi(outlet).supply) << pin),
      0,
    );
  }

  /** What the outputs say, for every pin that is one. */
  #drive(): void {
    const isOutput = (pin: number) => (this.#direction & pin) === 0;
    for (const [index, outlet] of this.#wired.entries()) {
      const pin = 1 << index;
      const isHigh = (this.#out & pin) !== 0;
      if (!isOutput(pin) || isHigh === this.#stack.pi(outlet).supply) continue;
      if (isHigh) this.#stack.on(outlet);
      else this.#stack.cut(outlet);
    }
    if (!isOutput(ALERT)) return;
    for (const board of this.boards) this.#stack.setLeds(board, (this.#out & ALERT) !== 0);
  }
}
