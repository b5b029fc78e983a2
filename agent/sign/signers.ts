/**
 * Who may command: OpenSSH's `allowed_signers` file, so that `ssh-keygen -Y verify -f` reads it too.
 * What OpenSSH has no word for stands in its trailing comment:
 *
 *     alice@desk namespaces="fruit-cmd@v1",valid-before="20271231" ssh-ed25519 AAAA… roles=read,power outlets=0.0,3.*,4.0-7.1
 *
 * Invariants
 * - A line with anything wrong in it gives nobody any right, and is named; the other lines stand.
 * - What is not granted in words is not granted: no roles, no rights; `power` and `admin` need `outlets=` (`*` for all).
 * - A file that is absent or unreadable is nobody, whatever it said before.
 */
import { readFileSync, statSync } from "node:fs";
import type { OutletId } from "../../hal/ports.ts";
import { ROLES, type Role } from "../commands.ts";
import type { Log } from "../log.ts";
import { parseTime } from "./validity.ts";
import { decodeBase64, fingerprint, KEY_TYPE, readPublicKey, WireError } from "./wire.ts";

/** Largest file that is read, bytes: about a thousand keys. */
export const SIGNERS_MAX_BYTES = 262_144;

/** One line of the file. */
export interface Signer {
  /** The name on the line, `alice@desk`. */
  principal: string;
  fingerprint: string;
  publicKey: Uint8Array;
  /** `admin` has all of them. */
  roles: ReadonlySet<Role>;
  mayOutlet(outlet: OutletId): boolean;
  /** As written after `outlets=`, for people. */
  outlets: string;
  /** Whether signatures made for this namespace count. */
  maySign(namespace: string): boolean;
  /** Unix seconds, both ends included. */
  validAfter?: number;
  validBefore?: number;
}

/** Whoever can be asked for a key: the file, or a test's list. */
export interface Signers {
  find(fingerprint: string): Signer | undefined;
}

/**
 * Reads the text of an `allowed_signers` file. Each problem names its line; that line gives no rights.
 * Without `needsRoles` a key without roles is no problem: it may sign for others than nodes.
 */
export function parseSigners(
  text: string,
  { needsRoles = true }: { needsRoles?: boolean } = {},
): { signers: Signer[]; problems: string[] } {
  const signers = new Map<string, { signer: Signer; at: number }>();
  const problems: string[] = [];
  for (const [index, raw] of text.split("\n").entries()) {
    const line = raw.trim();
    if (line === "" || line.startsWith("#")) continue;
    try {
      const signer = parseLine(line, needsRoles);
      const first = signers.get(signer.fingerprint);
      if (first) throw new WireError(`the key of line ${first.at} again`);
      signers.set(signer.fingerprint, { signer, at: index + 1 });
    } catch (cause) {
      if (!(cause instanceof WireError)) throw cause;
      problems.push(`line ${index + 1}: ${cause.message}`);
    }
  }
  return { signers: [...signers.values()].map(({ signer }) => signer), problems };
}

/** Tells whether a key may be used at a moment, Unix seconds (ssh-keygen(1): "at or after", "at or before"). */
export function isValidAt(signer: Pick<Signer, "validAfter" | "validBefore">, seconds: number): boolean {
  return seconds >= (signer.validAfter ?? -Infinity) && seconds <= (signer.validBefore ?? Infinity);
}

/** The file as it is at every question, so that removing a line needs no restart. */
export class SignerFile implements Signers {
  readonly #path: string;
  readonly #log: Log;
  /** What was read last; null before the first time. */
  #text: string | undefined | null = null;
  #signers: ReadonlyMap<string, Signer> = new Map();

  constructor(path: string, log: Log) {
    this.#path = path;
    this.#log = log;
  }

