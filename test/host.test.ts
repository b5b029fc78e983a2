import { expect, test } from "bun:test";
import { type HostInputs, inferHost, isAlive } from "../agent/power/host.ts";

const LIMITS = { bootSeconds: 120, haltedAmperes: 0.15 };
const on: HostInputs = { supply: "on", hadHeartbeat: false, wasAlive: false, isStopAnnounced: false };
const beating = { heartbeat: true, hadHeartbeat: true, wasAlive: true };
const gone = { heartbeat: false, hadHeartbeat: true, wasAlive: true };

test.each<[string, Partial<HostInputs>, string]>([
  ["no supply", { supply: "off", heartbeat: true }, "off"],
  ["a board that does not answer", { supply: "unknown" }, "unknown"],
  ["a heartbeat", beating, "running"],
  ["no heartbeat yet", { heartbeat: false, onSeconds: 119 }, "starting"],
  ["no heartbeat for longer than a boot takes", { heartbeat: false, onSeconds: 120 }, "silent"],
  ["a heartbeat lost unannounced", { ...gone, onSeconds: 5 }, "silent"],
  [
    "a heartbeat lost while a hung node's status is online still",
    { ...gone, nodeStatus: "online" },
    "silent",
  ],
  ["a node online whose board sees no heartbeat", { heartbeat: false, nodeStatus: "online" }, "running"],
  ["a node online without a heartbeat line", { nodeStatus: "online" }, "running"],
  ["a node that went offline", { nodeStatus: "offline", wasAlive: true }, "silent"],
  ["a node that was not online yet", { nodeStatus: "offline", onSeconds: 3 }, "starting"],
  ["nothing that could tell", { amperes: 0.6, onSeconds: 500 }, "unknown"],
  ["asked to stop, still beating", { ...beating, isStopAnnounced: true, amperes: 0.6 }, "stopping"],
  ["asked to stop, still drawing", { ...gone, isStopAnnounced: true, amperes: 0.15 }, "stopping"],
  ["asked to stop, low but beating", { ...beating, isStopAnnounced: true, amperes: 0.05 }, "stopping"],
  ["asked to stop, gone and low", { ...gone, isStopAnnounced: true, amperes: 0.149 }, "halted"],
  ["asked to stop, gone, no current known", { ...gone, isStopAnnounced: true }, "halted"],
  ["asked to stop, only the current known", { isStopAnnounced: true, amperes: 0.05 }, "halted"],
  ["asked to stop, nothing known", { isStopAnnounced: true }, "stopping"],
])("%s", (_, inputs, host) => {
  expect(inferHost({ ...on, ...inputs }, LIMITS)).toBe(host as never);
});

test("where nothing could show life, nothing is said about it", () => {
  expect(isAlive(on)).toBeUndefined();
});
