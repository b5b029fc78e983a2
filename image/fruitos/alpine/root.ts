/**
 * A root of Alpine's packages, put together without running anything of theirs.
 *
 * What their scripts would do is done here from what the packages say: BusyBox's applets from its own list of paths, services from
 * `RUNLEVELS`, accounts from `ACCOUNTS`. mkinitfs is not used; the initramfs is ours.
 */
import { createHash } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { readRoot } from "../root.ts";
import { unpackTar } from "../tar.ts";
import { BuildError } from "../tools.ts";
import { bytesOf, file, lengthOf, symlink, Tree } from "../tree.ts";
import { type Keys, type OpenPackage, openIndex, openPackage, readKeys } from "./apk.ts";
import { type Listed, parseIndex, resolve } from "./index.ts";
import { checkNoDowngrade, checkWanted, type Locked, readLock, writeLock } from "./lock.ts";
import { fetchFile, type Mirror } from "./mirror.ts";

/** Services by runlevel, where the package that has them is there. Ours are links in `image/rootfs/root`. */
const RUNLEVELS: Readonly<Record<string, readonly string[]>> = {
  sysinit: ["devfs", "dmesg", "mdev", "hwdrivers"],
  boot: ["bootmisc", "hostname", "modules", "networking", "sysctl", "syslog"],
  default: ["chronyd", "docker", "sshd"],
  shutdown: ["killprocs", "mount-ro", "savecache"],
};

/** What packages' scripts would add to `/etc/passwd` and `/etc/group`, by service; the numbers are Alpine's usual ones. */
const ACCOUNTS: Readonly<Record<string, { passwd?: string; group?: string }>> = {
  sshd: { passwd: "sshd:x:22:22:sshd:/dev/null:/sbin/nologin", group: "sshd:x:22:" },
  chronyd: { passwd: "chrony:x:100:101:chrony:/var/log/chrony:/sbin/nologin", group: "chrony:x:101:" },
  docker: { group: "docker:x:102:" },
};

/** What a root is made of. */
export interface AlpineOptions {
  mirror: Mirror;
  /** Folder of trusted public keys; those of the minirootfs where none is named. */
  keys?: string;
  /** A minirootfs to begin with, and its SHA-256 (hex), which is checked first. */
  minirootfs?: { file: string; sha256: string };
  repositories: readonly string[];
  wanted: readonly string[];
  lock: string;
  /** Write the lock anew from the mirror's index; `older`: even where it goes back. */
  update?: { older: boolean };
  tell: (line: string) => void;
}

/** Puts the root together; `work` is a folder that stays until the image is made. */
export async function alpineRoot(options: AlpineOptions, work: string): Promise<Tree> {
  const { lock: path, wanted, tell } = options;
  const root = options.minirootfs ? await readMinirootfs(options.minirootfs, work) : new Tree();
  const keys = options.keys === undefined ? keysIn(root) : readKeys(options.keys);
  if (options.update) await updateLock(options, keys, root);
  const lock = readLock(path);
  if (!lock) throw new BuildError(`${path} is missing: run with --update-lock once`);
  checkWanted(lock, wanted, path);
  const scripts: string[] = [];
  const owners = new Map<string, string>();
  for (const locked of lock.packages) {
    const opened = await openLocked(options.mirror, locked, keys, path);
    addPackage(root, locked.name, opened, owners, work);
    if (opened.scripts.length > 0) scripts.push(locked.name);
  }
  if (scripts.length > 0) tell(`install scripts that were not run: ${scripts.join(", ")}`);
  configure(root);
  tell(`${lock.packages.length} packages`);
  return root;
}

async function readMinirootfs(
  { file, sha256 }: { file: string; sha256: string },
  work: string,
): Promise<Tree> {
  const found = createHash("sha256").update(readFileSync(file)).digest("hex");
  if (found !== sha256) throw new BuildError(`${file}: its SHA-256 is ${found}, wanted is ${sha256}`);
  return readRoot(file, work);
}

function keysIn(root: Tree): Keys {
  const keys = root
    .entries()
    .flatMap(([path, node]) =>
      path.startsWith("etc/apk/keys/") && node.type === "file"
        ? [[basename(path), Buffer.from(bytesOf(node.content)).toString()] as const]
        : [],
    );
  if (keys.length === 0)
    throw new BuildError("no keys to check packages with: name a folder with --keys, or a --minirootfs");
  return new Map(keys);
}

