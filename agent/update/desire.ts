/**
 * What this node wants to do about updates, from facts alone: the same facts give the same answer, and the answer says why.
 *
 * Invariants
 * - While a release is on trial nothing is fetched or tried; only its own withdrawal ends it early.
 * - An announcement that has expired raises an alarm and refuses nothing: what is signed and in time is taken.
 * - What is staged and was withdrawn is not tried; what is good and was withdrawn goes on until a person or a newer release ends it.
 */
import type { Announced } from "../../boot/head.ts";
import type { SlotState } from "../../boot/record.ts";
import { lasting } from "../terminal.ts";
import type { UpdateConfig } from "./section.ts";

/** The newest announcement that is believed. */
export type Told = Pick<Announced, "version" | "infohash" | "issued" | "expires" | "isWithdrawn">;

/** All that the decision depends on. */
export interface Facts {
  policy: UpdateConfig["policy"];
  isMetered: boolean;
  /** Unix seconds, or the latest that is certain while the clock is not set. */
  now: number;
  isClockSet: boolean;
  /** Seconds until a trial may begin; 0: now. Undefined: no window was named. */
  windowOpensIn: number | undefined;
  head: Told | undefined;
  /** What runs; undefined on a machine without slots. */
  running: { version: bigint } | undefined;
  /** The other slot; its infohash where the update file kept for it is of what it holds. */
  other: { state: SlotState; version: bigint; infohash: string | undefined };
  /** The release on trial, while this start is one. */
  trial: { version: bigint } | undefined;
  /** What is known of the announced release; undefined until its update file is here and believed. */
  release:
    | {
        /** Why this node does not take it, in the words of who refused it. */
        refused?: string;
        /** What is held against it here. */
        blamed?: string;
        /** Unix seconds before which this node's turn has not come; infinite where it never does. */
        turn: number;
      }
    | undefined;
  /** Starts in a row without health. */
  loop: number | undefined;
  /** Why nothing may be written or started at the moment, in sentences: an outlet that is switched, a supply that is low, another install. */
  hindered: readonly string[];
  /** A person has asked for this release, or for whatever is newest. */
  ordered: string | "newest" | undefined;
}

/** What is to be done. Programs branch on `code`. */
export interface Desire {
  what: "nothing" | "learn" | "fetch" | "try" | "drop" | "roll-back";
  code: string;
  /** Of the release, where it is about one. */
  infohash?: string;
  /** Why, most important first. */
  because: string[];
}

/** Decides. */
export function desire(facts: Facts): Desire {
  const { head, running } = facts;
  if (!running) return nothing("no-slots", "This machine has no slots: there is nothing to update.");
  if (!head)
    return nothing("no-announcement", "Nobody has announced a release that this node could believe.");
  const context = { ...facts, head, running, ...relations(facts, head) };
  for (const rule of RULES) {
    const found = rule(context);
    if (found) return { ...found, because: [...found.because, ...staleness(facts, head)] };
  }
  throw new Error("the last rule always says something");
}

/** What the rules look at. */
type Context = Facts & { head: Told; running: { version: bigint } } & ReturnType<typeof relations>;

function relations({ ordered, other }: Facts, { infohash, version }: Told) {
  const isHere = other.infohash === infohash || (other.infohash === undefined && other.version === version);
  return {
    /** A person wants it. */
    isOrdered: ordered === "newest" || ordered === infohash,
    /** The other slot holds some or all of it. */
    isHere,
    isWhole: isHere && (other.state === "staged" || other.state === "trying"),
  };
}

