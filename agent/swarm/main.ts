/** `fruit swarm`: the child process that talks to peers, so that the agent, which may write slots, never does. */
import process, { argv, env, execPath, getuid } from "node:process";
import { parseArgs } from "node:util";
import { diesWithParent, keepOpen, lowerPrivileges, startAnew } from "../../hal/native/privileges.ts";
import { program } from "../program.ts";
import { type CliVerb, EXIT, type Exit, keyboardOf, UsageError } from "../terminal.ts";
import { serveAgent } from "./child.ts";

type Context = Parameters<CliVerb["run"]>[0];

/** Files and sockets that it may have open: connections, and a few of its own. */
const FILES = 512;
/** The first of those that it was given by whoever started it. */
const FIRST_FILE = 3;
/** Marks the second start, in which every thread is without privileges. */
const LOWERED = "FRUIT_SWARM";

/** The verbs of the swarm; none is for people. */
export const SWARM_VERBS: readonly CliVerb[] = [
  {
    words: "swarm",
    synopsis: "--user UID [--files N]",
    summary: "internal: exchanges payloads with peers for the process that started it",
    needsAgent: false,
    isInternal: true,
    run: swarm,
  },
];

async function swarm({ args, io }: Context): Promise<Exit> {
  const { values } = parseArgs({
    args,
    options: { user: { type: "string", default: "65534" }, files: { type: "string", default: "0" } },
  });
  const user = Number(values.user);
  if (!Number.isInteger(user) || user < 1 || user > 0xffff_fffe)
    throw new UsageError(`--user: "${values.user}" is no user a child may have`);
  if (io.isTerminal) throw new UsageError("it talks to the agent, not to people");
  if (env[LOWERED] !== "1") {
    lowerPrivileges({ user, files: FILES });
    keepOpen(Array.from({ length: Number(values.files) }, (_, index) => FIRST_FILE + index));
    startAnew([execPath, ...program(), ...argv.slice(2)], { ...env, [LOWERED]: "1" });
  }
  const parent = process.ppid;
  diesWithParent();
  // It may have died before the kernel was asked to tell
  if (process.ppid !== parent) process.kill(process.pid, "SIGKILL");
  const keyboard = keyboardOf(io);
  await serveAgent({
    input: keyboard.read(io.signal),
    write: (bytes) => keyboard.show(bytes),
    user: getuid?.() ?? 0,
    signal: io.signal,
  });
  return EXIT.done;
}