async function updateLock(options: AlpineOptions, keys: Keys, root: Tree): Promise<void> {
  const { mirror, repositories, wanted, lock: path, tell } = options;
  const available: Listed[] = [];
  for (const repository of repositories) {
    const bytes = await fetchFile(mirror, repository, "APKINDEX.tar.gz", true);
    available.push(...parseIndex(openIndex(bytes, keys, `${repository}/APKINDEX.tar.gz`), repository));
  }
  const database = root.content("lib/apk/db/installed");
  const installed = database ? parseIndex(Buffer.from(bytesOf(database)).toString(), "") : [];
  const packages: Locked[] = [];
  for (const listed of resolve(wanted, available, installed)) {
    const { name, version, repository } = listed;
    const bytes = await fetchFile(mirror, repository, apkName(listed), true);
    const opened = openPackage(bytes, keys, apkName(listed));
    if (bytes.length !== listed.size)
      throw new BuildError(`${apkName(listed)}: ${bytes.length} bytes, the index says ${listed.size}`);
    if (opened.checksum !== listed.checksum)
      throw new BuildError(
        `${apkName(listed)}: its checksum is ${opened.checksum}, the index says ${listed.checksum}`,
      );
    packages.push({ name, version, repository, sha256: opened.sha256 });
  }
  const before = readLock(path);
  if (!options.update?.older) checkNoDowngrade(before, packages);
  writeLock(path, { wanted, packages });
  tell(`${path}: ${packages.length} packages`);
}

const apkName = ({ name, version }: { name: string; version: string }) => `${name}-${version}.apk`;

async function openLocked(mirror: Mirror, locked: Locked, keys: Keys, lock: string): Promise<OpenPackage> {
  const { name, version, repository, sha256 } = locked;
  const bytes = await fetchFile(mirror, repository, apkName(locked));
  const found = createHash("sha256").update(bytes).digest("hex");
  if (found !== sha256)
    throw new BuildError(`${apkName(locked)}: its SHA-256 is ${found}, ${basename(lock)} says ${sha256}`);
  const opened = openPackage(bytes, keys, apkName(locked));
  const [is] = opened.info.get("pkgname") ?? [];
  const [has] = opened.info.get("pkgver") ?? [];
  if (is !== name || has !== version)
    throw new BuildError(`${apkName(locked)}: it says it is ${is ?? "nothing"} ${has ?? ""}`);
  return opened;
}

/** Unpacks a package; a file that another one has already must be the same, unless it says that it replaces that one. */
function addPackage(
  root: Tree,
  name: string,
  opened: OpenPackage,
  owners: Map<string, string>,
  work: string,
): void {
  const tar = join(work, `${name}.tar`);
  if (existsSync(tar)) throw new BuildError(`${name}: twice in the lock`);
  writeFileSync(tar, opened.data);
  const alone = new Tree();
  const paths = new Set(unpackTar(alone, tar, { name }));
  const replaces = new Set((opened.info.get("replaces") ?? []).flatMap((line) => line.split(/[\s<>=~]+/)));
  for (const [path, node] of alone.entries()) {
    const owner = owners.get(path);
    const there = root.at(path);
    if (node.type === "directory" && (there?.type === "directory" || (!paths.has(path) && there))) continue;
    if (owner !== undefined && node.type !== "directory" && !replaces.has(owner) && !isSame(there, node))
      throw new BuildError(`${name}: ${path} belongs to ${owner} already`);
    root.put(path, node, name);
    owners.set(path, name);
  }
}

function isSame(one: ReturnType<Tree["at"]>, other: ReturnType<Tree["at"]>): boolean {
  if (one?.type === "symlink" && other?.type === "symlink") return one.target === other.target;
  if (one?.type !== "file" || other?.type !== "file" || lengthOf(one.content) !== lengthOf(other.content))
    return false;
  return Buffer.from(bytesOf(one.content)).equals(bytesOf(other.content));
}

/** Does what scripts would: applets, services, accounts. */
function configure(root: Tree): void {
  for (const applet of applets(root))
    if (root.at(root.resolve(applet) ?? applet) === undefined) root.place(applet, symlink("/bin/busybox"));
  const has = (service: string) => root.at(`etc/init.d/${service}`) !== undefined;
  for (const [level, services] of Object.entries(RUNLEVELS))
    for (const service of services.filter(has))
      root.put(`etc/runlevels/${level}/${service}`, symlink(`/etc/init.d/${service}`));
  for (const lines of Object.entries(ACCOUNTS).flatMap(([name, of]) => (has(name) ? [of] : [])))
    for (const [name, line] of Object.entries(lines)) addLine(root, `etc/${name}`, line);
}

/** The paths that BusyBox's packages want to be found at. */
function applets(root: Tree): string[] {
  return root.entries().flatMap(([path, node]) => {
    if (!path.startsWith("etc/busybox-paths.d/") || node.type !== "file") return [];
    const lines = Buffer.from(bytesOf(node.content)).toString().split("\n");
    return lines.map((line) => line.trim().replace(/^\/+/, "")).filter(Boolean);
  });
}

function addLine(root: Tree, path: string, line: string): void {
  const content = root.content(path);
  const text = content ? Buffer.from(bytesOf(content)).toString() : "";
  const [name] = line.split(":");
  if (text.split("\n").some((one) => one.startsWith(`${name}:`))) return;
  root.put(path, file(`${text}${text === "" || text.endsWith("\n") ? "" : "\n"}${line}\n`));
}
