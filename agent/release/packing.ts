/** `fruit release pack`: from files, or from a payload that is laid out, to everything but the signatures. */
import { basename, resolve } from "node:path";
import { parseArgs } from "node:util";
import { CliError, type CliVerb, EXIT, UsageError } from "../terminal.ts";
import { asUsage } from "./files.ts";
import { explainUpdate } from "./inspect.ts";
import { areaOf, describe, releaseFiles, superblockOf, writePayload } from "./pack.ts";
import { devicesOf, moment, needed, unsigned, words } from "./words.ts";

/** Writes payload, side file and unsigned update file. */
export async function packRelease(context: Parameters<CliVerb["run"]>[0]) {
  const { args, io } = context;
  const values = parseArgs({
    args,
    options: {
      root: { type: "string" },
      kernel: { type: "string" },
      initramfs: { type: "string" },
      dtb: { type: "string", multiple: true, default: [] },
      payload: { type: "string" },
      version: { type: "string" },
      name: { type: "string" },
      boards: { type: "string", multiple: true, default: [] },
      channel: { type: "string" },
      target: { type: "string" },
      created: { type: "string" },
      expires: { type: "string" },
      "min-from": { type: "string" },
      floor: { type: "string" },
      out: { type: "string" },
    },
  }).values;
  const boards = words("boards", values.boards);
  const [channel, target] = [needed("channel", values.channel), needed("target", values.target)];
  const [expires, out] = [needed("expires", values.expires), needed("out", values.out)];
  const { payload } = values;
  if (payload !== undefined && (values.root ?? values.kernel ?? values.initramfs) !== undefined)
    throw new UsageError("--payload is laid out already; --root, --kernel and --initramfs make another");
  const name = payload === undefined ? needed("name", values.name) : (values.name ?? basename(payload));
  const files = { ...releaseFiles(out, name), ...(payload === undefined ? {} : { payload }) };
  if (payload === undefined) await layDown(files.payload, { ...values, name }, io.signal);
  const area = await areaOf(files.payload);
  const { version } = area;
  if (values.version !== undefined && unsigned("version", values.version) !== version)
    throw new CliError(
      EXIT.usage,
      `--version ${values.version}: the boot area of ${files.payload} says ${version}`,
    );
  const created = await madeAt(values.created ?? io.env.SOURCE_DATE_EPOCH, files.payload);
  const claims = {
    target,
    boards,
    channel,
    created,
    expires: moment("expires", expires, created),
    minFrom: unsigned("min-from", values["min-from"] ?? "0"),
    floor: unsigned("floor", values.floor ?? String(version)),
  };
  await asUsage(() => describe(files, { name, area, claims, signal: io.signal }));
  return explainUpdate(context, files.update);
}

/** Makes the payload of its parts. */
async function layDown(
  path: string,
  given: {
    name: string;
    root?: string | undefined;
    kernel?: string | undefined;
    initramfs?: string | undefined;
    version?: string | undefined;
    dtb: string[];
  },
  signal: AbortSignal,
): Promise<void> {
  const parts = {
    root: needed("root", given.root),
    kernel: needed("kernel", given.kernel),
    initramfs: needed("initramfs", given.initramfs),
    deviceTrees: devicesOf(given.dtb),
  };
  const version = unsigned("version", needed("version", given.version));
  const inputs = [parts.root, parts.kernel, parts.initramfs, ...Object.values(parts.deviceTrees)];
  if (inputs.some((file) => resolve(file) === resolve(path)))
    throw new UsageError(
      `${path}: the payload would overwrite what it is made of; choose another --name or --out`,
    );
  await writePayload(path, parts, { name: given.name, version }, signal);
}

/** The time that is stated: what is given, otherwise that of the squashfs, so that the clock of this machine has no part in it. */
async function madeAt(given: string | undefined, payload: string): Promise<number> {
  if (given !== undefined) return moment("created", given);
  const { made } = await superblockOf(payload);
  if (made > 0) return made;
  throw new UsageError(`--created is missing: the squashfs in ${payload} does not say when it was made`);
}
