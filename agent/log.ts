/** `debug` may be loud; `info` is what an operator wants in a quiet week; `error` needs a person. */
export type Level = "debug" | "info" | "warn" | "error";

/** Writes one fact. `what` is a searchable name (`mqtt.connected`), never a sentence; secrets never. */
export type Log = (level: Level, what: string, fields?: Record<string, unknown>) => void;

const ORDER: Level[] = ["debug", "info", "warn", "error"];

/** One JSON object a line, from `least` upwards. */
export function jsonLog(write: (line: string) => void, least: Level): Log {
  return (level, what, fields) => {
    if (ORDER.indexOf(level) < ORDER.indexOf(least)) return;
    write(`${JSON.stringify({ ts: new Date().toISOString(), level, what, ...fields })}\n`);
  };
}
