/** A small Alpine mirror, signed with a key of its own, on loopback: packages and index as abuild makes them. */
import { createHash, createSign, generateKeyPairSync } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { gzipSync } from "node:zlib";

const { privateKey, publicKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
/** Somebody else, whom no node trusts. */
export const STRANGER = generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey;
/** The name of the key that everything is signed with. */
export const KEY = "builder@example.org-0001.rsa.pub";

/** One member of a tar, written without any check. */
export interface RawMember {
  path: string;
  text?: string;
  type?: string;
  target?: string;
  mode?: number;
  uid?: number;
  device?: [number, number];
  /** What the header says, where it lies. */
  size?: number;
}

/** A tar of these members; `end`: with the empty blocks that end it. */
export function rawTar(members: readonly RawMember[], end = true): Buffer {
  const blocks = members.flatMap(
    ({ path, text = "", type = "0", target = "", mode = 0o644, uid = 0, device, size }) => {
      const header = Buffer.alloc(512);
      const field = (at: number, length: number, value: number) =>
        header.write(`${value.toString(8).padStart(length - 1, "0")}\0`, at, "latin1");
      header.write(path, 0, 100);
      field(100, 8, mode);
      field(108, 8, uid);
      field(116, 8, 0);
      field(124, 12, size ?? Buffer.byteLength(text));
      field(136, 12, 0);
      header.write(type, 156);
      header.write(target, 157, 100);
      header.write("ustar\x0000", 257, "latin1");
      if (device) field(329, 8, device[0]);
      if (device) field(337, 8, device[1]);
      header.fill(0x20, 148, 156);
      header.write(
        `${header
          .reduce((sum, byte) => sum + byte, 0)
          .toString(8)
          .padStart(6, "0")}\0 `,
        148,
        "latin1",
      );
      const content = Buffer.from(text);
      return [header, content, Buffer.alloc((512 - (content.length % 512)) % 512)];
    },
  );
  return Buffer.concat([...blocks, ...(end ? [Buffer.alloc(1024)] : [])]);
}

/** What a package is made of. */
export interface Recipe {
  name: string;
  version: string;
  depends?: string[];
  provides?: string[];
  replaces?: string[];
  priority?: number;
  files?: RawMember[];
  /** Names of install scripts. */
  scripts?: string[];
  repository?: string;
}

function signed(part: Buffer, key: typeof privateKey = privateKey, name = KEY): Buffer {
  const signature = createSign("sha1").update(part).sign(key);
  const header = rawTar([{ path: `.SIGN.RSA.${name}`, text: "x".repeat(signature.length) }], false);
  signature.copy(header, 512);
  return Buffer.concat([gzipSync(header), part]);
}

/** A signed package. */
export function makeApk(
  recipe: Recipe,
  data?: Buffer,
  key = privateKey,
  keyName = KEY,
): { apk: Buffer; checksum: string } {
  const { name, version, files = [], scripts = [], replaces = [] } = recipe;
  const packed = data ?? gzipSync(rawTar(files));
  const info = [
    `pkgname = ${name}`,
    `pkgver = ${version}`,
    ...replaces.map((other) => `replaces = ${other}`),
    `datahash = ${createHash("sha256").update(packed).digest("hex")}`,
  ];
  const members = [
    { path: ".PKGINFO", text: `${info.join("\n")}\n` },
    ...scripts.map((path) => ({ path, text: "#!/bin/sh\n" })),
  ];
  const control = gzipSync(rawTar(members, false));
  return {
    apk: Buffer.concat([signed(control, key, keyName), packed]),
    checksum: `Q1${createHash("sha1").update(control).digest("base64")}`,
  };
}

/** The index of packages; `change` may lie about them. */
export function makeIndex(
  recipes: readonly Recipe[],
  change = (text: string) => text,
  key = privateKey,
): Buffer {
  const entries = recipes.map((recipe) => {
    const { apk, checksum } = makeApk(recipe);
    const { name, version, depends = [], provides = [], priority = 0 } = recipe;
    return [
      `C:${checksum}`,
      `P:${name}`,
      `V:${version}`,
      "A:aarch64",
      `S:${apk.length}`,
      ...(depends.length > 0 ? [`D:${depends.join(" ")}`] : []),
      ...(provides.length > 0 ? [`p:${provides.join(" ")}`] : []),
      ...(priority > 0 ? [`k:${priority}`] : []),
      "",
    ].join("\n");
  });
  const text = change(`${entries.join("\n")}\n`);
  return signed(
    gzipSync(
      rawTar([
        { path: "DESCRIPTION", text: "test" },
        { path: "APKINDEX", text },
      ]),
    ),
    key,
  );
}

/** Serves files by path, and says what was asked for. */
export class Mirror implements AsyncDisposable {
  readonly files = new Map<string, Buffer>();
  readonly asked: string[] = [];
  readonly #server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch: (request) => {
      const path = new URL(request.url).pathname;
      this.asked.push(path);
      const file = this.files.get(path);
      return file ? new Response(new Uint8Array(file)) : new Response("no", { status: 404 });
    },
  });

  get url(): string {
    return `http://127.0.0.1:${this.#server.port}/v3`;
  }

  /** Puts packages and their indexes there. */
  offer(recipes: readonly Recipe[]): void {
    for (const repository of ["main", "community"]) {
      const here = recipes.filter((recipe) => (recipe.repository ?? "main") === repository);
      this.put(repository, "APKINDEX.tar.gz", makeIndex(here));
      for (const recipe of here)
        this.put(repository, `${recipe.name}-${recipe.version}.apk`, makeApk(recipe).apk);
    }
  }

  put(repository: string, name: string, bytes: Buffer): void {
    this.files.set(`/v3/${repository}/aarch64/${name}`, bytes);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.stop(true);
  }
}

/** Writes the trusted key into a folder. */
export function writeKeys(folder: string): string {
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, KEY), publicKey.export({ type: "spki", format: "pem" }));
  return folder;
}

/** Writes a file and what it stands in. */
export function writeAt(path: string, bytes: Uint8Array | string): string {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, bytes);
  return path;
}
