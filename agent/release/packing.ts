/** `fruit release pack`: from files, or from a payload that is laid out, to everything but the signatures. */
import { basename, resolve } from "node:path";
import { parseArgs } from "node:util";
import { parseUpdate, RELEASE_NAME } from "../../boot/updatefile.ts";
import { CliError, type CliVerb, EXIT, seconds, UsageError } from "../terminal.ts";
import { asUsage, readUpdate } from "./files.ts";
import { explainUpdate } from "./inspect.ts";
import { areaOf, type Claims, describe, releaseFiles, superblockOf, writePayload } from "./pack.ts";
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
      prev: { type: "string" },
      "health-service": { type: "string", multiple: true, default: [] },
      "health-deadline": { type: "string" },
      rollout: { type: "string" },
      "rollout-from": { type: "string" },
      jitter: { type: "string" },
      seed: { type: "string", multiple: true, default: [] },
      tracker: { type: "string", multiple: true, default: [] },
      out: { type: "string" },
    },
  }).values;
  const boards = words("boards", values.boards);
  const [channel, target] = [needed("channel", values.channel), needed("target", values.target)];
  const [expires, out] = [needed("expires", values.expires), needed("out", values.out)];
  const { payload } = values;
  if (payload !== undefined && (values.root ?? values.kernel ?? values.initramfs) !== undefined)
    throw new UsageError("--payload is laid out already; --root, --kernel and --initramfs make another");
  const name = nameOf(values);
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
    ...healthOf(values["health-service"], values["health-deadline"]),
    ...(values.prev === undefined ? {} : { prev: await infohashOf(values.prev) }),
    ...rolloutOf(values, created),
    ...(values.seed.length > 0 ? { seeds: values.seed } : {}),
    ...(values.tracker.length > 0 ? { trackers: values.tracker } : {}),
  };
  await asUsage(() => describe(files, { name, area, claims, signal: io.signal }), files.update);
  return explainUpdate(context, files.update);
}

/** The name of the release, which is that of a file in the folder that is written and nowhere else. */
function nameOf({ payload, name }: { payload?: string | undefined; name?: string | undefined }): string {
  const named = payload === undefined ? needed("name", name) : (name ?? basename(payload));
  if (RELEASE_NAME.test(named)) return named;
  throw new CliError(EXIT.usage, `--name: "${named}" is not of the form ${RELEASE_NAME}`);
}

/** What a trial of it asks for, beyond the node's own checks. */
function healthOf(services: string[], deadline: string | undefined): Pick<Claims, "health"> {
  if (services.length === 0 && deadline === undefined) return {};
  const more = deadline === undefined ? {} : { deadlineSeconds: seconds("--health-deadline", deadline) };
  return { health: { services, ...more } };
}

/** The infohash that is given, or that of the update file that is. */
async function infohashOf(text: string): Promise<string> {
  if (/^[0-9a-f]{40}$/.test(text)) return text;
  return asUsage(async () => parseUpdate(await readUpdate(text)).infohash, text);
}

/** `10%@0h 50%@24h 100%@72h`: how much of the fleet may begin when. */
function rolloutOf(
  values: { rollout?: string | undefined; "rollout-from"?: string | undefined; jitter?: string | undefined },
  created: number,
): Pick<Claims, "rollout"> {
  const { rollout, jitter, "rollout-from": from } = values;
  if (rollout === undefined) {
    if (jitter ?? from) throw new UsageError("--jitter and --rollout-from go with --rollout");
    return {};
  }
  const waves = words("rollout", [rollout]).map((word) => {
    const [, percent, hours] = /^(\d{1,3})%@(\d{1,4})h$/.exec(word) ?? [];
    if (hours === undefined)
      throw new UsageError(`--rollout: "${word}" is not PERCENT%@HOURSh (10%@0h 100%@24h)`);
    return { percent: Number(percent), hours: Number(hours) };
  });
  return {
    rollout: {
      from: from === undefined ? created : moment("rollout-from", from, created),
      jitterSeconds: seconds("--jitter", jitter ?? "10m"),
      waves,
    },
  };
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
