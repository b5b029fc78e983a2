/**
 * The electricity of a stack: one 12 V supply, on every board a converter to 5 V, behind it a switch per Pi.
 * Plausible numbers of ours; no schematic is published.
 */

/** The supply with nothing connected, and its resistance with the wires: what makes it sag. */
const OPEN_VOLTS = 12.1;
export const SOURCE_OHMS = 0.12;

/** The 5 V converter: what it makes, its resistance, its efficiency, and what the board itself draws at 5 V. */
const RAIL_VOLTS = 5.15;
const RAIL_OHMS = 0.02;
const EFFICIENCY = 0.9;
const BOARD_AMPERES = 0.03;

/** Switch and 0.05 Ω shunt between the 5 V rail and a Pi. */
const OUTLET_OHMS = 0.08;

/** What one board measures. */
export interface BoardPower {
  inputAmperes: number;
  inputWatts: number;
  railVolts: number;
  /** Volts that a Pi which draws so many amperes gets. */
  piVolts: (amperes: number) => number;
}

/** Voltages and currents of all boards, from what their Pis draw in amperes; the boards share the supply's sag. */
export function electricity(
  drawn: readonly (readonly number[])[],
  sourceOhms: number,
): { inputVolts: number; boards: BoardPower[] } {
  const boards = drawn.map((pis) => {
    const railAmperes = pis.reduce((sum, pi) => sum + pi, BOARD_AMPERES);
    const railVolts = RAIL_VOLTS - RAIL_OHMS * railAmperes;
    return { railVolts, inputWatts: (railVolts * railAmperes) / EFFICIENCY };
  });
  const watts = boards.reduce((sum, board) => sum + board.inputWatts, 0);
  // A converter draws constant power: V (V0 - V) / R = P, and past V0 / 2 the supply cannot give more.
  const inputVolts = (OPEN_VOLTS + Math.sqrt(Math.max(0, OPEN_VOLTS ** 2 - 4 * sourceOhms * watts))) / 2;
  return {
    inputVolts,
    boards: boards.map(({ railVolts, inputWatts }) => ({
      inputAmperes: inputWatts / inputVolts,
      inputWatts,
      railVolts,
      piVolts: (amperes) => railVolts - OUTLET_OHMS * amperes,
    })),
  };
}
