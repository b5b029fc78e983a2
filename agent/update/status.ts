/** `fruit update status`: the install that runs, or what came of the last. */
import { SLOTS } from "../../boot/layout.ts";
import type { OpenCard } from "../boot/card.ts";
import { readInstalling } from "../boot/updates.ts";
import { counted, type Io, lasting, table } from "../terminal.ts";
import { megabytes } from "./running.ts";

/** Prints it. */
export async function showStatus(
  { boot }: Pick<OpenCard, "boot">,
  runDir: string,
  io: Pick<Io, "out">,
  json: boolean,
): Promise<void> {
  const installing = await readInstalling(runDir);
  const record = await boot.read();
  const slots = SLOTS.map((slot) => {
    const { state, version, hash } = record.slots[slot];
    return { slot, state, version: String(version), hash, runs: slot === boot.current };
  });
  if (json) {
    io.out(`${JSON.stringify({ schema: "fruit.update-status/1", installing: installing ?? null, slots })}\n`);
    return;
  }
  if (installing) {
    const { phase, version, bytes_done = 0, bytes_total = 0, rate, eta_s, pid } = installing;
    const pace = rate ? `, ${megabytes(rate)} MB/s` : "";
    const left = eta_s ? `, ${lasting(eta_s)} left` : "";
    io.out(
      `${version === undefined ? "a release" : `version ${version}`}: ${phase}, ${megabytes(bytes_done)} of ${megabytes(bytes_total)} MB${pace}${left} (process ${pid})\n`,
    );
    const { peers, bytes_from_slots = 0, bytes_from_peers = 0, bytes_from_web = 0 } = installing;
    if (peers !== undefined)
      io.out(
        `${megabytes(bytes_from_slots)} MB from the slots, ${megabytes(bytes_from_peers)} MB from ${counted(peers, "peer")}, ${megabytes(bytes_from_web)} MB from web seeds\n`,
      );
  } else io.out("no install is running\n");
  io.out(
    table([
      ["SLOT", "STATE", "VERSION", "HASH"],
      ...slots.map(({ slot, state, version, hash, runs }) => [
        `${slot}${runs ? " (runs)" : ""}`,
        state,
        version === "0" ? "-" : version,
        /^0+$/.test(hash) ? "-" : hash,
      ]),
    ]),
  );
  if (!installing && slots.some(({ state }) => state === "writing"))
    io.out("an install was interrupted; the same `fruit update install` goes on where it was\n");
  if (slots.some(({ state }) => state === "staged")) io.out("`fruit boot try` starts what is staged\n");
}
