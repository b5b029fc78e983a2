/** An agent that runs inside an emulated machine, on that machine's hardware. */
import { until } from "../node.ts";
import { LIMITS } from "./limits.ts";
import type { Machine, Ran } from "./machine.ts";

/** The agent as a test uses it. */
export interface GuestAgent extends AsyncDisposable {
  /** A command line through its socket. */
  cli(line: string): Promise<Ran>;
  /** What a command line prints with `--json`, whatever came of it. */
  json<T = Record<string, unknown>>(line: string): Promise<T>;
  /** Each outlet's supply as the agent says, in rack order: `on off`. */
  supplies(): Promise<string>;
  /** Everything it has logged. */
  log(): Promise<string>;
}

/** Starts `fruit agent --hal linux` and waits until it says that it has started. */
export async function startGuestAgent(
  machine: Machine,
  settings: Record<string, unknown>,
): Promise<GuestAgent> {
  const config = { site: "lab", node: "pi1", data_dir: "/tmp/data", socket: "/run/fruit.sock", ...settings };
  await machine.put("/tmp/node.json", JSON.stringify(config));
  const start =
    "fruit agent --hal linux --config /tmp/node.json </dev/null >/dev/null 2>/tmp/agent.log & echo $!";
  const pid = Number(await machine.output(start));
  const log = () => machine.output("cat /tmp/agent.log");
  await until(
    "agent.started",
    async () => {
      const words = await log();
      if (words.includes('"agent.started"')) return true;
      if ((await machine.run(`kill -0 ${pid}`)).exit !== 0) throw new Error(`the agent has ended: ${words}`);
      return false;
    },
    LIMITS.event,
  );
  const cli = (line: string) => machine.run(`FRUIT_SOCKET=${config.socket} fruit ${line}`);
  const json: GuestAgent["json"] = async (line) => {
    const { exit, out, err } = await cli(`${line} --json`);
    if (out === "") throw new Error(`fruit ${line}: exit ${exit}: ${err}`);
    return JSON.parse(out);
  };
  return {
    log,
    cli,
    json,
    supplies: async () => {
      const { outlets } = await json<{ outlets: { supply: string }[] }>("power status");
      return outlets.map(({ supply }) => supply).join(" ");
    },
    async [Symbol.asyncDispose]() {
      await machine.run(`kill ${pid}; for n in $(seq 100); do kill -0 ${pid} || break; usleep 100000; done`);
    },
  };
}
