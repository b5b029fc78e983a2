/** The little of an ELF file that says where it runs: System V ABI, "ELF header" and "Program header". */
export interface Elf {
  machine: "arm64" | "x64" | "other";
  /** The dynamic loader it asks for, `/lib/ld-musl-aarch64.so.1`; absent when it is static. */
  interpreter?: string;
}

const MAGIC = 0x7f454c46;
const MACHINES: Record<number, Elf["machine"]> = { 183: "arm64", 62: "x64" };
const PT_INTERP = 3;

/** Reads the beginning of a file (a few KiB are enough). Undefined when it is no 64-bit little-endian ELF file. */
export function parseElf(head: Uint8Array): Elf | undefined {
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  if (head.length < 64 || view.getUint32(0) !== MAGIC || head[4] !== 2 || head[5] !== 1) return undefined;
  const elf: Elf = { machine: MACHINES[view.getUint16(18, true)] ?? "other" };
  const table = Number(view.getBigUint64(32, true));
  const size = view.getUint16(54, true);
  const count = view.getUint16(56, true);
  for (let index = 0; index < count; index++) {
    const at = table + index * size;
    if (size < 56 || at + 56 > head.length) break;
    if (view.getUint32(at, true) !== PT_INTERP) continue;
    const start = Number(view.getBigUint64(at + 8, true));
    const length = Number(view.getBigUint64(at + 32, true));
    if (start + length <= head.length && length > 1)
      elf.interpreter = Buffer.from(head.subarray(start, start + length - 1)).toString();
  }
  return elf;
}
