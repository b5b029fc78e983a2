import { expect, test } from "bun:test";
import { closeSync, mkdirSync, openSync, truncateSync, writeFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openDisk } from "../hal/disk.ts";
import { pageAligned } from "../hal/native/disk.ts";
import { failure } from "./fakes.ts";
import { loop, loops, mount, sparse } from "./loop.ts";
import { scratch } from "./node.ts";

const MiB = 1024 * 1024;

/** Changes a file under whoever has it cached. */
function poke(file: string, offset: number, byte: number): void {
  const handle = openSync(file, "r+");
  writeSync(handle, Uint8Array.of(byte), 0, 1, offset);
  closeSync(handle);
}

test("a file stands for a disk: what is written is read, and lasts once flushed", async () => {
  using folder = scratch();
  const disk = await openDisk(sparse(join(folder.path, "disk"), MiB), "write");
  expect(disk.bytes).toBe(MiB);
  await disk.write(4096, new Uint8Array(8192).fill(7));
  expect(await disk.read(4095, 3)).toEqual(Uint8Array.of(0, 7, 7));
  await disk.flush();
  const medium = await disk.readMedium(4096, 12_288);
  expect([medium[0], medium[8191], medium[8192]]).toEqual([7, 7, 0]);
  expect(disk.pastCache).toBe("direct");
  await disk.close();
});

test("memory that is brought along is used again, where a direct read can", async () => {
  using folder = scratch();
  const disk = await openDisk(sparse(join(folder.path, "disk"), MiB), "write");
  const memory = new Uint8Array(16_384);
  expect((await disk.read(0, 4096, memory)).buffer).toBe(memory.buffer);
  const first = await disk.readMedium(0, 8192);
  expect((await disk.readMedium(8192, 4096, first)).buffer).toBe(first.buffer);
  const misaligned = pageAligned(16_384).subarray(512);
  expect((await disk.readMedium(0, 8192, misaligned)).buffer).not.toBe(misaligned.buffer);
  // Too small: it is not written beyond
  expect((await disk.readMedium(0, 8192, pageAligned(4096))).length).toBe(8192);
  await disk.close();
});

test.each([2 ** 31 - 4096, 2 ** 31, 2 ** 32 - 4096, 2 ** 32, 2 ** 33 + 4096])(
  "byte %i is where it says",
  async (offset) => {
    using folder = scratch();
    const disk = await openDisk(sparse(join(folder.path, "disk"), offset + 8192), "write");
    await disk.write(offset, new Uint8Array(4096).fill(9));
    await disk.flush();
    expect((await disk.readMedium(offset, 4096))[0]).toBe(9);
    expect((await disk.read(offset - 1, 2)).join()).toBe("0,9");
    if (offset >= 2 ** 31) expect(await disk.read(offset - 2 ** 31, 1)).toEqual(Uint8Array.of(0));
    await disk.close();
  },
);

test.each([
  { how: "read", says: "it ends at byte 10000, 2288 short of what was asked" },
  { how: "readMedium", says: "it ends at byte 10000, 2288 short of what was asked" },
] as const)("$how beyond the end names where it ends", async ({ how, says }) => {
  using folder = scratch();
  const file = sparse(join(folder.path, "disk"), 10_000);
  const disk = await openDisk(file, "read");
  const error = await failure(disk[how](4096, 8192));
  expect(error.code).toBe("io");
  expect(error.message).toBe(`${file}: ${says}`);
  await disk.close();
});

test("a direct read of half a sector is a mistake of the program", async () => {
  using folder = scratch();
  const disk = await openDisk(sparse(join(folder.path, "disk"), MiB), "read");
  expect(() => disk.readMedium(512, 4096)).toThrow("4096 bytes at 512 are no whole sectors of 4096");
  await disk.close();
});

test.each([
  { path: "/dev/no-such-disk", code: "absent", says: "ENOENT" },
  { path: "/dev/null", code: "absent", says: "is neither a disk nor a file" },
  { path: tmpdir(), code: "absent", says: "EISDIR" },
  { path: "/proc/version/x", code: "absent", says: "ENOTDIR" },
] as const)("$path cannot be opened: $says", async ({ path, code, says }) => {
  const error = await failure(openDisk(path, "write"));
  expect(error.code).toBe(code);
  expect(error.message).toStartWith(path);
  expect(error.message).toContain(says);
});

test("a file is opened exclusively once, and by others all the same", async () => {
  using folder = scratch();
  const file = sparse(join(folder.path, "disk"), MiB);
  const disk = await openDisk(file, "exclusive");
  const error = await failure(openDisk(file, "exclusive"));
  expect(error.code).toBe("busy");
  expect(error.message).toContain("another program holds it");
  await (await openDisk(file, "write")).close();
  await disk.close();
  await (await openDisk(file, "exclusive")).close();
});

