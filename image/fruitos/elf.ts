/** Which libraries a program names. Source: the System V ABI, "Dynamic Linking" (64-bit little-endian only). */
import { BuildError } from "./tools.ts";

const PT_DYNAMIC = 2;
const PT_INTERP = 3;
const PT_LOAD = 1;

/** The program interpreter (an absolute path) and the libraries (names) of an ELF file; none where it is no ELF file or static. */
export function librariesOf(bytes: Uint8Array, name: string): string[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (bytes.length < 64 || view.getUint32(0) !== 0x7f45_4c46) return [];
  if (bytes[4] !== 2 || bytes[5] !== 1) throw new BuildError(`${name}: no 64-bit little-endian program`);
  try {
    return named(view);
  } catch (cause) {
    throw new BuildError(`${name}: a damaged ELF file`, { cause });
  }
}

function named(view: DataView): string[] {
  const word = (at: number) => Number(view.getBigUint64(at, true));
  const headers = Array.from({ length: view.getUint16(56, true) }, (_, index) => {
    const at = word(32) + index * view.getUint16(54, true);
    return {
      type: view.getUint32(at, true),
      offset: word(at + 8),
      address: word(at + 16),
      size: word(at + 32),
    };
  });
  const text = (at: number) => {
    let end = at;
    while (view.getUint8(end) !== 0) end++;
    return Buffer.from(view.buffer, view.byteOffset + at, end - at).toString();
  };
  const offsetOf = (address: number) => {
    const within = headers.find(
      ({ type, address: from, size }) => type === PT_LOAD && address >= from && address < from + size,
    );
    if (!within) throw new RangeError("an address outside of the file");
    return address - within.address + within.offset;
  };
  const interpreter = headers.find(({ type }) => type === PT_INTERP);
  const dynamic = headers.find(({ type }) => type === PT_DYNAMIC);
  const entries = Array.from({ length: (dynamic?.size ?? 0) / 16 }, (_, index) => {
    const at = (dynamic?.offset ?? 0) + index * 16;
    return { tag: word(at), value: word(at + 8) };
  });
  const end = entries.findIndex(({ tag }) => tag === 0);
  const used = end < 0 ? entries : entries.slice(0, end);
  const strings = used.find(({ tag }) => tag === 5);
  const needed = used.filter(({ tag }) => tag === 1);
  return [
    ...(interpreter ? [text(interpreter.offset)] : []),
    ...needed.map(({ value }) => text(offsetOf(strings?.value ?? 0) + value)),
  ];
}
