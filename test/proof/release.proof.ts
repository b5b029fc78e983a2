/** Releases before programs that are not ours: aria2 and libtorrent read them, and sizes beyond 32 bits. */
import { afterAll, expect, test } from "bun:test";
import {
  closeSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { LEAF_BYTES } from "../../boot/content.ts";
import { hashLeaf, MerkleTree } from "../../boot/merkle.ts";
import { parseUpdate } from "../../boot/updatefile.ts";
import { fruit, needs, peakMib, SOURCES } from "../node.ts";
import { needsModule, python } from "../python.ts";
import { BOARD, noise, squashfs, TIMES } from "../releases.ts";

const dir = mkdtempSync(join(tmpdir(), "fruit-release-"));
afterAll(() => rmSync(dir, { recursive: true, force: true }));
const at = (name: string) => join(dir, name);
const claims = ["--boards", BOARD, "--channel", "stable", "--target", "fruitos/stable", "--expires", "347d"];

async function release(...args: string[]) {
  const ended = await fruit(["release", ...args], { executable: SOURCES });
  expect(ended).toMatchObject({ exit: 0 });
  return ended.out;
}

for (const name of ["kernel", "initramfs"]) writeFileSync(at(name), noise(100_000, name.length));

/** A release of a root, and the same one signed. */
async function packed(name: string, root: string) {
  const files = ["--root", root, "--kernel", at("kernel"), "--initramfs", at("initramfs")];
  await release(
    "pack",
    ...files,
    ...claims,
    "--version",
    "3",
    "--name",
    name,
    "--out",
    dir,
    "--created",
    `@${TIMES.created}`,
  );
  const [unsigned, signed] = [at(`${name}.unsigned.fruit`), at(`${name}.fruit`)];
  writeFileSync(unsigned, readFileSync(signed));
  const entry = JSON.parse(await release("keygen", "--out", at(`${name}.key`)));
  await release("sign", signed, "--key", at(`${name}.key`));
  const trust = at(`${name}.trust.json`);
  writeFileSync(
    trust,
    JSON.stringify({ schema: "fruit.trust/1", version: 1, threshold: { release: 1 }, signers: [entry] }),
  );
  return { unsigned, signed, trust, payload: at(name), side: at(`${name}.side`) };
}

const mksquashfs = needs(
  "aria2 reads the update file, signed or not, as the torrent it is",
  { name: "aria2c", install: "aria2" },
  { name: "mksquashfs", install: "squashfs-tools" },
);
test.skipIf(mksquashfs.isSkipped)(mksquashfs.title, async () => {
  const made = await packed("for-aria2", squashed("for-aria2"));
  for (const file of [made.unsigned, made.signed]) {
    const { info, infohash } = parseUpdate(readFileSync(file));
    const { stdout, exitCode } = Bun.spawnSync(["aria2c", "-S", file]);
    const shown = stdout.toString();
    expect([exitCode, file]).toEqual([0, file]);
    expect(shown).toContain(`Info Hash: ${infohash}`);
    expect(shown).toContain(`Name: ${info.name}`);
    expect(shown).toContain(`(${info.length.toLocaleString("en-US")})`);
    expect(shown).toContain("Mode: single");
  }
});

test.skipIf(mksquashfs.isSkipped)(
  `aria2 finds the payload that was packed whole, and notices a changed byte${mksquashfs.isSkipped ? ` [${mksquashfs.title}]` : ""}`,
  async () => {
    const made = await packed("checked", squashed("checked"));
    const check = () =>
      Bun.spawnSync(
        [
          "aria2c",
          "--check-integrity=true",
          "--hash-check-only=true",
          "--bt-hash-check-seed=false",
          "-d",
          dir,
          made.signed,
        ],
        { timeout: 60_000 },
      ).exitCode;
    expect(check()).toBe(0);
    const bytes = readFileSync(made.payload);
    bytes.writeUInt8(bytes.readUInt8(70_000) ^ 1, 70_000);
    writeFileSync(made.payload, bytes);
    expect(check()).not.toBe(0);
  },
  120_000,
);

const PEER = `
import libtorrent as lt, sys
update, payload, folder = sys.argv[1:]
info = lt.torrent_info(update)
files = lt.file_storage()
lt.add_files(files, payload)
torrent = lt.create_torrent(files, piece_size=info.piece_length(), flags=lt.create_torrent.v2_only)
lt.set_piece_hashes(torrent, folder)
[leaf] = torrent.generate()[b"info"][b"file tree"].values()
print(info.name(), info.total_size(), info.num_pieces(), info.info_hash(), leaf[b""][b"pieces root"].hex())
`;
const libtorrent = needsModule(
  "libtorrent reads the update file, and makes the same hash tree of the payload for BitTorrent v2",
  "libtorrent",
  "python3-libtorrent",
);
test.skipIf(libtorrent.isSkipped)(
  libtorrent.title,
  async () => {
    // Leaves: one, a short one, a power of two, one more; pieces: less than one, several
    for (const [index, rootBytes] of [4096, 300_000, 851_968, 917_504, 3_000_001].entries()) {
      const root = at(`root${index}`);
      writeFileSync(root, squashfs(rootBytes));
      const made = await packed(`tree${index}`, root);
      const { info, infohash } = parseUpdate(readFileSync(made.signed));
      const { out, err } = await python(PEER, made.signed, made.payload, dir);
      const tree = Buffer.from(info.piecesRoot).toString("hex");
      expect([err, out.trim()]).toEqual([
        "",
        `${info.name} ${info.length} ${info.pieces.length / 20} ${infohash} ${tree}`,
      ]);
    }
  },
  60_000,
);

// The root is a hole that long: the kernel stands across 2^31 or 2^32, the initramfs behind it
test.each([2 ** 31 - 8192, 2 ** 32 - 8192])(
  "a release whose root has %d bytes is packed, signed and verified in bounded memory",
  async (rootBytes) => {
    const root = at(`sparse-${rootBytes}`);
    const superblock = squashfs(4096).subarray(0, 96);
    superblock.writeBigUInt64LE(BigInt(rootBytes), 40);
    sparse(root, rootBytes, superblock);
    const startedMs = performance.now();
    const made = await packed(`huge-${rootBytes}`, root);
    const packedMs = performance.now();
    const { info } = parseUpdate(readFileSync(made.signed));
    expect(info.length).toBe(rootBytes + 4096 + 2 * 102_400);
    expect(Buffer.from(info.piecesRoot)).toEqual(Buffer.from(rootOf(made.payload, rootBytes)));
    const verify = Bun.spawn(
      [
        ...SOURCES.command,
        "release",
        "verify",
        made.signed,
        "--trust",
        made.trust,
        "--payload",
        made.payload,
        "--side",
        made.side,
        "--at",
        "2027-01-15",
      ],
      { stdout: "pipe", env: { PATH: process.env.PATH ?? "" } },
    );
    let peak = 0;
    while (verify.exitCode === null) {
      peak = peakMib(verify.pid) ?? peak;
      await Bun.sleep(50);
    }
    expect([await verify.exited, await new Response(verify.stdout).text()]).toEqual([
      0,
      expect.stringContaining("checked: signatures, side file, payload"),
    ]);
    const seconds = (ms: number) => (ms / 1000).toFixed(1);
    console.log(
      `release: ${info.length} bytes packed in ${seconds(packedMs - startedMs)} s, verified in ${seconds(performance.now() - packedMs)} s, peak ${peak.toFixed(0)} MiB; ${((statSync(made.payload).blocks * 512) / 1e6).toFixed(1)} MB on the disk`,
    );
    expect(peak).toBeGreaterThan(20);
    expect(peak).toBeLessThan(190);
    expect(statSync(made.payload).blocks * 512).toBeLessThan(10e6);
    for (const file of [root, made.payload, made.side]) rmSync(file);
  },
  300_000,
);

/** The root as it follows from what is known of the file: equal leaves of zeros but for its two ends. */
function rootOf(path: string, zerosUntil: number): Uint8Array {
  const { size } = statSync(path);
  const tree = new MerkleTree();
  const zero = hashLeaf(new Uint8Array(LEAF_BYTES));
  const fd = openSync(path, "r");
  const leaf = Buffer.alloc(LEAF_BYTES);
  for (let offset = 0; offset < size; offset += LEAF_BYTES) {
    if (offset > 0 && offset + LEAF_BYTES <= zerosUntil) tree.add(zero);
    else tree.add(hashLeaf(leaf.subarray(0, readSync(fd, leaf, 0, leaf.length, offset))));
  }
  closeSync(fd);
  return tree.root();
}

function sparse(path: string, bytes: number, start: Uint8Array): void {
  const fd = openSync(path, "w");
  writeSync(fd, start);
  closeSync(fd);
  truncateSync(path, bytes);
}

/** A real squashfs of some files. */
function squashed(name: string): string {
  const folder = mkdtempSync(at(`${name}-`));
  for (const [index, length] of [10, 70_000, 900_000].entries())
    writeFileSync(join(folder, `file${index}`), noise(length, index));
  const image = at(`${name}.squashfs`);
  const { exitCode } = Bun.spawnSync([
    "mksquashfs",
    folder,
    image,
    "-quiet",
    "-no-progress",
    "-all-time",
    String(TIMES.created),
  ]);
  expect(exitCode).toBe(0);
  return image;
}
