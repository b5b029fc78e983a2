/** `bun run image`: builds fruitos. `image/README.md` tells how. */
import { readFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { alpineRoot } from "./alpine/root.ts";
import { buildImage, type ImageOptions } from "./builder.ts";
import { BuildError } from "./tools.ts";

const USAGE = `bun run image -- [options]
  --version N            version of the release, an integer; the time in seconds where none is given
  --out DIR              where to (dist)
  --config fruit.json    goes onto the boot partition
  --arch aarch64         the only one so far
  --channel NAME         the release's channel (stable)
  --floor N              once it is good nothing lower is installed (0)
  --slot-size MiB, --boot-size MiB, --data-size MiB     multiples of 4 (1024, 256, 256)
  --both                 slot b holds the same; otherwise it is empty
  --raw                  the card uncompressed, too
  --payload-only         the release, no card
  --tryboot FILTER,…     a tryboot card and release for these models too (pi4, pi5), though U-Boot starts them
  --rootfs TAR           the system from a tar file instead of Alpine
Alpine:
  --mirror URL           address of a branch, with main/ and community/ in it; or ALPINE_MIRROR
  --keys DIR             trusted *.rsa.pub; those of the minirootfs where none is named
  --minirootfs TAR --minirootfs-sha256 HEX              what to begin with
  --packages FILE, --lock FILE                          (image/fruitos/packages.txt, packages.lock)
  --docker               with docker
  --cache DIR            what was fetched (~/.cache/fruit/apk)
  --offline              only from there
  --update-lock          take what the mirror has now; --allow-older: even where that goes back
`;

const TEXT = { type: "string" } as const;
const FLAG = { type: "boolean" } as const;
const OPTIONS = {
  ...{
    version: TEXT,
    out: TEXT,
    config: TEXT,
    arch: TEXT,
    channel: TEXT,
    floor: TEXT,
    rootfs: TEXT,
    mirror: TEXT,
    keys: TEXT,
  },
  ...{ "slot-size": TEXT, "boot-size": TEXT, "data-size": TEXT, minirootfs: TEXT, "minirootfs-sha256": TEXT },
  ...{
    packages: TEXT,
    lock: TEXT,
    cache: TEXT,
    tryboot: TEXT,
    both: FLAG,
    raw: FLAG,
    "payload-only": FLAG,
    docker: FLAG,
  },
  ...{ offline: FLAG, "update-lock": FLAG, "allow-older": FLAG, help: { ...FLAG, short: "h" } },
} as const;

/** Wrong usage: exit 2 with the usage. */
class UsageError extends Error {}

type Values = ReturnType<typeof read>;

function read(args: string[]) {
  try {
    return parseArgs({ args, options: OPTIONS, strict: true }).values;
  } catch (cause) {
    throw new UsageError((cause as Error).message, { cause });
  }
}

/** Turns the command line into what the builder takes. */
export function imageOptions(args: string[], tell: (line: string) => void): ImageOptions | undefined {
  const values = read(args);
  if (values.help) return undefined;
  if (values.arch !== undefined && values.arch !== "aarch64")
    throw new UsageError(`--arch ${values.arch}: aarch64 is what there is; 32-bit boards follow`);
  const { config, channel } = values;
  const version =
    values.version === undefined
      ? BigInt(Math.floor(Date.now() / 1000))
      : unsigned("version", values.version);
  const floor = values.floor === undefined ? undefined : unsigned("floor", values.floor);
  if (floor !== undefined && floor > version)
    throw new UsageError(`--floor ${floor}: it is above the version, ${version}`);
  const size = (name: "slot-size" | "boot-size" | "data-size") => sizeOf(values[name], name);
  const sizes = { boot: size("boot-size"), slot: size("slot-size"), data: size("data-size") };
  const given = Object.entries(sizes).filter(([, bytes]) => bytes !== undefined);
  return {
    out: values.out ?? "dist",
    version,
    rootfs: values.rootfs ?? alpine(values, tell),
    ...(config === undefined ? {} : { config }),
    ...(channel === undefined ? {} : { channel }),
    ...(floor === undefined ? {} : { floor }),
    sizes: Object.fromEntries(given),
    both: values.both ?? false,
    payloadOnly: values["payload-only"] ?? false,
    tryboot: namesIn(values.tryboot),
    ...(values.raw ? { raw: "exact" as const } : {}),
    tell,
  };
}

const namesIn = (text: string | undefined) => (text === undefined ? [] : text.split(","));

function sizeOf(text: string | undefined, name: string): number | undefined {
  if (text === undefined) return undefined;
  if (!/^\d{1,7}$/.test(text) || Number(text) === 0 || Number(text) % 4 !== 0)
    throw new UsageError(`--${name} ${text}: a number of MiB is wanted, a multiple of 4`);
  return Number(text) * 1_048_576;
}

function unsigned(name: string, text: string): bigint {
  if (!/^\d{1,20}$/.test(text) || BigInt(text) > 0xffff_ffff_ffff_ffffn)
    throw new UsageError(`--${name} ${text}: an integer of 64 bits is wanted`);
  return BigInt(text);
}

function alpine(
  values: Values,
  tell: (line: string) => void,
): (work: string) => ReturnType<typeof alpineRoot> {
  const url = values.mirror ?? process.env.ALPINE_MIRROR;
  if (url === undefined && !values.offline)
    throw new UsageError(
      "--mirror URL (or ALPINE_MIRROR), --offline or --rootfs TAR: where the system comes from",
    );
  const { keys, minirootfs } = values;
  const sha256 = values["minirootfs-sha256"];
  if ((minirootfs === undefined) !== (sha256 === undefined))
    throw new UsageError("--minirootfs and --minirootfs-sha256 go together");
  const options = {
    mirror: {
      cache: values.cache ?? join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "fruit/apk"),
      arch: "aarch64",
      ...(url === undefined || values.offline ? {} : { url }),
    },
    repositories: ["main", "community"],
    wanted: packagesIn(values.packages ?? join(import.meta.dir, "packages.txt"), values.docker ?? false),
    lock: values.lock ?? join(import.meta.dir, "packages.lock"),
    ...(keys === undefined ? {} : { keys }),
    ...(minirootfs === undefined || sha256 === undefined ? {} : { minirootfs: { file: minirootfs, sha256 } }),
    ...(values["update-lock"] ? { update: { older: values["allow-older"] === true } } : {}),
    tell,
  };
  return (work) => alpineRoot(options, work);
}

