/** labgrid, as Debian packages it, drives an outlet and a console of a simulated node with nothing but the files we ship. */
import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { freePort } from "../broker.ts";
import { fruit, scratch, startAgent } from "../node.ts";
import { needsModule, python } from "../python.ts";

const shipped = join(import.meta.dir, "../../image/site/labgrid");

const TARGET = `
import sys
from labgrid import Environment
target = Environment(sys.argv[1]).get_target("main")
power = target.get_driver("PowerProtocol")
`;

/** Logs in, shuts down, boots and cycles the Pi, as a test bench does. */
const BENCH = `${TARGET}
from pexpect import TIMEOUT
console = target.get_driver("ConsoleProtocol")
assert power.get() is True
for attempt in range(30):
    console.sendline("")
    try:
        console.expect("login: ", timeout=2)
        break
    except TIMEOUT:
        pass
console.sendline("root")
console.expect("Password: ", timeout=10)
console.sendline("secret")
console.expect(":~# ", timeout=10)
console.sendline("uname -a")
console.expect("Linux (.*)aarch64", timeout=10)
power.off()
assert power.get() is False
console.expect("System halted", timeout=10)
power.on()
assert power.get() is True
console.expect("Booting Linux", timeout=20)
console.expect("login: ", timeout=60)
power.cycle()
console.expect("The system is going down NOW", timeout=10)
console.expect("Booting Linux", timeout=60)
`;

/** Reads the supply, and asks for what is so already. */
const GLANCE = `${TARGET}
assert power.get() is True
power.on()
`;

/** What labgrid's own exporter makes of a file: every resource with the parameters that it demands. */
const EXPORT = `
import sys
from labgrid import Target
from labgrid.factory import target_factory
from labgrid.remote.config import ResourceConfig
for group, resources in ResourceConfig(sys.argv[1]).data.items():
    for name, params in resources.items():
        params = dict(params)
        resource = target_factory.make_resource(Target(group), params.pop("cls", name), None, params)
        print(group, resource.cls if hasattr(resource, "cls") else type(resource).__name__)
`;

/** The shipped files on the ports of this run. */
async function lab(folder: ReturnType<typeof scratch>) {
  const ports = new Map<string, string>();
  for (const port of ["8080", "2217", "2218"]) ports.set(port, String(await freePort()));
  const moved = (text: string) => text.replace(/\b(8080|2217|2218)\b/g, (port) => ports.get(port) ?? port);
  const read = (name: string) => moved(readFileSync(join(shipped, name), "utf8"));
  const node = JSON.parse(read("node.json"));
  // The hardware, which is the one thing that is not as shipped
  node.power.buses[0].driver = "sim";
  node.consoles.pi0.device = "sim:0.0";
  node.consoles.pi1.device = "sim:0.1";
  // And what everybody chooses for themselves
  node.power.rest.password_file = folder.file("password", "s3cret");
  const env = read("env.yaml").replace(":PASSWORD@", ":s3cret@");
  return { node, env: folder.file("env.yaml", env) };
}

const bench = needsModule(
  "labgrid switches an outlet through its rest power port and talks to the Pi through RFC 2217",
  "labgrid",
  "labgrid",
);
test.skipIf(bench.isSkipped)(bench.title, async () => {
  using folder = scratch();
  const { node, env } = await lab(folder);
  await using agent = await startAgent(folder.path, node);
  const { exit, err } = await python(BENCH, env);
  expect({ exit, said: err.split("\n").slice(-4).join("\n") }).toMatchObject({ exit: 0 });
  const audit = auditOf(agent.folder);
  const switched = audit.filter(
    ({ verb, outcome }) => /^power\.o/.test(String(verb)) && outcome !== undefined,
  );
  // Nothing was refused, which labgrid would not have noticed
  expect(switched.map(({ who, verb, outcome }) => [who, verb, outcome])).toEqual(
    ["off", "on", "off", "on"].map((verb) => ["rest:labgrid", `power.${verb}`, "done"]),
  );
  expect(audit.find(({ verb }) => verb === "console.session")).toMatchObject({
    who: expect.stringMatching(/^rfc2217:127\.0\.0\.1:\d+$/),
  });
});

const guarded = needsModule(
  "labgrid gives the user and the password that stand in its URL",
  "labgrid",
  "labgrid",
);
test.skipIf(guarded.isSkipped)(guarded.title, async () => {
  using folder = scratch();
  const { node, env } = await lab(folder);
  await using agent = await startAgent(folder.path, node);
  expect(await python(GLANCE, env)).toMatchObject({ exit: 0 });
  expect(auditOf(agent.folder).find(({ verb }) => verb === "power.on")).toMatchObject({
    who: "rest:labgrid",
  });
  const { exit, err } = await python(
    GLANCE,
    folder.file("env.yaml", readFileSync(env, "utf8").replace("s3cret", "x")),
  );
  expect(exit).toBe(1);
  expect(err).toContain("401 Client Error");
});

/** What the agent put on record. */
function auditOf(folder: string): Record<string, unknown>[] {
  return readFileSync(join(folder, "data/audit/audit.jsonl"), "utf8")
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line));
}

const exported = needsModule(
  "labgrid's exporter takes the shipped exporter.yaml",
  "labgrid.remote.config",
  "labgrid",
);
test.skipIf(exported.isSkipped)(exported.title, async () => {
  const { exit, out, err } = await python(EXPORT, join(shipped, "exporter.yaml"));
  expect({ exit, err: err.split("\n").slice(-4).join("\n") }).toMatchObject({ exit: 0 });
  expect(out.trim().split("\n").slice(-4)).toEqual([
    "pi0 NetworkPowerPort",
    "pi0 NetworkSerialPort",
    "pi1 NetworkPowerPort",
    "pi1 NetworkSerialPort",
  ]);
});

test("the node.json that they are made for is a good one", async () => {
  const { exit, err } = await fruit(["config", "check", join(shipped, "node.json")]);
  expect({ exit, err }).toEqual({ exit: 0, err: "" });
});
