import { randomBytes } from "node:crypto";
import { publicKeyOf } from "../../boot/ed25519.ts";
import { KEY_TYPE, publicKeyBlob, wireString } from "./wire.ts";

/** Makes an Ed25519 key as `ssh-keygen -t ed25519 -N ''` would: a private key file (OpenSSH's PROTOCOL.key) and its public line. */
export function makeKey(comment: string): { privateFile: string; publicLine: string } {
  const seed = randomBytes(32);
  const publicKey = publicKeyOf(seed);
  const blob = publicKeyBlob(publicKey);
  const check = randomBytes(4);
  const secret = Buffer.concat([
    check,
    check,
    wireString(KEY_TYPE),
    wireString(publicKey),
    wireString(Buffer.concat([seed, publicKey])),
    wireString(comment),
  ]);
  // Padded with 1, 2, 3 … to the block size of no cipher, 8
  const padding = Buffer.from(Array.from({ length: (8 - (secret.length % 8)) % 8 }, (_, i) => i + 1));
  const body = Buffer.concat([
    Buffer.from("openssh-key-v1\0"),
    wireString("none"),
    wireString("none"),
    wireString(""),
    Buffer.from([0, 0, 0, 1]),
    wireString(blob),
    wireString(Buffer.concat([secret, padding])),
  ]);
  const lines = body.toString("base64").replace(/.{70}/g, "$&\n").trimEnd();
  return {
    privateFile: `-----BEGIN OPENSSH PRIVATE KEY-----\n${lines}\n-----END OPENSSH PRIVATE KEY-----\n`,
    publicLine: `${KEY_TYPE} ${blob.toString("base64")} ${comment}`,
  };
}
