import { expect, test } from "bun:test";
import { desire, type Facts, type Told } from "../agent/update/desire.ts";
import { opensIn, readWindow } from "../agent/update/window.ts";

const NOW = 1_795_000_000;
const HEAD: Told = {
  version: 13n,
  infohash: "13".repeat(20),
  issued: NOW - 60,
  expires: NOW + 86_400,
  isWithdrawn: false,
};
const empty: Facts["other"] = { state: "empty", version: 0n, infohash: undefined };
const holding = (state: Facts["other"]["state"], version = 13n): Facts["other"] => ({
  state,
  version,
  infohash: String(version).repeat(20),
});
const RELEASE = { turn: 0 };

const facts = (other: Partial<Facts> = {}): Facts => ({
  policy: "automatic",
  isMetered: false,
  now: NOW,
  isClockSet: true,
  windowOpensIn: undefined,
  head: HEAD,
  running: { version: 12n },
  other: empty,
  trial: undefined,
  release: RELEASE,
  loop: undefined,
  hindered: [],
  ordered: undefined,
  ...other,
});
const withdrawn = { head: { ...HEAD, isWithdrawn: true } };

test.each<[string, Partial<Facts>, string, string]>([
  ["nothing without slots", { running: undefined }, "nothing", "no-slots"],
  ["nothing while nobody announced anything", { head: undefined }, "nothing", "no-announcement"],
  ["nothing where the newest runs", { running: { version: 13n } }, "nothing", "up-to-date"],
  ["nothing where something newer runs", { running: { version: 14n } }, "nothing", "up-to-date"],
  ["the update file first", { release: undefined }, "learn", "announced"],
  [
    "nothing of what is refused",
    { release: { ...RELEASE, refused: "it is for a Pi 5" } },
    "nothing",
    "refused",
  ],
  [
    "nothing refused, whoever asks",
    { release: { ...RELEASE, refused: "it is for a Pi 5" }, ordered: "newest" },
    "nothing",
    "refused",
  ],
  [
    "nothing of what has failed here",
    { release: { ...RELEASE, blamed: "check-failed" } },
    "nothing",
    "blamed",
  ],
  [
    "what has failed here, on a person's word",
    { release: { ...RELEASE, blamed: "check-failed" }, ordered: HEAD.infohash },
    "fetch",
    "fetching",
  ],
  ["nothing in a loop of starts", { loop: 6 }, "nothing", "reboot-loop"],
  ["nothing in a loop of starts, whoever asks", { loop: 6, ordered: "newest" }, "nothing", "reboot-loop"],
  ["what is newer", {}, "fetch", "fetching"],
  ["what is newer, though half another is there", { other: holding("writing", 11n) }, "fetch", "fetching"],
  ["what is newer instead of what was staged", { other: holding("staged", 12n) }, "fetch", "fetching"],
  ["to go on with what is half there", { other: holding("writing") }, "fetch", "fetching"],
  [
    "it once more after a failure that is not held against it",
    { other: holding("failed") },
    "fetch",
    "fetching",
  ],
  ["to start what is whole", { other: holding("staged") }, "try", "trying"],
  ["to start again what is armed", { other: holding("trying") }, "try", "trying"],
  ["nothing in the place of what is armed", { other: holding("trying", 11n) }, "nothing", "armed"],
  ["nothing while another is on trial", { trial: { version: 12n } }, "nothing", "on-trial"],
  ["nothing while it is on trial itself", { trial: { version: 13n } }, "nothing", "on-trial"],
  [
    "to go back when it is withdrawn on trial",
    { trial: { version: 13n }, ...withdrawn },
    "roll-back",
    "withdrawn",
  ],
  [
    "nothing when another than the one on trial is withdrawn",
    { trial: { version: 12n }, ...withdrawn },
    "nothing",
    "on-trial",
  ],
  [
    "to drop what is withdrawn while it is written",
    { other: holding("writing"), ...withdrawn },
    "drop",
    "withdrawn",
  ],
  [
    "to drop what is withdrawn once it is staged",
    { other: holding("staged"), ...withdrawn },
    "drop",
    "withdrawn",
  ],
  [
    "to drop what is withdrawn once it is armed",
    { other: holding("trying"), ...withdrawn },
    "drop",
    "withdrawn",
  ],
  [
    "nothing when something else is staged and the newest withdrawn",
    { other: holding("staged", 11n), ...withdrawn },
    "nothing",
    "withdrawn",
  ],
  [
    "to keep what runs and was withdrawn",
    { running: { version: 13n }, ...withdrawn },
    "nothing",
    "runs-withdrawn",
  ],
  ["nothing withdrawn, whoever asks", { ordered: "newest", ...withdrawn }, "nothing", "withdrawn"],
  ["a person's word under the policy manual", { policy: "manual" }, "nothing", "waits-for-word"],
  [
    "a person's word to start it too",
    { policy: "manual", other: holding("staged") },
    "nothing",
    "waits-for-word",
  ],
  ["what a person asks for", { policy: "manual", ordered: "newest" }, "fetch", "fetching"],
  [
    "nothing of what a person asks for when something else is newest",
    { policy: "manual", ordered: "aa".repeat(20) },
    "nothing",
    "waits-for-word",
  ],
  ["to fetch while the window is closed", { policy: "window", windowOpensIn: 60 }, "fetch", "fetching"],
  [
    "nothing to start while the window is closed",
    { policy: "window", windowOpensIn: 60, other: holding("staged") },
    "nothing",
    "window-closed",
  ],
  [
    "to start while the window is open",
    { policy: "window", windowOpensIn: 0, other: holding("staged") },
    "try",
    "trying",
  ],
  [
    "no window by a clock that is not set",
    { policy: "window", windowOpensIn: 0, isClockSet: false, other: holding("staged") },
    "nothing",
    "window-closed",
  ],
  [
    "to start outside the window on a person's word",
    { policy: "window", windowOpensIn: 60, other: holding("staged"), ordered: "newest" },
    "try",
    "trying",
  ],
  ["its turn", { release: { turn: NOW + 3600 } }, "nothing", "not-yet-its-turn"],
  ["no turn on a person's word", { release: { turn: NOW + 3600 }, ordered: "newest" }, "fetch", "fetching"],
  ["nothing at a bad moment", { hindered: ["Outlet 1.0 is being switched."] }, "nothing", "hindered"],
  [
    "nothing to start at a bad moment either",
    { hindered: ["The supply is low."], other: holding("staged") },
    "nothing",
    "hindered",
  ],
])("wants %s", (_, given, what, code) => {
  expect(desire(facts(given))).toMatchObject({ what, code });
});

