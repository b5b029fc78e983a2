/** What it costs to bring a release into a slot, beside what people use instead, on loop devices over files. */
import { randomBytes } from "node:crypto";
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { basename, join } from "node:path";
import { publicKeyOf } from "../../boot/ed25519.ts";
import { FAT32_LBA, FIRST_PARTITION, LINUX, RECORD_OFFSETS, SECTOR } from "../../boot/layout.ts";
import { encodeRecord } from "../../boot/record.ts";
import { keyLine } from "../../boot/trust.ts";
import { seeded } from "../fakes.ts";
import { type Loop, loop, loops, run } from "../loop.ts";
import { FRUIT, fruit, peakMib, scratch, until } from "../node.ts";
import { BOARD, seedOf, signedBy, squashfs } from "../releases.ts";
import { digits, ratio, type Table, verdict } from "./table.ts";

const MiB = 1024 * 1024;
const BLOCK = 4096;
/** Share of the blocks that the second release changes. */
const CHANGED = 0.05;
/** Bytes for a boot area behind the root. */
const BOOT_BYTES = 4 * MiB;
const FLAT_MIB = 128;
/** How often memory is looked at. */
const PEAK_MS = 10;

/** MiB of the payload's root: 512, or what `FRUIT_BENCH_MB` says. */
const sizeMib = () => Number(process.env.FRUIT_BENCH_MB) || 512;

/** One run of one program. */
interface Run {
  name: string;
  seconds: number;
  peakMib: number | undefined;
  writtenMib: number;
}

/** Install of a payload, onto other content and onto one that differs in a twentieth of its blocks. */
export async function install(): Promise<Table> {
  const mib = sizeMib();
  const title = `Install of ${mib} MiB to a loop device`;
  const head = ["", "seconds", "MiB/s", "peak RSS MiB", "written MiB", "MiB/s fruit/this"];
  if (loops.isSkipped) return { title, head, rows: [], notes: [`not measured${loops.need}`] };
  using folder = scratch();
  const first = await makeRelease(folder.path, mib, 2n);
  const second = await makeRelease(folder.path, mib, 3n, first.root);
  const small = mib === FLAT_MIB ? first : await makeRelease(folder.path, FLAT_MIB, 2n);
  const runs = [
    ...(await fruits(folder.path, mib, [first, second])),
    ...(await raucs(folder.path, mib, [first, second])),
    ...(await dds(folder.path, mib, first)),
  ];
  const [flat] = await fruits(folder.path, FLAT_MIB, [small]);
  const [ours] = runs;
  if (!ours || !flat) throw new Error("install: nobody ran");
  const rate = ({ seconds }: Run) => mib / seconds;
  return {
    title,
    head,
    rows: runs.map((one) => [
      one.name,
      digits(one.seconds, 2),
      digits(rate(one), 0),
      digits(one.peakMib, 1),
      digits(one.writtenMib, 1),
      one === ours ? "" : ratio(rate(ours), rate(one)),
    ]),
    notes: [
      `${FRUIT.name}; every target held other bytes before, on its disk; each payload is in the page cache; written is what the kernel counted at the device`,
      "fruit checks every 16 KiB before they are written, compares, flushes every 16 MiB and reads all of it back past the cache; rauc checks its bundle's signature and hash and does not read back; dd and sha256sum are run one after the other",
      ...(runs.some(({ name }) => name.startsWith("rauc"))
        ? []
        : ["rauc was not measured: apt-get install rauc rauc-service dbus openssl squashfs-tools"]),
      verdict("peak RSS", ours.peakMib ?? Number.NaN, 96, "MiB"),
      `peak RSS with ${FLAT_MIB} MiB: ${digits(flat.peakMib, 1)} MiB, with ${mib} MiB: ${digits(ours.peakMib, 1)} MiB`,
    ],
  };
}

/** A release in files. */
interface Release {
  root: string;
  payload: string;
  update: string;
}