  find(fingerprint: string): Signer | undefined {
    // Read every time: it is small and in the page cache, and no time stamp can hide a change.
    const { text, error } = readBounded(this.#path);
    if (text !== this.#text) {
      this.#text = text;
      const { signers, problems } = parseSigners(text ?? "");
      this.#signers = new Map(signers.map((signer) => [signer.fingerprint, signer]));
      const file = this.#path;
      if (text === undefined) this.#log("error", "signers.unreadable", { file, error });
      else this.#log("info", "signers.read", { file, signers: signers.length });
      for (const problem of problems) this.#log("error", "signers.bad-line", { file, problem });
    }
    return this.#signers.get(fingerprint);
  }
}

function readBounded(path: string): { text: string | undefined; error?: string } {
  try {
    const { size } = statSync(path);
    if (size > SIGNERS_MAX_BYTES) throw new Error(`${size} bytes; at most ${SIGNERS_MAX_BYTES} are read`);
    return { text: readFileSync(path, "utf8") };
  } catch (cause) {
    return { text: undefined, error: String(cause) };
  }
}

function parseLine(line: string, needsRoles: boolean): Signer {
  const words = split(line, /\s/).filter((word) => word !== "");
  const principal = unquote(words.shift() ?? "");
  if (isKeyType(principal))
    throw new WireError("the line begins with the key; the name comes first, such as alice@desk");
  if (!/^[A-Za-z0-9._+-]+(@[A-Za-z0-9._-]+)?$/.test(principal))
    throw new WireError(
      `"${clip(principal)}" is no name: one name such as alice@desk, no list and no pattern`,
    );
  if (words.length === 0) throw new WireError("there is no key on this line");
  // OpenSSH's order: options stand where no key type does
  const options = isKeyType(words[0]) ? {} : parseOptions(words.shift() ?? "");
  const [type = "", base64 = "", ...comment] = words;
  if (type !== KEY_TYPE)
    throw new WireError(`key type ${type === "" ? "missing" : clip(type)}; only ${KEY_TYPE} is taken`);
  const publicKey = readPublicKey(decodeBase64(base64, "the key"), "the key");
  const { validAfter, validBefore } = options;
  if (validAfter !== undefined && validBefore !== undefined && validBefore <= validAfter)
    throw new WireError("valid-before is not after valid-after");
  return {
    principal,
    fingerprint: fingerprint(publicKey),
    publicKey,
    maySign: options.namespaces ?? (() => true),
    ...(validAfter === undefined ? {} : { validAfter }),
    ...(validBefore === undefined ? {} : { validBefore }),
    ...parseRights(comment, needsRoles),
  };
}

const isKeyType = (word: string | undefined) => /^(sk-)?(ssh|ecdsa)-[a-z0-9@.-]+$/.test(word ?? "");

/** Pieces between separators that stand outside double quotes, as OpenSSH splits words and options. */
function split(text: string, separator: RegExp): string[] {
  const pieces = [""];
  let isQuoted = false;
  for (const char of text) {
    if (char === '"') isQuoted = !isQuoted;
    if (!isQuoted && separator.test(char)) pieces.push("");
    else pieces[pieces.length - 1] += char;
  }
  if (isQuoted) throw new WireError("a double quote is not closed");
  return pieces;
}

interface Options {
  namespaces?: (namespace: string) => boolean;
  validAfter?: number;
  validBefore?: number;
}

function parseOptions(text: string): Options {
  const options: Options = {};
  for (const option of split(text, /,/)) {
    const [name = "", ...rest] = option.split("=");
    const key = name.toLowerCase();
    if (key === "cert-authority")
      throw new WireError("cert-authority: certificates are not taken, only the keys themselves");
    const field = OPTIONS[key];
    if (!field)
      throw new WireError(`"${clip(name)}" is no option; there are ${Object.keys(OPTIONS).join(", ")}`);
    const value = rest.join("=");
    // OpenSSH refuses the whole line otherwise
    if (!/^"[^"\\]*"$/.test(value)) throw new WireError(`${key}: the value must stand in double quotes`);
    if (options[field] !== undefined) throw new WireError(`${key} stands twice`);
    if (field === "namespaces") options.namespaces = pattern(unquote(value));
    else options[field] = parseTime(key, unquote(value));
  }
  return options;
}

const OPTIONS: Record<string, keyof Options> = {
  namespaces: "namespaces",
  "valid-after": "validAfter",
  "valid-before": "validBefore",
};

/** A pattern-list of ssh_config(5): `*`, `?`, `!` before what must not match. */
function pattern(list: string): (text: string) => boolean {
  if (list === "") throw new WireError("namespaces: empty");
  const rules = list.split(",").map((rule) => ({
    isNegated: rule.startsWith("!"),
    expression: new RegExp(
      `^${rule
        .replace(/^!/, "")
        .replace(/[.+^${}()|[\]\\]/g, "\\$&")
        .replace(/\*+/g, ".*")
        .replaceAll("?", ".")}$`,
    ),
  }));
  return (text) =>
    rules.some((rule) => !rule.isNegated && rule.expression.test(text)) &&
    !rules.some((rule) => rule.isNegated && rule.expression.test(text));
}

/** `roles=` and `outlets=` among the words after the key; words without `=` are for people. */
function parseRights(
  words: readonly string[],
  needsRoles: boolean,
): Pick<Signer, "roles" | "outlets" | "mayOutlet"> {
  const rights = new Map<string, string>();
  for (const word of words.filter((each) => each.includes("="))) {
    const [name = "", ...value] = word.split("=");
    if (name !== "roles" && name !== "outlets")
      throw new WireError(`"${clip(word)}" is neither roles= nor outlets=`);
    if (rights.has(name)) throw new WireError(`${name}= stands twice`);
    rights.set(name, value.join("="));
  }
  const list = rights.get("roles");
  if (list === undefined && needsRoles)
    throw new WireError(`roles= is missing, so the key has no rights: ${ROLES.join(", ")}`);
  const roles: ReadonlySet<Role> = list === undefined ? new Set() : parseRoles(list);
  const outlets = rights.get("outlets");
  if (outlets === undefined && roles.has("power"))
    throw new WireError('outlets= is missing: name them ("0.1,3.*"), or outlets=* for all');
  return { roles, outlets: outlets ?? "", mayOutlet: parseOutlets(outlets) };
}

function parseRoles(list: string): ReadonlySet<Role> {
  const roles = list.split(",").map((name) => {
    const role = ROLES.find((known) => known === name);
    if (!role) throw new WireError(`"${clip(name)}" is no role; there are ${ROLES.join(", ")}`);
    return role;
  });
  return new Set(roles.includes("admin") ? ROLES : roles);
}

/** `0.1`, `3.*`, `4.0-7.1` (in rack order, both ends included), `*`. */
function parseOutlets(list: string | undefined): (outlet: OutletId) => boolean {
  const ranges = (list?.split(",") ?? []).map((text) => {
    if (text === "*") return { from: 0, to: Infinity };
    const one = /^(\d{1,3})\.(\d{1,2}|\*)$/.exec(text);
    if (one?.[2] === "*") return { from: place(`${Number(one[1])}.0`), to: place(`${Number(one[1])}.99`) };
    const [from = "", to = from, ...more] = text.split("-");
    if (more.length > 0 || ![from, to].every((end) => /^\d{1,3}\.\d{1,2}$/.test(end)))
      throw new WireError(`outlets: "${clip(text)}" is neither 0.1, 3.*, 4.0-7.1 nor *`);
    if (place(to) < place(from)) throw new WireError(`outlets: ${text} ends before it begins`);
    return { from: place(from), to: place(to) };
  });
  return (outlet) => ranges.some(({ from, to }) => place(outlet) >= from && place(outlet) <= to);
}

/** Where an outlet stands in rack order; a board has at most 100 outlets. */
function place(outlet: string): number {
  const [board, pi] = outlet.split(".");
  return Number(board) * 100 + Number(pi);
}

const unquote = (text: string) => text.replace(/^"(.*)"$/, "$1");

/** Foreign text in a message: short, and on one line. */
const clip = (text: string) => text.slice(0, 40).replace(/[^\x20-\x7e]/g, "?");
