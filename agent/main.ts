import { argv, env, stderr, stdin, stdout } from "node:process";
import { run } from "./cli.ts";
import { openKeyboard } from "./keyboard.ts";
import { Output } from "./output.ts";

/** What is left of the two seconds that stopping may take. */
const LAST_MS = 200;

/** Those that would end the process on the spot, with a terminal still raw. SIGPWR is not among them: JavaScriptCore uses it. */
const STOPPING = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM"] as const;

const stop = new AbortController();
for (const name of STOPPING) process.on(name, () => stop.abort());
// Nobody reads any more what was asked for
stdout.on("error", () => stop.abort());
const output = new Output(() => stop.abort());

process.exitCode = await run(argv.slice(2), {
  out: (text) => say(stdout, text),
  err: (text) => say(stderr, text),
  env,
  isTerminal: stdout.isTTY === true,
  stdin: async () => Buffer.concat(await stdin.toArray()),
  keyboard: openKeyboard(output),
  signal: stop.signal,
});
leave();

/** Keeps its place behind what a conversation has shown on the terminal. */
function say(stream: typeof stdout | typeof stderr, text: string): void {
  if (output.isUsed && stream.isTTY) void output.write(stream.fd, Buffer.from(text)).catch(() => undefined);
  else stream.write(text);
}

/** Ends the process once its words are out, whatever a driver or a dead reader's pipe still keeps open; told to stop, at once. */
function leave(): void {
  setTimeout(() => {
    if (stop.signal.aborted || (stdout.writableLength === 0 && output.isEmpty)) process.exit();
    else leave();
  }, LAST_MS).unref();
}
