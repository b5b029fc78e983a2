import { createPrivateKey, X509Certificate } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import type { Config } from "../config.ts";
import { type Check, fail, ok, reason, warn } from "./check.ts";

const DAY_MS = 86_400_000;
/** A certificate that ends sooner is worth a visit. */
const SOON_MS = 30 * DAY_MS;
/** No certificate of a site was made before this software: an earlier clock is one nobody set. */
const EARLIEST_MS = Date.UTC(2024, 0, 1);

/** The files of a TLS connection: readable, in force, belonging together, and not readable by everybody. */
export function checkCertificates(
  mqtt: NonNullable<Config["mqtt"]>,
  node: string,
  nowMs = Date.now(),
): Check[] {
  const checks: Check[] = [];
  if (mqtt.ca) checks.push(...certificate("ca", mqtt.ca, nowMs).checks);
  if (mqtt.cert) {
    const { found, checks: ofFile } = certificate("certificate", mqtt.cert, nowMs);
    checks.push(...ofFile);
    if (found) checks.push(...belongs(found, mqtt.cert, node));
    if (mqtt.key) checks.push(key(mqtt.key, found));
  }
  if (mqtt.password_file) checks.push(password(mqtt.password_file));
  return checks;
}

function certificate(
  name: string,
  file: string,
  nowMs: number,
): { found: X509Certificate | undefined; checks: Check[] } {
  const found = readPem(file, (pem) => new X509Certificate(pem));
  if (typeof found === "string")
    return { found: undefined, checks: [fail(name, `${file}: ${found}`, "put the PEM file there")] };
  return { found, checks: [validity(name, file, found, nowMs)] };
}

function validity(name: string, file: string, found: X509Certificate, nowMs: number): Check {
  const fromMs = Date.parse(found.validFrom);
  const untilMs = Date.parse(found.validTo);
  const day = (ms: number) => new Date(ms).toISOString().slice(0, 10);
  if (nowMs < EARLIEST_MS)
    return warn(
      name,
      `${file}: the clock says ${day(nowMs)}, so its validity cannot be judged`,
      "set the clock",
    );
  if (nowMs < fromMs)
    return fail(name, `${file}: valid only from ${day(fromMs)}`, "check the clock, or make a new one");
  if (nowMs > untilMs) return fail(name, `${file}: expired on ${day(untilMs)}`, "renew it");
  if (untilMs - nowMs < SOON_MS) return warn(name, `${file}: expires on ${day(untilMs)}`, "renew it soon");
  return ok(name, `${file}: valid until ${day(untilMs)}`);
}

/** Brokers take the common name as the user name, and the shipped ACL lets a node write under its own name only. */
function belongs(found: X509Certificate, file: string, node: string): Check[] {
  const name = /^CN=(.+)$/m.exec(found.subject)?.[1];
  if (name === node) return [];
  return [
    warn(
      "certificate",
      `${file}: made for "${name ?? found.subject}", this node is ${node}`,
      "make one whose CN is the node id",
    ),
  ];
}

function key(file: string, cert: X509Certificate | undefined): Check {
  const found = readPem(file, (pem) => createPrivateKey(pem));
  if (typeof found === "string")
    return fail(
      "key",
      `${file}: ${found}`,
      "put the certificate's private key there, PEM, without passphrase",
    );
  if (cert && !cert.checkPrivateKey(found))
    return fail(
      "key",
      `${file}: is not the key of the certificate`,
      "put the two that belong together there",
    );
  return secrecy("key", file, "matches the certificate");
}

function password(file: string): Check {
  const remedy = "put the broker's password there";
  try {
    if (readFileSync(file, "utf8").trim() === "") return fail("password", `${file}: is empty`, remedy);
  } catch (cause) {
    return fail("password", `${file}: ${reason(cause)}`, remedy);
  }
  return secrecy("password", file, "is readable");
}

function secrecy(name: string, file: string, what: string): Check {
  const mode = statSync(file).mode & 0o777;
  if (mode & 0o077)
    return warn(
      name,
      `${file}: ${what}, but other users may read it (mode ${mode.toString(8)})`,
      `chmod 600 ${file}`,
    );
  return ok(name, `${file}: ${what}`);
}

/** What the file holds, or in words why not. */
function readPem<T>(file: string, parse: (content: Buffer) => T): T | string {
  let content: Buffer;
  try {
    content = readFileSync(file);
  } catch (cause) {
    return reason(cause);
  }
  try {
    return parse(content);
  } catch {
    return "is not what it should be (PEM expected)";
  }
}
