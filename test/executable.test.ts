/** The executables that nodes run, started as they are: x64 natively, arm64 under emulation. */
import { describe, expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { BUILD } from "../agent/version.ts";
import { HAS_MOSQUITTO, Mosquitto, NEEDS_MOSQUITTO, Tap } from "./broker.ts";
import { fruit, SHIPPED, scratch, startAgent, until } from "./node.ts";

/** An emulated agent needs several times what a native one needs. */
const LIMIT_MS = 60_000;
const IS_CHECKOUT = existsSync(join(import.meta.dir, "../.git"));

for (const executable of SHIPPED) {
  const title = (what: string) => (executable.missing ? `${what} [needs: ${executable.missing}]` : what);
  const isSkipped = executable.missing !== undefined;

  describe(executable.name, () => {
    test.skipIf(isSkipped)(
      title("says its version and commit, and reads no .env or bunfig.toml of the folder"),
      async () => {
        using folder = scratch();
        folder.file(".env", "FRUIT_CONFIG=/nowhere/from-dotenv.json\n");
        folder.file("bunfig.toml", 'preload = ["./poison.ts"]\n');
        folder.file("poison.ts", 'process.stdout.write("poisoned");\n');
        const { exit, out } = await fruit(["version", "--json"], { executable, cwd: folder.path });
        expect(exit).toBe(0);
        const facts = JSON.parse(out);
        expect(facts).toMatchObject({ schema: "fruit.version/1", version: BUILD.version });
        expect(facts.commit).toMatch(IS_CHECKOUT ? /^[0-9a-f]{7,}\+?$/ : /^unknown$/);
        const check = await fruit(["config", "check"], { executable, cwd: folder.path });
        expect(check.err).toContain("/etc/fruit/node.json");
        expect(check.err).not.toContain("dotenv");
      },
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
