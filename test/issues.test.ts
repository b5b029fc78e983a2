import { expect, test } from "bun:test";
import * as v from "valibot";
import { problemsOf } from "../agent/issues.ts";

const Thing = v.strictObject({
  id: v.pipe(v.string(), v.regex(/^[a-z]+$/)),
  count: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(600))),
  way: v.optional(v.picklist(["on", "off"])),
  every: v.optional(v.union([v.literal(0), v.number()])),
  names: v.optional(v.pipe(v.array(v.pipe(v.string(), v.maxLength(2))), v.minLength(1))),
  bytes: v.optional(v.pipe(v.string(), v.base64())),
  wait: v.optional(v.boolean()),
  own: v.optional(v.pipe(v.number(), v.maxValue(1, "is more than one"))),
});

test.each<{ document: unknown; says: string[] }>([
  { document: {}, says: ["id: is missing"] },
  { document: undefined, says: ["it: is missing"] },
  { document: null, says: ["it: expected an object, received null"] },
  { document: "x", says: ['it: expected an object, received "x"'] },
  { document: { id: ["a"] }, says: ["id: expected text, received a list"] },
  { document: { id: "A" }, says: ['id: "A" is not of the form /^[a-z]+$/'] },
  { document: { id: "a", who: 1 }, says: ["who: unknown key"] },
  { document: { id: "a", count: 700 }, says: ["count: at most 600, not 700"] },
  { document: { id: "a", count: 0 }, says: ["count: at least 1, not 0"] },
  { document: { id: "a", count: 1.5 }, says: ["count: 1.5 is no integer"] },
  { document: { id: "a", way: "up" }, says: ['way: expected "on" or "off", received "up"'] },
  { document: { id: "a", every: {} }, says: ["every: expected 0 or a number, received an object"] },
  { document: { id: "a", names: [] }, says: ["names: length at least 1, not 0"] },
  {
    document: { id: "a", names: ["abc", 1] },
    says: ["names.0: length at most 2, not 3", "names.1: expected text, received 1"],
  },
  { document: { id: "a", bytes: "?" }, says: ['bytes: "?" is no base64'] },
  { document: { id: "a", wait: 1 }, says: ["wait: expected true or false, received 1"] },
  { document: { id: "a", own: 2 }, says: ["own: is more than one"] },
])("of $document it is said that $says", ({ document, says }) => {
  expect(problemsOf(v.safeParse(Thing, document).issues ?? [], "it")).toEqual(says);
});

test("foreign text in a problem is bounded", () => {
  const [problem = ""] = problemsOf(v.safeParse(v.number(), "x".repeat(10_000)).issues ?? []);
  expect(problem.length).toBeLessThan(120);
});
