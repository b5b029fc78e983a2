/** `fruit update`: a release in hand into the slot that does not run, with or without an agent. */
import { existsSync, realpathSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { WrongLeaf } from "../../boot/leaf.ts";
import { RotationError } from "../../boot/rotation.ts";
import { SideError } from "../../boot/side.ts";
import { SlotRefusal } from "../../boot/slots.ts";
import { SourceError } from "../../boot/source.ts";
import { parseUpdate, ReleaseError } from "../../boot/updatefile.ts";
import { type Hal, HalError } from "../../hal/ports.ts";
import { slotsData } from "../boot/kernel.ts";
import { type NodeCard, openNodeCard } from "../boot/open.ts";
import { CONFIG_PATH, type Config, ConfigError, parseConfig, readConfig } from "../config.ts";
import { openHardware } from "../hardware.ts";
import { holdFolder } from "../hold.ts";
import { onlyFile, readTrust, readUpdate } from "../release/files.ts";
import {
  CliError,
  type CliVerb,
  EXIT,
  type Exit,
  type Io,
  keyboardOf,
  printable,
  UsageError,
} from "../terminal.ts";
import { ASKED_VERBS, askStatus } from "./ask.ts";
import { compatibleOf } from "./boards.ts";
import { accept, type Installed, install, type Order } from "./install.ts";
import { readLink, readPeers } from "./magnet.ts";
import { Obtaining } from "./obtain.ts";
import { megabytes, Running } from "./running.ts";
import { swarmOf, updateSeed } from "./seed.ts";
import { showStatus } from "./status.ts";
import { applyChain } from "./trust.ts";

type Context = Parameters<CliVerb["run"]>[0];

const WHERE = {
  config: { type: "string" },
  hal: { type: "string" },
  disk: { type: "string" },
  "data-dir": { type: "string" },
} as const;

/** The verbs of `fruit update`. */
export const UPDATE_VERBS: readonly CliVerb[] = [
  {
    words: "update install",
    synopsis:
      "FILE.fruit|INFOHASH|magnet:… [--payload FILE|-] [--side FILE] [--swarm] [--peer IP:PORT]… [--trust FILE] [--disk DISK] [--data-dir DIR] [--board NAME] [--force] [--dry-run]",
    summary:
      "writes a signed release into the slot that does not run, and stages it; what is not in hand comes from peers; goes on where it was interrupted",
    needsAgent: false,
    run: updateInstall,
  },
  {
    words: "update seed",
    synopsis: "FILE.fruit [--payload FILE] [--side FILE] [--port PORT] [--up BYTES] [--for DURATION]",
    summary: "gives a release in hand to peers, and says how they find it",
    needsAgent: false,
    run: updateSeed,
  },
  {
    words: "update status",
    synopsis: "[--disk DISK] [--data-dir DIR]",
    summary:
      "what is followed, wanted and under way; without an agent: how far an install is, or what is staged",
    needsAgent: true,
    run: updateStatus,
  },
  {
    words: "update trust",
    synopsis: "FILE.trust [--data-dir DIR]",
    summary: "follows a chain to the newest trust.json; what revoked keys had said is forgotten",
    needsAgent: false,
    run: updateTrust,
  },
  ...ASKED_VERBS,
];

async function updateInstall({ args, io, json }: Context): Promise<Exit> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      ...WHERE,
      payload: { type: "string" },
      side: { type: "string" },
      swarm: { type: "boolean", default: false },
      peer: { type: "string", multiple: true, default: [] },
      trust: { type: "string" },
      board: { type: "string" },
      force: { type: "boolean", default: false },
      "dry-run": { type: "boolean", default: false },
    },
  });
  const path = onlyFile(positionals);
  const link = readLink(path);
  const peers = [...(link?.peers ?? []), ...readPeers(values.peer)];
  const beside = path.replace(/\.fruit$/, "");
  const inHand = { payload: values.payload ?? beside, side: values.side ?? `${beside}.side` };
  const isFar = link !== undefined || values.swarm || (!values.payload && !existsSync(inHand.payload));
  if (!isFar && beside === path && (values.payload === undefined || values.side === undefined))
    throw new UsageError(`"${path}" does not end in .fruit: name --payload and --side`);
  return withNode(io, values, "write", async ({ hal, card, config, dataDir }) => {
    await using open = new AsyncDisposableStack();
    const trust = await readTrust(values.trust ?? join(dataDir, "trust.json"));
    const say = (line: string) => json || io.err(line);
    const warn = (text: string) => io.err(`fruit: ${text}\n`);
    const running = open.use(new Running({ runDir: config.boot.run_dir, say }));
    const order: Order = {
      ...{ hal, card, dataDir, trust, ...inHand },
      update: { path, bytes: link ? new Uint8Array() : await readUpdate(path) },
      ...(inHand.payload === "-" ? { payload: keyboardOf(io).read(io.signal) } : {}),
      compatible: compatibleOf(hal.machine, values.board),
      force: values.force,
      signal: io.signal,
      begins: ({ name, version }, slot) => {
        running.begins(version);
        say(`${name}, version ${version}, into slot ${slot}\n`);
      },
      report: (step) => running.step(step),
      warn,
    };
    if (!values["dry-run"]) open.use(holdFolder(join(dataDir, "boot"), "install"));
    const obtaining = isFar
      ? open.use(await obtain(order, { infohash: link?.infohash, peers }, values, { config, running }))
      : undefined;
    if (values["dry-run"]) return rehearse(order, io, json);
    const startedMs = performance.now();
    const installed = await install(order);
    tellInstalled(installed, obtaining?.came, (performance.now() - startedMs) / 1000, io, json);
    if (installed.pastCache !== "direct")
      warn("it was read back through the kernel's cache: this file system reads no other way");
    return EXIT.done;
  });
}

