import type { CliVerb } from "../terminal.ts";

/** The verbs of `fruit gpio`. */
export const GPIO_VERBS: readonly CliVerb[] = [];
