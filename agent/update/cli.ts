/** `fruit update`: a release in hand into the slot that does not run, with or without an agent. */
import { existsSync, realpathSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { WrongLeaf } from "../../boot/leaf.ts";
import { SideError } from "../../boot/side.ts";
import { SlotRefusal } from "../../boot/slots.ts";
import { SourceError } from "../../boot/source.ts";
import { ReleaseError } from "../../boot/updatefile.ts";
import { type Hal, HalError, type Machine } from "../../hal/ports.ts";
import { slotsData } from "../boot/kernel.ts";
import { type NodeCard, openNodeCard } from "../boot/open.ts";
import { CONFIG_PATH, type Config, ConfigError, parseConfig, readConfig } from "../config.ts";
import { openHardware } from "../hardware.ts";
import { holdFolder } from "../hold.ts";
import { onlyFile, readTrust, readUpdate } from "../release/files.ts";
import { CliError, type CliVerb, EXIT, type Exit, type Io, keyboardOf, UsageError } from "../terminal.ts";
import { accept, install, type Order } from "./install.ts";
import { megabytes, Running } from "./running.ts";
import { showStatus } from "./status.ts";

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
      "FILE.fruit [--payload FILE|-] [--side FILE] [--trust FILE] [--disk DISK] [--data-dir DIR] [--board NAME] [--force] [--dry-run]",
    summary:
      "writes a signed release into the slot that does not run, and stages it; goes on where it was interrupted",
    needsAgent: false,
    run: updateInstall,
  },
  {
    words: "update status",
    synopsis: "[--disk DISK] [--data-dir DIR]",
    summary: "how far a running install is, or what is staged",
    needsAgent: false,
    run: updateStatus,
  },
];

async function updateInstall({ args, io, json }: Context): Promise<Exit> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      ...WHERE,
      payload: { type: "string" },
      side: { type: "string" },
      trust: { type: "string" },
      board: { type: "string" },
      force: { type: "boolean", default: false },
      "dry-run": { type: "boolean", default: false },
    },
  });
  const path = onlyFile(positionals);
  const beside = path.replace(/\.fruit$/, "");
  if (beside === path && (values.payload === undefined || values.side === undefined))
    throw new UsageError(`"${path}" does not end in .fruit: name --payload and --side`);
  const payload = values.payload ?? beside;
  return withNode(io, values, "write", async ({ hal, card, config, dataDir }) => {
    const update = { path, bytes: await readUpdate(path) };
    const trust = await readTrust(values.trust ?? join(dataDir, "trust.json"));
    let running: Running | undefined;
    const say = (line: string) => json || io.err(line);
    const order: Order = {
      hal,
      card,
      dataDir,
      update,
      trust,
      side: values.side ?? `${beside}.side`,
      payload: payload === "-" ? keyboardOf(io).read(io.signal) : payload,
      compatible: compatibleOf(hal.machine, values.board),
      force: values.force,
      signal: io.signal,
      begins: ({ name, version }, slot) => {
        running = new Running({ runDir: config.boot.run_dir, version, say });
        say(`${name}, version ${version}, into slot ${slot}\n`);
      },
      report: (step) => running?.step(step),
      warn: (text) => io.err(`fruit: ${text}\n`),
    };
    if (values["dry-run"]) return rehearse(order, io, json);
    using _ = holdFolder(join(dataDir, "boot"), "install");
    const startedMs = performance.now();
    try {
      const { release, slot, bytesWritten, pastCache } = await install(order);
      const seconds = (performance.now() - startedMs) / 1000;
      const { name, version, size, piecesRoot } = release;
      if (json)
        io.out(
          `${JSON.stringify({ schema: "fruit.update-install/1", slot, name, version: String(version), hash: Buffer.from(piecesRoot).toString("hex"), bytes: size, bytes_written: bytesWritten, seconds: Math.round(seconds * 1000) / 1000, read_back: pastCache ?? "unknown" })}\n`,
        );
      else
        io.out(
          `${megabytes(bytesWritten)} of ${megabytes(size)} MB had to be written\nstaged in slot ${slot}; \`fruit boot try\` starts it\n`,
        );
      if (pastCache !== "direct")
        order.warn("it was read back through the kernel's cache: this file system reads no other way");
      return EXIT.done;
    } finally {
      running?.[Symbol.dispose]();
    }
  });
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

function updateStatus({ args, io, json }: Context): Promise<Exit> {
  const { values } = parseArgs({ args, options: WHERE });
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

/** `compatible` of the device tree, the most exact first. On a desk, where there is none, whoever writes a card names its board. */
function compatibleOf(machine: Pick<Machine, "read">, named: string | undefined): string[] {
  const bytes = machine.read("/proc/device-tree/compatible");
  if (bytes && named !== undefined)
    throw new UsageError("--board: this node has a device tree that says what it is");
  if (!bytes) return named === undefined ? [] : [named];
  return Buffer.from(bytes)
    .toString()
    .split("\0")
    .filter((word) => word !== "");
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
