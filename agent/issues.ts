/** What is wrong with a document, in words for people: valibot's issues say it in its own. */
import * as v from "valibot";
import { clip } from "./commands.ts";

/** Valibot's names of types, and of what it was given. */
const NOUNS: Record<string, string> = {
  Object: "an object",
  Array: "a list",
  string: "text",
  number: "a number",
  boolean: "true or false",
};

/** One line an issue: its path, or `top` for the document itself, and what is wrong there. A schema's own message stays as it is. */
export function problemsOf(issues: readonly v.BaseIssue<unknown>[], top = "(top)"): string[] {
  return issues.map((issue) => `${v.getDotPath(issue) ?? top}: ${wordsOf(issue)}`);
}

function wordsOf({ kind, type, message, expected, received }: v.BaseIssue<unknown>): string {
  if (!/^Invalid [\w ]+: (Expected|Received) /.test(message)) return message;
  if (expected === "never") return "unknown key";
  if (received === "undefined") return "is missing";
  const found = clip(NOUNS[received] ?? received);
  if (kind === "schema") return `expected ${alternatives(expected ?? type)}, received ${found}`;
  const limit = /^([<>]=)(.+)$/.exec(expected ?? "");
  if (limit)
    return `${type.endsWith("length") ? "length " : ""}at ${limit[1] === "<=" ? "most" : "least"} ${limit[2]}, not ${found}`;
  return type === "regex"
    ? `${found} is not of the form ${expected}`
    : `${found} is no ${type.replaceAll("_", " ")}`;
}

/** `("on" | "off" | number)`: `"on", "off" or a number`. */
function alternatives(expected: string): string {
  const all = expected
    .replace(/^\((.*)\)$/, "$1")
    .split(" | ")
    .map((one) => NOUNS[one] ?? one);
  const last = all.pop() ?? "";
  return all.length > 0 ? `${all.join(", ")} or ${last}` : last;
}