/** Packs and signs a release of noise; one that is made `from` another's root differs from it in a twentieth of its blocks. */
async function makeRelease(folder: string, mib: number, version: bigint, from?: string): Promise<Release> {
  const name = `bench-${mib}-${version}`;
  const root = join(folder, `${name}.root`);
  if (from) {
    run("cp", "--sparse=never", from, root);
    change(root, mib);
  } else noiseFile(root, mib * MiB, squashfs(mib * MiB > 4096 ? 4096 : 0));
  if (!existsSync(join(folder, "kernel")))
    for (const file of ["kernel", "initramfs"]) noiseFile(join(folder, file), MiB);
  const { exit, err } = await fruit([
    ...["release", "pack", "--root", root, "--kernel", join(folder, "kernel")],
    ...["--initramfs", join(folder, "initramfs"), "--version", String(version), "--name", name],
    ...["--boards", BOARD, "--channel", "stable", "--target", "bench"],
    ...["--created", "@1790000000", "--expires", "@4000000000", "--floor", "0", "--out", folder],
  ]);
  if (exit !== 0) throw new Error(`release pack: ${err}`);
  const update = join(folder, `${name}.fruit`);
  writeFileSync(update, signedBy("anna", readFileSync(update)));
  return { root, payload: join(folder, name), update };
}

/** A file of random bytes behind a head. */
function noiseFile(path: string, bytes: number, head: Uint8Array = new Uint8Array()): void {
  const file = openSync(path, "w");
  for (let at = 0; at < bytes; at += MiB) {
    const piece = randomBytes(Math.min(MiB, bytes - at));
    if (at === 0) piece.set(head);
    writeSync(file, piece);
  }
  if (head.length > 0) {
    const size = Buffer.alloc(8);
    size.writeBigUInt64LE(BigInt(bytes));
    writeSync(file, size, 0, 8, 40);
  }
  closeSync(file);
}

/** New bytes in so many of its blocks, here and there. */
function change(path: string, mib: number): void {
  const random = seeded(mib);
  const file = openSync(path, "r+");
  for (let block = 1; block < (mib * MiB) / BLOCK; block++)
    if (random() < CHANGED) writeSync(file, randomBytes(BLOCK), 0, BLOCK, block * BLOCK);
  closeSync(file);
}

/** The program itself: a release onto other content, then each of the others onto the one before. */
async function fruits(folder: string, mib: number, releases: readonly Release[]): Promise<Run[]> {
  const slotBytes = mib * MiB + BOOT_BYTES;
  using card = loop(
    folder,
    `card-${mib}-${releases.length}`,
    FIRST_PARTITION + 4 * MiB + 2 * slotBytes + 4 * MiB,
  );
  fill(card, mib);
  layOut(card.device, slotBytes);
  const data = join(folder, `data-${mib}-${releases.length}`);
  mkdirSync(data);
  writeFileSync(join(data, "trust.json"), trustFile());
  const runs: Run[] = [];
  for (const [at, { update }] of releases.entries()) {
    const words = ["update", "install", update, "--disk", card.device, "--data-dir", data, "--board", BOARD];
    const name = at === 0 ? "fruit update install" : `fruit update install, ${CHANGED * 100} % changed`;
    runs.push(await timed(name, card, [...FRUIT.command, ...words], FRUIT.env));
  }
  return runs;
}

/** A card as the image builder leaves it, of whatever size. */
function layOut(disk: string, slotBytes: number): void {
  const table = Buffer.alloc(SECTOR);
  const slotsAt = FIRST_PARTITION + 4 * MiB;
  const rows = [
    [FAT32_LBA, FIRST_PARTITION, 4 * MiB],
    [LINUX, slotsAt, slotBytes],
    [LINUX, slotsAt + slotBytes, slotBytes],
    [LINUX, slotsAt + 2 * slotBytes, 4 * MiB],
  ] as const;
  for (const [index, [type, offset, bytes]] of rows.entries()) {
    const at = 0x1be + index * 16;
    table.writeUInt8(type, at + 4);
    table.writeUInt32LE(offset / SECTOR, at + 8);
    table.writeUInt32LE(bytes / SECTOR, at + 12);
  }
  table.writeUInt16BE(0x55aa, 510);
  const empty = {
    state: "empty",
    reason: "none",
    version: 0n,
    hash: "0".repeat(32),
    payloadBytes: 0,
  } as const;
  const record = encodeRecord({
    ...{ format: 1, sequence: 1, primary: "a", confirmed: 0, reason: "built", time: 0, floor: 0n },
    slots: { a: { ...empty, state: "good", version: 1n }, b: empty },
  });
  const file = openSync(disk, "r+");
  for (const [offset, bytes] of [[0, table] as const, ...RECORD_OFFSETS.map((at) => [at, record] as const)])
    writeSync(file, bytes, 0, SECTOR, offset);
  closeSync(file);
}

