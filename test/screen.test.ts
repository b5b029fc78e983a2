import { expect, test } from "bun:test";
import { Screen } from "../agent/demo/screen.ts";

const bytes = (text: string) => new TextEncoder().encode(text);

test("the table shows what the nodes say, a line per node", () => {
  const said: string[] = [];
  const screen = new Screen("demo", [{ node: "pi1", outlet: "0.0" }], (line) => said.push(line));
  screen.heard("fruit/v1/demo/pi1/status", bytes("online"));
  screen.heard("fruit/v1/demo/pi1/state/outlet/0.0", bytes('{"supply":"on","host":"running","watts":3.5}'));
  screen.heard("fruit/v1/demo/pi1/tele/thermal/main", bytes('{"temp_celsius":41.26}'));
  expect(screen.online).toBe(1);
  expect(screen.table()).toMatch(/^pi1 +0\.0 +online +on +running +41\.3 +3\.50 /m);
  expect(said.map((line) => line.slice(9))).toEqual([
    "pi1 online",
    "pi1 outlet 0.0: supply on, host running",
  ]);
});

test.each(["c0ffee", "", "null", "7", '"text"', "[]", "{"])(
  "%j from anybody else on the machine does not end the demo",
  (text) => {
    const screen = new Screen("demo", [{ node: "pi1", outlet: "0.0" }], () => undefined);
    for (const path of [
      "test/main",
      "cmd/power.on",
      "event/x",
      "state/outlet/0.0",
      "tele/thermal/main",
      "tele/power/0.0",
    ])
      screen.heard(`fruit/v1/demo/pi1/${path}`, bytes(text));
    screen.heard("fruit/v1/demo/pi1/status", bytes("online"));
    expect(screen.table()).toContain("online");
  },
);
