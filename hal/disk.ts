/** Disks, partitions and files that stand for them, on the kernel's own calls. */
import { close, constants, fdatasync, fstat, open, read, write } from "node:fs";
import { promisify } from "node:util";
import { type BlockDevice, HalError, type HalErrorCode } from "./ports.ts";

const files = {
  close: promisify(close),
  fdatasync: promisify(fdatasync),
  fstat: promisify(fstat),
  open: promisify(open),
};

/** Opens a disk as `Hal.openDisk` says it. */
export async function openDisk(path: string, how: "read" | "write" | "exclusive"): Promise<BlockDevice> {
  const flags = how === "read" ? constants.O_RDONLY : constants.O_RDWR;
  const file = await files
    .open(path, how === "exclusive" ? flags | constants.O_EXCL : flags)
    .catch((cause) => {
      throw new HalError(
        CODES[(cause as NodeJS.ErrnoException).code ?? ""] ?? "io",
        `${path}: ${reason(cause)}`,
        { cause },
      );
    });
  const { size } = await files.fstat(file);
  return new LinuxDisk(path, size, file);
}

const CODES: Record<string, HalErrorCode> = {
  ENOENT: "absent",
  ENXIO: "absent",
  EBUSY: "busy",
  EACCES: "refused",
  EPERM: "refused",
};

class LinuxDisk implements BlockDevice {
  readonly name: string;
  readonly bytes: number;
  readonly #file: number;

  constructor(name: string, bytes: number, file: number) {
    this.name = name;
    this.bytes = bytes;
    this.#file = file;
  }

  async read(offset: number, length: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(length);
    for (let at = 0; at < length; ) {
      const got = await this.#call("read", offset + at, (done) =>
        read(this.#file, bytes, at, length - at, offset + at, done),
      );
      if (got === 0)
        throw new HalError(
          "io",
          `${this.name}: it ends at byte ${offset + at}, ${length - at} short of what was asked`,
        );
      at += got;
    }
    return bytes;
  }

  readMedium(offset: number, length: number): Promise<Uint8Array> {
    return this.read(offset, length);
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; )
      at += await this.#call("write", offset + at, (done) =>
        write(this.#file, bytes, at, bytes.length - at, offset + at, done),
      );
  }

  async flush(): Promise<void> {
    await files.fdatasync(this.#file).catch((cause) => {
      throw new HalError("io", `${this.name}: flush: ${reason(cause)}`, { cause });
    });
  }

  async close(): Promise<void> {
    await files.close(this.#file);
  }

  #call(
    what: string,
    at: number,
    call: (done: (error: NodeJS.ErrnoException | null, count: number) => void) => void,
  ) {
    return new Promise<number>((resolve, reject) =>
      call((cause, count) =>
        cause
          ? reject(new HalError("io", `${this.name}: ${what} at byte ${at}: ${reason(cause)}`, { cause }))
          : resolve(count),
      ),
    );
  }
}

const reason = (cause: unknown) => (cause instanceof Error ? cause.message : String(cause));
