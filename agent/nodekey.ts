/**
 * The node's own long-lived key, by which people far away know that it is this node they talk to: Ed25519, in OpenSSH's
 * format, made where there is none and never replaced. Its public half stands beside it and as fingerprint in `info`.
 */
import {
  closeSync,
  fsyncSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { parseArgs } from "node:util";
import { signEd25519 } from "../boot/ed25519.ts";
import { CONFIG_PATH, readConfig } from "./config.ts";
import { makeKey } from "./sign/keygen.ts";
import { parseKeyFile } from "./sign/keys.ts";
import { armorSshsig, signedData } from "./sign/sshsig.ts";
import { fingerprint, KEY_TYPE, publicKeyBlob } from "./sign/wire.ts";
import { CliError, type CliVerb, EXIT } from "./terminal.ts";

/** A key that proves this node. */
export interface NodeKey {
  fingerprint: string;
  publicKey: Uint8Array;
  /** An armored SSHSIG over these bytes. */
  sign(namespace: string, message: Uint8Array): string;
}

/**
 * Opens the key in the node's data folder, or makes it; `name` is its comment, `lab/pi1`. Throws what the system says,
 * and `CliError` for a file that is no key or that others can read: a key that was lost is a person's decision.
 */
export function openNodeKey(dataDir: string, name: string): NodeKey {
  const file = join(dataDir, "node_key");
  if (statSync(file, { throwIfNoEntry: false }) === undefined) makeNodeKey(file, name);
  const mode = statSync(file).mode & 0o777;
  // OpenSSH's rule for host keys
  if (mode & 0o077)
    throw new CliError(
      EXIT.config,
      `${file}: others can read this private key (mode ${mode.toString(8)}); chmod 600 ${file}`,
    );
  const { publicKey, seed } = parseKeyFile(file, readFileSync(file, "utf8"));
  if (!seed) throw new CliError(EXIT.config, `${file}: no private key that can be used without a passphrase`);
  return {
    fingerprint: fingerprint(publicKey),
    publicKey,
    sign: (namespace, message) => {
      const signature = signEd25519(seed, signedData(namespace, "sha512", message));
      return armorSshsig({ publicKey, namespace, hash: "sha512", signature });
    },
  };
}

/** After a power cut there is the whole key or none; the public half first, so that it is never missed. */
function makeNodeKey(file: string, name: string): void {
  const { privateFile, publicLine } = makeKey(name);
  place(`${file}.pub`, `${publicLine}\n`, 0o644);
  place(file, privateFile, 0o600);
}

function place(file: string, text: string, mode: number): void {
  const temporary = `${file}.new`;
  // Left by a power cut, it may be anybody's to read
  rmSync(temporary, { force: true });
  const fd = openSync(temporary, "wx", mode);
  try {
    writeSync(fd, text);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
  renameSync(temporary, file);
  const folder = openSync(dirname(file), "r");
  try {
    fsyncSync(folder);
  } finally {
    closeSync(folder);
  }
}

/** What a person compares with, on the node itself. */
export const NODE_KEY_VERBS: readonly CliVerb[] = [
  {
    words: "console key",
    synopsis: "[--config FILE]",
    summary: "prints the key that this node proves itself with in console sessions over MQTT",
    needsAgent: false,
    run: async ({ args, io, json }) => {
      const { values } = parseArgs({ args, options: { config: { type: "string" } } });
      const { data_dir } = readConfig(values.config ?? io.env.FRUIT_CONFIG ?? CONFIG_PATH);
      const file = join(data_dir, "node_key");
      if (statSync(file, { throwIfNoEntry: false }) === undefined)
        throw new CliError(
          EXIT.failed,
          `${file}: not there yet; the agent makes it where consoles and a broker are configured`,
        );
      const { publicKey } = parseKeyFile(file, readFileSync(file, "utf8"));
      const line = `${KEY_TYPE} ${publicKeyBlob(publicKey).toString("base64")}`;
      const print = fingerprint(publicKey);
      if (json)
        io.out(`${JSON.stringify({ schema: "fruit.console.key/1", fingerprint: print, key: line })}\n`);
      else io.out(`${print}\n${line}\n`);
      return EXIT.done;
    },
  },
];
