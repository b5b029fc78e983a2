import { expect, test } from "bun:test";
import { mkdirSync, readdirSync, readFileSync, rmdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import * as v from "valibot";
import { Store } from "../agent/store.ts";
import { seeded } from "./fakes.ts";
import { scratch } from "./node.ts";
import { FUZZ } from "./sim.ts";

const Locks = v.object({ owners: v.array(v.string()) });
const NONE = { owners: [] };

/** A store in a folder of its own, and what it logged. */
function open(folder: { path: string }) {
  const logged: string[] = [];
  const dir = join(folder.path, "state");
  const store = new Store(dir, (level, what, fields) => void logged.push(`${level} ${what} ${fields?.file}`));
  return { store, dir, file: join(dir, "locks.json"), logged };
}

test("what was saved is there for the next start, for its owner alone", async () => {
  using folder = scratch();
  const { store, dir, file } = open(folder);
  expect(store.load("locks", Locks, NONE)).toEqual(NONE);
  await store.save("locks", { owners: ["alice"] });
  expect(open(folder).store.load("locks", Locks, NONE)).toEqual({ owners: ["alice"] });
  expect(statSync(file).mode & 0o777).toBe(0o600);
  expect(statSync(dir).mode & 0o777).toBe(0o700);
  expect(readdirSync(dir)).toEqual(["locks.json"]);
});

test("of many saves at once the last one stands, and every moment shows a whole document", async () => {
  using folder = scratch();
  const { store, file } = open(folder);
  let isOver = false;
  const saves = Array.from({ length: 50 }, (_, n) =>
    store.save("locks", { owners: Array(n).fill(`owner ${n}`) }),
  );
  const all = Promise.all(saves).finally(() => {
    isOver = true;
  });
  await saves[0];
  while (!isOver) {
    v.parse(Locks, JSON.parse(readFileSync(file, "utf8")));
    await Bun.sleep(0);
  }
  await all;
  expect(store.load("locks", Locks, NONE).owners).toEqual(Array(49).fill("owner 49"));
});

test("a document is kept as it was when it was saved, not as it became", async () => {
  using folder = scratch();
  const { store } = open(folder);
  const document = { owners: ["alice"] };
  const saving = store.save("locks", document);
  document.owners.push("mallory");
  await saving;
  expect(store.load("locks", Locks, NONE)).toEqual({ owners: ["alice"] });
});

test.each([
  { what: "is torn", text: '{"owners":["al' },
  { what: "is empty", text: "" },
  { what: "is of another shape", text: '{"owners":"alice"}' },
  { what: "is zeros", text: "\0".repeat(64) },
])("a file that $what is moved aside, said, and never stops a node", async ({ text }) => {
  using folder = scratch();
  const { store, dir, file, logged } = open(folder);
  writeFileSync(file, text);
  expect(store.load("locks", Locks, NONE)).toEqual(NONE);
  expect(logged).toEqual([`error store.unreadable ${file}`]);
  await store.save("locks", { owners: ["alice"] });
  expect(store.load("locks", Locks, NONE)).toEqual({ owners: ["alice"] });
  expect(readFileSync(`${file}.bad`, "utf8")).toBe(text);
  expect(readdirSync(dir).sort()).toEqual(["locks.json", "locks.json.bad"]);
});

test("what a power cut left beside a document changes nothing", async () => {
  using folder = scratch();
  const { store, file, dir } = open(folder);
  await store.save("locks", { owners: ["alice"] });
  writeFileSync(`${file}.new`, '{"owners":["mal');
  expect(open(folder).store.load("locks", Locks, NONE)).toEqual({ owners: ["alice"] });
  await store.save("locks", { owners: ["bob"] });
  expect(readdirSync(dir)).toEqual(["locks.json"]);
});

test("a save that fails says so, leaves the old document, and does not hold up the next", async () => {
  using folder = scratch();
  const { store, file } = open(folder);
  await store.save("locks", { owners: ["alice"] });
  mkdirSync(`${file}.new`);
  const failing = store.save("locks", { owners: ["bob"] });
  const next = store.save("locks", { owners: ["carol"] }).catch(() => undefined);
  await expect(failing).rejects.toThrow("EISDIR");
  await next;
  expect(store.load("locks", Locks, NONE)).toEqual({ owners: ["alice"] });
  rmdirSync(`${file}.new`);
  await store.save("locks", { owners: ["dave"] });
  expect(store.load("locks", Locks, NONE)).toEqual({ owners: ["dave"] });
});

test("a file that cannot be read is said, and not moved", () => {
  using folder = scratch();
  const { store, file, logged } = open(folder);
  mkdirSync(file);
  expect(store.load("locks", Locks, NONE)).toEqual(NONE);
  expect(logged).toEqual([`error store.unreadable ${file}`]);
  expect(statSync(file).isDirectory()).toBe(true);
});

test("a document that could not be read is not written over in this run, and is there for the next", async () => {
  using folder = scratch();
  const { store, file } = open(folder);
  mkdirSync(file); // cannot be read as a file, as root neither
  expect(store.load("locks", Locks, NONE)).toEqual(NONE);
  rmdirSync(file);
  writeFileSync(file, JSON.stringify({ owners: ["alice"] }));
  await store.save("locks", NONE);
  expect(open(folder).store.load("locks", Locks, NONE)).toEqual({ owners: ["alice"] });
});

test("whatever stands in a file, it is a document of the right shape or the fallback", () => {
  using folder = scratch();
  const { store, file } = open(folder);
  const random = seeded(5);
  const good = Buffer.from('{"owners":["alice","böb"]}\n');
  for (let n = 0; n < FUZZ / 20; n++) {
    const bytes = Buffer.from(good);
    for (let change = 0; change <= random() * 3; change++)
      bytes[Math.floor(random() * bytes.length)] = Math.floor(random() * 256);
    writeFileSync(file, bytes.subarray(0, Math.ceil(random() * bytes.length)));
    v.parse(Locks, store.load("locks", Locks, NONE));
  }
});
