import { argv, env, stderr, stdin, stdout } from "node:process";
import { run } from "./cli.ts";
import { openKeyboard } from "./keyboard.ts";

/** What is left of the two seconds that stopping may take. */
const LAST_MS = 200;

const stop = new AbortController();
for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(name, () => stop.abort());
// Nobody reads any more what was asked for
stdout.on("error", () => stop.abort());

process.exitCode = await run(argv.slice(2), {
  out: (text) => void stdout.write(text),
  err: (text) => void stderr.write(text),
  env,
  isTerminal: stdout.isTTY === true,
  stdin: async () => Buffer.concat(await stdin.toArray()),
  keyboard: openKeyboard(),
  signal: stop.signal,
});
leave();

/** Ends the process once its words are out, whatever a driver or a dead reader's pipe still keeps open; told to stop, at once. */
function leave(): void {
  setTimeout(() => {
    if (stop.signal.aborted || stdout.writableLength === 0) process.exit();
    else leave();
  }, LAST_MS).unref();
}
