/** The built card and release, read by other programs than those that made them. */
import { afterAll, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { crc32, gzipSync, zstdCompressSync } from "node:zlib";
import { $ } from "bun";
import { findArea } from "../boot/area.ts";
import { FIRST_PARTITION, readPartitions } from "../boot/layout.ts";
import { readRecords } from "../boot/records.ts";
import { parseUpdate, readStatement } from "../boot/updatefile.ts";
import { openDisk } from "../hal/disk.ts";
import { buildImage, type Image, type ImageOptions } from "../image/fruitos/builder.ts";
import { cpioOf } from "../image/fruitos/cpio.ts";
import { makeInitramfs } from "../image/fruitos/initramfs.ts";
import { addModules, findKernel, unpackKernel } from "../image/fruitos/kernel.ts";
import { imageOptions } from "../image/fruitos/main.ts";
import { chooseStarters, configTxt } from "../image/fruitos/models.ts";
import { blockMap, compressCard } from "../image/fruitos/outputs.ts";
import { checkSecrets } from "../image/fruitos/secrets.ts";
import { unpackTar } from "../image/fruitos/tar.ts";
import { writeTar } from "../image/fruitos/tarwriter.ts";
import { BuildError, missingPackages } from "../image/fruitos/tools.ts";
import { bytesOf, directory, file, symlink, Tree } from "../image/fruitos/tree.ts";
import { type RawMember, rawTar } from "./alpine.ts";
import { needs } from "./node.ts";

process.env.PATH = `${process.env.PATH}:/usr/sbin:/sbin`;
const MiB = 1 << 20;
const folder = mkdtempSync(join(tmpdir(), "fruit-image-"));
afterAll(async () => {
  await once?.catch(() => {});
  rmSync(folder, { recursive: true, force: true });
});

const missing = missingPackages();
const built = (title: string, ...programs: { name: string; install: string }[]) => {
  const { title: full, isSkipped } = needs(title, ...programs);
  const also = missing.length > 0 ? ` [needs: apt-get install ${missing.join(" ")}]` : "";
  return test.skipIf(isSkipped || missing.length > 0).bind(undefined, full + also);
};

/** An arm64 Image by its header alone. */
function kernelImage(): Buffer {
  const image = Buffer.alloc(70_000, "kernel ");
  image.writeBigUInt64LE(100_000n, 16);
  image.write("ARMd", 56, "latin1");
  return image;
}

const ROOT: RawMember[] = [
  { path: "./bin/", type: "5", mode: 0o755 },
  { path: "./bin/busybox", text: "busybox", mode: 0o4755 },
  { path: "./dev/ttyX", type: "3", device: [4, 64], uid: 7 },
  { path: "./home/user", type: "5", mode: 0o700, uid: 1000 },
  { path: "./usr/share/u-boot/rpi_3/u-boot.bin", text: "U-Boot 3" },
  { path: "./usr/share/u-boot/rpi_arm64/u-boot.bin", text: "U-Boot all, bcm2712 too" },
  { path: "./boot/start4.elf", text: "firmware" },
  { path: "./boot/overlays/disable-bt.dtbo", text: "overlay" },
  { path: "./lib/modules/6.1-test/modules.dep", text: "kernel/ext4.ko: kernel/jbd2.ko\nkernel/jbd2.ko:\n" },
  { path: "./lib/modules/6.1-test/kernel/ext4.ko", text: "ext4" },
  { path: "./lib/modules/6.1-test/kernel/jbd2.ko", text: "jbd2" },
];

/** A root as a tar; a kernel is put in as it is, since it is no text. */
function rootTar(name: string, more: RawMember[] = [], kernel = kernelImage()): string {
  const header = rawTar([{ path: "./boot/vmlinuz-rpi", size: kernel.length }], false);
  const padding = Buffer.alloc((512 - (kernel.length % 512)) % 512);
  const path = join(folder, name);
  writeFileSync(path, Buffer.concat([header, kernel, padding, rawTar([...ROOT, ...more])]));
  return path;
}

const OVERLAY = join(folder, "overlay");
for (const [path, text] of Object.entries({
  "root/etc/init.d/fruit": "#!/sbin/openrc-run\n",
  "initramfs/init": "#!/bin/busybox sh\n",
  "rescue/lib/fruit/rescue": "#!/bin/busybox sh\n",
  modules: "ext4 # the data\nlacking?\n",
})) {
  mkdirSync(dirname(join(OVERLAY, path)), { recursive: true });
  writeFileSync(join(OVERLAY, path), text, { mode: 0o755 });
}
writeFileSync(join(folder, "agent"), "the agent");
writeFileSync(join(folder, "fruit.json"), '{"name":"n"}');

function make(out: string, more: Partial<ImageOptions> = {}): Promise<Image> {
  return buildImage({
    ...{ out: join(folder, out), version: 7n, rootfs: more.rootfs ?? rootTar("root.tar"), overlay: OVERLAY },
    ...{
      agent: join(folder, "agent"),
      config: join(folder, "fruit.json"),
      raw: "exact",
      time: 1_700_000_000,
    },
    ...{ sizes: { boot: 40 * MiB, slot: 4 * MiB, data: 8 * MiB }, level: { root: 1, card: 1 }, floor: 6n },
    ...more,
  });
}

const once = missing.length > 0 ? undefined : make("once");
const card = async () => (await once) ?? { raw: "", name: "" };
const refusal = async (what: () => unknown) => {
  const error = await (async () => what())().catch((cause: unknown) => cause);
  if (!(error instanceof BuildError)) throw new Error(`expected a BuildError, got ${error}`);
  return error.message;
};
/** One partition of the card as a file. */
async function partition(number: number): Promise<string> {
  const { raw = "" } = await card();
  const bytes = readFileSync(raw);
  const { offset, bytes: length } = readPartitions(bytes.subarray(0, 512))?.find(
    (one) => one.number === number,
  ) ?? { offset: 0, bytes: 0 };
  const path = join(folder, `p${number}`);
  writeFileSync(path, bytes.subarray(offset, offset + length));
  return path;
}

built("the same input gives the same bytes, whatever the time and the time zone")(async () => {
  const one = await card();
  // FAT counts in steps of two seconds: what takes the time of day would be told apart by now
  const over = Date.now() + 2100;
  while (Date.now() < over) await Bun.sleep(100);
  const zone = process.env.TZ;
  process.env.TZ = "Asia/Tokyo";
  const other = await make("again").finally(() => {
    if (zone === undefined) delete process.env.TZ;
    else process.env.TZ = zone;
  });
  const hashes = (made: object) =>
    Object.entries(made).map(([what, path]) =>
      what === "name" || what === "hash"
        ? [what, path]
        : [what, createHash("sha256").update(readFileSync(path)).digest("hex")],
    );
  expect(hashes(other)).toEqual(hashes(one));
  expect(Object.keys(one)).toContain("image");
});

built("sfdisk reads the partition table as it was meant", { name: "sfdisk", install: "fdisk" })(async () => {
  const { raw = "" } = await card();
  const table = JSON.parse(await $`sfdisk --json ${raw}`.text()).partitiontable;
  const start = FIRST_PARTITION / 512;
  expect(table.label).toBe("dos");
  expect(table.partitions.map(({ node, ...rest }: { node: string }) => rest)).toEqual([
    { start, size: 81_920, type: "c", bootable: true },
    { start: start + 81_920, size: 8192, type: "83" },
    { start: start + 90_112, size: 8192, type: "83" },
    { start: start + 98_304, size: 16_384, type: "83" },
  ]);
});

built(
  "all four records are there, numbered 1 to 4: slot a good, slot b empty, the boot files where they say",
)(async () => {
  const { raw = "", hash = "" } = (await once) ?? {};
  const disk = await openDisk(raw, "read");
  const { all, newest } = await readRecords(disk, "cache");
  await disk.close();
  expect(all.map(({ record }) => record?.sequence)).toEqual([1, 2, 3, 4]);
  expect(newest?.record.floor).toBe(6n);
  const { a, b } = newest?.record.slots ?? {};
  expect(a).toMatchObject({ state: "good", reason: "built", version: 7n, hash: hash.slice(0, 32) });
  expect(b).toMatchObject({ state: "empty", version: 0n });
  const slot = readFileSync(await partition(2));
  for (const boot of [a?.kernel, a?.initramfs])
    expect(crc32(slot.subarray(boot?.offset, (boot?.offset ?? 0) + (boot?.bytes ?? 0)))).toBe(
      boot?.crc32 ?? -1,
    );
});

built("with --both slot b holds the same payload and is good")(async () => {
  const { raw = "", payload } = await make("both", { both: true });
  const disk = await openDisk(raw, "read");
  const { newest } = await readRecords(disk, "cache");
  expect(newest?.record.slots.b).toEqual(newest?.record.slots.a as never);
  const offset = FIRST_PARTITION + 44 * MiB;
  const length = statSync(payload).size;
  expect(Buffer.from(await disk.read(offset, length)).equals(readFileSync(payload))).toBe(true);
  await disk.close();
});

built("fsck finds the boot partition whole, and what the firmware and U-Boot look for is on it")(async () => {
  const p1 = await partition(1);
  expect((await $`fsck.fat -n ${p1}`.nothrow().quiet()).exitCode).toBe(0);
  const list = await $`mdir -i ${p1} -/ -b`.text();
  for (const name of [
    "config.txt",
    "cmdline.txt",
    "boot.scr",
    "u-boot-rpi_3.bin",
    "start4.elf",
    "fruit.json",
  ])
    expect(list).toContain(`::/${name}\n`);
  for (const name of ["rescue/Image", "rescue/initramfs", "overlays/disable-bt.dtbo"])
    expect(list).toContain(`::/${name}\n`);
  expect(await $`mtype -i ${p1} ::/fruit.json`.text()).toBe('{"name":"n"}');
});

built("e2fsck finds the data partition whole, and it says what slot a holds")(async () => {
  const p4 = await partition(4);
  expect((await $`e2fsck -fn ${p4}`.nothrow().quiet()).exitCode).toBe(0);
  const { update = "" } = (await once) ?? {};
  const held = await $`debugfs -R ${"cat /fruit/releases/a.fruit"} ${p4}`.quiet();
  expect(held.stdout.equals(readFileSync(update))).toBe(true);
  const { proposal } = parseUpdate(held.stdout);
  expect(proposal && readStatement(proposal)).toMatchObject({ version: 7n, floor: 6n });
});

built(
  "the root in the slot has its owners, modes and devices, the agent, our files, and nothing of the boot partition",
)(async () => {
  const { payload } = (await once) ?? { payload: "" };
  const list = await $`unsquashfs -lln ${payload}`.text();
  expect(list).toMatch(/-rwsr-xr-x 0\/0 .* squashfs-root\/bin\/busybox\n/);
  expect(list).toMatch(/crw-r--r-- 7\/0 +4, 64 .* squashfs-root\/dev\/ttyX\n/);
  expect(list).toMatch(/drwx------ 1000\/0 .* squashfs-root\/home\/user\n/);
  expect(list).toMatch(/-rwxr-xr-x 0\/0 .* squashfs-root\/usr\/bin\/fruit\n/);
  expect(list).toContain("squashfs-root/etc/init.d/fruit\n");
  expect(list).not.toMatch(/u-boot|vmlinuz|start4|2023-/);
  const disk = await openDisk(payload, "read");
  expect(await findArea(disk)).toMatchObject({
    version: 7n,
    name: "fruitos-7-aarch64",
    payloadBytes: disk.bytes,
  });
  await disk.close();
  const facts = JSON.parse(await $`unsquashfs -cat ${payload} etc/fruit/release.json`.text());
  expect(facts).toMatchObject({ version: "7", channel: "stable", floor: "6" });
  expect(facts.boards).toContain("raspberrypi,3-model-b");
});

built(
  "the compressed card is the card, for zstd, sha256sum and bmaptool",
  { name: "zstd", install: "zstd" },
  { name: "bmaptool", install: "bmap-tools" },
)(async () => {
  const { image = "", raw = "" } = (await once) ?? {};
  const plain = join(folder, "plain.img");
  await $`zstd -q -d -f ${image} -o ${plain}`;
  expect((await $`cmp ${plain} ${raw}`.nothrow().quiet()).exitCode).toBe(0);
  expect(
    (await $`cd ${dirname(image)} && sha256sum -c --quiet fruitos-7-aarch64.img.zst.sha256`.nothrow().quiet())
      .exitCode,
  ).toBe(0);
  const copied = join(folder, "copied.img");
  expect((await $`bmaptool copy ${image} ${copied}`.nothrow().quiet()).stderr.toString()).toContain(
    "block map format version 2.0",
  );
  expect((await $`cmp ${copied} ${raw}`.nothrow().quiet()).exitCode).toBe(0);
});

test("a card past 2 GiB is compressed and mapped without being in memory", async () => {
  // Holes of a file in memory need not be read into the cache first
  const place = existsSync("/dev/shm") ? mkdtempSync("/dev/shm/fruit-image-") : folder;
  const big = join(place, "big.img");
  writeFileSync(big, "start");
  truncateSync(big, 2 ** 31 + 8 * MiB);
  const end = await openDisk(big, "write");
  await end.write(2 ** 31 + 4096, Buffer.from("end"));
  await end.close();
  const before = process.memoryUsage().rss;
  compressCard(big, `${big}.zst`, 1);
  const map = blockMap(big);
  expect(process.memoryUsage().rss - before).toBeLessThan(96 * MiB);
  expect(statSync(`${big}.zst`).size).toBeLessThan(MiB);
  expect(map).toContain("<MappedBlocksCount> 2 </MappedBlocksCount>");
  expect(map).toContain(`> ${2 ** 31 / 4096 + 1} </Range>`);
  if (place !== folder) rmSync(place, { recursive: true });
}, 30_000);

built("a secret in the root stops the build, with its path")(async () => {
  const member = { path: "./root/key", text: "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n" };
  const message = await refusal(() => make("secret", { rootfs: rootTar("secret.tar", [member]) }));
  expect(message).toContain("root/key (a private key)");
});

const KEY = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQ";
const HASH = "$6$abc$def";
const STOCK_SHADOW = "root:*::0:::::\nbin:!::0:::::\nsshd:!*:19000::::::\nnew:!!:::::::\nopen:::0:::::\n";

/** A root of one file, and what the build says of it. */
function saidOf(path: string, content: string): string {
  const tree = new Tree();
  tree.put(path, file(content));
  try {
    checkSecrets(tree);
    return "";
  } catch (error) {
    if (!(error instanceof BuildError)) throw error;
    return error.message;
  }
}

test.each<[string, string, string]>([
  ["etc/shadow", `root:${HASH}:1::::::\n`, "a password for root"],
  ["etc/shadow", `${STOCK_SHADOW}a:${HASH}:1::::::\nb:!${HASH}:1::::::\n`, "a password for a, b"],
  ["etc/shadow-", `root:${HASH}:1::::::\n`, "a password for root"],
  ["etc/shadow.bak", `root:${HASH}:1::::::\n`, "a password for root"],
  ["etc/passwd", `root:${HASH}:0:0:root:/root:/bin/sh\n`, "a password for root"],
  ["etc/passwd-", "root:abJnggxhB/yWI:0:0:root:/root:/bin/sh\n", "a password for root"],
  ["etc/gshadow", `wheel:${HASH}::root\n`, "a password for wheel"],
  ["etc/ssh/ssh_host_rsa_key", "x", "a host key"],
  ["etc/dropbear/dropbear_ed25519_host_key", "x", "a host key"],
  ["root/dropbear_rsa_host_key", "x", "a host key"],
  ["root/.ssh/authorized_keys", "ssh-ed25519 AAAA me\n", "who may log in"],
  ["home/user/.ssh/authorized_keys2", "ssh-ed25519 AAAA me\n", "who may log in"],
  ["etc/dropbear/authorized_keys", "ssh-ed25519 AAAA me\n", "who may log in"],
  ["data/fruit/authorized_keys", "ssh-ed25519 AAAA me\n", "who may log in"],
  ["home/user/.ssh/id_ed25519", "x", "somebody's key"],
  ["etc/wpa_supplicant/wpa_supplicant.conf", 'network={\n\tssid="a"\n\tpsk="b"\n}\n', "wireless network"],
  ["etc/wpa_supplicant/wpa_supplicant-wlan0.conf", 'network={\n  password="b"\n}\n', "wireless network"],
  ["etc/network/interfaces", "iface wlan0 inet dhcp\n  wpa-psk secret\n", "wireless network"],
  ["etc/network/interfaces.d/wlan0", "wpa-psk secret\n", "wireless network"],
  ["etc/NetworkManager/system-connections/a", "[wifi-security]\npsk=secret\n", "wireless network"],
  ["etc/hostapd/hostapd.conf", "ssid=a\nwpa_passphrase=secret\n", "wireless network"],
  ["var/lib/iwd/home.psk", "[Security]\nPassphrase=secret\n", "wireless network"],
  ["etc/fruit/mqtt.password", "secret\n", "a node's own"],
  ["etc/fruit/broker/site.password", "secret\n", "a node's own"],
  ["etc/fruit/enrolment.token", "secret\n", "a node's own"],
  ["etc/fruit/node.key", "x", "a node's own"],
  ["etc/fruit/node.json", "{}", "a node's own"],
  ["etc/fruit/trust.json", "{}", "a node's own"],
  ["data/fruit/trust.json", "{}", "a node's own"],
  ["enrolment.token", "secret\n", "a node's own"],
  ["root/mqtt.password", "secret\n", "a node's own"],
  ["etc/ssl/node.pem", "x", "a node's own"],
  ["etc/machine-id", "0123456789abcdef0123456789abcdef\n", "the id of one machine"],
  ["var/lib/dbus/machine-id", "0123456789abcdef0123456789abcdef\n", "the id of one machine"],
  ["var/lib/misc/random-seed", "x", "randomness"],
  ["var/lib/seedrng/seed.credit", "x", "randomness"],
  ["opt/a", `-----BEGIN RSA PRIVATE KEY-----\n${KEY}\n`, "a private key"],
  ["opt/a", `-----BEGIN EC PRIVATE KEY-----\r\n${KEY}\r\n`, "a private key"],
  ["opt/a", `-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n${KEY}\n`, "a private key"],
  ["opt/a.json", `{ "key": "-----BEGIN PRIVATE KEY-----\\n${KEY}" }`, "a private key"],
  ["opt/a.yaml", `key: |\n  -----BEGIN PRIVATE KEY-----\n  ${KEY}\n`, "a private key"],
  ["opt/a.ppk", "PuTTY-User-Key-File-3: ssh-ed25519\n", "a private key"],
  ["opt/a", "\0\0\0\u000bssh-ed25519\0\0\0\u0040", "a private key"],
])("%s has no place in an image: %p", (path, content, words) => {
  expect(saidOf(path, content)).toContain(`${path} (`);
  expect(saidOf(path, content)).toContain(words);
});

test.each<[string, string]>([
  ["etc/shadow", STOCK_SHADOW],
  ["etc/shadow-", STOCK_SHADOW],
  ["etc/passwd", "root:x:0:0:root:/root:/bin/sh\n+::::::\nnobody:*:65534:65534:nobody:/:/sbin/nologin\n"],
  ["etc/group", "root:x:0:root\nwheel:x:10:root\n"],
  ["etc/gshadow", "root:*::\nwheel:!::root\n"],
  ["etc/machine-id", ""],
  ["etc/machine-id", "uninitialized\n"],
  ["etc/network/interfaces", "auto lo\niface lo inet loopback\n# wpa-psk secret\n"],
  ["etc/wpa_supplicant/wpa_supplicant.conf", "ctrl_interface=/run/wpa_supplicant\n#psk=x\n"],
  ["etc/hostapd/hostapd.conf", "#wpa_passphrase=secret passphrase\nwpa_psk_file=/etc/hostapd.wpa_psk\n"],
  ["etc/ssh/sshd_config.d/fruit.conf", "AuthorizedKeysFile /data/fruit/authorized_keys\n"],
  ["etc/ssh/ssh_host_ed25519_key.pub", "ssh-ed25519 AAAA\n"],
  ["etc/pam.d/passwd", "password include system-auth\n"],
  ["etc/default/dropbear", 'DROPBEAR_EXTRA_ARGS="-s"\n'],
  ["etc/apk/keys/alpine-devel.rsa.pub", "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----\n"],
  ["etc/ssl/certs/ca.pem", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"],
  ["etc/fruit/release.json", "{}"],
  ["etc/fruit/watchdog", "grace=300\n"],
  ["usr/share/doc/x", "a file that says -----BEGIN PRIVATE KEY----- at its top\n"],
  [
    "usr/bin/tool",
    "\0-----BEGIN OPENSSH PRIVATE KEY-----\n\0-----END OPENSSH PRIVATE KEY-----\n\0ssh-ed25519\0",
  ],
  ["usr/lib/node_modules/x/node.key", "x"],
  ["usr/lib/python3/test_keys.py", `KEY = "-----BEGIN PRIVATE KEY-----\\n${KEY}"\n`],
])("%s of a stock system is no secret: %p", (path, content) => {
  expect(saidOf(path, content)).toBe("");
});

built("there is no key material in the card that was built")(async () => {
  const { raw = "", payload = "" } = (await once) ?? {};
  const root = join(folder, "unpacked");
  await $`unsquashfs -q -n -d ${root} -ig ${payload}`.nothrow().quiet();
  expect(
    (
      await $`grep -rlaE ${"BEGIN [A-Z ]*PRIVATE KEY|\\$6\\$|FRUIT_"} ${root} ${raw}`.nothrow().quiet()
    ).stdout.toString(),
  ).toBe("");
});

test.each<[string, () => string, string]>([
  [
    "a root that is cut off",
    () => {
      const path = rootTar("cut.tar");
      truncateSync(path, statSync(path).size - 1024);
      return path;
    },
    "cut off",
  ],
  [
    "a root without a kernel",
    () => {
      const path = join(folder, "none.tar");
      writeFileSync(path, rawTar(ROOT));
      return path;
    },
    "the root has no kernel",
  ],
  [
    "a root with two kernels",
    () => rootTar("two.tar", [{ path: "./boot/vmlinuz-old", text: "x" }]),
    "2 kernels, one is wanted: boot/vmlinuz-old, boot/vmlinuz-rpi",
  ],
  [
    "a kernel of another machine",
    () => rootTar("x86.tar", [], Buffer.alloc(4096, 1)),
    "no 64-bit ARM kernel",
  ],
])("%s is refused with what is wrong, and nothing is left behind", async (_, root, message) => {
  if (missing.length > 0) return;
  expect(await refusal(async () => make("refused", { rootfs: root() }))).toContain(message);
  expect(Array.from(new Bun.Glob("**").scanSync({ cwd: join(folder, "refused"), dot: true }))).toEqual([]);
});

built("a slot that is too small is refused with both sizes")(async () => {
  const agent = join(folder, "large");
  writeFileSync(
    agent,
    Buffer.from(Array.from({ length: 8 * MiB }, (_, index) => (index * index * 31 + (index >> 7)) & 255)),
  );
  writeFileSync(
    agent,
    createHash("shake256", { outputLength: 6 * MiB })
      .update("large")
      .digest(),
  );
  expect(await refusal(() => make("small", { agent }))).toMatch(/has \d+ bytes, its partition 4194304/);
});

test("a kernel is taken out of gzip, and out of the kernel's own wrapping", () => {
  const image = kernelImage();
  expect(Buffer.from(unpackKernel(gzipSync(image), "k")).equals(image)).toBe(true);
  const packed = zstdCompressSync(image);
  const wrapped = Buffer.concat([Buffer.alloc(64), packed]);
  wrapped.write("MZ\0\0zimg", 0, "latin1");
  wrapped.writeUInt32LE(64, 8);
  wrapped.writeUInt32LE(packed.length, 12);
  wrapped.write("zstd\0", 24, "latin1");
  expect(Buffer.from(unpackKernel(wrapped, "k")).equals(image)).toBe(true);
});

test("an initramfs that U-Boot would not load is refused with both sizes", async () => {
  const make = (most?: number) => makeInitramfs(root(), findKernel(root()), OVERLAY, most).initramfs;
  const { length } = make();
  expect(make(length)).toHaveLength(length);
  expect(await refusal(() => make(length - 1))).toBe(
    `the initramfs has ${length} bytes, U-Boot is made to load ${length - 1} at most`,
  );
});

test.each([
  ["--floor 6 --version 7", { floor: 6n, version: 7n }],
  ["--version 7", { version: 7n }],
  ["--floor 8 --version 7", "--floor 8: it is above the version, 7"],
  ["--floor -1 --version 7", "--floor -1: an integer of 64 bits is wanted"],
  ["--floor x", "--floor x: an integer of 64 bits is wanted"],
  ["--version 18446744073709551616", "--version 18446744073709551616: an integer of 64 bits is wanted"],
] as const)("bun run image -- %s", (words, meant) => {
  const options = () =>
    imageOptions(["--rootfs", "x.tar", ...words.replace("r -1", "r=-1").split(" ")], () => {});
  if (typeof meant === "string") expect(options).toThrow(meant);
  else {
    const { floor, version } = options() ?? {};
    expect({ floor, version }).toEqual({ floor: undefined, ...meant });
  }
});

test("a kernel for which U-Boot has no room is refused", async () => {
  const image = kernelImage();
  image.writeBigUInt64LE(0x0700_0000n, 16);
  expect(await refusal(() => unpackKernel(image, "k"))).toContain("U-Boot has room for");
});

function root(): Tree {
  const tree = new Tree();
  unpackTar(tree, rootTar("again.tar"), { name: "root" });
  return tree;
}

test("modules come with what they need; a missing one is named, unless it may be missing", async () => {
  const [tree, initramfs] = [root(), new Tree()];
  const kernel = findKernel(tree);
  expect([...addModules(initramfs, tree, kernel, ["ext4", "lacking?"])]).toEqual(["ext4"]);
  expect(initramfs.at("lib/modules/6.1-test/kernel/jbd2.ko")).toBeDefined();
  expect(await refusal(() => addModules(initramfs, tree, kernel, ["lacking"]))).toContain(
    "no module lacking",
  );
});

test("every model gets a U-Boot that starts it; one whose chip it does not know is left out by name", () => {
  const tree = root();
  const all = chooseStarters(tree);
  expect(all.models.map(({ model, uboot }) => [model.filter, uboot])).toEqual([
    ["pi2", "rpi_arm64"],
    ["pi02", "rpi_arm64"],
    ["pi3", "rpi_3"],
    ["pi4", "rpi_arm64"],
    ["pi5", "rpi_arm64"],
  ]);
  tree.put("usr/share/u-boot/rpi_arm64/u-boot.bin", file("U-Boot 2023.01"));
  const old = chooseStarters(tree);
  expect(old.without).toEqual([
    "pi5: U-Boot's rpi_arm64 has no driver for bcm2712, and for tryboot no device tree of such a board",
  ]);
  expect(old.boards).not.toContain("raspberrypi,5-model-b");
  const config = configTxt(old, new Set(["disable-bt.dtbo"]), false);
  expect(config).toContain("# The good UART is the console's\ndtoverlay=disable-bt\n");
  expect(config).not.toContain("[pi5]");
  expect(config).not.toContain("upstream_kernel");
});

/** What the firmware takes for a model: the last setting in sections that are for it or for all. */
function settingsOf(config: string, filter: string): Map<string, string> {
  const settings = new Map<string, string>();
  let isFor = true;
  for (const line of config.split("\n")) {
    const [, section] = /^\[(\w+)\]$/.exec(line) ?? [];
    if (section !== undefined) isFor = section === "all" || section === filter;
    const [, name, value = ""] = /^([^#=]+)=(.*)$/.exec(line) ?? [];
    if (isFor && name !== undefined) settings.set(name, value);
  }
  return settings;
}

test.each([
  ["pi2", "1", "15=pu"],
  ["pi02", "1", "15=pu"],
  ["pi3", "1", "15=pu"],
  ["pi4", "1", "15=pu"],
  // Its console is the connector between the HDMI sockets, on which config.txt puts no pull-up
  ["pi5", "0", undefined],
])("an open line of the console stops no %s in U-Boot: enable_uart=%s, gpio=%s", (filter, uart, gpio) => {
  const config = configTxt(chooseStarters(root()), new Set(["disable-bt.dtbo"]), false);
  const settings = settingsOf(config, filter);
  expect([settings.get("enable_uart"), settings.get("gpio")]).toEqual([uart, gpio]);
  // What a person wants otherwise comes last, and for every model
  expect(config).toEndWith("[all]\ninclude usercfg.txt\n");
});

test("the packages that are wanted are those that the rescue and the initramfs look for, each with its reason", () => {
  const lines = readFileSync(join(import.meta.dir, "../image/fruitos/packages.txt"), "utf8")
    .trim()
    .split("\n");
  const packages = new Map(lines.slice(1).map((line) => line.split(/ +# /, 2) as [string, string]));
  for (const name of ["dropbear", "busybox-static", "e2fsprogs", "e2fsprogs-extra"])
    expect(packages.get(name)).toBeTruthy();
  expect([...packages.values()].every((reason) => Boolean(reason))).toBe(true);
});

built("cpio reads the initramfs as it was meant", { name: "cpio", install: "cpio" })(async () => {
  const tree = new Tree();
  tree.put("bin/tool", file("tool", 0o755));
  tree.put("bin/sh", symlink("tool"));
  tree.put("dev/console", {
    type: "device",
    kind: "character",
    mode: 0o600,
    uid: 0,
    gid: 0,
    major: 5,
    minor: 1,
  });
  const list = await $`cpio -itvn --quiet < ${cpioOf(tree)}`.env({ ...process.env, TZ: "UTC" }).text();
  expect(list).toMatch(/-rwxr-xr-x +1 0 +0 +4 .* bin\/tool\n/);
  expect(list).toContain("bin/sh -> tool\n");
  expect(list).toMatch(/crw------- +1 0 +0 +5, +1 .* dev\/console\n/);
});

built("what GNU tar writes is read, and GNU tar reads what is written: long names, links, owners")(
  async () => {
    const from = join(folder, "gnu");
    const long = `${"d".repeat(80)}/${"e".repeat(80)}/${"f".repeat(60)}`;
    mkdirSync(dirname(join(from, long)), { recursive: true });
    writeFileSync(join(from, long), "far away");
    await $`ln ${join(from, long)} ${join(from, "zlink")} && ln -s ${"t".repeat(150)} ${join(from, "soft")}`;
    for (const [format, owner] of [
      ["gnu", 3_000_000],
      ["pax", 3_000_000],
      ["ustar", 1000],
    ] as const) {
      const tar = join(folder, `${format}.tar`);
      const what = format === "ustar" ? ["zlink"] : ["."];
      await $`tar c -f ${tar} -C ${from} --format=${format} --owner=${`somebody:${owner}`} --numeric-owner --sort=name ${what}`;
      const tree = new Tree();
      unpackTar(tree, tar, { whole: true, name: format });
      expect(Buffer.from(bytesOf(tree.content("zlink") ?? Buffer.alloc(0))).toString()).toBe("far away");
      if (format === "ustar") continue;
      expect(tree.at(long)).toBe(tree.at("zlink"));
      expect(tree.at(long)).toMatchObject({ uid: owner });
      const again = join(folder, "again-out.tar");
      writeFileSync(again, Buffer.concat([...writeTar(tree)]));
      const list = await $`tar tvf ${again} --numeric-owner`.text();
      expect(list).toMatch(new RegExp(`${owner}/\\S+ +8 1970-01-01 .* ${long}\n`));
      expect(list).toContain(`soft -> ${"t".repeat(150)}\n`);
      expect(list).toContain(`zlink link to ${long}\n`);
    }
  },
);

test("what is laid over a root follows its links to folders and never goes out through one", async () => {
  const tree = new Tree();
  tree.put("usr/lib/x", file("x"));
  tree.put("lib", symlink("usr/lib"));
  tree.place("lib/y", file("y"));
  expect(tree.at("usr/lib/y")).toBeDefined();
  expect(await refusal(() => tree.put("lib/z", file("z"), "t"))).toContain(
    'goes through "lib"'.replace("goes", "would go"),
  );
  tree.put("evil", symlink("../../../etc"));
  tree.place("evil/passwd", file("x"));
  expect(tree.at("etc/passwd")).toBeDefined();
  tree.put("d", directory());
  expect(await refusal(() => tree.put("d", file("x"), "t"))).toContain("is a directory already");
});

test.each<[string[], number, string]>([
  [["--slot-size", "3"], 2, "multiple of 4"],
  [["--version", "-1"], 2, "--version"],
  [["--version=x"], 2, "64 bits"],
  [["--arch", "armv7"], 2, "aarch64 is what there is"],
  [["--nonsense"], 2, "nonsense"],
  [[], 2, "--mirror URL"],
  [["--rootfs", "/nonexistent.tar"], 1, "/nonexistent.tar"],
])("image %p ends with %d and says why", async (args, code, words) => {
  const out = ["--out", join(folder, "cli")];
  const program = [process.execPath, join(import.meta.dir, "../image/fruitos/main.ts")];
  const { ALPINE_MIRROR, ...env } = process.env;
  const child = Bun.spawn([...program, ...out, ...args], { stdout: "pipe", stderr: "pipe", env });
  const said = await new Response(child.stderr).text();
  expect(await child.exited).toBe(code);
  expect(said).toContain(words);
  expect(said).not.toContain("    at ");
});

test("missing programs are named with what to install", async () => {
  const program = [process.execPath, join(import.meta.dir, "../image/fruitos/main.ts")];
  const child = Bun.spawn([...program, "--rootfs", rootTar("cli.tar"), "--out", join(folder, "cli")], {
    ...{ stderr: "pipe", env: { ...process.env, PATH: "/nonexistent" } },
  });
  const said = await new Response(child.stderr).text();
  expect(await child.exited).toBe(1);
  expect(said).toMatch(/image: to build an image, install .*squashfs-tools/);
});
