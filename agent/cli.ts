/**
 * The program: arguments and streams in, exit code out. Verbs are loaded when asked for, so that `fruit version`
 * does not pay for MQTT.
 */
import { CliError, type CliVerb, EXIT, type Exit, type Io, UsageError } from "./terminal.ts";

/** First word of a verb → the modules that have it; others of theirs are left out. Add a verb: a `CliVerb` in its capability's `cli.ts`. */
const VERBS: Record<string, () => Promise<readonly CliVerb[]>> = {
  agent: async () => (await import("./run.ts")).AGENT_VERBS,
  demo: async () => (await import("./demo/cli.ts")).DEMO_VERBS,
  power: async () => (await import("./power/cli.ts")).POWER_VERBS,
  lock: async () => (await import("./power/cli.ts")).POWER_VERBS,
  unlock: async () => (await import("./power/cli.ts")).POWER_VERBS,
  locks: async () => (await import("./power/cli.ts")).POWER_VERBS,
  console: async () => [
    ...(await import("./console/cli.ts")).CONSOLE_VERBS,
    ...(await import("./nodekey.ts")).NODE_KEY_VERBS,
  ],
  gpio: async () => (await import("./gpio/cli.ts")).GPIO_VERBS,
  i2c: async () => (await import("./i2c/cli.ts")).I2C_VERBS,
  stack: async () => (await import("./stack/cli.ts")).STACK_VERBS,
  boot: async () => (await import("./boot/cli.ts")).BOOT_VERBS,
  update: async () => (await import("./update/cli.ts")).UPDATE_VERBS,
  swarm: async () => (await import("./swarm/main.ts")).SWARM_VERBS,
  telemetry: async () => [
    ...(await import("./telemetry/cli.ts")).TELEMETRY_VERBS,
    ...(await import("./node.ts")).NODE_VERBS,
  ],
  identify: async () => (await import("./node.ts")).NODE_VERBS,
  job: async () => (await import("./node.ts")).NODE_VERBS,
  mqtt: async () => (await import("./mqtt/cli.ts")).MQTT_VERBS,
  sign: async () => (await import("./sign/cli.ts")).SIGN_VERBS,
  verify: async () => (await import("./sign/cli.ts")).SIGN_VERBS,
  release: async () => (await import("./release/cli.ts")).RELEASE_VERBS,
  audit: async () => (await import("./record/cli.ts")).AUDIT_VERBS,
  config: async () => (await import("./run.ts")).AGENT_VERBS,
  doctor: async () => (await import("./doctor/cli.ts")).DOCTOR_VERBS,
  version: async () => (await import("./version.ts")).VERSION_VERBS,
};

/** Runs one command line to its exit code. Never throws: what went wrong stands on `io.err` in one line. */
export async function run(args: string[], io: Io): Promise<Exit> {
  const json = args.includes("--json");
  try {
    return await dispatch(
      args.filter((word) => word !== "--json"),
      io,
      json,
    );
  } catch (error) {
    return explain(error, io);
  }
}

async function dispatch(args: string[], io: Io, json: boolean): Promise<Exit> {
  const [first] = args;
  if (first === undefined) {
    io.err(await overview());
    return EXIT.usage;
  }
  if (first === "help" || first === "--help" || first === "-h") {
    io.out(await overview());
    return EXIT.done;
  }
  if (first === "--version") return dispatch(["version"], io, json);
  const { verb, family } = await findVerb(args);
  // A verb of one word may have others behind it
  const shown = verb && verb.words !== first ? [verb] : family;
  if (args.includes("--help") || args.includes("-h")) {
    io.out(shown.map(usage).join(""));
    return EXIT.done;
  }
  if (!verb)
    throw new UsageError(
      `${args.slice(0, 2).join(" ")}: there are ${family.map((row) => `"${row.words}"`).join(", ")}`,
    );
  return runVerb(verb, args.slice(verb.words.split(" ").length), io, json);
}

/** The verb the words name, and all that begin with the same word. */
async function findVerb(args: string[]): Promise<{ verb: CliVerb | undefined; family: readonly CliVerb[] }> {
  const [first = "", second] = args;
  const family = await familyOf(first);
  const verb =
    family.find((row) => row.words === `${first} ${second}`) ?? family.find((row) => row.words === first);
  return { verb, family };
}

