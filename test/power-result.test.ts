import { expect, test } from "bun:test";
import { type OutletOutcome, summarise } from "../agent/power/result.ts";

test.each<[OutletOutcome[], string]>([
  [["done"], "done"],
  [["unchanged", "unchanged"], "unchanged"],
  [["unchanged", "done"], "done"],
  [["forced-after-timeout", "unchanged"], "done"],
  [["refused"], "refused"],
  [["refused", "refused"], "refused"],
  [["done", "refused"], "failed"],
  [["failed"], "failed"],
  [["refused", "failed", "unchanged"], "failed"],
  [["unconfirmed"], "unconfirmed"],
  [["refused", "done", "unconfirmed"], "unconfirmed"],
])("%j together are %s", (outcomes, state) => {
  const results = outcomes.map((outcome, i) => ({ outlet: `0.${i}`, outcome, message: outcome }));
  const outcome = summarise(results);
  expect(outcome.state).toBe(state as never);
  expect(outcome.result).toEqual({ outlets: results });
});

test("the first problem gives the code and the words, the unconfirmed before all others", () => {
  const refused = { outlet: "0.0", outcome: "refused", code: "locked", message: "locked by bob" } as const;
  const failed = { outlet: "0.1", outcome: "failed", code: "bus", message: "no answer" } as const;
  const unsure = { outlet: "1.0", outcome: "unconfirmed", code: "stopping", message: "stopped" } as const;
  expect(summarise([refused, failed])).toMatchObject({
    code: "locked",
    message: "outlet 0.0: locked by bob",
  });
  expect(summarise([refused, unsure])).toMatchObject({ code: "stopping", message: "outlet 1.0: stopped" });
});

test("a cut that was forced is named, though the command is done", () => {
  expect(summarise([{ outlet: "0.0", outcome: "forced-after-timeout" }]).message).toBe(
    "forced after timeout: 0.0",
  );
});