const trustFile = () =>
  JSON.stringify({
    schema: "fruit.trust/1",
    version: 1,
    threshold: { release: 1 },
    signers: [{ id: "anna", key: keyLine(publicKeyOf(seedOf("anna"))), roles: ["release"] }],
  });

/** RAUC with a signed plain bundle of the same payload; its service does the work, and its memory counts. */
async function raucs(folder: string, mib: number, releases: readonly Release[]): Promise<Run[]> {
  if (["rauc", "dbus-run-session", "openssl", "mksquashfs"].some((program) => !Bun.which(program))) return [];
  const dir = join(folder, "rauc");
  const slotBytes = mib * MiB + BOOT_BYTES;
  mkdirSync(join(dir, "mount"), { recursive: true });
  mkdirSync(join(dir, "data"));
  const [key, cert] = [join(dir, "key.pem"), join(dir, "cert.pem")];
  must(
    "openssl",
    "req",
    "-x509",
    "-newkey",
    "rsa:2048",
    "-nodes",
    "-subj",
    "/CN=bench",
    "-keyout",
    key,
    "-out",
    cert,
  );
  using a = loop(dir, "a", slotBytes);
  using b = loop(dir, "b", slotBytes);
  fill(b, mib);
  writeFileSync(
    join(dir, "system.conf"),
    `[system]
compatible=bench
bootloader=noop
mountprefix=${dir}/mount
data-directory=${dir}/data
[keyring]
path=${cert}
[slot.rootfs.0]
device=${a.device}
type=raw
bootname=A
[slot.rootfs.1]
device=${b.device}
type=raw
bootname=B
`,
  );
  const runs: Run[] = [];
  for (const [at, { payload }] of releases.entries()) {
    const bundle = bundleOf(dir, payload, key, cert);
    const name = at === 0 ? "rauc install" : `rauc install, ${CHANGED * 100} % changed`;
    runs.push(await raucRun(name, dir, b, bundle));
    rmSync(bundle);
  }
  return runs;
}

function bundleOf(dir: string, payload: string, key: string, cert: string): string {
  const content = join(dir, basename(payload));
  mkdirSync(content);
  must("cp", payload, join(content, "root.img"));
  writeFileSync(
    join(content, "manifest.raucm"),
    "[update]\ncompatible=bench\nversion=1\n[image.rootfs]\nfilename=root.img\n",
  );
  const bundle = `${content}.raucb`;
  must("rauc", "bundle", "--mksquashfs-args=-noD -noF", "--cert", cert, "--key", key, content, bundle);
  rmSync(content, { recursive: true });
  return bundle;
}

