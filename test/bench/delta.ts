/** What it costs to find a new release in the old slot, beside plain hashing and beside blocks of 4 KiB, as RAUC's adaptive update has them. */
import { createHash, randomBytes } from "node:crypto";
import { join } from "node:path";
import { CHUNKS_ALG, Chunker, ENTRY_BYTES } from "../../boot/chunks.ts";
import { publicKeyOf, signEd25519, verifyEd25519 } from "../../boot/ed25519.ts";
import { LeafHasher, MerkleTree } from "../../boot/merkle.ts";
import { scratch } from "../node.ts";
import { installOver } from "../packages/over.ts";
import { FORTNIGHT, findPair, makeSystem } from "../packages/pair.ts";
import { seedOf } from "../releases.ts";
import { digits, ratio, type Table, verdict } from "./table.ts";

const MiB = 1024 * 1024;
const PORTION = MiB;
/** What all costs are told of. */
const IMAGE_MIB = 512;
const ROUNDS = 3;
const SIGNATURES = 200;

/** Rates of hashing and cutting, and what of a real update has to be fetched. */
export async function delta(): Promise<Table> {
  const mib = Math.min(Number(process.env.FRUIT_BENCH_MB) || 256, 512);
  const bytes = randomBytes(mib * MiB);
  const portions = (each: (portion: Uint8Array) => void) => {
    for (let at = 0; at < bytes.length; at += PORTION) each(bytes.subarray(at, at + PORTION));
  };
  const works: [string, () => void][] = [
    [
      "SHA-256, plain",
      () => {
        const whole = createHash("sha256");
        portions((one) => whole.update(one));
        whole.digest();
      },
    ],
    [
      "SHA-256 of 16 KiB leaves, and their tree",
      () => {
        const tree = new MerkleTree();
        const leaves = new LeafHasher((leaf) => tree.add(leaf));
        portions((one) => leaves.update(one));
        leaves.end();
        tree.root();
      },
    ],
    [
      `chunk index ${CHUNKS_ALG}, with the SHA-256 of each`,
      () => {
        const chunker = new Chunker();
        portions((one) => chunker.update(one));
        chunker.end();
      },
    ],
  ];
  const rates = works.map(([, work]) => mib / best(work));
  const plain = rates[0] ?? Number.NaN;
  const row = (name: string, rate: number) => [
    name,
    digits(rate, 0),
    digits(IMAGE_MIB / rate, 2),
    ratio(plain, rate),
  ];
  const update = await updated();
  return {
    title: "Hashing, cutting and copying",
    head: ["", "MiB/s", `s per ${IMAGE_MIB} MiB`, "times plain SHA-256"],
    rows: [
      ...works.map(([name], at) => row(name, rates[at] ?? Number.NaN)),
      ...(typeof update === "string" ? [] : [row("copy from the old slot, leaves checked", update.rate)]),
    ],
    notes: [
      `random bytes, ${mib} MiB in memory, best of ${ROUNDS}`,
      `one Ed25519 signature is checked in ${digits(signatureMs(), 2)} ms, whatever the size of the image`,
      ...(typeof update === "string" ? [`no update was measured: ${update}`] : update.notes),
    ],
  };
}

/** A real update: how fast the copying is, and what remains to be fetched. */
async function updated(): Promise<{ rate: number; notes: string[] } | string> {
  const pair = await findPair();
  if (typeof pair === "string") return pair;
  using folder = scratch();
  const at = (name: string) => join(folder.path, name);
  await makeSystem(at("before"), pair, []);
  await makeSystem(at("after"), pair, FORTNIGHT);
  const { size, chunks, changed, fetched, blocks, seconds, grownMib } = await installOver(
    folder.path,
    at("before"),
    at("after"),
  );
  const share = (part: number) => `${digits((part / size) * 100, 2)} %`;
  const kib = (entries: number, each: number) => `${digits((entries * each) / 1024, 0)} KiB`;
  return {
    rate: (size - fetched) / MiB / seconds,
    notes: [
      `a fortnight of security updates, ${FORTNIGHT.length} of ${pair.versions.size} Debian packages, squashfs of ${digits(size / 1e6, 1)} MB: chunks that are new ${share(changed)}, fetched in 16 KiB leaves ${share(fetched)}; the index has ${kib(chunks, ENTRY_BYTES)}`,
      `blocks of 4 KiB found at any place (RAUC's block-hash-index): ${share(blocks)} to fetch, ${ratio(blocks, fetched)} as much; its index has ${kib(size / 4096, 32)}`,
      verdict("to fetch", (fetched / size) * 100, 7, "%"),
      verdict("memory while copying", grownMib, 32, "MiB"),
    ],
  };
}

/** Seconds of the fastest of some rounds. */
function best(work: () => void): number {
  const seconds = Array.from({ length: ROUNDS }, () => {
    const startedMs = performance.now();
    work();
    return (performance.now() - startedMs) / 1000;
  });
  return Math.min(...seconds);
}

function signatureMs(): number {
  const seed = seedOf("anna");
  const message = randomBytes(64 * 1024);
  const [key, signature] = [publicKeyOf(seed), signEd25519(seed, message)];
  const startedMs = performance.now();
  for (let round = 0; round < SIGNATURES; round++)
    if (!verifyEd25519(key, message, signature)) throw new Error("a good signature is refused");
  return (performance.now() - startedMs) / SIGNATURES;
}
