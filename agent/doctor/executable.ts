import { closeSync, openSync, readSync, statSync } from "node:fs";
import { type Check, fail, ok } from "./check.ts";
import { type Elf, parseElf } from "./elf.ts";
import { inRoot } from "./root.ts";

/** Where an image has the program. */
export const EXECUTABLE = "/usr/bin/fruit";

/** What a Bun executable for musl is linked to, and the Alpine package that has it. */
const LIBRARIES = [
  { file: "libstdc++.so.6", package: "libstdc++" },
  { file: "libgcc_s.so.1", package: "libgcc" },
];
const FOLDERS = ["/lib", "/usr/lib"];
/** Program headers and the loader's name stand in the first page or two. */
const HEAD_BYTES = 16_384;

/** Whether the system under `root` can start its `fruit`. */
export function checkExecutable(root: string): Check[] {
  const name = "executable";
  const remedy = "copy dist/fruit-linux-arm64-musl there";
  const path = inRoot(root, EXECUTABLE);
  if (!path || !statSync(path).isFile()) return [fail(name, `no ${EXECUTABLE}`, remedy), ...libraries(root)];
  const elf = elfOf(path);
  if (!elf) return [fail(name, `${EXECUTABLE} is no 64-bit ELF file`, remedy), ...libraries(root)];
  const checks = startable(root, path, elf);
  return [
    ...(checks.length > 0 ? checks : [ok(name, `${EXECUTABLE}, ${elf.machine}`)]),
    // A program for glibc finds these with its C library; the loader's absence was named above.
    ...(elf.interpreter?.includes("musl") ? libraries(root) : []),
  ];
}

function startable(root: string, path: string, { machine, interpreter }: Elf): Check[] {
  const name = "executable";
  const checks: Check[] = [];
  const others = machineOf(root);
  if (others && others !== machine)
    checks.push(
      fail(
        name,
        `${EXECUTABLE} is for ${machine}, the image for ${others}`,
        `copy dist/fruit-linux-${others}-musl there`,
      ),
    );
  if (interpreter && !inRoot(root, interpreter))
    checks.push(
      fail(
        name,
        `${EXECUTABLE} needs ${interpreter}, which is not there`,
        interpreter.includes("musl") ? "apk add musl" : "copy the musl executable there",
      ),
    );
  if (!(statSync(path).mode & 0o111))
    checks.push(fail(name, `${EXECUTABLE} is not executable`, `chmod 755 ${EXECUTABLE}`));
  return checks;
}

function libraries(root: string): Check[] {
  return LIBRARIES.map(({ file, package: name }) => {
    const folder = FOLDERS.find((one) => inRoot(root, `${one}/${file}`) !== undefined);
    return folder
      ? ok(file, `in ${folder}`)
      : fail(
          file,
          `not in ${FOLDERS.join(" or ")}; the executable cannot start without it`,
          `apk add ${name}`,
        );
  });
}

/** What the rest of the system runs on, as its shell tells. */
function machineOf(root: string): Elf["machine"] | undefined {
  const shell = inRoot(root, "/bin/busybox") ?? inRoot(root, "/bin/sh");
  return shell === undefined ? undefined : elfOf(shell)?.machine;
}

function elfOf(path: string): Elf | undefined {
  const file = openSync(path, "r");
  try {
    const head = new Uint8Array(HEAD_BYTES);
    return parseElf(head.subarray(0, readSync(file, head, 0, HEAD_BYTES, 0)));
  } finally {
    closeSync(file);
  }
}