/** A message bus of its own, the service on it, one install. */
async function raucRun(name: string, dir: string, target: Loop, bundle: string): Promise<Run> {
  const conf = join(dir, "system.conf");
  const script = join(dir, "service.sh");
  const pidFile = join(dir, "service.pid");
  rmSync(pidFile, { force: true });
  // Until its standard input ends; then the bus ends with it
  writeFileSync(
    script,
    `echo "$DBUS_SESSION_BUS_ADDRESS" > ${dir}/bus
export DBUS_STARTER_BUS_TYPE=session
rauc -c ${conf} --override-boot-slot=A service > ${dir}/service.log 2>&1 &
echo $! > ${pidFile}
cat > /dev/null
kill $(cat ${pidFile})
`,
  );
  const env = { PATH: process.env.PATH ?? "", DBUS_STARTER_BUS_TYPE: "session" };
  const session = Bun.spawn(["dbus-run-session", "--", "sh", script], {
    ...{ env, stdin: "pipe", stdout: "ignore", stderr: "ignore" },
  });
  try {
    await until(
      "the pid of rauc's service",
      () => existsSync(pidFile) && readFileSync(pidFile, "utf8").trim(),
    );
    const pid = Number(readFileSync(pidFile, "utf8"));
    const bus = { ...env, DBUS_SESSION_BUS_ADDRESS: readFileSync(join(dir, "bus"), "utf8").trim() };
    const owner = ["--dest=org.freedesktop.DBus", "/", "org.freedesktop.DBus.NameHasOwner"];
    const ask = ["dbus-send", "--session", "--print-reply", ...owner, "string:de.pengutronix.rauc"];
    await until("rauc's service", () =>
      Bun.spawnSync(ask, { env: bus }).stdout.toString().includes("boolean true"),
    );
    const one = await timed(name, target, ["rauc", "-c", conf, "install", bundle], bus);
    return { ...one, peakMib: peakMib(pid) };
  } finally {
    await session.stdin.end();
    await session.exited;
  }
}

/** Copy and check by hand; and the same with the medium read back. */
async function dds(folder: string, mib: number, { payload }: Release): Promise<Run[]> {
  using target = loop(folder, "dd", mib * MiB + BOOT_BYTES);
  fill(target, mib);
  const alone = (one: Run): Run => ({ ...one, peakMib: undefined });
  const copy = `sha256sum ${payload} && dd if=${payload} of=${target.device} bs=1M conv=fsync`;
  const back = `dd if=${target.device} bs=1M iflag=direct | sha256sum`;
  const shell = (script: string) => ["sh", "-c", script];
  const runs = [alone(await timed("sha256sum && dd", target, shell(copy), {}))];
  fill(target, mib);
  runs.push(alone(await timed("sha256sum && dd, read back", target, shell(`${copy} && ${back}`), {})));
  return runs;
}

/** Other bytes than those to come, all of them on the disk. */
function fill({ file, device }: Loop, mib: number): void {
  const { exit, err } = run(
    "sh",
    "-c",
    `head -c "$(blockdev --getsize64 ${device})" /dev/urandom > ${device}; sync ${file}`,
  );
  if (exit !== 0) throw new Error(`filling ${mib} MiB: ${err}`);
}

/** Runs a command to its end. */
async function timed(
  name: string,
  { device }: Loop,
  command: string[],
  env: Record<string, string>,
): Promise<Run> {
  const before = sectorsWritten(device);
  const startedAt = performance.now();
  const child = Bun.spawn(command, {
    env: { PATH: process.env.PATH ?? "", ...env },
    stdin: "ignore",
    stdout: "ignore",
    stderr: "pipe",
  });
  let peak = 0;
  let isOver = false;
  const over = Promise.all([child.exited, new Response(child.stderr).text()]).finally(() => {
    isOver = true;
  });
  // Not what wait4(2) says: that begins with the memory of whoever made the process
  while (!isOver) {
    peak = peakMib(child.pid) ?? peak;
    await Bun.sleep(PEAK_MS);
  }
  const [exit, err] = await over;
  if (exit !== 0) throw new Error(`${name}: ${err}`);
  const seconds = (performance.now() - startedAt) / 1000;
  const written = sectorsWritten(device) - before;
  return { name, seconds, peakMib: peak, writtenMib: (written * SECTOR) / MiB };
}

/** Documentation/block/stat.rst: the seventh number, in sectors of 512. */
const sectorsWritten = (device: string) =>
  Number(
    readFileSync(`/sys/block/${basename(device)}/stat`, "utf8")
      .trim()
      .split(/\s+/)[6],
  );

function must(...command: string[]): void {
  const { exit, err } = run(...command);
  if (exit !== 0) throw new Error(`${command[0]}: ${err.slice(0, 500)}`);
}
