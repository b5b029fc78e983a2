/** What goes into a slot, and the release that it is: payload, side file and unsigned update file, as `fruit release pack` makes them. */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { areaOf, describe, type Parts, releaseFiles, writePayload } from "../../agent/release/pack.ts";
import type { BootArea } from "../../boot/area.ts";
import { parseUpdate } from "../../boot/updatefile.ts";
import { uuid } from "./filesystems.ts";
import { bytesOf, type Content } from "./tree.ts";

/** A release as it was made: files by path. */
export interface Payload {
  payload: string;
  side: string;
  /** Not signed. */
  update: string;
  area: BootArea;
  /** The content hash, hex. */
  hash: string;
}

/** How long a release can be installed unless somebody says otherwise, seconds: five years. */
const LIFETIME = 5 * 365 * 86_400;

/** Makes a release in the folder `work`. */
export async function makePayload(
  work: string,
  parts: {
    root: string;
    kernel: Uint8Array;
    initramfs: Uint8Array;
    deviceTrees: ReadonlyMap<string, Content>;
    /** For tryboot, where the device trees stand in it. */
    fat?: Parts["fat"];
  },
  release: {
    name: string;
    version: bigint;
    boards: readonly string[];
    channel: string;
    floor: bigint;
    /** Unix seconds. */
    time: number;
  },
): Promise<Payload> {
  const { name, version, boards, channel, floor, time } = release;
  const folder = join(work, "parts");
  mkdirSync(folder, { recursive: true });
  const laid = (file: string, bytes: Uint8Array) => {
    writeFileSync(join(folder, file), bytes);
    return join(folder, file);
  };
  const trees = [...parts.deviceTrees].map(([board, content]) => [
    board,
    laid(`${board}.dtb`, bytesOf(content)),
  ]);
  const files = releaseFiles(work, name);
  await writePayload(
    files.payload,
    {
      root: parts.root,
      kernel: laid("kernel", parts.kernel),
      initramfs: laid("initramfs", parts.initramfs),
      deviceTrees: Object.fromEntries(trees),
      ...(parts.fat ? { fat: parts.fat } : {}),
    },
    { name, version },
  );
  const area = await areaOf(files.payload);
  const claims = {
    ...{ target: uuid(`fruitos ${channel}`), boards, channel, minFrom: 0n, floor },
    ...{ created: time, expires: time + LIFETIME },
  };
  await describe(files, { name, area, claims });
  const { info } = parseUpdate(readFileSync(files.update));
  return { ...files, area, hash: Buffer.from(info.piecesRoot).toString("hex") };
}
