/** What can be said of slots while no agent runs: on a rescue system, or on the day the agent is dead. Nothing is changed. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { otherSlot } from "../../boot/layout.ts";
import type { Hal } from "../../hal/ports.ts";
import { CONFIG_PATH, type Config, parseConfig, readConfig } from "../config.ts";
import { openHardware } from "../hardware.ts";
import { CliError, EXIT, type Io } from "../terminal.ts";
import { type HistoryLine, readHistory } from "./history.ts";
import { slotsData } from "./kernel.ts";
import { type NodeCard, openNodeCard } from "./open.ts";
import { heldAgainst } from "./quarantine.ts";
import { startsIn } from "./starts.ts";
import { type BootStatus, statusOf } from "./status.ts";

/** What was found. */
export interface Found {
  status: BootStatus;
  lines: HistoryLine[];
  /** What is wrong with the history. */
  problems: string[];
}

/** The configuration, or defaults where there is no file: a rescue has none. */
export function configOf(io: Io): Config {
  const file = io.env.FRUIT_CONFIG ?? CONFIG_PATH;
  return existsSync(file) ? readConfig(file) : parseConfig("defaults", { site: "none" });
}

/** Opens the card without the agent and hands it over. Throws `CliError` hardware where there is none of ours. */
export async function withCard<T>(
  io: Io,
  disk: string | undefined,
  use: (card: NodeCard, config: Config, hal: Hal) => Promise<T>,
): Promise<T> {
  const config = configOf(io);
  const hal = await openHardware(undefined, io.env, config);
  try {
    const card = await openNodeCard(hal, disk ?? config.boot.disk, "read").catch((error) => {
      throw new CliError(EXIT.hardware, error instanceof Error ? error.message : String(error), {
        cause: error,
      });
    });
    if (!card)
      throw new CliError(
        EXIT.hardware,
        "this machine does not run from a card with slots; name one with --disk",
      );
    try {
      return await use(card, config, hal);
    } finally {
      await card.disk.close();
    }
  } finally {
    await hal.close();
  }
}

/** Status and history, from the card and the data folder. */
export function lookOffline(io: Io, disk: string | undefined, last: number): Promise<Found> {
  return withCard(io, disk, async ({ boot, disk: device }, { data_dir, boot: { loop_starts } }, hal) => {
    const dataDir = slotsData(hal.machine, data_dir);
    const dir = join(dataDir, "boot");
    const record = await boot.read();
    const { lines, problems } = await readHistory(dir, last);
    const slot = boot.current ?? record.primary;
    const starts = (await startsIn(dir, slot)).length;
    const other = record.slots[otherSlot(slot)];
    const status = statusOf({
      kind: boot.kind,
      disk: device.name,
      current: boot.current,
      record,
      last: lines.at(-1),
      loop: starts >= loop_starts ? starts : undefined,
      against: await heldAgainst(dataDir, other.hash),
    });
    return { status, lines, problems };
  });
}