/** The packages in a list; one with `?` behind it only if it is asked for. */
function packagesIn(path: string, isDocker: boolean): string[] {
  const words = readFileSync(path, "utf8").replaceAll(/#.*$/gm, "").split(/\s+/).filter(Boolean);
  return words.filter((word) => isDocker || !word.endsWith("?")).map((word) => word.replace(/\?$/, ""));
}

/** Runs one command line; returns the exit code. */
export async function main(args: string[]): Promise<number> {
  const tell = (line: string) => void process.stderr.write(`${line}\n`);
  try {
    const options = imageOptions(args, tell);
    if (!options) {
      process.stdout.write(USAGE);
      return 0;
    }
    const image = await buildImage(options);
    for (const { name, hash, tryboot, ...made } of image.tryboot ? [image, image.tryboot] : [image])
      for (const path of Object.values(made)) process.stdout.write(`${path}\n`);
    return 0;
  } catch (error) {
    if (error instanceof UsageError) {
      tell(`image: ${error.message}\n${USAGE}`);
      return 2;
    }
    if (!(error instanceof BuildError) && (error as NodeJS.ErrnoException).code === undefined) throw error;
    tell(`image: ${(error as Error).message}`);
    return 1;
  }
}

if (import.meta.main) process.exitCode = await main(process.argv.slice(2));
