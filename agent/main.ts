import { argv, env, stderr, stdin, stdout } from "node:process";
import { run } from "./cli.ts";

/** What is left of the two seconds that stopping may take. */
const LAST_MS = 200;

const stop = new AbortController();
for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.once(name, () => stop.abort());

process.exitCode = await run(argv.slice(2), {
  out: (text) => void stdout.write(text),
  err: (text) => void stderr.write(text),
  env,
  isTerminal: stdout.isTTY === true,
  stdin: async () => Buffer.concat(await stdin.toArray()),
  signal: stop.signal,
});
// Told to stop, this process ends, whatever a driver or a socket still waits for.
if (stop.signal.aborted) setTimeout(() => process.exit(), LAST_MS).unref();
