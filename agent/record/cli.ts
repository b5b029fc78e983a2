/** `fruit audit tail` and `fruit audit verify`: the audit log on disk, without the agent. */
import { parseArgs } from "node:util";
import { CONFIG_PATH, readConfig } from "../config.ts";
import { CliError, type CliVerb, counted, EXIT, type Io, printable, table, UsageError } from "../terminal.ts";
import { AUDIT_FILES, type AuditHead, type AuditLine, tailAudit } from "./audit.ts";
import { verifyAudit } from "./chain.ts";

const AUDIT_DIR = "/data/fruit/audit";

/** Verbs about the audit log. */
export const AUDIT_VERBS: readonly CliVerb[] = [
  {
    words: "audit tail",
    synopsis: "[-n 20] [--dir DIR]",
    summary: "shows the last lines of the audit log",
    needsAgent: false,
    run: auditTail,
  },
  {
    words: "audit verify",
    synopsis: "[--dir DIR] [--head SEQ:SHA256]",
    summary: "checks the audit log; names lines that were changed, removed, moved or inserted",
    needsAgent: false,
    run: auditVerify,
  },
];

type Context = Parameters<CliVerb["run"]>[0];

async function auditTail({ args, io, json }: Context) {
  const { values } = parseArgs({
    args,
    options: { n: { type: "string", short: "n", default: "20" }, dir: { type: "string" } },
  });
  if (!/^[1-9]\d{0,5}$/.test(values.n)) throw new UsageError(`-n: "${values.n}" is not a number of lines`);
  const dir = values.dir ?? defaultDir(io);
  const lines = await tailAudit(dir, Number(values.n)).catch(noLog(dir));
  if (json) io.out(`${JSON.stringify({ schema: "fruit.audit-tail/1", lines })}\n`);
  else
    io.out(
      table(
        [["SEQ", "TIME", "WHO", "VERB", "ARGS", "DECISION", "REASON"], ...lines.map(row)].map((cells) =>
          cells.map(printable),
        ),
      ),
    );
  return EXIT.done;
}

function row(line: AuditLine): string[] {
  const decision = [line.decision, line.code, line.outcome].filter((word) => word !== undefined).join(" ");
  return [
    String(line.seq),
    line.clock === "synced" ? line.ts : `${line.ts}?`,
    line.who,
    line.verb,
    line.args === undefined ? "-" : JSON.stringify(line.args),
    line.duration_s === undefined ? decision : `${decision} (${line.duration_s.toFixed(1)} s)`,
    line.reason ?? "-",
  ];
}

async function auditVerify({ args, io, json }: Context) {
  const { values } = parseArgs({ args, options: { dir: { type: "string" }, head: { type: "string" } } });
  const dir = values.dir ?? defaultDir(io);
  const published = values.head === undefined ? {} : { head: parseHead(values.head) };
  const verdict = await verifyAudit(dir, { files: AUDIT_FILES, ...published }).catch(noLog(dir));
  const { lines, first, head, problems } = verdict;
  if (json) io.out(`${JSON.stringify({ schema: "fruit.audit-verify/1", dir, ...verdict })}\n`);
  else if (problems.length > 0)
    for (const { file, line, why } of problems) io.out(`${file} line ${line}: ${why}\n`);
  else if (head)
    io.out(
      `${dir}: ${counted(lines, "line")}, seq ${first} to ${head.seq}, the chain holds\nhead ${head.seq}:${head.sha256}\n`,
    );
  else io.out(`${dir}: empty\n`);
  return problems.length > 0 ? EXIT.failed : EXIT.done;
}

function parseHead(text: string): AuditHead {
  const match = /^([1-9]\d{0,14}):([0-9a-f]{64})$/.exec(text);
  if (!match?.[1] || !match[2])
    throw new UsageError(`--head: "${text}" is not SEQ:SHA256, as state/audit/main had it`);
  return { seq: Number(match[1]), sha256: match[2] };
}

/** Where this machine's agent writes, if its configuration can be read. */
function defaultDir(io: Io): string {
  try {
    return `${readConfig(io.env.FRUIT_CONFIG ?? CONFIG_PATH).data_dir}/audit`;
  } catch {
    return AUDIT_DIR;
  }
}

const noLog = (dir: string) => (cause: NodeJS.ErrnoException) => {
  throw new CliError(
    EXIT.failed,
    cause.code === "ENOENT"
      ? `${dir}: there is no audit log; another place: --dir DIR`
      : `the audit log cannot be read: ${cause.message}`,
    { cause },
  );
};
