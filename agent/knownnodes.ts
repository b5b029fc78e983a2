/**
 * The nodes a person has met, by their keys, as ssh knows hosts: a file of lines `<site>/<node> ssh-ed25519 AAAA…`.
 * Who answers for a node must have the key that stands there; a node that does not stand there is believed once, and kept.
 */
import { appendFileSync, mkdirSync, readFileSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, isAbsolute, join } from "node:path";
import { decodeBase64, fingerprint, KEY_TYPE, publicKeyBlob, readPublicKey, WireError } from "./sign/wire.ts";
import { CliError, EXIT } from "./terminal.ts";

/** What decides whether a node is the right one. */
export interface NodeCheck {
  site: string;
  node: string;
  /** The key it proved to have. */
  publicKey: Uint8Array;
  /** `--node-key`: a fingerprint, or a file with the key; then the file of known nodes is not looked at. */
  pinned?: string | undefined;
  env: Record<string, string | undefined>;
}

/** Where the known nodes are: XDG Base Directory, of which a relative one does not count. */
export function knownNodesFile(env: Record<string, string | undefined>): string {
  const { XDG_CONFIG_HOME: config, HOME: home } = env;
  const folder = config && isAbsolute(config) ? config : join(home || homedir(), ".config");
  return join(folder, "fruit", "known_nodes");
}

/**
 * Returns what the person should be told: that the node is new. Throws `CliError` unauthorised when it has another key
 * than it should, usage for lines and a `--node-key` that name none.
 */
export function checkNode(check: NodeCheck): string | undefined {
  const { site, node, publicKey, pinned, env } = check;
  const name = `${site}/${node}`;
  const has = fingerprint(publicKey);
  if (pinned !== undefined) {
    const wanted = pinned.startsWith("SHA256:") ? [pinned] : keysIn(pinned, name).map(({ key }) => key);
    if (wanted.includes(has)) return undefined;
    throw new CliError(
      EXIT.unauthorised,
      `${name} proves itself with key ${has}, not with that of --node-key (${wanted.join(", ")}): it is another node, or somebody stands between`,
    );
  }
  const file = knownNodesFile(env);
  const known = linesFor(name, read(file), file);
  if (known.some(({ key }) => key === has)) return undefined;
  const [first] = known;
  if (first) throw changed(name, has, first, file);
  const line = `${name} ${KEY_TYPE} ${publicKeyBlob(publicKey).toString("base64")}\n`;
  return `${name} is met for the first time, with key ${has} (compare with 'fruit console key' on the node); ${keep(file, line)}`;
}

function changed(name: string, has: string, { key, at }: Known, file: string): CliError {
  return new CliError(
    EXIT.unauthorised,
    `${name} HAS ANOTHER KEY THAN BEFORE: ${has} instead of ${key} (${file}, line ${at}). Somebody may stand between you and the node, who could read and type along; nothing was sent. Or the node was set up anew: ask 'fruit console key' on the node itself, and if it says ${has}, delete that line`,
  );
}

interface Known {
  key: string;
  /** Line in the file. */
  at: number;
}

/** The keys of one node. A line of its that is damaged is no reason to believe whoever comes. */
function linesFor(name: string, text: string, file: string): Known[] {
  return text.split("\n").flatMap((line, index) => {
    const [first, type, base64] = line.trim().split(/\s+/);
    if (first !== name) return [];
    return [{ key: fingerprintOf(type, base64, `${file}, line ${index + 1}`), at: index + 1 }];
  });
}

/** The keys in a file that `--node-key` names: public key files, or lines of known nodes. */
function keysIn(file: string, name: string): Known[] {
  let text: string;
  try {
    text = readFileSync(file, "utf8");
  } catch (cause) {
    throw new CliError(EXIT.usage, `--node-key ${file}: neither SHA256:… nor a file that can be read`, {
      cause,
    });
  }
  const bare = text.split("\n").flatMap((line, index) => {
    const [type, base64] = line.trim().split(/\s+/);
    return type === KEY_TYPE
      ? [{ key: fingerprintOf(type, base64, `${file}, line ${index + 1}`), at: index + 1 }]
      : [];
  });
  const found = [...bare, ...linesFor(name, text, file)];
  if (found.length === 0)
    throw new CliError(EXIT.usage, `--node-key ${file}: no ${KEY_TYPE} key of ${name} is in it`);
  return found;
}

function fingerprintOf(type: string | undefined, base64: string | undefined, place: string): string {
  try {
    if (type !== KEY_TYPE || base64 === undefined) throw new WireError(`no ${KEY_TYPE} key`);
    return fingerprint(readPublicKey(decodeBase64(base64, "the key"), "the key"));
  } catch (cause) {
    if (!(cause instanceof WireError)) throw cause;
    throw new CliError(EXIT.usage, `${place}: ${cause.message}; correct or delete the line`, { cause });
  }
}

function read(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (cause) {
    if (["ENOENT", "ENOTDIR"].includes((cause as NodeJS.ErrnoException).code ?? "")) return "";
    throw new CliError(EXIT.failed, `${file}: ${(cause as Error).message}`, { cause });
  }
}

/** One write of one line, so that two who meet a node at once do not tear it. A home that cannot be written to is no reason to stay out. */
function keep(file: string, line: string): string {
  try {
    mkdirSync(dirname(file), { recursive: true, mode: 0o700 });
    const before = read(file);
    appendFileSync(file, before === "" || before.endsWith("\n") ? line : `\n${line}`, { mode: 0o600 });
    return `it is kept in ${file}`;
  } catch (cause) {
    return `it could not be kept: ${(cause as Error).message}`;
  }
}