/** The first that says something decides. */
const RULES: readonly ((context: Context) => Desire | undefined)[] = [
  ({ trial, head: { version, isWithdrawn, infohash } }) =>
    trial && isWithdrawn && trial.version === version
      ? {
          what: "roll-back",
          code: "withdrawn",
          infohash,
          because: [`Version ${version} was withdrawn while it is on trial.`],
        }
      : undefined,
  ({ trial }) =>
    trial &&
    nothing("on-trial", `Version ${trial.version} is on trial; nothing else is begun before it is decided.`),
  ({ head: { isWithdrawn, version, infohash }, isHere, isWhole, other, running }) =>
    isWithdrawn && version > running.version && isHere && (isWhole || other.state === "writing")
      ? {
          what: "drop",
          code: "withdrawn",
          infohash,
          because: [
            `Version ${version} was withdrawn: it is not ${isWhole ? "tried" : "fetched any further"}.`,
          ],
        }
      : undefined,
  ({ head: { isWithdrawn, version }, running }) =>
    isWithdrawn && running.version === version
      ? nothing(
          "runs-withdrawn",
          `Version ${version} runs and was withdrawn: it goes on until a newer one comes, or 'fruit boot rollback --reason TEXT'.`,
        )
      : undefined,
  ({ head: { isWithdrawn, version }, running }) =>
    isWithdrawn
      ? nothing("withdrawn", `Version ${version} was withdrawn; version ${running.version} goes on.`)
      : undefined,
  ({ head: { version }, running }) =>
    version === running.version
      ? nothing("up-to-date", `Version ${version} is the newest that was announced, and runs.`)
      : undefined,
  ({ head: { version }, running }) =>
    version < running.version
      ? nothing(
          "up-to-date",
          `The newest that was announced is version ${version}; this node runs ${running.version}.`,
        )
      : undefined,
  ({ release, head: { version, infohash } }) =>
    release
      ? undefined
      : {
          what: "learn",
          code: "announced",
          infohash,
          because: [`Version ${version} is announced; its update file is being looked for.`],
        },
  ({ release, head: { version } }) =>
    release?.refused === undefined
      ? undefined
      : nothing("refused", `Version ${version} is refused: ${release.refused}.`),
  ({ release, isOrdered, head: { version } }) =>
    release?.blamed === undefined || isOrdered
      ? undefined
      : nothing(
          "blamed",
          `Version ${version} has failed on this node and is not taken again by itself: ${release.blamed}.`,
        ),
  ({ loop }) =>
    loop === undefined
      ? undefined
      : nothing(
          "reboot-loop",
          `This node was started ${loop} times without health in between: nothing is changed by itself until it stays up.`,
        ),
  ({ other, isHere, head: { version } }) =>
    other.state === "trying" && !isHere
      ? nothing(
          "armed",
          `Version ${other.version} is tried at the next start; version ${version} comes after it.`,
        )
      : undefined,
  ({ policy, isOrdered, isWhole, head: { version } }) =>
    policy === "manual" && !isOrdered
      ? nothing(
          "waits-for-word",
          isWhole
            ? `Version ${version} is whole in the other slot: 'fruit boot try --reason TEXT' starts it.`
            : `Version ${version} is announced: 'fruit update now --reason TEXT' takes it.`,
        )
      : undefined,
  ({ release, isOrdered, head: { version } }) =>
    release?.turn === Number.POSITIVE_INFINITY && !isOrdered
      ? nothing("not-its-turn", `Version ${version} comes in waves, and none of them reaches this node.`)
      : undefined,
  ({ release, isOrdered, now, head: { version } }) =>
    release && now < release.turn && !isOrdered
      ? nothing(
          "not-yet-its-turn",
          `Version ${version} comes in waves; this node's turn is in ${lasting(release.turn - now)}.`,
        )
      : undefined,
  ({ hindered }) =>
    hindered.length > 0 ? { what: "nothing", code: "hindered", because: [...hindered] } : undefined,
  ({ isWhole, isMetered, head: { version, infohash } }) =>
    isWhole
      ? undefined
      : {
          what: "fetch",
          code: "fetching",
          infohash,
          because: [
            `Version ${version} is newer and may be installed.`,
            ...(isMetered ? ["The way out is metered: only peers of this network are asked."] : []),
          ],
        },
  ({ policy, isOrdered, windowOpensIn, isClockSet, head: { version } }) =>
    policy === "window" && !isOrdered && (!isClockSet || windowOpensIn !== 0)
      ? nothing(
          "window-closed",
          `Version ${version} is whole in the other slot and is tried when the window opens${whenOpen(isClockSet, windowOpensIn)}.`,
        )
      : undefined,
  ({ head: { version, infohash } }) => ({
    what: "try",
    code: "trying",
    infohash,
    because: [`Version ${version} is whole in the other slot.`],
  }),
];

function whenOpen(isClockSet: boolean, windowOpensIn: number | undefined): string {
  if (!isClockSet) return ", once the clock is set";
  return windowOpensIn === undefined ? "" : `, in ${lasting(windowOpensIn)}`;
}

/** A freeze is noticed, and stops nothing. */
function staleness({ now }: Facts, { expires, version }: Told): string[] {
  return now < expires
    ? []
    : [
        `The announcement of version ${version} has expired ${lasting(now - expires)} ago and nobody has renewed it: there may be a newer release that does not reach this node.`,
      ];
}

const nothing = (code: string, because: string): Desire => ({ what: "nothing", code, because: [because] });
