import type { CliVerb } from "../terminal.ts";

/** The verbs of `fruit stack`. */
export const STACK_VERBS: readonly CliVerb[] = [];