test("an announcement that has expired is told of and refuses nothing", () => {
  const { what, because } = desire(facts({ head: { ...HEAD, expires: NOW - 7200 } }));
  expect(what).toBe("fetch");
  expect(because.at(-1)).toContain("has expired 2h ago and nobody has renewed it");
});

test("each answer says why, with the version it is about", () => {
  expect(desire(facts({ running: { version: 14n } })).because).toEqual([
    "The newest that was announced is version 13; this node runs 14.",
  ]);
  expect(desire(facts({ policy: "window", windowOpensIn: 7200, other: holding("staged") })).because).toEqual([
    "Version 13 is whole in the other slot and is tried when the window opens, in 2h.",
  ]);
});

/** 2026-11-23 is a Monday. */
const monday = (clock: string) => Date.parse(`2026-11-23T${clock}Z`) / 1000;

test.each([
  ["01:00-05:00", "00:59:59", 1],
  ["01:00-05:00", "01:00:00", 0],
  ["01:00-05:00", "04:59:59", 0],
  ["01:00-05:00", "05:00:00", 20 * 3600],
  ["22:00-04:00", "03:00:00", 0],
  ["22:00-04:00", "04:00:00", 18 * 3600],
  ["00:00-24:00", "13:00:00", 0],
  ["mon 22:00-04:00", "23:30:00", 0],
  ["sun 22:00-04:00", "03:00:00", 0],
  ["sat,sun 22:00-04:00", "22:00:00", 5 * 86_400],
  ["tue 00:00-00:30", "23:59:30", 30],
  ["mon 00:00-00:30", "00:30:00", 7 * 86_400 - 1800],
])("the window %s opens at %s on a Monday in %i s", (text, clock, seconds) => {
  const window = readWindow(text);
  expect(window && opensIn(window, monday(clock))).toBe(seconds);
});

test.each([
  "",
  "1:00-5:00",
  "01:00-01:00",
  "01:60-02:00",
  "24:00-01:00",
  "01:00-24:01",
  "foo 01:00-02:00",
  "mon, tue 01:00-02:00",
  "01:00-05:00 ",
])("%p is no window", (text) => {
  expect(readWindow(text)).toBeUndefined();
});
