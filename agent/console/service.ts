/**
 * Consoles as one part of a node: serial lines in; commands, published state, telemetry and attached people out.
 */
import type { Hal, OutletId } from "../../hal/ports.ts";
import type { Caller, Command } from "../commands.ts";
import type { Config } from "../config.ts";
import type { Log } from "../log.ts";
import type { Lock, Publish, RaiseAlarm, Tell } from "../messages.ts";
import type { Part } from "../parts.ts";
import type { Channel } from "./channel.ts";
import type { Console } from "./port.ts";

/** What the consoles need to know of power: injected, so that neither imports the other. */
export interface OutletView {
  lockOf(outlet: OutletId): Lock | undefined;
  /** Calls back when something happens to an outlet, in words for a mark: `off by alice (kernel test)`. */
  onChange(happened: (outlet: OutletId, what: string) => void): void;
}

/** What the service is made of. */
export interface ConsoleOptions {
  config: Config["consoles"];
  hal: Pick<Hal, "openLine">;
  outlets: OutletView;
  publish: Publish;
  alarm: RaiseAlarm;
  tell: Tell;
  /** Interval of `tele/console`; 0 turns it off. */
  teleSeconds: number;
  /** The kernel's own consoles (`console=` of its command line, as /dev names): never opened. */
  kernelConsoles: readonly string[];
  clock: () => { synced: boolean };
  log: Log;
}

/** The other end of an MQTT console session: how the service asks for a channel when `console.open` came with a key. */
export type OpenSealed = (opening: {
  /** Session id. */
  session: string;
  /** The person's ephemeral X25519 key, base64, as signed in the command. */
  key: string;
  /** Id of the signed command that it stands in. */
  id: string;
  caller: Caller;
}) => { channel: Channel /** For the command's result. */; answer: Record<string, string> };

/** Consoles as the agent sees them. */
export interface ConsoleService {
  part: Part;
  commands: Command[];
  consoles: ReadonlyMap<string, Console>;
  /** A session that `console.open` promised over the socket begins; false when nobody promised it. */
  claim(session: string, channel: Channel): boolean;
  /** Says how sessions over MQTT are made; without it `console.open` with a key is refused. */
  useSealed(open: OpenSealed): void;
  /** Times that a line went away since the start. */
  errors(): number;
}

/** Makes the service. Lines are opened when its part runs. */
export function createConsoleService(_options: ConsoleOptions): ConsoleService {
  return {
    part: async () => undefined,
    commands: [],
    consoles: new Map(),
    claim: () => false,
    useSealed: () => undefined,
    errors: () => 0,
  };
}
