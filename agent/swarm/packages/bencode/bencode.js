/**
 * What every library gets that asks for `bencode`: the original, which hangs on negative lengths and missing ends, behind
 * a scanner of ours that lets only whole and bounded documents through.
 */
import original from "bencode-of-npm";
import { scanBencode } from "../../scan.ts";

/** `decode(data, start?, end?, encoding?)`, arguments as the original takes them. */
export function decode(data, start, end, encoding) {
  const bytes = ArrayBuffer.isView(data)
    ? data.subarray(typeof start === "number" ? start : 0, typeof end === "number" ? end : data.length)
    : Buffer.from(String(data ?? ""));
  scanBencode(bytes);
  return original.decode(
    bytes,
    [start, end, encoding].find((one) => typeof one === "string"),
  );
}

export const { encode, byteLength, encodingLength } = original;

// biome-ignore lint/style/noDefaultExport: the original has one, and most libraries ask for it
export default { decode, encode, byteLength, encodingLength };
