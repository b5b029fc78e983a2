/** How updates look on a terminal. */
import { counted, lasting, printable, table } from "../terminal.ts";
import type { PeerRow, UpdateStatus } from "./commands.ts";
import { megabytes } from "./running.ts";

/** `fruit update status`, as the agent knows it. */
export function updateText(status: UpdateStatus): string {
  const { target, channel, policy, window, announced, wanted, installing, failure, problem, ordered } =
    status;
  const lines: [string, string][] = [
    ["follows", target === undefined ? "nothing: no target is configured" : `${target}, channel ${channel}`],
    ["policy", `${policy}${window === undefined ? "" : ` ${window}`}${status.metered ? ", metered" : ""}`],
    ...(problem === undefined ? [] : [["believes", `nobody: ${problem}`] as [string, string]]),
    [
      "newest",
      announced
        ? `version ${announced.version}${announced.withdrawn ? ", withdrawn" : ""} (${announced.infohash}), issued ${announced.issued}, expires ${announced.expires}, by ${announced.signers.join(", ")}`
        : "nothing is announced",
    ],
    ...(ordered === undefined ? [] : [["ordered", ordered] as [string, string]]),
    ["wanted", wanted ? `${wanted.what} (${wanted.code}): ${wanted.because[0] ?? ""}` : "nothing yet"],
    ...(installing ? [["doing", installingText(installing)] as [string, string]] : []),
    ...(failure
      ? [["failed", `${failure.why}; again in ${lasting(failure.again_in_s)}`] as [string, string]]
      : []),
    [
      "gives",
      status.given.map(({ slot, peers }) => `slot ${slot} to ${counted(peers, "peer")}`).join(", ") ||
        "nothing",
    ],
  ];
  return lines.map(([name, what]) => `${name.padEnd(9)}${printable(what)}\n`).join("");
}

function installingText(installing: NonNullable<UpdateStatus["installing"]>): string {
  const { phase, bytes_done = 0, bytes_total = 0, rate, eta_s, peers } = installing;
  const { bytes_from_slots = 0, bytes_from_peers = 0, bytes_from_web = 0 } = installing;
  return [
    `${phase}, ${megabytes(bytes_done)} of ${megabytes(bytes_total)} MB`,
    ...(rate ? [`${megabytes(rate)} MB/s`] : []),
    ...(eta_s ? [`${lasting(eta_s)} left`] : []),
    `${megabytes(bytes_from_slots)} MB from the slots, ${megabytes(bytes_from_peers)} MB from ${counted(peers ?? 0, "peer")}, ${megabytes(bytes_from_web)} MB from web seeds`,
  ].join(", ");
}

/** `fruit update peers`. */
export function peersText(peers: readonly PeerRow[]): string {
  if (peers.length === 0) return "no peers\n";
  return table([
    ["PEER", "RELEASE", "DOWN", "UP", "DOWN/S", "UP/S", "WRONG", "WHOLE"],
    ...peers.map((peer) => [
      ...[peer.address, peer.infohash, megabytes(peer.down), megabytes(peer.up)],
      ...[megabytes(peer.down_rate), megabytes(peer.up_rate), String(peer.wrong), peer.seed ? "yes" : "no"],
    ]),
  ]);
}

/** Why there is or is not an update, before what the slots have to say. */
export function explainUpdates(status: UpdateStatus): string[] {
  const { target, channel, problem, wanted, failure, announced, doing } = status;
  if (target === undefined)
    return ["This node follows no target: it hears of no releases, fetches none and gives none."];
  return [
    `It follows ${target}, channel ${channel}, with policy ${status.policy}.`,
    ...(problem === undefined ? [] : [`It believes nobody: ${problem}.`]),
    ...(announced
      ? [
          `The newest that was announced is version ${announced.version}, by ${announced.signers.join(", ")} at ${announced.issued}.`,
        ]
      : []),
    ...(wanted?.because ?? ["It has not decided anything yet."]),
    ...(doing?.peers === undefined ? [] : [`It is connected to ${counted(doing.peers, "peer")}.`]),
    ...(failure
      ? [`The last attempt failed: ${failure.why}; it is tried again in ${lasting(failure.again_in_s)}.`]
      : []),
    lookedText(status.looked),
  ];
}

function lookedText({
  broker,
  lan,
  dht,
  bootstrap,
  peers,
  trackers,
  web_seeds,
}: UpdateStatus["looked"]): string {
  const ways = [
    `the site's broker (${broker ? "reached" : "not reached"})`,
    ...(lan ? ["its own network"] : []),
    ...(dht ? [`the DHT (${counted(bootstrap, "way", "ways")} into it configured)`] : []),
    ...(peers > 0 ? [counted(peers, "peer that is named", "peers that are named")] : []),
    ...(trackers ? ["trackers of the release"] : []),
    ...(web_seeds ? ["web servers of the release"] : []),
  ];
  return `Heads and peers are looked for by ${ways.join(", ")}.`;
}
