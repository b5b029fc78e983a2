import * as v from "valibot";
import { CHANNEL_NAME, TARGET_NAME } from "../../boot/statement.ts";
import { bounded, path, strict, whole } from "../shapes.ts";
import { readWindow } from "./window.ts";

const address = v.pipe(
  v.string(),
  v.regex(
    /^(\d{1,3}(\.\d{1,3}){3}|\[[0-9a-fA-F:]{2,39}\]):\d{1,5}$/,
    (i) => `${i.received}: expected 192.0.2.1:6881 or [2001:db8::1]:6881`,
  ),
);

/** Where peers and announcements are looked for; any one of these is enough. */
const SwarmSection = strict({
  /** TCP, and UDP of the DHT; another one each time where it is 0. */
  port: whole(0, 65_535, 6881),
  /** What the child process runs as, where the agent runs as root. */
  user: whole(1, 4_294_967_294, 65_534),
  /** The child process is ended and started anew above this. */
  memory_mib: whole(64, 4096, 256),
  /** Bytes a second; 0: as fast as the line. A Pi 3 takes about 12 MB/s. */
  up_bytes_per_second: whole(0, 1e10, 2_000_000),
  down_bytes_per_second: whole(0, 1e10, 0),
  /** When others may be given anything, UTC; always unless said otherwise. */
  up_window: v.optional(
    v.pipe(
      v.string(),
      v.check(
        (text) => readWindow(text) !== undefined,
        (i) => `${i.received}: expected 01:00-05:00`,
      ),
    ),
  ),
  /** Peers of the same network, by multicast (BEP 14). */
  lan: v.optional(v.boolean(), true),
  /** A DHT of our own (BEP 5, 44); nobody's unless a way into it is named or found. */
  dht: v.optional(v.boolean(), true),
  bootstrap: v.optional(v.pipe(v.array(address), v.maxLength(64)), []),
  /** Peers that are always asked. */
  peers: v.optional(v.pipe(v.array(address), v.maxLength(64)), []),
  /** Trackers and web seeds that a release names in its signed part. */
  trackers: v.optional(v.boolean(), true),
  web_seeds: v.optional(v.boolean(), true),
});

/** Section `update` of `node.json`: which releases this node follows, and when it takes them. */
export const UpdateSection = strict({
  /** `automatic`: as soon as it can. `window`: is fetched at once, and tried while the window is open. `manual`: a person's word. */
  policy: v.optional(v.picklist(["automatic", "window", "manual"]), "manual"),
  /** When a release may be tried, UTC, such as 01:00-05:00 or sat,sun 22:00-04:00. */
  window: v.optional(
    v.pipe(
      v.string(),
      v.check(
        (text) => readWindow(text) !== undefined,
        (i) => `${i.received}: expected 01:00-05:00 or sat,sun 22:00-04:00`,
      ),
    ),
  ),
  /** The target resource identifier of its releases; without it nothing is followed. */
  target: v.optional(v.pipe(v.string(), v.regex(TARGET_NAME))),
  channel: v.optional(v.pipe(v.string(), v.regex(CHANNEL_NAME)), "stable"),
  /** Whose signatures are believed; `trust.json` of the data folder unless said otherwise. */
  trust: v.optional(path),
  /** The way out costs money: nothing is fetched or given that does not stay in this network. */
  metered: v.optional(v.boolean(), false),
  /** Between two looks at whether there is something to do. */
  look_seconds: bounded(1, 3600, 30),
  swarm: v.optional(SwarmSection, {}),
});
/** As it was read. */
export type UpdateConfig = v.InferOutput<typeof UpdateSection>;
