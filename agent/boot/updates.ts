/** `state/update`: how far an install is, which a process of its own writes down in `RUN/update.json`. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import * as v from "valibot";
import { otherSlot } from "../../boot/layout.ts";
import type { Config } from "../config.ts";
import type { Payload, Publish } from "../messages.ts";
import type { BootStatus } from "./status.ts";

const LOOK_MS = 1000;
/** Progress alone is said this often. */
const PROGRESS_MS = 5000;

const File = v.object({
  phase: v.pipe(v.string(), v.regex(/^[a-z-]{1,32}$/)),
  version: v.optional(v.union([v.string(), v.number()])),
  bytes_done: v.optional(v.number()),
  bytes_total: v.optional(v.number()),
  rate: v.optional(v.nullable(v.number())),
  eta_s: v.optional(v.nullable(v.number())),
  peers: v.optional(v.number()),
  bytes_from_slots: v.optional(v.number()),
  bytes_from_peers: v.optional(v.number()),
  bytes_from_web: v.optional(v.number()),
  pid: v.pipe(v.number(), v.integer(), v.minValue(1)),
});
/** What is followed, as `state/update` says it. */
export interface Following {
  target: string;
  channel: string;
  /** Why what is done is done, or nothing is: a code of `agent/update/desire.ts`. */
  reason?: string;
  /** The newest that is announced, and not withdrawn. */
  latest?: bigint;
}

/** What an install says of itself. */
export type Installing = v.InferOutput<typeof File>;

/** Says what is installed and what is under way, while there are slots. */
export async function publishUpdate(
  {
    config,
    publish,
    following,
  }: { config: Config["boot"]; publish: Publish; following?(): Following | undefined },
  status: () => BootStatus | undefined,
  signal: AbortSignal,
): Promise<void> {
  let said = "";
  let saidLine = "";
  let saidMs = Number.NEGATIVE_INFINITY;
  while (!signal.aborted) {
    const known = status();
    if (known?.running !== undefined) {
      const state = updateState(known, await readInstalling(config.run_dir), following?.());
      const text = JSON.stringify(state);
      const nowMs = performance.now();
      if (text !== said && (lineOf(state) !== saidLine || nowMs - saidMs >= PROGRESS_MS)) {
        publish("state/update", "main", state);
        [said, saidLine, saidMs] = [text, lineOf(state), nowMs];
      }
    }
    await sleep(LOOK_MS, undefined, { signal }).catch(() => undefined);
  }
}

/** The install under way; undefined where there is none, or its process has died. */
export async function readInstalling(runDir: string): Promise<Installing | undefined> {
  try {
    const found = v.parse(File, JSON.parse(await readFile(join(runDir, "update.json"), "utf8")));
    return isAlive(found.pid) ? found : undefined;
  } catch {
    return undefined; // none, or being written
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM"; // it is another user's
  }
}

/** What is said at once when it changes. */
const lineOf = ({ phase, reason, latest_version }: Payload<"state/update">) =>
  [phase, reason, latest_version].join(" ");

function updateState(
  status: BootStatus,
  installing: Installing | undefined,
  following: Following | undefined,
): Payload<"state/update"> {
  const { running, slots } = status;
  const installed = running && slots[running].version;
  const other = running && slots[otherSlot(running)];
  const isComing = other?.state === "staged" || other?.state === "trying";
  const announced =
    following?.latest !== undefined && following.latest > BigInt(installed ?? 0)
      ? following.latest
      : undefined;
  const latest = installing?.version ?? announced ?? (isComing ? other?.version : undefined) ?? installed;
  const { bytes_done, bytes_total, rate, eta_s, peers, bytes_from_slots, bytes_from_peers, bytes_from_web } =
    installing ?? {};
  const known = {
    installed_version: installed,
    latest_version: latest === undefined ? undefined : String(latest),
    ...{ bytes_done, bytes_total, rate: rate ?? undefined, eta_s: eta_s ?? undefined, peers },
    ...{ bytes_from_slots, bytes_from_peers, bytes_from_web },
    ...{ reason: following?.reason, target: following?.target, channel: following?.channel },
  };
  return {
    phase: installing?.phase ?? "idle",
    ...Object.fromEntries(Object.entries(known).filter(([, value]) => value !== undefined)),
  };
}
