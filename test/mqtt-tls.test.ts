import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { execFileSync, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createServer, type TLSSocket } from "node:tls";
import type { MqttConfig } from "../agent/mqtt/connect.ts";
import { freePort, HAS_MOSQUITTO, Mosquitto, Node, Tap, until } from "./broker.ts";

const CAN = HAS_MOSQUITTO && Boolean(Bun.which("openssl"));
const NEEDS = "[needs mosquitto and openssl: apt-get install mosquitto openssl]";
const dir = mkdtempSync(join(tmpdir(), "fruit-tls-"));
const file = (name: string) => join(dir, name);
const openssl = (...args: string[]) =>
  execFileSync("openssl", args, { cwd: dir, stdio: ["ignore", "pipe", "pipe"] });
const EC = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

/** A certificate authority of its own. */
function authority(name: string): void {
  openssl(
    "req",
    "-x509",
    ...EC,
    "-keyout",
    `${name}.key`,
    "-out",
    `${name}.pem`,
    "-days",
    "2",
    "-subj",
    `/CN=${name}`,
  );
}

/** A certificate signed by an authority; `days` -1 is expired. */
function certificate(name: string, ca: string, cn: string, san = "", days = 2): void {
  openssl("req", "-new", ...EC, "-keyout", `${name}.key`, "-out", `${name}.csr`, "-subj", `/CN=${cn}`);
  writeFileSync(file(`${name}.ext`), san ? `subjectAltName=${san}` : "");
  const signed = ["-CA", `${ca}.pem`, "-CAkey", `${ca}.key`, "-CAcreateserial", "-extfile", `${name}.ext`];
  openssl("x509", "-req", "-in", `${name}.csr`, ...signed, "-days", String(days), "-out", `${name}.pem`);
}

beforeAll(() => {
  if (!CAN) return;
  authority("site");
  authority("other");
  certificate("good", "site", "broker", "DNS:localhost,IP:127.0.0.1");
  certificate("named", "site", "broker", "DNS:localhost");
  certificate("elsewhere", "site", "localhost", "DNS:broker.elsewhere");
  certificate("expired", "site", "broker", "DNS:localhost", -1);
  certificate("foreign", "other", "broker", "DNS:localhost");
  certificate("pi1", "site", "pi1");
  certificate("thief", "other", "pi1");
  const self = ["-keyout", "self.key", "-out", "self.pem", "-days", "2", "-subj", "/CN=localhost"];
  openssl("req", "-x509", ...EC, ...self, "-addext", "subjectAltName=DNS:localhost");
});
afterAll(() => rmSync(dir, { recursive: true, force: true }));

const listener = (certificate: string, ...more: string[]) => [
  `cafile ${file("site.pem")}`,
  `certfile ${file(`${certificate}.pem`)}`,
  `keyfile ${file(`${certificate}.key`)}`,
  ...more,
];
const anonymous = "allow_anonymous true";
const mutual = ["require_certificate true", "use_identity_as_username true"];
const identity = (name: string) => ({ cert: file(`${name}.pem`), key: file(`${name}.key`) });

/** What a renewal may leave behind for a moment; read late, for the files are made before the tests run. */
const whole = (name: string) => () => readFileSync(file(name), "utf8");
const half = (name: string) => () => whole(name)().slice(0, 200);
const hollow = () => "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

/** Tries once; the answer is "online" or how it was refused. */
async function tryOnce(port: number, host: string, more: Partial<MqttConfig> = {}): Promise<string> {
  await using node = new Node({ url: `mqtts://${host}:${port}`, ca: file("site.pem"), ...more });
  await until("it was decided", () => node.session.isOnline || node.log("mqtt.down"));
  const { kind, error } = node.logged.find(({ what }) => what === "mqtt.down")?.fields ?? {};
  return node.session.isOnline ? "online" : `${kind}: ${error}`;
}

