/** The executables that nodes run, started as they are: x64 natively, arm64 under emulation. */
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { HAS_MOSQUITTO, Mosquitto, NEEDS_MOSQUITTO, Tap } from "./broker.ts";
import { fruit, SHIPPED, scratch, startAgent, until } from "./node.ts";
import { isEmulated, LIMIT_MS, saysItself, titled } from "./shipped.ts";

for (const executable of SHIPPED) {
  const title = (what: string) => titled(what, executable);
  const isSkipped = executable.missing !== undefined;

  describe(executable.name, () => {
    if (!isEmulated(executable))
      test.skipIf(isSkipped)(
        title("says its version and commit, and reads no .env or bunfig.toml of the folder"),
        () => saysItself(executable),
        LIMIT_MS,
      );

    test.skipIf(isSkipped || !HAS_MOSQUITTO)(
      title(
        `runs a node: online, telemetry, a power cycle through the socket, offline on SIGTERM ${HAS_MOSQUITTO ? "" : NEEDS_MOSQUITTO}`.trim(),
      ),
      async () => {
        using folder = scratch();
        await using broker = await Mosquitto.start(["allow_anonymous true"]);
        await using tap = await Tap.at(broker.port);
        const last = (path: string) => tap.texts(`fruit/v1/lab/pi1/${path}`).at(-1);
        await using agent = await startAgent(
          folder.path,
          {
            node: "pi1",
            mqtt: { url: `mqtt://127.0.0.1:${broker.port}` },
            power: { buses: [{ driver: "pistack-rs485", boards: [0] }], min_on_seconds: 0 },
          },
          { executable },
        );
        await until("status online", () => last("status") === "online", LIMIT_MS);
        await until("telemetry", () => last("tele/thermal/main"), LIMIT_MS);
        const off = await agent.cli("power", "off", "0.1", "--force", "--reason", "test");
        expect(off).toMatchObject({ exit: 0 });
        await until(
          "off on MQTT",
          () => JSON.parse(last("state/outlet/0.1") ?? "{}").supply === "off",
          LIMIT_MS,
        );
        expect((await agent.cli("audit", "verify")).exit).toBe(0);
        agent.kill("SIGTERM");
        expect(await agent.exited).toBe(0);
        await until("status offline", () => last("status") === "offline");
      },
      LIMIT_MS,
    );
  });
}

test("the sources say what they are", async () => {
  const { out } = await fruit(["version", "--json"], {
    executable: {
      name: "sources",
      command: [process.execPath, join(import.meta.dir, "../agent/main.ts")],
      env: {},
    },
  });
  expect(JSON.parse(out)).toMatchObject({ commit: "sources" });
});