/** All verbs that begin with a word. */
async function familyOf(first: string): Promise<readonly CliVerb[]> {
  const load = Object.hasOwn(VERBS, first) ? VERBS[first] : undefined;
  if (!load) throw new UsageError(`no verb "${first}"; there are ${Object.keys(VERBS).join(", ")}`);
  return (await load()).filter((row) => row.words.split(" ")[0] === first);
}

async function runVerb(verb: CliVerb, args: string[], io: Io, json: boolean): Promise<Exit> {
  try {
    if (!verb.needsAgent) return await verb.run({ args, io, json, send: noDoor, attach: noDoor });
    const { openDoor } = await import("./doors.ts");
    await using door = await openDoor(args, io);
    return await verb.run({ args: door.args, io, json, send: door.send, attach: door.attach });
  } catch (error) {
    const problem = usageProblem(error);
    if (problem === undefined) throw error;
    throw new UsageError(`${verb.words}: ${problem}\n${usage(verb).trimEnd()}`);
  }
}

const noDoor = () => Promise.reject(new Error("this verb works without the agent"));

/** What is wrong with the words: as our own usage errors say it, or those of `util.parseArgs` in fewer words; undefined when something else is. */
function usageProblem(error: unknown): string | undefined {
  if (error instanceof UsageError) return error.message;
  const { code, message } = error as NodeJS.ErrnoException;
  if (typeof code !== "string" || !code.startsWith("ERR_PARSE_ARGS")) return undefined;
  const [, named = ""] = /'(?:-\w, )?([^' ]*)/.exec(message) ?? [];
  const word = named.replace(/^--(?=\w$)/, "-");
  if (code === "ERR_PARSE_ARGS_UNKNOWN_OPTION") return `no option ${word}`;
  if (code === "ERR_PARSE_ARGS_UNEXPECTED_POSITIONAL") return `"${word}" is one word too many`;
  if (message.includes("does not take")) return `${word} takes no value`;
  return `${word} needs a value${message.includes("ambiguous") ? ` (one that begins with "-": ${word}=-…)` : ""}`;
}

function explain(error: unknown, io: Io): Exit {
  if (error instanceof UsageError) {
    io.err(`fruit: ${error.message}\n`);
    return EXIT.usage;
  }
  if (error instanceof CliError) {
    io.err(`fruit: ${error.message}\n`);
    return error.exit;
  }
  if (error instanceof Error && error.name === "ConfigError") {
    io.err(`fruit: ${error.message}\n`);
    return EXIT.config;
  }
  io.err(
    `fruit: ${error instanceof Error ? (io.env.FRUIT_DEBUG ? error.stack : error.message) : String(error)}\n`,
  );
  return EXIT.failed;
}

function usage(verb: CliVerb): string {
  const doors = verb.needsAgent ? " [door]" : "";
  return `usage: fruit ${verb.words}${verb.synopsis ? ` ${verb.synopsis}` : ""}${doors}\n       ${verb.summary}\n`;
}

async function overview(): Promise<string> {
  const families = await Promise.all(Object.keys(VERBS).map(familyOf));
  const shown = families.flat().filter(({ isInternal }) => !isInternal);
  const lines = shown.map(({ words, summary }) => `  ${words.padEnd(18)} ${summary}\n`);
  return `fruit: node software for stacks of Raspberry Pis

${lines.join("")}
Add --help to a verb for its words, --json for machines.
Doors: verbs that ask a running agent use its socket (--socket PATH, FRUIT_SOCKET), or go over MQTT with
  --broker URL --site S --node N [--key FILE] [--node-key FILE|SHA256:…] [--user NAME --password-file FILE] [--ca FILE --cert FILE --tls-key FILE]
  (each also FRUIT_BROKER, FRUIT_SITE, FRUIT_NODE, FRUIT_KEY …).
Exit: 0 done · 1 failed · 2 usage · 3 locked or busy · 4 refused by a rule · 5 unconfirmed · 6 unreachable · 7 not authorised
  8 reboot needed · 9 on trial · 10 rolled back · 11 hardware cannot · 78 configuration
`;
}
