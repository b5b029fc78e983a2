/** What a chain from one `trust.json` to the next says, for a person and for programs, and whether a node would follow it. */
import {
  CHAIN_MAX_BYTES,
  follow,
  type Link,
  parseChain,
  RotationError,
  signersOf,
} from "../../boot/rotation.ts";
import {
  distinctKeys,
  keyOf,
  signersFor,
  TRUST_ROLES,
  type Trust,
  type TrustRole,
} from "../../boot/trust.ts";
import { CliError, type CliVerb, EXIT, type Exit, type Io, printable, table } from "../terminal.ts";
import { readSmall } from "./files.ts";

type Context = Parameters<CliVerb["run"]>[0];

/** Prints what a chain says, whether or not it leads anywhere. */
export async function explainChain(
  { io, json }: Context,
  path: string,
  bytes: Uint8Array,
  trust?: Trust,
): Promise<Exit> {
  const links = chainOf(path, bytes);
  const shown = links.map((link, index) => {
    const before = links[index - 1]?.trust ?? (trust?.version === link.trust.version - 1 ? trust : undefined);
    const known = [...(before ? signersOf(link, before) : []), ...signersOf(link, link.trust)];
    return {
      ...factsOf(link.trust),
      ...(before ? { changes: changesOf(before, link.trust) } : {}),
      signed_by: [...new Set(known.map(({ id }) => id))],
      others: [...link.signatures.keys()].filter((key) => known.every((one) => keyOf(one) !== key)).length,
      missing: missingIn(link, before),
    };
  });
  io.out(
    json
      ? `${JSON.stringify({ schema: "fruit.trust-chain/1", file: path, links: shown })}\n`
      : shown.map((facts) => table(rowsOf(facts))).join("\n"),
  );
  return EXIT.done;
}

/** Decides as a node with this `trust.json` would: exit 0 when the chain leads on or has been followed already, 4 when it is refused. */
export function verifyChain(io: Io, json: boolean, path: string, bytes: Uint8Array, trust: Trust): Exit {
  const say = (facts: object) =>
    json && io.out(`${JSON.stringify({ schema: "fruit.trust-verify/1", ...facts })}\n`);
  try {
    const rotated = follow(trust, parseChain(bytes));
    const { version } = rotated.trust;
    say({ ok: true, from: trust.version, to: version });
    if (!json)
      io.out(
        version === trust.version
          ? `nothing newer than version ${version}\n`
          : `leads from version ${trust.version} to ${version}\n`,
      );
    return EXIT.done;
  } catch (cause) {
    if (!(cause instanceof RotationError)) throw cause;
    say({ ok: false, code: cause.code, why: `${path}: ${cause.message}` });
    throw new CliError(EXIT.refused, `refused: ${path}: ${cause.message}`, { cause });
  }
}

/** The links of a chain in a file. Throws `CliError`. */
export async function readChain(path: string): Promise<Link[]> {
  return chainOf(path, await readSmall(path, CHAIN_MAX_BYTES));
}

function chainOf(path: string, bytes: Uint8Array): Link[] {
  try {
    return parseChain(bytes);
  } catch (cause) {
    if (!(cause instanceof RotationError)) throw cause;
    throw new CliError(EXIT.usage, `${path}: ${cause.message}`, { cause });
  }
}

/** What a person reads of one version. */
export interface TrustFacts {
  version: number;
  threshold: Trust["threshold"];
  signers: { id: string; roles: readonly TrustRole[] }[];
  changes?: string[];
  signed_by?: string[];
  others?: number;
  missing?: string[];
}

/** What there is to say of one version. */
export const factsOf = ({ version, threshold, signers }: Trust): TrustFacts => ({
  version,
  threshold,
  signers: signers.map(({ id, roles }) => ({ id, roles })),
});

/** The facts as lines. */
export function rowsOf(facts: TrustFacts): string[][] {
  const { version, threshold, signers, changes = [], signed_by, others = 0, missing = [] } = facts;
  const rows = [
    ["version", String(version)],
    ...TRUST_ROLES.map((role) => {
      const of = signers.filter(({ roles }) => roles.includes(role)).map(({ id }) => id);
      return [role, threshold[role] ? `${threshold[role]} of ${of.join(", ")}` : "nobody"];
    }),
    ...changes.map((what) => ["change", what]),
    ...(signed_by ? [["signed by", signed_by.join(", ") || "nobody"]] : []),
    ...(others > 0 ? [["signed by", `${others} whose keys are not known here or do not match`]] : []),
    ...missing.map((what) => ["missing", what]),
  ];
  return rows.map((row) => row.map(printable));
}

/** What a version changes, a line each. */
export function changesOf(before: Trust, after: Trust): string[] {
  const said = (trust: Trust) =>
    new Map(
      trust.signers.map((one) => [`${one.id} ${keyOf(one).slice(0, 16)}…`, [...one.roles].sort().join(", ")]),
    );
  const [old, young] = [said(before), said(after)];
  return [
    ...[...old].filter(([who]) => !young.has(who)).map(([who]) => `${who} is revoked`),
    ...[...young].filter(([who]) => !old.has(who)).map(([who, roles]) => `${who} is new: ${roles}`),
    ...[...young]
      .filter(([who, roles]) => old.has(who) && old.get(who) !== roles)
      .map(([who, roles]) => `${who} has now: ${roles}`),
    ...TRUST_ROLES.filter((role) => before.threshold[role] !== after.threshold[role]).map(
      (role) => `${role}: ${after.threshold[role] ?? 0} must sign, before ${before.threshold[role] ?? 0}`,
    ),
  ];
}

/** Which signatures a link lacks: those that the version before asks for, where that is known, and its own. */
export const missingIn = (link: Link, before: Trust | undefined): string[] => [
  ...(before ? lacking(link, before, `version ${before.version}`) : []),
  ...lacking(link, link.trust, `version ${link.trust.version}`),
];

function lacking(link: Link, trust: Trust, whose: string): string[] {
  const needed = trust.threshold.trust;
  if (needed === undefined) return [`${whose} has no threshold for the role "trust"`];
  const good = signersOf(link, trust);
  const short = needed - distinctKeys(good);
  if (short <= 0) return [];
  const left = signersFor(trust, "trust").filter((one) => !good.includes(one));
  return [`${short} more of ${left.map(({ id }) => id).join(", ")}, as ${whose} asks`];
}
