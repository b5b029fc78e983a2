import { describe, expect, test } from "bun:test";
import { mkdirSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { DOCTOR_VERBS } from "../agent/doctor/cli.ts";
import { checkImage } from "../agent/doctor/image.ts";
import { checkNode, look } from "../agent/doctor/node.ts";
import { PaperMachine } from "./paper.ts";
import { image, not, Tree } from "./tree.ts";

const tree = new Tree();

describe("a node", () => {
  const SITE = { site: "lab", data_dir: "", socket: "" };
  const node = (config: object, machine = new PaperMachine()) => {
    const file = tree.put(
      "node.json",
      JSON.stringify({ ...SITE, data_dir: tree.at("data"), socket: tree.at("fruit.sock"), ...config }),
    );
    mkdirSync(tree.at("data"), { recursive: true });
    return checkNode(look(file), { machine, kind: "linux" });
  };

  async function listen(): Promise<{ server: Server; port: number }> {
    const server = createServer((link) => link.destroy());
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    return { server, port: (server.address() as { port: number }).port };
  }

  test("with a broker, room and a clock fails nothing", async () => {
    const { server, port } = await listen();
    try {
      const checks = await node({ mqtt: { url: `mqtt://127.0.0.1:${port}` } });
      const text = tree.lines(checks);
      expect(text).toContain("ok   config: ROOT/node.json is valid\n");
      expect(text).toMatch(/^ok {3}data: ROOT\/data has \d+ MiB free$/m);
      expect(text).toContain("ok   socket: ROOT/fruit.sock can be made\n");
      expect(text).toContain(`ok   broker: 127.0.0.1 port ${port} answers`);
      expect(text).toContain("ok   clock: synchronised, off by -0.000125 s\n");
      expect(text).toContain("ok   board: Raspberry Pi 4 Model B Rev 1.4, pi10000000abcdef01\n");
      expect(text).toContain("ok   throttle: the firmware's word is 0x50005, by mailbox\n");
      expect(checks.filter(({ level }) => level === "FAIL")).toEqual([]);
    } finally {
      server.close();
    }
  });

  test("whose broker is not there is told so, with the port", async () => {
    const { server, port } = await listen();
    await new Promise((resolve) => server.close(resolve));
    expect(tree.lines(await node({ mqtt: { url: `mqtt://127.0.0.1:${port}` } }))).toContain(
      `FAIL broker: 127.0.0.1 port ${port} refuses the connection; check mqtt.url, the network and the broker\n`,
    );
  });

  test("whose broker has no address is told so", async () => {
    const text = tree.lines(await node({ mqtt: { url: "mqtt://broker.invalid" } }));
    expect(text).toMatch(/^FAIL broker: broker\.invalid .+; check mqtt\.url and the resolver$/m);
  });

  test("with a configuration nobody can run with still has its machine checked", async () => {
    const text = tree.lines(await node({ sight: 1 }));
    expect(text).toContain("FAIL config: ROOT/node.json: sight: unknown key");
    expect(text).toContain("ok   clock:");
    expect(text).not.toContain("broker");
  });

  const SPOILED: { what: string; config: () => object; line: string }[] = [
    {
      what: "whose data folder is a file",
      config: () => ({ data_dir: tree.put("file", "") }),
      line: "FAIL data: ROOT/file is no folder; move it away",
    },
    {
      what: "whose data folder cannot be made",
      config: () => ({ data_dir: "/proc/fruit/data" }),
      line: "FAIL data: /proc/fruit/data does not exist, and /proc/fruit: does not exist; make it",
    },
    {
      what: "whose socket is a file",
      config: () => ({ socket: tree.put("sock", "") }),
      line: "FAIL socket: ROOT/sock is there and is no socket; move it away",
    },
    {
      what: "whose socket is too long for the kernel",
      config: () => ({ socket: `/run/${"x".repeat(110)}` }),
      line: "is longer than 107 bytes; choose a shorter path",
    },
    {
      what: "whose bus is not plugged in",
      config: () => ({
        power: { buses: [{ driver: "pistack-rs485", device: "/dev/ttyUSB99", boards: [0] }] },
      }),
      line: "FAIL bus /dev/ttyUSB99: /dev/ttyUSB99: does not exist; ",
    },
    {
      what: "whose bus is simulated, on real hardware",
      config: () => ({ power: { buses: [{ driver: "sim", boards: [0] }] } }),
      line: "FAIL bus sim: driver sim on real hardware; start the agent with --hal sim",
    },
    {
      what: "whose signers are missing",
      config: () => ({ commands: { allowed_signers: "/no/allowed_signers" } }),
      line: "FAIL signers: /no/allowed_signers: does not exist; put it there",
    },
    {
      what: "whose signers file has a line that gives nobody any right",
      config: () => ({ commands: { allowed_signers: tree.put("signers", "alice ssh-ed25519 nonsense\n") } }),
      line: "FAIL signers: ROOT/signers: line 1: ",
    },
    {
      what: "whose signers are nobody",
      config: () => ({ commands: { allowed_signers: tree.put("signers", "# later\n") } }),
      line: "warn signers: ROOT/signers: nobody is in it; add those who may command",
    },
  ];
  test.each(SPOILED)("$what is told so", async ({ config, line }) => {
    expect(tree.lines(not("ok", await node(config())))).toContain(line);
  });

  test("on a machine that is no Pi and has no clock is told so, and nothing fails for it", async () => {
    const machine = new PaperMachine();
    machine.serial = undefined;
    machine.files.delete("/proc/device-tree/model");
    machine.time = { synced: false };
    const checks = await node({}, machine);
    const text = tree.lines(checks);
    expect(text).toContain("warn clock: not synchronised");
    expect(text).toContain("ok   board: not a Raspberry Pi, the node id is rack1-c\n");
    expect(text).not.toContain("watchdog");
    expect(checks.filter(({ level }) => level === "FAIL")).toEqual([]);
  });

  test("whose firmware cannot be asked is warned", async () => {
    const machine = new PaperMachine();
    machine.word = undefined;
    expect(tree.lines(await node({}, machine))).toContain("warn throttle: the firmware cannot be asked");
  });
});

describe("the verb", () => {
  async function run(args: string[], json = false) {
    let out = "";
    const verb = DOCTOR_VERBS[0];
    if (!verb) throw new Error("doctor has a verb");
    const exit = await verb.run({
      args,
      json,
      send: () => Promise.reject(new Error("doctor asks no agent")),
      attach: () => Promise.reject(new Error("doctor asks no agent")),
      io: {
        out: (text) => (out += text),
        err: () => undefined,
        env: {},
        isTerminal: false,
        stdin: async () => new Uint8Array(),
        signal: new AbortController().signal,
      },
    });
    return { exit, out };
  }

  test("ends with 0 when all is well and with 1 when something will not work", async () => {
    image(tree);
    expect((await run(["--image", tree.root])).exit).toBe(0);
    tree.remove("usr/bin/fruit");
    expect(await run(["--image", tree.root])).toMatchObject({
      exit: 1,
      out: expect.stringContaining("FAIL executable"),
    });
  });

  test("prints the same as JSON, with a version", async () => {
    image(tree);
    tree.put("etc/machine-id", "0123456789abcdef0123456789abcdef\n");
    const { exit, out } = await run(["--image", tree.root], true);
    const document = JSON.parse(out);
    expect(exit).toBe(0);
    expect(document).toMatchObject({ v: 1, well: true });
    expect(document.checks).toEqual(checkImage(tree.root));
  });

  test("looks at the real machine, with the configuration that was named", async () => {
    const { exit, out } = await run(["--config", tree.at("none.json")]);
    expect(exit).toBe(1);
    expect(out).toContain(`FAIL config: ${tree.root}/none.json does not exist; write one`);
    expect(out).toMatch(/^(ok|warn) +clock:/m);
  });

  test.each([[["--image", "/", "--config", "x"]], [["--hal", "fake"]], [["--nonsense"]]])(
    "refuses %p with the usage",
    async (args) => {
      await expect(run(args)).rejects.toThrow();
    },
  );
});
