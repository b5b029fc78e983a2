import { describe, expect, test } from "bun:test";
import { chmodSync, readFileSync } from "node:fs";
import { parseElf } from "../agent/doctor/elf.ts";
import { checkImage } from "../agent/doctor/image.ts";
import { seeded } from "./fakes.ts";
import { elf, image, MUSL, not, Tree } from "./tree.ts";

const tree = new Tree();

describe("an image", () => {
  test("with nothing wrong passes, one line each", () => {
    image(tree);
    expect(tree.lines(checkImage(tree.root))).toBe(`ok   executable: /usr/bin/fruit, arm64
ok   libstdc++.so.6: in /usr/lib
ok   libgcc_s.so.1: in /usr/lib
ok   config: /etc/fruit/node.json is valid
ok   service: /etc/init.d/fruit starts in runlevel default
ok   secrets: no private key in 3 files
`);
  });

  const SPOILED: { what: string; spoil: () => void; line: string }[] = [
    {
      what: "without the executable",
      spoil: () => tree.remove("usr/bin/fruit"),
      line: "FAIL executable: no /usr/bin/fruit; copy dist/fruit-linux-arm64-musl there",
    },
    {
      what: "with a script for an executable",
      spoil: () => tree.put("usr/bin/fruit", "#!/bin/sh\n", 0o755),
      line: "FAIL executable: /usr/bin/fruit is no 64-bit ELF file; copy dist/fruit-linux-arm64-musl there",
    },
    {
      what: "with the other processor's executable",
      spoil: () => tree.put("usr/bin/fruit", elf("x64", MUSL), 0o755),
      line: "FAIL executable: /usr/bin/fruit is for x64, the image for arm64; copy dist/fruit-linux-arm64-musl there",
    },
    {
      what: "with the executable for glibc",
      spoil: () => tree.put("usr/bin/fruit", elf("arm64", "/lib/ld-linux-aarch64.so.1"), 0o755),
      line: "FAIL executable: /usr/bin/fruit needs /lib/ld-linux-aarch64.so.1, which is not there; copy the musl executable there",
    },
    {
      what: "without execute permission",
      spoil: () => chmodSync(tree.at("usr/bin/fruit"), 0o644),
      line: "FAIL executable: /usr/bin/fruit is not executable; chmod 755 /usr/bin/fruit",
    },
    {
      what: "without libgcc",
      spoil: () => tree.remove("usr/lib/libgcc_s.so.1"),
      line: "FAIL libgcc_s.so.1: not in /lib or /usr/lib; the executable cannot start without it; apk add libgcc",
    },
    {
      what: "whose libstdc++ is a link to nothing inside it",
      spoil: () => {
        tree.remove("usr/lib/libstdc++.so.6");
        tree.link("usr/lib/libstdc++.so.6", process.execPath);
      },
      line: "FAIL libstdc++.so.6: not in /lib or /usr/lib; the executable cannot start without it; apk add libstdc++",
    },
    {
      what: "with a configuration nobody can run with",
      spoil: () => tree.put("etc/fruit/node.json", '{"site":"lab","sight":1}'),
      line: "FAIL config: /etc/fruit/node.json: sight: unknown key",
    },
    {
      what: "that names its node",
      spoil: () => tree.put("etc/fruit/node.json", '{"site":"lab","node":"pi1"}'),
      line: "warn config: /etc/fruit/node.json calls every node of this image pi1; leave out node",
    },
    {
      what: "whose service is in no runlevel",
      spoil: () => tree.remove("etc/runlevels/default/fruit"),
      line: "warn service: /etc/init.d/fruit is in no runlevel; rc-update add fruit default",
    },
    {
      what: "whose service is no OpenRC script",
      spoil: () => tree.put("etc/init.d/fruit", "#!/bin/bash\n", 0o755),
      line: "FAIL service: /etc/init.d/fruit does not begin with #!/sbin/openrc-run; mend it",
    },
    {
      what: "with an SSH host key",
      spoil: () => tree.put("etc/ssh/ssh_host_ed25519_key", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"),
      line: "FAIL secrets: /etc/ssh/ssh_host_ed25519_key is a private key; remove it from the image",
    },
    {
      what: "with a node's TLS key in a folder nobody thinks of",
      spoil: () => tree.put("data/fruit/old/node.key", "x\n-----BEGIN PRIVATE KEY-----\nAAAA\n"),
      line: "FAIL secrets: /data/fruit/old/node.key is a private key; remove it from the image",
    },
    {
      what: "with a machine id",
      spoil: () => tree.put("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
      line: "warn secrets: /etc/machine-id is set: all nodes of this image would share it; empty the file",
    },
  ];
  test.each(SPOILED)("$what is told so", ({ spoil, line }) => {
    image(tree);
    spoil();
    const found = tree.lines(not("ok", checkImage(tree.root)));
    expect(found).toContain(line);
    expect(found.trimEnd().split("\n").length).toBe(1);
  });

  test("links never lead to the build host's own files", () => {
    const host = tree.at("host");
    tree.put("host/host.key", "-----BEGIN PRIVATE KEY-----\n");
    // `host` is none of the folders that are searched for themselves.
    image(tree);
    tree.link("opt", host);
    tree.link("etc/host.key", `${host}/host.key`);
    tree.link("etc/up", `${"../".repeat(20)}${host}`);
    tree.link("etc/loop", "loop");
    expect(not("ok", checkImage(tree.root))).toEqual([]);
  });

  test("that is no folder is told so", () => {
    expect(tree.lines(checkImage(tree.at("none")))).toBe(
      "FAIL image: ROOT/none is no folder; name the root of an unpacked image\n",
    );
  });
});

test("the executable these tests run on is read, and damaged headers are refused or read, never thrown at", () => {
  const head = Uint8Array.from(readFileSync(process.execPath).subarray(0, 16_384));
  expect(parseElf(head)).toMatchObject({
    machine: process.arch as "x64",
    interpreter: expect.stringContaining("/ld-"),
  });
  const random = seeded(7);
  for (let round = 0; round < 2000; round++) {
    const torn = head.slice(0, Math.floor(random() * 512));
    for (let hit = 0; hit < 4; hit++) torn[Math.floor(random() * torn.length)] = Math.floor(random() * 256);
    parseElf(torn);
  }
});
