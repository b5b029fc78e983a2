import { describe, expect, test } from "bun:test";
import * as v from "valibot";
import { KINDS, type KindName } from "../agent/messages.ts";
import { TELEMETRY_VERBS } from "../agent/telemetry/cli.ts";
import { Tree } from "./tree.ts";

const tree = new Tree();

async function once(args: string[], options: { json?: boolean; config?: object } = {}) {
  let out = "";
  const verb = TELEMETRY_VERBS.find(({ words }) => words === "telemetry once");
  if (!verb) throw new Error("telemetry has the verb once");
  const file = tree.put("node.json", JSON.stringify({ site: "lab", node: "pi1", ...options.config }));
  const exit = await verb.run({
    args,
    json: options.json ?? false,
    send: () => Promise.reject(new Error("telemetry once asks no agent")),
    attach: () => Promise.reject(new Error("telemetry once asks no agent")),
    io: {
      out: (text) => (out += text),
      err: () => undefined,
      env: { FRUIT_CONFIG: file },
      isTerminal: false,
      stdin: async () => new Uint8Array(),
      signal: new AbortController().signal,
    },
  });
  return { exit, out };
}

describe("telemetry once", () => {
  test("prints topics and payloads as they would be published, ratios included", async () => {
    const { exit, out } = await once(["--hal", "sim"]);
    expect(exit).toBe(0);
    const kinds = new Set<string>();
    for (const line of out.trimEnd().split("\n")) {
      const [, kind = "", payload = ""] = /^(tele\/[a-z]+)\/\S+ (\{.*\})$/.exec(line) ?? [];
      expect(v.is(KINDS[kind as KindName].schema, JSON.parse(payload))).toBe(true);
      kinds.add(kind);
    }
    expect([...kinds]).toEqual(
      ["system", "cpu", "memory", "thermal", "firmware", "disk", "fs", "net", "wifi"].map((g) => `tele/${g}`),
    );
    expect(out).toContain('"usage_ratio":');
  });

  test("on the real machine gives at least its memory, in every format", async () => {
    expect((await once([])).out).toMatch(/^tele\/memory\/main \{.*"total_bytes":\d+/m);
    expect((await once(["--prom"])).out).toMatch(/^fruit_memory_total_bytes \d+$/m);
    expect((await once(["--influx"])).out).toMatch(/^memory,site=lab,node=pi1,inst=main total_bytes=\d+/m);
    const tree = JSON.parse((await once([], { json: true })).out);
    expect(tree.memory.main.total_bytes).toBeGreaterThan(0);
  });

  test("leaves out the groups that the configuration turns off, and names its file systems", async () => {
    const telemetry = { groups: { cpu: 0 }, filesystems: { state: "/data" } };
    const { out } = await once(["--hal", "sim"], { json: true, config: { telemetry } });
    const groups = JSON.parse(out);
    expect(groups).not.toHaveProperty("cpu");
    expect(Object.keys(groups.fs)).toEqual(["state"]);
  });

  test("of a simulated node whose clock nobody set has no ts", async () => {
    const { out } = await once(["--hal", "sim"], { config: { sim: { clock_synced: false } } });
    expect(out).not.toContain('"ts"');
    expect((await once(["--hal", "sim"])).out).toContain('"ts"');
  });

  test.each([
    { args: ["--prom", "--influx"], why: "one of them" },
    { args: ["--hal", "fake"], why: "neither linux nor sim" },
    { args: ["--config", "/no/node.json"], why: "/no/node.json" },
    { args: ["--nonsense"], why: "nonsense" },
    { args: ["twice"], why: "twice" },
  ])("refuses $args and says why", async ({ args, why }) => {
    await expect(once([...args])).rejects.toThrow(why);
  });
});