/** What came of it. */
function tellInstalled(
  { release, slot, bytesWritten, bytesFrom, pastCache }: Installed,
  came: Obtaining["came"] | undefined,
  seconds: number,
  io: Io,
  json: boolean,
): void {
  const { name, version, size, piecesRoot } = release;
  if (json) {
    const far = came ? { bytes_from_peers: came.peers, bytes_from_web: came.web } : {};
    io.out(
      `${JSON.stringify({ schema: "fruit.update-install/1", slot, name, version: String(version), hash: Buffer.from(piecesRoot).toString("hex"), bytes: size, bytes_written: bytesWritten, bytes_from_slots: bytesFrom.slots, bytes_from_payload: bytesFrom.payload, ...far, seconds: Math.round(seconds * 1000) / 1000, read_back: pastCache ?? "unknown" })}\n`,
    );
    return;
  }
  const rest = came
    ? `${megabytes(came.peers)} MB from peers, ${megabytes(came.web)} MB from web seeds`
    : `${megabytes(bytesFrom.payload)} MB from the payload`;
  io.out(
    `${megabytes(bytesFrom.slots)} MB came from the slots, ${rest}\n${megabytes(bytesWritten)} of ${megabytes(size)} MB had to be written\nstaged in slot ${slot}; \`fruit boot try\` starts it\n`,
  );
}

/** Has the swarm bring what is not in hand: from now on the order asks there. */
async function obtain(
  order: Order,
  {
    infohash = parseUpdate(order.update.bytes).infohash,
    peers,
  }: { infohash?: string | undefined; peers: string[] },
  named: { side?: string | undefined },
  { config, running }: { config: Config; running: Running },
): Promise<Obtaining> {
  const { dataDir, hal, trust, signal, warn, update, side } = order;
  const obtaining = new Obtaining({
    ...swarmOf(config, { port: 0 }),
    ...{ link: { infohash, peers }, dataDir, hal, running, warn, signal },
  });
  try {
    if (update.bytes.length === 0)
      update.bytes = await obtaining.updateFile(trust, (bytes) =>
        accept({ ...order, update: { path: update.path, bytes } }),
      );
    if (named.side === undefined && !(typeof side === "string" && existsSync(side)))
      order.side = (release) => obtaining.sideFile(release);
    order.payload = (release, leaves, file) => obtaining.source(update.bytes, release, leaves, file);
    return obtaining;
  } catch (cause) {
    await obtaining[Symbol.asyncDispose]();
    throw cause;
  }
}

async function rehearse(order: Order, io: Io, json: boolean): Promise<Exit> {
  const { release, slot } = await accept(order);
  const { name, version, size } = release;
  if (json)
    io.out(
      `${JSON.stringify({ schema: "fruit.update-install/1", dry_run: true, slot, name, version: String(version), bytes: size })}\n`,
    );
  else io.out(`${name}, version ${version}, ${megabytes(size)} MB, would go into slot ${slot}\n`);
  return EXIT.done;
}

