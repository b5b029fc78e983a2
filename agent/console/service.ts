/**
 * Consoles as one part of a node: serial lines in; commands, published state, telemetry and attached people out.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { Hal, OutletId } from "../../hal/ports.ts";
import type { Caller, Command } from "../commands.ts";
import type { Config } from "../config.ts";
import type { Log } from "../log.ts";
import type { Lock, Publish, RaiseAlarm, Tell } from "../messages.ts";
import { type Part, together } from "../parts.ts";
import type { AuditEntry } from "../record/audit.ts";
import { payloadOf } from "../telemetry/formats.ts";
import type { Channel } from "./channel.ts";
import { consoleCommands } from "./commands.ts";
import { SerialConsole } from "./console.ts";
import { openListeners } from "./listen.ts";
import { Openings } from "./openings.ts";
import type { Console } from "./port.ts";

/** What the consoles need to know of power: injected, so that neither imports the other. */
export interface OutletView {
  lockOf(outlet: OutletId): Lock | undefined;
  /** Calls back when something happens to an outlet. */
  onChange(happened: (outlet: OutletId, change: OutletChange) => void): void;
}

/** Something that happened to an outlet. */
export interface OutletChange {
  kind: "power" | "lock";
  /** In words for a mark: `off by alice (kernel test)`. */
  what: string;
  /** Whose lock was taken away. */
  lost?: string;
}

/** What the service is made of. */
export interface ConsoleOptions {
  config: Config["consoles"];
  hal: Pick<Hal, "openLine">;
  outlets: OutletView;
  publish: Publish;
  alarm: RaiseAlarm;
  tell: Tell;
  /** Puts on record who was attached and who sent a break; never what was typed. */
  audit: (entry: AuditEntry) => void;
  /** Interval of `tele/console`; 0 turns it off. */
  teleSeconds: number;
  /** The kernel's own consoles (`console=` of its command line, as /dev names): never opened. */
  kernelConsoles: readonly string[];
  clock: () => { synced: boolean };
  random?: () => number;
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
  /** Behind the line: what the key must be allowed. */
  outlet: OutletId | undefined;
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
export function createConsoleService(options: ConsoleOptions): ConsoleService {
  const consoles = new Map(
    Object.entries(options.config).map(([name, config]) => [name, new SerialConsole(name, config, options)]),
  );
  const all = [...consoles.values()];
  options.outlets.onChange((outlet, change) => {
    for (const console of all) if (console.outlet === outlet) console.outletChanged(change);
  });
  const openings = new Openings();
  return {
    part: (signal) =>
      together(
        [
          ...all.map(
            (console): Part =>
              (stop) =>
                console.part(stop),
          ),
          openListeners({ consoles, config: options.config, alarm: options.alarm, log: options.log }),
          telemetry(all, options),
        ],
        signal,
      ),
    commands: consoleCommands(consoles, openings),
    consoles,
    claim: (session, channel) => openings.claim(session, channel),
    useSealed: (open) => openings.useSealed(open),
    errors: () => all.reduce((sum, { losses }) => sum + losses, 0),
  };
}

/** Publishes the numbers of every line at its interval. */
function telemetry(consoles: readonly SerialConsole[], options: ConsoleOptions): Part {
  const { teleSeconds, publish, clock, random = Math.random } = options;
  return async (signal) => {
    if (teleSeconds === 0 || consoles.length === 0) return;
    // Nodes that were switched on together shall not stay in step.
    let pauseMs = teleSeconds * 1000 * random();
    while (!signal.aborted) {
      await sleep(pauseMs, undefined, { signal }).catch(() => undefined);
      if (signal.aborted) return;
      const ts = clock().synced ? Math.floor(Date.now() / 1000) : undefined;
      for (const { name, numbers } of consoles) publish("tele/console", name, payloadOf(numbers, ts));
      pauseMs = teleSeconds * 1000;
    }
  };
}
