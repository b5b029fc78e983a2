/** A gate before a small table, with all that it says, runs and writes. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { type Command, type CommandResult, command } from "../agent/commands.ts";
import { Dispatcher } from "../agent/dispatch.ts";
import { createGate, type ReplyTo } from "../agent/gate.ts";
import { ROOT } from "../agent/messages.ts";
import { Audit } from "../agent/record/audit.ts";
import { Journal } from "../agent/record/journal.ts";
import { FailureLimit } from "../agent/sign/limit.ts";
import { parseSigners } from "../agent/sign/signers.ts";
import type { OutletId } from "../hal/ports.ts";
import { NODE, payload, SITE } from "./doors.ts";
import { scratch } from "./node.ts";

/** What a node's topics begin with. */
export const BASE = `${ROOT}/${SITE}/${NODE}`;

/** Whoever stands in the file may command, as its lines say. */
export async function gateway(
  signersFile: string,
  options: { isSynced?: boolean; random?: () => number; failures?: FailureLimit } = {},
) {
  const { isSynced = true, random = () => 0, failures = new FailureLimit() } = options;
  const own = scratch();
  const journal = await Journal.open(join(own.path, "journal"), {
    nowSeconds: () => 0,
    log: () => undefined,
  });
  const audit = await Audit.open(join(own.path, "audit"), { boot: "b", clock: () => "synced" });
  const stop = new AbortController();
  const ran: string[] = [];
  const door = Promise.withResolvers<void>();
  const replies: { to: ReplyTo; result: CommandResult }[] = [];
  const told: Record<string, unknown>[] = [];
  const logged: string[] = [];
  const row = (verb: string, more: Partial<Command>) =>
    command({
      verb,
      summary: verb,
      tier: 0,
      role: "read",
      args: v.strictObject({ outlets: v.optional(v.array(v.string()), []) }),
      outlets: ({ outlets }) => outlets as OutletId[],
      run: async ({ id }) => {
        ran.push(`${verb} ${id}`);
        return { state: "done" };
      },
      ...more,
    });
  const clock = () => ({ synced: isSynced });
  const dispatcher = new Dispatcher({
    table: [
      row("look", { broadcast: true }),
      row("identify", { tier: 1, broadcast: true }),
      row("power.on", { tier: 2, role: "power" }),
      row("power.off", { tier: 2, role: "power" }),
      row("slow.off", {
        tier: 2,
        role: "power",
        run: async ({ progress }) => {
          progress("on its way");
          await door.promise;
          return { state: "done" };
        },
      }),
      row("slow.look", {
        run: async () => {
          await door.promise;
          return { state: "done" };
        },
      }),
      row("slip", {
        tier: 1,
        broadcast: true,
        outlets: () => {
          throw new TypeError("a slip");
        },
      }),
    ],
    journal,
    audit,
    clock,
    log: () => undefined,
    signal: stop.signal,
  });
  let challenge = 1;
  const allowed = parseSigners(readFileSync(signersFile, "utf8")).signers;
  const gate = createGate({
    site: SITE,
    node: NODE,
    dispatcher,
    signers: { find: (fingerprint) => allowed.find((signer) => signer.fingerprint === fingerprint) },
    failures,
    verifications: new FailureLimit({ burst: 200, secondsEach: 1 / 200 }),
    refusals: new FailureLimit(),
    clock,
    challenge: { current: () => `c${challenge}`, renew: () => void challenge++ },
    unsignedOutlets: new Set(["1.1"]),
    reply: (to, result) => void replies.push({ to, result }),
    tell: (type, facts) => void told.push({ type, ...facts }),
    log: (_, what, fields) => void logged.push(`${what} ${JSON.stringify(fields)}`),
    signal: stop.signal,
    random,
  });
  const say = (topic: string, text: string | Uint8Array, more: Partial<Parameters<typeof gate>[0]> = {}) =>
    gate({
      topic: topic.startsWith(ROOT) ? topic : `${BASE}/${topic}`,
      payload: typeof text === "string" ? Buffer.from(text) : text,
      retain: false,
      duplicate: false,
      ...more,
    });
  return {
    say,
    ran,
    replies,
    told,
    logged,
    challenge: () => `c${challenge}`,
    lines: () => readFileSync(join(own.path, "audit/audit.jsonl"), "utf8").split("\n").length - 1,
    stop: () => stop.abort(),
    finish: door.resolve,
    journal,
    async [Symbol.asyncDispose]() {
      stop.abort();
      door.resolve();
      await dispatcher.idle();
      await journal.close();
      await audit.close();
      own[Symbol.dispose]();
    },
  };
}

/** A plain command. */
export const plain = (...from: Parameters<typeof payload>) => JSON.stringify(payload(...from));
