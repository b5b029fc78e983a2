import { WireError } from "./wire.ts";

/**
 * A moment as ssh-keygen(1) writes it, Unix seconds: `YYYYMMDD`, `YYYYMMDDHHMM` or `YYYYMMDDHHMMSS`, in UTC with a `Z`
 * behind, else in this machine's time zone. Throws `WireError` for a day or hour that does not exist.
 */
export function parseTime(what: string, text: string): number {
  const match = /^(\d{4})(\d{2})(\d{2})(?:(\d{2})(\d{2})(\d{2})?)?(Z)?$/i.exec(text);
  if (!match)
    throw new WireError(`${what}: "${text.slice(0, 40)}" is not YYYYMMDD[HHMM[SS]], with Z for UTC`);
  const [year = 0, month = 0, day = 0, hour = 0, minute = 0, second = 0] = match
    .slice(1, 7)
    .map((digits) => Number(digits ?? 0));
  const utc = new Date(Date.UTC(year, month - 1, day, hour, minute, second));
  // Date moves 31 February to March; a deadline must not move by itself
  const written = `${text.slice(0, 8)}${[hour, minute, second].map((n) => String(n).padStart(2, "0")).join("")}`;
  if (utc.toISOString().replace(/\D/g, "").slice(0, 14) !== written)
    throw new WireError(`${what}: ${text} does not exist`);
  const moment = match[7] ? utc : new Date(year, month - 1, day, hour, minute, second);
  return moment.getTime() / 1000;
}
