/** The moments of a power cycle at which an agent may die, and what has to be true afterwards. */
import { expect } from "bun:test";
import { askSocket, journalOf, place, sealed, type signers } from "./doors.ts";
import { until } from "./node.ts";

/** A cycle by force asks nobody and is at its end sooner. */
const FORCED = { force: true };

/** How often something was said since something else was. */
const since = (said: readonly string[], mark: string, what: string) =>
  said.includes(mark) ? said.slice(said.indexOf(mark)).filter((one) => one === what).length : 0;

/** One moment, told by what was said on the boards' bus. */
export interface Moment {
  moment: string;
  /** Name of its node. */
  node: string;
  args?: typeof FORCED;
  isNow: (said: readonly string[]) => boolean;
}

/** All of them, in order. */
export const MOMENTS: readonly Moment[] = [
  { moment: "its Pi is asked to shut down", node: "asked", isNow: (said) => said.at(-1) === "signal 0.0" },
  {
    moment: "its Pi shuts down",
    node: "stopping",
    isNow: (said) => since(said, "signal 0.0", "powered 0.0") === 3,
  },
  { moment: "its supply is cut", node: "cut", isNow: (said) => said.at(-1) === "forceOff 0.0" },
  {
    moment: "it is off",
    node: "off",
    args: FORCED,
    isNow: (said) => since(said, "forceOff 0.0", "powered 0.0") === 2,
  },
  {
    moment: "its supply is switched on",
    node: "on",
    args: FORCED,
    isNow: (said) => said.at(-1) === "on 0.0",
  },
  {
    moment: "it is read back",
    node: "back",
    args: FORCED,
    isNow: (said) => since(said, "on 0.0", "powered 0.0") === 1,
  },
];

/** Kills an agent at that moment of a cycle that alice signed: power stays as it is, and the next agent owns up to it. */
export async function diesAt(
  { node, args, isNow }: Moment,
  root: string,
  port: number,
  people: Awaited<ReturnType<typeof signers>>,
): Promise<void> {
  await using here = await place(root, node, port, {
    version: 4,
    wireTime: true,
    settings: { commands: { allowed_signers: people.file } },
  });
  const { boards, person, start } = here;
  const first = await start();
  await person.status("online");
  await boards.looked();
  const envelope = await sealed(
    people.keys.alice,
    node,
    "power.cycle",
    { outlets: ["0.0"], ...args },
    { node, reason: "hung in U-Boot" },
  );
  boards.onRequest = () => {
    if (isNow(boards.said)) first.kill("SIGKILL");
  };
  await person.say("cmd/power.cycle", envelope);
  await first.exited;
  boards.onRequest = () => undefined;
  // The board has heard what was on the wire when the agent died, and does it.
  const atDeath = { supplies: boards.supplies, switched: [...boards.switched] };
  expect(journalOf(first, node).accepted).toMatchObject({ verb: "power.cycle", who: "key:alice" });
  expect(journalOf(first, node).finished).toBeUndefined();

  await using second = await start();
  await boards.looked(2);
  expect(boards.switched).toEqual(atDeath.switched);
  expect(boards.supplies).toBe(atDeath.supplies);

  const interrupted = { state: "unconfirmed", code: "restarted", by: "key:alice" };
  expect(await person.final(`fruit/v1/lab/${node}/res/${node}`)).toMatchObject(interrupted);
  const [job] = await askSocket(second.socket, "job.get", { id: node }).then((all) => all.slice(-1));
  expect(job?.result).toMatchObject({ jobs: [{ id: node, verb: "power.cycle", ...interrupted }] });
  expect(await second.cli("audit", "verify")).toMatchObject({ exit: 0 });

  const seen = person.tap.heard.length;
  await person.say("cmd/power.cycle", envelope);
  // What is said of an id is said of the command that has it.
  expect(await person.final(`fruit/v1/lab/${node}/res/${node}`, seen)).toMatchObject(interrupted);
  await until("it is refused", () => person.refusals.includes("duplicate"));
  expect(boards.switched).toEqual(atDeath.switched);
}
