import type { CliVerb } from "../terminal.ts";

/** The verbs of `fruit console`. */
export const CONSOLE_VERBS: readonly CliVerb[] = [];