async function updateTrust({ args, io, json }: Context): Promise<Exit> {
  const { values, positionals } = parseArgs({ args, allowPositionals: true, options: WHERE });
  const path = onlyFile(positionals, "chain, FILE.trust");
  const config = configOf(io, values.config);
  const hal = await openHardware(values.hal, io.env, config);
  try {
    const dataDir = values["data-dir"] ?? slotsData(hal.machine, config.data_dir);
    const { from, trust, revoked } = await applyChain(dataDir, await readUpdate(path));
    const { version } = trust;
    if (json) io.out(`${JSON.stringify({ schema: "fruit.update-trust/1", from, to: version, revoked })}\n`);
    else if (version === from) io.out(`trust.json is of version ${from}: nothing newer in it\n`);
    else
      io.out(
        `trust.json: version ${from} -> ${version}; revoked: ${revoked.map(printable).join(", ") || "nobody"}\n`,
      );
    return EXIT.done;
  } catch (cause) {
    if (cause instanceof RotationError)
      throw new CliError(EXIT.refused, `refused: ${path}: ${cause.message}`, { cause });
    throw cause;
  } finally {
    await hal.close();
  }
}

async function updateStatus(context: Context): Promise<Exit> {
  const { args, io, json } = context;
  const { values } = parseArgs({ args, options: WHERE });
  // Where a card or a configuration is named it is not about the node that runs here
  const answered = Object.keys(values).length === 0 ? await askStatus(context) : undefined;
  if (answered !== undefined) return answered;
  return withNode(io, values, "read", async ({ card, config }) => {
    await showStatus(card, config.boot.run_dir, io, json);
    return EXIT.done;
  });
}

/** The node as these verbs see it. */
interface Node {
  hal: Hal;
  card: NodeCard;
  config: Config;
  dataDir: string;
}

/** Opens the node's card, with or without an agent, and says what is wrong in words and an exit code. */
async function withNode(
  io: Io,
  flags: { config?: string; hal?: string; disk?: string; "data-dir"?: string },
  how: "read" | "write",
  use: (node: Node) => Promise<Exit>,
): Promise<Exit> {
  const config = configOf(io, flags.config);
  const hal = await openHardware(flags.hal, io.env, config);
  try {
    const named = flags.disk ?? config.boot.disk;
    // By its own name, whatever link led to it: by that the running slot is known
    const card = await openNodeCard(hal, named && (existsSync(named) ? realpathSync(named) : named), how);
    if (!card)
      throw new CliError(
        EXIT.hardware,
        "this machine does not run from a card with slots; name one with --disk",
      );
    try {
      const dataDir = flags["data-dir"] ?? slotsData(hal.machine, config.data_dir);
      return await use({ hal, card, config, dataDir });
    } finally {
      await card.disk.close();
    }
  } catch (cause) {
    throw explained(cause, io);
  } finally {
    await hal.close();
  }
}

/** An update may be what mends a broken `node.json`: only one that was named must be good. */
function configOf(io: Io, named: string | undefined): Config {
  const file = named ?? io.env.FRUIT_CONFIG ?? CONFIG_PATH;
  const defaults = () => parseConfig("defaults", { site: "none" });
  if (named === undefined && !existsSync(file)) return defaults();
  try {
    return readConfig(file);
  } catch (cause) {
    if (named !== undefined || !(cause instanceof ConfigError)) throw cause;
    io.err(`fruit: ${cause.message}\nfruit: going on without it\n`);
    return defaults();
  }
}

const REFUSALS = [ReleaseError, SlotRefusal, SideError, SourceError, WrongLeaf];

function explained(cause: unknown, io: Io): unknown {
  const message = cause instanceof Error ? cause.message : String(cause);
  if (REFUSALS.some((kind) => cause instanceof kind))
    return new CliError(EXIT.refused, `refused: ${message}`, { cause });
  if (cause instanceof Error && ["ForeignCard", "RecordError"].includes(cause.name))
    return new CliError(EXIT.hardware, message, { cause });
  if (cause instanceof HalError && cause.code === "busy") return new CliError(EXIT.busy, message, { cause });
  if (io.signal.aborted && cause instanceof Error && cause.name === "AbortError")
    return new CliError(EXIT.failed, "interrupted; the same command goes on where it was", { cause });
  return cause;
}