test("work on a disk is done alone, a limited time is waited for it, and other disks know nothing of it", async () => {
  using folder = scratch();
  using other = scratch();
  const file = sparse(join(folder.path, "disk"), MiB);
  const disks = await Promise.all(
    [file, file, sparse(join(other.path, "disk"), MiB)].map(async (path) => openDisk(path, "read")),
  );
  const [first, second, third] = disks;
  const seen: string[] = [];
  await first?.exclusively?.(async () => {
    const error = await failure(
      second?.exclusively?.(async () => seen.push("second"), 50) ?? Promise.resolve(),
    );
    expect([error.code, error.message]).toEqual([
      "busy",
      `${file}: another program has been changing it for 0.05 s`,
    ]);
    await third?.exclusively?.(async () => seen.push("third"));
  });
  const failed = first?.exclusively?.(() => Promise.reject(new RangeError("no")));
  await expect(failed).rejects.toThrow(new RangeError("no"));
  await second?.exclusively?.(async () => seen.push("second"));
  expect(seen).toEqual(["third", "second"]);
  for (const disk of disks) await disk.close();
});

test.skipIf(loops.isSkipped)(`work on a disk of the kernel is done alone${loops.need}`, async () => {
  using folder = scratch();
  using target = loop(folder.path, "disk", MiB);
  const [first, second] = [await openDisk(target.device, "write"), await openDisk(target.device, "write")];
  const error = await first.exclusively?.(() =>
    failure(second.exclusively?.(async () => undefined, 50) ?? Promise.resolve()),
  );
  expect(error?.code).toBe("busy");
  await first.close();
  await second.close();
});

test("what was opened to be read is not written", async () => {
  using folder = scratch();
  const file = sparse(join(folder.path, "disk"), MiB);
  const disk = await openDisk(file, "read");
  const error = await failure(disk.write(0, new Uint8Array(4096)));
  expect(error.message).toStartWith(`${file}: write at byte 0: EBADF`);
  await disk.close();
});

test.skipIf(loops.isSkipped)(`a loop device has the size of its file${loops.need}`, async () => {
  using folder = scratch();
  using target = loop(folder.path, "disk", 3 * MiB);
  const disk = await openDisk(target.device, "write");
  expect(disk.bytes).toBe(3 * MiB);
  await disk.close();
});

test.skipIf(loops.isSkipped)(`the medium is read past the cache${loops.need}`, async () => {
  using folder = scratch();
  using target = loop(folder.path, "disk", MiB);
  const disk = await openDisk(target.device, "read");
  expect((await disk.read(0, 4096))[0]).toBe(0);
  poke(target.file, 0, 5);
  expect((await disk.read(0, 4096))[0]).toBe(0);
  expect((await disk.readMedium(0, 4096))[0]).toBe(5);
  await disk.close();
});

test.skipIf(loops.isSkipped)(`a mounted disk is not opened exclusively${loops.need}`, async () => {
  using folder = scratch();
  using target = loop(folder.path, "disk", 2 * MiB);
  Bun.spawnSync(["mkfs.ext4", "-q", target.device]);
  const at = join(folder.path, "at");
  mkdirSync(at);
  {
    using _ = mount(target.device, at);
    const error = await failure(openDisk(target.device, "exclusive"));
    expect(error.code).toBe("busy");
    expect(error.message).toContain("it is mounted, or another program holds it");
  }
  const disk = await openDisk(target.device, "exclusive");
  expect((await failure(openDisk(target.device, "exclusive"))).code).toBe("busy");
  await disk.close();
});

test.skipIf(loops.isSkipped)(`a disk that is read-only says so when it is opened${loops.need}`, async () => {
  using folder = scratch();
  using target = loop(folder.path, "disk", MiB, "--read-only");
  const error = await failure(openDisk(target.device, "write"));
  expect(error.code).toBe("refused");
  expect(error.message).toStartWith(`${target.device}: it is read-only`);
});

test.skipIf(loops.isSkipped)(
  `a medium that fails gives the kernel's reason and the place${loops.need}`,
  async () => {
    using folder = scratch();
    using target = loop(folder.path, "disk", 2 * MiB);
    const disk = await openDisk(target.device, "write");
    truncateSync(target.file, MiB);
    const error = await failure(disk.readMedium(MiB, 4096));
    expect(error.code).toBe("io");
    expect(error.message).toBe(
      `${target.device}: read at byte ${MiB}: EIO: i/o error, read (the medium is failing, or its contacts are)`,
    );
    await disk.close();
  },
);

test.skipIf(loops.isSkipped)(`no space behind a disk is said when it is written${loops.need}`, async () => {
  using folder = scratch();
  using _ = mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", folder.path);
  const file = sparse(join(folder.path, "disk"), MiB);
  const disk = await openDisk(file, "write");
  const error = await failure(disk.write(0, new Uint8Array(MiB)));
  expect(error.message).toBe(
    `${file}: write at byte 65536: ENOSPC: no space left on device, write (no space is left behind it)`,
  );
  await disk.close();
});

test.skipIf(loops.isSkipped)(
  `a file system that reads nothing directly is made to forget${loops.need}`,
  async () => {
    using folder = scratch();
    using _ = mount("-t", "ramfs", "ramfs", folder.path);
    const file = join(folder.path, "disk");
    writeFileSync(file, new Uint8Array(8192).fill(3));
    const disk = await openDisk(file, "write");
    expect((await disk.readMedium(4096, 4096))[0]).toBe(3);
    expect(disk.pastCache).toBe("forgotten");
    await disk.close();
  },
);