describe.skipIf(!CAN)(`TLS ${NEEDS}`, () => {
  test.each([
    { what: "the broker's name is in its certificate", cert: "good", host: "localhost", says: /^online$/ },
    { what: "the broker's address is", cert: "good", host: "127.0.0.1", says: /^online$/ },
    {
      what: "the certificate names the host but not this address",
      cert: "named",
      host: "127.0.0.1",
      says: /^tls: .*127\.0\.0\.1 is not in the cert/,
    },
    {
      what: "another CA has signed",
      cert: "foreign",
      host: "localhost",
      says: /^tls: .*verify the first certificate/,
    },
    {
      what: "the certificate is another host's, whatever its CN says",
      cert: "elsewhere",
      host: "localhost",
      says: /^tls: .*localhost.* is not in the cert/,
    },
    {
      what: "the certificate has expired",
      cert: "expired",
      host: "localhost",
      says: /^tls: .*certificate has expired/,
    },
    {
      what: "the broker has signed itself",
      cert: "self",
      host: "localhost",
      says: /^tls: .*self.signed certificate/,
    },
  ])("when $what the answer is $says", async ({ cert, host, says }) => {
    await using broker = await Mosquitto.start(listener(cert, anonymous));
    expect(await tryOnce(broker.port, host)).toMatch(says);
  });

  test.each([
    { what: "the node's own certificate", more: () => identity("pi1"), says: /^online$/ },
    { what: "no client certificate", more: () => ({}), says: /^tls: .*CERTIFICATE_REQUIRED/ },
    { what: "one of another CA", more: () => identity("thief"), says: /^tls: .*UNKNOWN_CA/ },
  ])("with $what a broker that asks for one answers $says", async ({ more, says }) => {
    await using broker = await Mosquitto.start(listener("good", ...mutual));
    expect(await tryOnce(broker.port, "localhost", more())).toMatch(says);
  });

  test("a broker that does not speak TLS is refused", async () => {
    await using broker = await Mosquitto.start([anonymous]);
    expect(await tryOnce(broker.port, "localhost", { connect_timeout_seconds: 2 })).not.toBe("online");
  });

  test("TLS 1.1 is refused", async () => {
    const port = await freePort();
    const server = spawn(
      "openssl",
      [
        "s_server",
        "-accept",
        `127.0.0.1:${port}`,
        "-tls1_1",
        "-cipher",
        "ALL:@SECLEVEL=0",
        "-cert",
        "good.pem",
        "-key",
        "good.key",
      ],
      { cwd: dir, stdio: ["pipe", "pipe", "ignore"] },
    );
    let said = "";
    server.stdout.on("data", (text) => {
      said += text;
    });
    try {
      await until("the server listens", () => said.includes("ACCEPT"));
      expect(await tryOnce(port, "localhost")).toMatch(/^tls: .*PROTOCOL_VERSION/i);
    } finally {
      server.kill("SIGKILL");
    }
  });

  test("an environment that turns verification off, or adds authorities, changes nothing", async () => {
    await using broker = await Mosquitto.start(listener("foreign", anonymous));
    const program = `
      import { openStream } from "${import.meta.dir}/../agent/mqtt/connect.ts";
      const config = { url: "mqtts://localhost:${broker.port}", ca: "${file("site.pem")}" };
      await openStream(config, 3000, new AbortController().signal).then(() => console.log("accepted"), (e) => console.log(e.kind));
      process.exit();`;
    for (const name of ["NODE_TLS_REJECT_UNAUTHORIZED", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE"]) {
      const env = { ...process.env, [name]: name.startsWith("NODE_TLS") ? "0" : file("other.pem") };
      const said = execFileSync(process.execPath, ["-e", program], {
        env,
        stdio: ["ignore", "pipe", "ignore"],
      });
      expect(`${name} ${said}`).toBe(`${name} tls\n`);
    }
  });

  test.each([
    { cert: "good", sees: "pi1", hears: true },
    { cert: "foreign", sees: undefined, hears: false },
    { cert: "elsewhere", sees: undefined, hears: false },
    { cert: "expired", sees: undefined, hears: false },
  ])(
    "a server with the certificate $cert sees the client certificate of $sees and hears CONNECT: $hears",
    async ({ cert, sees, hears }) => {
      const heard: Buffer[] = [];
      const names: unknown[] = [];
      let isOver = false;
      const options = {
        cert: readFileSync(file(`${cert}.pem`)),
        key: readFileSync(file(`${cert}.key`)),
        ca: readFileSync(file("site.pem")),
      };
      const server = createServer(
        { ...options, requestCert: true, rejectUnauthorized: false },
        (socket: TLSSocket) => {
          names.push(socket.getPeerCertificate()?.subject?.CN);
          socket.on("data", (data: Buffer) => heard.push(data));
          socket.on("error", () => undefined);
        },
      );
      server.on("tlsClientError", () => {
        isOver = true;
      });
      await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
      const { port } = server.address() as { port: number };
      writeFileSync(file("password"), "the-password", { mode: 0o600 });
      {
        await using node = new Node({
          url: `mqtts://localhost:${port}`,
          ca: file("site.pem"),
          ...identity("pi1"),
          username: "pi1",
          password_file: file("password"),
          connect_timeout_seconds: 1,
        });
        await until("it was decided", () => heard.length > 0 || (isOver && node.log("mqtt.down")));
      }
      server.close();
      expect(Buffer.concat(heard).includes("the-password")).toBe(hears);
      expect(names.filter(Boolean)).toEqual(sees ? [sees] : []);
    },
  );

  test("the shipped mosquitto.conf and ACL file take a node by the name in its certificate, and only by that", async () => {
    const site = join(import.meta.dir, "../image/site");
    const people = await freePort();
    await using broker = await Mosquitto.with((at, port) => {
      const acl = readFileSync(join(site, "mosquitto.acl"), "utf8").replaceAll("/SITE", "/lab");
      writeFileSync(join(at, "mosquitto.acl"), acl.replace("user READER", "user telegraf"), { mode: 0o600 });
      writeFileSync(join(at, "passwords"), "telegraf:secret\n", { mode: 0o600 });
      execFileSync("mosquitto_passwd", ["-U", join(at, "passwords")]);
      return readFileSync(join(site, "mosquitto.conf"), "utf8")
        .replaceAll("/etc/mosquitto/site/mosquitto.acl", join(at, "mosquitto.acl"))
        .replaceAll("/etc/mosquitto/site/passwords", join(at, "passwords"))
        .replaceAll("/etc/mosquitto/site/ca.pem", file("site.pem"))
        .replaceAll("/etc/mosquitto/site/broker", file("good"))
        .replaceAll("/var/lib/mosquitto/", `${at}/`)
        .replace("listener 8883", `listener ${port} 127.0.0.1`)
        .replace("listener 8884", `listener ${people} 127.0.0.1`);
    });
    await using reader = await Tap.at(people, {
      tls: { ca: readFileSync(file("site.pem")) },
      username: "telegraf",
      password: Buffer.from("secret"),
    });
    await using node = new Node({
      url: `mqtts://localhost:${broker.port}`,
      ca: file("site.pem"),
      ...identity("pi1"),
    });
    await node.online();
    node.session.publish({
      topic: "fruit/v1/lab/pi2/status",
      payload: "offline",
      qos: 1,
      retain: true,
      class: "state",
    });
    await until("it was refused", () => node.log("mqtt.refused"));
    expect(node.log("mqtt.refused")).toContain("fruit/v1/lab/pi2/status");
    expect(reader.heard.map(({ topic, text }) => [topic, text])).toEqual([
      ["fruit/v1/lab/pi1/status", "online"],
    ]);
    expect(await tryOnce(broker.port, "localhost")).toMatch(/^tls: .*CERTIFICATE_REQUIRED/);
  });

  test.each([
    { key: "ca", what: "rubbish", put: () => "rubbish", says: /^tls: .*cannot use mqtt\.ca .*Invalid CA/ },
    { key: "ca", what: "empty", put: () => "", says: /^tls: .*cannot use mqtt\.ca / },
    { key: "ca", what: "half written", put: half("site.pem"), says: /^tls: .*cannot use mqtt\.ca / },
    { key: "ca", what: "a folder", put: undefined, says: /^unreachable: .*mqtt\.ca: EISDIR/ },
    { key: "cert", what: "rubbish", put: () => "rubbish", says: /^tls: .*mqtt\.cert .*NO_START_LINE/ },
    { key: "cert", what: "empty", put: () => "", says: /^tls: .*mqtt\.cert .*NO_START_LINE/ },
    { key: "cert", what: "half written", put: half("pi1.pem"), says: /^tls: .*mqtt\.cert .*BAD_END_LINE/ },
    { key: "cert", what: "PEM around nothing", put: hollow, says: /^tls: .*mqtt\.cert .*DECODE_ERROR/ },
    { key: "cert", what: "a folder", put: undefined, says: /^unreachable: .*mqtt\.cert: EISDIR/ },
    { key: "key", what: "rubbish", put: () => "rubbish", says: /^tls: .*mqtt\.key .*NO_START_LINE/ },
    { key: "key", what: "empty", put: () => "", says: /^tls: .*mqtt\.key .*NO_START_LINE/ },
    {
      key: "key",
      what: "another's",
      put: whole("thief.key"),
      says: /^tls: .*mqtt\.key .*KEY_VALUES_MISMATCH/,
    },
    { key: "key", what: "a folder", put: undefined, says: /^unreachable: .*mqtt\.key: EISDIR/ },
  ])(
    "while mqtt.$key is $what the node tells it and goes on, until it is put right",
    async ({ key, put, says }) => {
      await using broker = await Mosquitto.start(listener("good", ...mutual));
      const mine = file(`renewed-${crypto.randomUUID()}`);
      if (put) writeFileSync(mine, put());
      else mkdirSync(mine);
      const good = { ca: file("site.pem"), ...identity("pi1") };
      await using node = new Node({ url: `mqtts://localhost:${broker.port}`, ...good, [key]: mine });
      await until("it was told", () => node.log("mqtt.down"));
      const { kind, error } = node.logged.find(({ what }) => what === "mqtt.down")?.fields ?? {};
      expect(`${kind}: ${error}`).toMatch(says);
      expect(String(error)).toStartWith(`localhost:${broker.port}: `);
      rmSync(mine, { recursive: true });
      writeFileSync(mine, readFileSync(good[key as keyof typeof good]));
      await node.online();
    },
  );

  test("a renewed certificate is used at the next connect, without a restart", async () => {
    await using broker = await Mosquitto.start(listener("good", ...mutual));
    const mine = { cert: file("mine.pem"), key: file("mine.key") };
    const put = (name: string) => {
      writeFileSync(mine.cert, readFileSync(file(`${name}.pem`)));
      writeFileSync(mine.key, readFileSync(file(`${name}.key`)));
    };
    put("thief");
    await using node = new Node({ url: `mqtts://localhost:${broker.port}`, ca: file("site.pem"), ...mine });
    await until("it was refused", () => node.log("mqtt.down"));
    put("pi1");
    await node.online();
  });
});
