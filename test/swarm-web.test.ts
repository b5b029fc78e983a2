import { expect, test } from "bun:test";
import { createServer, type Socket } from "node:net";
import { fetchFromWeb, fetchRange, isPublic, WebError } from "../agent/swarm/web.ts";
import { Bits } from "../boot/progress.ts";
import { noise } from "./releases.ts";

const FILE = noise(300_000, 4);
const QUICK = { ms: 100, bytes: 1000 };

/** A server that answers each connection as told, and counts them. */
async function server(answer: (socket: Socket, head: string) => void | Promise<void>) {
  const heads: string[] = [];
  const sockets = new Set<Socket>();
  const listening = createServer((socket) => {
    sockets.add(socket);
    socket.on("error", () => undefined);
    socket.once("data", (head) => {
      heads.push(head.toString());
      void answer(socket, head.toString());
    });
  });
  await new Promise<void>((resolve) => listening.listen(0, "127.0.0.1", resolve));
  const { port } = listening.address() as { port: number };
  return {
    ...{
      heads,
      url: `http://127.0.0.1:${port}/fruitos-9`,
      isOpen: () => [...sockets].some((one) => !one.destroyed),
    },
    [Symbol.dispose]: () => {
      listening.close();
      for (const socket of sockets) socket.destroy();
    },
  };
}

const headOf = (status: string, headers: Record<string, string>) =>
  `HTTP/1.1 ${status}\r\n${Object.entries(headers)
    .map(([name, value]) => `${name}: ${value}\r\n`)
    .join("")}\r\n`;
const rangeOf = (head: string) => /^range: bytes=(\d+)-(\d+)/im.exec(head)?.slice(1, 3).map(Number) ?? [];

/** As a server should. */
function honest(socket: Socket, head: string, file: Uint8Array = FILE): void {
  const [from = 0, to = 0] = rangeOf(head);
  const range = `bytes ${from}-${to}/${file.length}`;
  socket.end(
    Buffer.concat([
      Buffer.from(
        headOf("206 Partial Content", { "Content-Range": range, "Content-Length": `${to - from + 1}` }),
      ),
      file.subarray(from, to + 1),
    ]),
  );
}

const ask = (url: string, more: { anyWeb?: boolean; pace?: typeof QUICK; signal?: AbortSignal } = {}) =>
  fetchRange({
    ...{ url, at: 65_536, length: 65_536, of: FILE.length, anyWeb: true, pace: QUICK },
    signal: new AbortController().signal,
    ...more,
  });

test("a stretch of a file comes from a server that has it, and nothing else is asked for", async () => {
  using at = await server(honest);
  expect(Buffer.compare(await ask(at.url), FILE.subarray(65_536, 131_072))).toBe(0);
  expect(at.heads.length).toBe(1);
  expect(at.heads[0]).toMatch(/^GET \/fruitos-9 HTTP\/1.1\r\n/);
  expect(rangeOf(at.heads[0] ?? "")).toEqual([65_536, 131_071]);
});

const RANGE = `bytes 65536-131071/${FILE.length}`;
const body = FILE.subarray(65_536, 131_072);

test.each([
  { what: "answers with all of it", status: "200 OK", headers: {}, why: "it answered 200, not 206" },
  {
    what: "has it elsewhere",
    status: "302 Found",
    headers: { Location: "http://127.0.0.1:1/x" },
    why: "it answered 302, not 206",
  },
  {
    what: "sends to a file",
    status: "301 Moved",
    headers: { Location: "file:///etc/shadow" },
    why: "it answered 301, not 206",
  },
  {
    what: "gives another stretch",
    headers: { "Content-Range": `bytes 0-65535/${FILE.length}` },
    why: "it gives bytes 0-65535/",
  },
  {
    what: "has another file",
    headers: { "Content-Range": "bytes 65536-131071/*" },
    why: "it gives bytes 65536-131071/*, not",
  },
  { what: "does not say what it gives", headers: {}, why: "it gives undefined, not" },
  {
    what: "packs it",
    headers: { "Content-Range": RANGE, "Content-Encoding": "gzip" },
    why: "it gives it as gzip",
  },
  {
    what: "gives too little",
    headers: { "Content-Range": RANGE, "Content-Length": "65536" },
    bytes: body.subarray(1),
    why: "",
  },
  { what: "hangs up at once", head: "", why: "" },
  { what: "does not speak HTTP", head: "220 smtp.example ESMTP\r\n", why: "" },
])(
  "a server that $what is not believed",
  async ({ status = "206 Partial Content", headers = {}, head, bytes = body, why }) => {
    using at = await server((socket) => {
      socket.write(head ?? headOf(status, headers as Record<string, string>));
      if (head === undefined) socket.write(bytes);
      socket.end();
    });
    const failure = await ask(at.url).catch((cause) => cause);
    expect(failure).toBeInstanceOf(WebError);
    expect(failure.message).toStartWith(`${at.url}: `);
    expect(failure.message).toContain(why);
  },
);

