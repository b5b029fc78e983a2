/** The command table with rows of the test's own, on real files, and who asks it. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import {
  type Caller,
  type CommandResult,
  command,
  type Request,
  ROLES,
  type Role,
} from "../agent/commands.ts";
import { Dispatcher } from "../agent/dispatch.ts";
import { Audit } from "../agent/record/audit.ts";
import { Journal } from "../agent/record/journal.ts";
import type { OpenFile } from "../agent/record/lines.ts";
import { HalError, type OutletId } from "../hal/ports.ts";

/** A dispatcher on real files with rows that the test holds in its hand. */
export async function desk(
  folder: string,
  options: { isSynced?: boolean; openFile?: OpenFile; nowSeconds?: () => number } = {},
) {
  const { isSynced = true, openFile, nowSeconds = () => 0 } = options;
  const logged: string[] = [];
  const log = (_level: string, what: string, fields?: object) =>
    void logged.push(`${what} ${JSON.stringify(fields)}`);
  const journal = await Journal.open(join(folder, "journal"), {
    nowSeconds: () => Date.now() / 1000,
    log,
    ...(openFile === undefined ? {} : { openFile }),
  });
  const audit = await Audit.open(join(folder, "audit"), {
    boot: "b1",
    clock: () => "synced",
    ...(openFile === undefined ? {} : { openFile }),
  });
  const ran: string[] = [];
  const gate = Promise.withResolvers<void>();
  const stop = new AbortController();
  const outlet = v.strictObject({ outlet: v.optional(v.string(), "0.0") });
  const row = (
    verb: string,
    tier: 0 | 1 | 2 | 3,
    run: () => Promise<void>,
    role: Role = tier > 1 ? "power" : "read",
    state: "done" | "unchanged" = "done",
  ) =>
    command({
      verb,
      summary: verb,
      tier,
      role,
      args: outlet,
      outlets: ({ outlet }) => [outlet as OutletId],
      run: async ({ id, progress }) => {
        ran.push(`${verb} ${id}`);
        if (tier > 0) progress("on its way", 0.5);
        await run();
        return { state };
      },
    });
  const dispatcher = new Dispatcher({
    table: [
      row("read", 0, async () => undefined),
      row("slow.read", 0, () => gate.promise),
      row("blink", 1, async () => undefined),
      row("cut", 2, async () => undefined),
      row("slow.cut", 2, () => gate.promise),
      row("force", 3, async () => undefined),
      row("again", 2, async () => undefined, "power", "unchanged"),
      row("crash", 2, async () => {
        throw new TypeError("a slip");
      }),
      row("dark", 2, async () => {
        throw new HalError("timeout", "board 0: no answer");
      }),
    ],
    journal,
    audit,
    clock: () => ({ synced: isSynced }),
    log,
    signal: stop.signal,
    nowSeconds,
  });
  const execute = async (request: Partial<Request> & { verb: string }) => {
    const answers: CommandResult[] = [];
    const last = await dispatcher.execute(
      {
        id: request.id ?? `id-${ran.length}-${logged.length}`,
        args: {},
        exp: Math.floor(Date.now() / 1000) + 60,
        digest: "d1",
        caller: LOCAL,
        ...request,
      },
      (answer) => answers.push(answer),
    );
    return { answers, last };
  };
  const lines = () =>
    readFileSync(join(folder, "audit/audit.jsonl"), "utf8").trimEnd().split("\n").filter(Boolean);
  const close = async () => {
    await journal.close();
    await audit.close();
  };
  return {
    [Symbol.asyncDispose]: close,
    dispatcher,
    execute,
    ran,
    logged,
    lines,
    journal,
    finish: gate.resolve,
  };
}

/** Who may do everything, and who may look. */
export const LOCAL: Caller = {
  door: "socket",
  who: "local:alice",
  roles: new Set(ROLES),
  mayOutlet: () => true,
};
export const ANONYMOUS: Caller = {
  door: "mqtt",
  who: "anonymous",
  roles: new Set<Role>(["read"]),
  mayOutlet: () => true,
};
/** Somebody with a key. */
export const signer = (name: string): Caller => ({ ...LOCAL, door: "mqtt", who: `key:${name}` });
/** Plain text on `set/`, as far as the node's own configuration lets it. */
export const SET: Caller = { ...LOCAL, door: "set", who: "set", roles: new Set<Role>(["read", "power"]) };
