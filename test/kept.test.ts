/** What is kept of a release for the slot that holds it, and what of it can be relied on. */
import { expect, test } from "bun:test";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { floorOf } from "../agent/boot/floor.ts";
import { keptRelease } from "../agent/release/kept.ts";
import { hashPrefix } from "../boot/admit.ts";
import { type Encodable, encodeBencode } from "../boot/bencode.ts";
import { parseUpdate, UPDATE_MAX_BYTES } from "../boot/updatefile.ts";
import { scratch } from "./node.ts";
import { makeRelease, TIMES } from "./releases.ts";

/** The same content, signed by one with what that one states. */
const signed = (signer: string, stated: { floor?: bigint; created?: number }) =>
  makeRelease({ signers: [signer], stated: { floor: 5n, ...stated } }).update;

/** One update file with these signatures. */
function together(signatures: ReadonlyMap<string, Encodable>): Buffer {
  return encodeBencode(new Map<string, Encodable>([...parseUpdate(ANNA).root, ["signatures", signatures]]));
}

const ANNA = signed("anna", {});
const both = (other: Uint8Array) =>
  together(new Map([...parseUpdate(ANNA).signatures, ...parseUpdate(other).signatures]));
const { info } = parseUpdate(ANNA);
const whole = { hash: hashPrefix(info.piecesRoot), payloadBytes: info.length };

test.each<[what: string, bytes: Uint8Array | undefined, says: object | undefined]>([
  ["of one signer", ANNA, { floor: 5n, created: TIMES.created }],
  ["of two who state the same", both(signed("ben", {})), { floor: 5n, created: TIMES.created }],
  ["of two who state two floors", both(signed("ben", { floor: 6n })), { created: TIMES.created }],
  ["of two who state two times", both(signed("ben", { created: TIMES.created + 1 })), { floor: 5n }],
  ["without a signature", together(new Map()), {}],
  ["with a signature that makes no sense", together(new Map([["anna", "hm"]])), {}],
  ["cut short", ANNA.subarray(0, -1), undefined],
  ["too large", Buffer.concat([ANNA, Buffer.alloc(UPDATE_MAX_BYTES)]), undefined],
  ["that is empty", Buffer.alloc(0), undefined],
  ["that is not there", undefined, undefined],
])("an update file %s", async (_, bytes, says) => {
  using folder = scratch();
  mkdirSync(join(folder.path, "releases"));
  if (bytes) writeFileSync(join(folder.path, "releases/b.fruit"), bytes);
  expect(await keptRelease(folder.path, "a")).toBeUndefined();
  const kept = await keptRelease(folder.path, "b");
  const found: object | undefined = kept && {
    ...{ hash: kept.hash, payloadBytes: kept.payloadBytes },
    ...{ floor: kept.stated((one) => one.floor), created: kept.stated((one) => one.created) },
  };
  expect(found).toEqual(says && { ...whole, ...says });
});

test("the floor is that of the content that was kept, and of no other", async () => {
  using folder = scratch();
  mkdirSync(join(folder.path, "releases"));
  writeFileSync(join(folder.path, "releases/b.fruit"), ANNA);
  expect(await floorOf(folder.path, "b", whole.hash)).toBe(5n);
  expect(await floorOf(folder.path, "b", "5".repeat(32))).toBe(0n);
  expect(await floorOf(folder.path, "a", whole.hash)).toBe(0n);
});
