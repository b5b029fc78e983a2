/** What a device tree is for. */
import { BuildError } from "./tools.ts";

/** The first of the `compatible` strings of a device tree: the board it is for. Source: Devicetree Specification 0.4, §5. */
export function boardOf(tree: Uint8Array, name: string): string {
  const view = new DataView(tree.buffer, tree.byteOffset, tree.byteLength);
  try {
    if (view.getUint32(0) !== 0xd00d_feed) throw new RangeError("its magic is wrong");
    const strings = view.getUint32(12);
    for (let at = view.getUint32(8); ; ) {
      const token = view.getUint32(at);
      if (token === BEGIN_NODE && view.getUint8(at + 4) === 0) at += 8;
      else if (token === NOP) at += 4;
      else if (token === PROPERTY) {
        const [length, nameAt] = [view.getUint32(at + 4), strings + view.getUint32(at + 8)];
        if (text(tree, nameAt) === "compatible") return text(tree, at + 12);
        at += 12 + Math.ceil(length / 4) * 4;
      } else throw new RangeError("its root says no `compatible`");
    }
  } catch (cause) {
    throw new BuildError(`${name}: no device tree: ${(cause as Error).message}`, { cause });
  }
}

const BEGIN_NODE = 1;
const PROPERTY = 3;
const NOP = 4;

function text(bytes: Uint8Array, at: number): string {
  const end = bytes.indexOf(0, at);
  if (end < 0) throw new RangeError("a text does not end");
  return Buffer.from(bytes.subarray(at, end)).toString();
}
