/** What can be asked of a node about updates. */
import * as v from "valibot";
import { HEAD_MAX_BYTES, HeadError } from "../../boot/head.ts";
import { historyOf } from "../boot/commands.ts";
import { explainBoot } from "../boot/explain.ts";
import { readInstalling } from "../boot/updates.ts";
import { type Command, command, Refusal } from "../commands.ts";
import { CliError } from "../terminal.ts";
import type { Updates } from "./service.ts";
import { explainUpdates } from "./show.ts";

const Release = v.pipe(v.string(), v.regex(/^(newest|[0-9a-f]{40})$/));
const Base64 = v.pipe(v.string(), v.maxLength(Math.ceil(HEAD_MAX_BYTES / 3) * 4), v.base64());

/** The answer of `update.status`. */
export type UpdateStatus = Awaited<ReturnType<typeof statusOf>>;
/** One connected peer, as `update.peers` says it. */
export type PeerRow = ReturnType<typeof peersOf>[number];

/** The rows of the command table. */
export function updateCommands(updates: Updates): Command[] {
  const { slots } = updates.options;
  return [
    command({
      verb: "update.status",
      summary: "What is followed, what is announced, what is wanted and why, and how far it is",
      tier: 0,
      role: "read",
      args: v.strictObject({}),
      run: async () => ({ state: "done", result: await statusOf(updates) }),
    }),
    command({
      verb: "update.explain",
      summary: "Why this node did or did not update, with evidence",
      tier: 0,
      role: "read",
      args: v.strictObject({}),
      run: async () => {
        const status = await statusOf(updates);
        const lines = await slots.kept.history.tail(100);
        const sentences = [...explainUpdates(status), ...explainBoot(status.boot, lines)];
        return { state: "done", result: { sentences, status } };
      },
    }),
    historyOf(
      slots,
      "update.history",
      "What was announced, fetched, tried, kept and given up, with cause and evidence",
    ),
    command({
      verb: "update.peers",
      summary: "Who releases come from and go to, and what they sent wrongly",
      tier: 0,
      role: "read",
      args: v.strictObject({}),
      run: async () => ({ state: "done", result: { peers: peersOf(updates) } }),
    }),
    command({
      verb: "update.now",
      summary: "Takes the newest release, or the one named, whatever the policy",
      tier: 3,
      role: "update",
      args: v.strictObject({ release: v.optional(Release, "newest") }),
      run: async ({ args }) => {
        slots.kept; // throws where there is nothing to update
        const { head } = await announced(updates);
        if (!head) throw new Refusal("failed", "nobody has announced a release that this node could believe");
        if (args.release !== "newest" && args.release !== head.infohash)
          throw new Refusal(
            "failed",
            `${args.release} is not what is announced (${head.infohash}, version ${head.version}); 'fruit update install ${args.release}' installs it`,
          );
        // What comes after it is another decision
        await updates.order(head.infohash);
        return {
          state: "done",
          message: `version ${head.version} is taken as soon as nothing hinders; 'fruit update status' says how far it is`,
        };
      },
    }),
    command({
      verb: "update.announce",
      summary: "Tells this node, and by it the others, what a signed head says",
      tier: 2,
      role: "update",
      args: v.strictObject({ head: Base64 }),
      run: async ({ args }) => {
        const { announcements } = await announced(updates);
        try {
          const isNew = await announcements.announce(Buffer.from(args.head, "base64"));
          return {
            state: isNew ? "done" : "unchanged",
            message: isNew ? "it is heard" : "it was known already",
          };
        } catch (error) {
          if (error instanceof HeadError || error instanceof CliError)
            throw new Refusal("failed", `the head is not taken: ${error.message}`);
          throw error;
        }
      },
    }),
  ];
}

async function announced({ announcements, problem }: Updates) {
  if (!announcements)
    throw new Refusal(
      "failed",
      'this node follows no target; "update": {"target": …} in node.json names one',
    );
  if (problem !== undefined) throw new Refusal("failed", `nobody is believed: ${problem}`);
  return { announcements, head: await announcements.newest() };
}

async function statusOf(updates: Updates) {
  const { config, open, options, ordered, problem } = updates;
  options.slots.kept; // throws where there is nothing to look at
  const boot = await options.slots.look();
  const head = await updates.announcements?.newest().catch(() => undefined);
  const { target, channel, policy, window, metered } = config;
  const { desire } = open?.follower.wanted ?? {};
  const failure = open?.follower.failure;
  return {
    ...{ policy, channel, metered, target, window, problem, ordered },
    announced: head && {
      version: String(head.version),
      infohash: head.infohash,
      issued: new Date(head.issued * 1000).toISOString(),
      expires: new Date(head.expires * 1000).toISOString(),
      signers: head.signers,
      withdrawn: head.isWithdrawn,
    },
    wanted: desire && { what: desire.what, code: desire.code, because: desire.because },
    doing: doingOf(updates),
    installing: await readInstalling(options.slots.options.config.run_dir),
    failure: failure && { why: failure.why, again_in_s: failure.inSeconds },
    looked: lookedOf(updates),
    given: (open?.given.shares ?? []).map(({ slot, share }) => {
      const { connected = 0, up = 0 } = share.status ?? {};
      return { slot, infohash: share.infohash, peers: connected, up };
    }),
    boot,
  };
}

/** What is under way, and from how many. */
function doingOf({ open }: Updates) {
  const doing = open?.follower.doing;
  const { connected, downRate } = open?.hands.status ?? {};
  return doing && { what: doing.what, infohash: doing.infohash, peers: connected, down_rate: downRate };
}

/** Where heads and peers are looked for. */
function lookedOf({ config: { swarm, metered }, options }: Updates) {
  return {
    broker: options.config.mqtt !== undefined && options.link.isOnline,
    ...{ lan: swarm.lan, dht: swarm.dht, bootstrap: swarm.bootstrap.length, peers: swarm.peers.length },
    ...{ trackers: swarm.trackers && !metered, web_seeds: swarm.web_seeds && !metered },
  };
}

function peersOf({ open }: Updates) {
  const fetched = open?.hands.status;
  const all = [...(fetched ? [fetched] : []), ...(open?.given.shares.map(({ share }) => share.status) ?? [])];
  return all.flatMap((status) =>
    (status?.peers ?? []).map(({ address, isSeed, down, up, downRate, upRate, wrong }) => ({
      ...{ infohash: status?.infohash ?? "", address, seed: isSeed, down, up },
      ...{ down_rate: downRate, up_rate: upRate, wrong },
    })),
  );
}