test.each([
  { what: "never ends", pour: (socket: Socket) => socket.write(Buffer.alloc(1 << 20)) },
  { what: "gives one byte too many", pour: (socket: Socket) => socket.end(Buffer.alloc(65_537)) },
])("a server that $what is cut off", async ({ pour }) => {
  using at = await server((socket) => {
    socket.write(headOf("206 Partial Content", { "Content-Range": RANGE }));
    socket.on("drain", () => pour(socket));
    pour(socket);
  });
  const before = process.memoryUsage().rss;
  // Whether it is seen to be too long depends on how it is cut: never are more bytes taken
  await ask(at.url).then(
    (bytes) => expect(bytes.length).toBe(65_536),
    (cause) => expect(cause.message).toContain("it gives more than the 65536 bytes asked for"),
  );
  expect(process.memoryUsage().rss - before).toBeLessThan(64 << 20);
});

test.each([
  { what: "before the first byte", first: 0 },
  { what: "at one byte a time", first: 1 },
])("a server that stalls, $what, is given up", async ({ first }) => {
  using at = await server(async (socket) => {
    socket.write(headOf("206 Partial Content", { "Content-Range": RANGE }));
    for (let turn = 0; turn < 100 && first > 0 && !socket.destroyed; turn++) {
      socket.write("x");
      await Bun.sleep(20);
    }
  });
  const failure = await ask(at.url).catch((cause) => cause);
  expect(failure).toBeInstanceOf(WebError);
  expect(failure.message).toMatch(/only \d+ bytes in 0.1 s/);
});

test("a fetch ends with its signal, and its connection with it", async () => {
  using at = await server(() => undefined);
  const stop = new AbortController();
  const fetching = ask(at.url, { signal: stop.signal });
  setTimeout(() => stop.abort(new Error("enough")), 50);
  await expect(fetching).rejects.toThrow("enough");
});

test.each([
  { url: "http://example.com/x", why: "only https is used" },
  { url: "file:///etc/shadow", why: "only https is used" },
  { url: "no address", why: "only https is used" },
  { url: "https://me:secret@example.com/x", why: "a user stands in it" },
  { url: "https://127.0.0.1/x", why: "127.0.0.1 is no public address" },
  { url: "https://localhost/x", why: "is no public address" },
  { url: "https://[::ffff:10.0.0.1]/x", why: "is no public address" },
  { url: "https://0x7f000001/x", why: "127.0.0.1 is no public address" },
])("$url is never asked", async ({ url, why }) => {
  await expect(ask(url, { anyWeb: false })).rejects.toThrow(why);
});

test.each([
  ...["8.8.8.8", "1.1.1.1", "172.32.0.1", "2600::1", "2a00:1450::1"].map((ip) => ({ ip, is: true })),
  ...[
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.1.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
  ].map((ip) => ({ ip, is: false })),
  ...[
    "::1",
    "::",
    "fe80::1",
    "fd00::1",
    "ff02::1",
    "::ffff:8.8.8.8",
    "2002:7f00:1::",
    "2001:db8::1",
    "2001::1",
  ].map((ip) => ({
    ip,
    is: false,
  })),
])("$ip is public: $is", ({ ip, is }) => {
  expect(isPublic(ip)).toBe(is);
});

/** Fetches all of the file from servers, as fast as it goes. */
async function pour(
  urls: string[],
  options: { isSlow?: () => boolean; wrong?: (bytes: Uint8Array) => number[] } = {},
) {
  const has = new Bits(Math.ceil(FILE.length / 16_384));
  const got = Buffer.alloc(FILE.length);
  const told: string[] = [];
  const stop = new AbortController();
  await fetchFromWeb({
    ...{ urls, anyWeb: true, size: FILE.length, pieceBytes: 65_536, has, signal: stop.signal },
    isSlow: options.isSlow ?? (() => true),
    put: async (piece, bytes) => {
      const wrong = options.wrong?.(bytes) ?? [];
      if (wrong.length > 0) return wrong;
      got.set(bytes, piece * 65_536);
      for (let leaf = piece * 4; leaf < piece * 4 + Math.ceil(bytes.length / 16_384); leaf++) has.add(leaf);
      return [];
    },
    tell: (text, url) => {
      told.push(text);
      if (urls.length === 1 && url === urls[0]) stop.abort();
    },
    ...{ look: { ms: 5, times: 2 }, pace: QUICK },
  });
  return { got, told };
}

test("where peers are slow all of it comes from a server, piece by piece", async () => {
  using at = await server(honest);
  const { got, told } = await pour([at.url]);
  expect([got.equals(FILE), told, at.heads.length]).toEqual([true, [], 5]);
});

test("a server that lies or fails is left alone, and the next one is asked", async () => {
  using liar = await server((socket, head) => honest(socket, head, Buffer.alloc(FILE.length)));
  using broken = await server((socket) => void socket.end(headOf("500 Oh", {})));
  using good = await server(honest);
  const wrong = (bytes: Uint8Array) => (bytes.every((byte) => byte === 0) ? [0, 1] : []);
  const { got, told } = await pour([liar.url, broken.url, good.url], { wrong });
  expect([got.equals(FILE), liar.heads.length, broken.heads.length, good.heads.length]).toEqual([
    true,
    1,
    1,
    5,
  ]);
  expect(told).toEqual([
    expect.stringMatching(/^2 leaves of piece \d are not those that were signed$/),
    `${broken.url}: it answered 500, not 206`,
  ]);
});

test("while peers are fast no server is asked", async () => {
  using at = await server(honest);
  let looks = 0;
  const { got } = await pour([at.url], { isSlow: () => ++looks > 40 });
  expect([looks > 40, got.equals(FILE)]).toEqual([true, true]);
});
