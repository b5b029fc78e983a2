/**
 * Two systems out of Debian's packages, as its archive has them on two dates: what the last point release of bookworm has, and with what
 * its security archive has brought since for some of them. Made into squashfs by the image builder's own settings.
 */
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { makeSquashfs } from "../../image/fruitos/filesystems.ts";
import { unpackTar } from "../../image/fruitos/tar.ts";
import { Tree } from "../../image/fruitos/tree.ts";

const cache = join(process.env.XDG_CACHE_HOME ?? join(homedir(), ".cache"), "fruit/delta");

/** As the image builder compresses a root. */
const LEVEL = 15;
/** A kernel and what a small node of a testbed has beside it: 113 MB of packages for amd64. */
const SYSTEM = [
  ...[
    "linux-image-6.1.0-50-cloud-amd64",
    "apt",
    "bash",
    "bind9-host",
    "bind9-libs",
    "coreutils",
    "curl",
    "dbus",
  ],
  ...["dpkg", "e2fsprogs", "git", "git-man", "gpgv", "iproute2", "iptables", "iputils-ping", "libapt-pkg6.0"],
  ...["libarchive13", "libc6", "libc-bin", "libcurl4", "libevent-2.1-7", "libexpat1", "libglib2.0-0"],
  ...["libgnutls30", "libicu72", "liblzma5", "libperl5.36", "libpng16-16", "libpython3.11-minimal"],
  ...["libpython3.11-stdlib", "libsqlite3-0", "libssh2-1", "libssl3", "libstdc++6", "libsystemd-shared"],
  ...["libxml2", "locales", "mosquitto", "nano", "openssh-client", "openssh-server", "openssl", "perl"],
  ...[
    "perl-base",
    "perl-modules-5.36",
    "python3.11",
    "python3.11-minimal",
    "rsync",
    "sudo",
    "systemd",
    "tar",
  ],
  ...["tcpdump", "tzdata", "udev", "util-linux", "vim", "vim-runtime", "wget", "xz-utils"],
];
/** What the security archive brought between 13 and 29 October 2026 of these. */
export const FORTNIGHT = ["bind9-host", "bind9-libs", "libexpat1", "libssl3", "openssl", "tzdata"];

/** Both versions of each package, where there are two. */
interface Versions {
  before: string;
  after: string;
}

/** The packages of both dates, in the cache. */
export interface Pair {
  versions: ReadonlyMap<string, Versions>;
  /** Those of which there are two. */
  changed: readonly string[];
}

/** Why the pair cannot be had here; the pair where it can. What is not in the cache is fetched. */
export async function findPair(): Promise<Pair | string> {
  const missing = ["apt-get", "dpkg-deb", "mksquashfs"].filter((program) => !Bun.which(program));
  if (missing.length > 0) return `apt-get install apt dpkg squashfs-tools: there is no ${missing.join(", ")}`;
  mkdirSync(cache, { recursive: true });
  const versions = new Map<string, Versions>();
  for (const name of SYSTEM) {
    const found = await versionsOf(name);
    if (!found) return `apt-get update: no ${name} of bookworm is known here`;
    versions.set(name, found);
  }
  const changed = SYSTEM.filter((name) => versions.get(name)?.before !== versions.get(name)?.after);
  const lost = FORTNIGHT.filter((name) => !changed.includes(name));
  if (lost.length > 0) return `apt-get update: there are no two versions of ${lost.join(", ")}`;
  const wanted = [...versions].flatMap(([name, { before, after }]) => [
    ...new Set([`${name}=${before}`, `${name}=${after}`]),
  ]);
  const absent = wanted.filter((one) => !packageOf(one));
  if (absent.length === 0) return { versions, changed };
  const work = join(cache, "part");
  rmSync(work, { recursive: true, force: true });
  mkdirSync(work);
  const fetched = Bun.spawnSync(["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", ...absent], {
    cwd: work,
    stderr: "pipe",
  });
  for (const file of readdirSync(work)) renameSync(join(work, file), join(cache, file));
  rmSync(work, { recursive: true });
  const lacking = absent.find((one) => !packageOf(one));
  return lacking === undefined
    ? { versions, changed }
    : `${lacking} cannot be fetched: ${fetched.stderr.toString().trim().slice(0, 200)}`;
}

/** Writes a squashfs of the system with the newer version of these packages. */
export async function makeSystem(out: string, { versions }: Pair, newer: readonly string[]): Promise<void> {
  const tree = new Tree();
  for (const [name, { before, after }] of versions) {
    const path = packageOf(`${name}=${newer.includes(name) ? after : before}`) ?? "";
    const { stdout, stderr, exitCode } = Bun.spawnSync(["dpkg-deb", "--fsys-tarfile", path]);
    if (exitCode !== 0) throw new Error(`${path}: ${stderr}`);
    unpackTar(tree, stdout, { name: path });
  }
  await makeSquashfs(out, tree, LEVEL);
}

/** What bookworm has, and what its security archive has where that is newer. */
async function versionsOf(name: string): Promise<Versions | undefined> {
  const { stdout } = Bun.spawnSync(["apt-cache", "madison", name]);
  const rows = stdout
    .toString()
    .split("\n")
    .map((line) => line.split("|").map((cell) => cell.trim()))
    .filter(([, , where = ""]) => / amd64 Packages$/.test(where));
  const of = (suite: RegExp) => rows.find(([, , where = ""]) => suite.test(where))?.[1];
  const before = of(/ bookworm\/main /);
  const after = of(/ bookworm-security\/main /);
  if (before === undefined) return undefined;
  const isNewer =
    after !== undefined && Bun.spawnSync(["dpkg", "--compare-versions", after, "gt", before]).exitCode === 0;
  return { before, after: isNewer ? after : before };
}

/** As apt-get names it: an epoch's colon is %3a. */
function packageOf(wanted: string): string | undefined {
  const [name, version = ""] = wanted.split("=");
  const start = `${name}_${version.replaceAll(":", "%3a")}_`;
  const file = readdirSync(cache).find((one) => one.startsWith(start) && existsSync(join(cache, one)));
  return file && join(cache, file);
}
