/** An image is handed to everybody: nothing in it may be a secret, and nothing may be the same on two nodes that must differ. */
import { BuildError } from "./tools.ts";
import { bytesOf, type Content, lengthOf, type Tree } from "./tree.ts";

const FROM_BOOT = "a node's own: it comes from the boot partition";
const RANDOMNESS = "randomness that everybody would know";

/** What belongs to one node or to one person, by path, whatever stands in it. */
const PERSONAL: readonly [RegExp, string][] = [
  [/^etc\/ssh\/ssh_host_[^/]*_key$/, "a host key: sshd makes its own at the first boot"],
  [/(^|\/)dropbear_[^/]*_host_key$/, "a host key: dropbear makes its own"],
  [/(^|\/)\.ssh\/id_[^/.]*$/, "somebody's key: keys come from the boot partition"],
  [/(^|\/)authorized_keys2?$/, "who may log in: it comes from the boot partition"],
  [/^(etc|data)\/fruit\/(node|trust)\.json$/, FROM_BOOT],
  [/^(etc|data)\/fruit\/.*\.(key|token|password)$/, FROM_BOOT],
  // What fruit-firstboot takes, left elsewhere. Programs and libraries have names of their own
  [/^(?!usr\/|lib\/)(.*\/)?(enrolment\.token|mqtt\.password|node\.(key|pem))$/, FROM_BOOT],
  [/^var\/lib\/iwd\/[^/]*\.(psk|8021x)$/, "the password of a wireless network"],
  [/^var\/lib\/((systemd|misc)\/)?random-seed$/, RANDOMNESS],
  [/^var\/lib\/seedrng\/seed\.[^/]*$/, RANDOMNESS],
];

/** What is a secret by what stands in it, in some files or in all. */
const CONTENTS: readonly { path: RegExp; why: (text: string) => string | undefined }[] = [
  { path: /^etc\/(shadow|gshadow|passwd|group)([-~]|\.[^/]*)?$/, why: whyPassword },
  { path: /^(etc|var\/lib\/dbus)\/machine-id$/, why: whyMachineId },
  {
    path: /^etc\/(.*\/)?(wpa_supplicant[^/]*\.conf|hostapd[^/]*\.conf|interfaces(\.d\/[^/]*)?)$|^etc\/NetworkManager\/system-connections\//,
    why: (text) => (WIRELESS.test(text) ? "the password of a wireless network" : undefined),
  },
  { path: /^/, why: (text) => (PRIVATE_KEYS.some((key) => key.test(text)) ? "a private key" : undefined) },
  // Libraries come with tests, and these with keys that everybody knows
  { path: /^(?!usr\/|lib\/)/, why: (text) => (QUOTED_KEY.test(text) ? "a private key" : undefined) },
];

/** In a line that is no comment; wpa_supplicant, hostapd, NetworkManager, ifupdown. */
const WIRELESS =
  /^[ \t]*(psk|sae_password|wep_key\d|password|private_key_passwd|wpa_passphrase|wpa_psk|wep-key\d|wpa-psk|wireless-key\d?)[ \t]*[= \t][ \t]*\S/m;

/** PEM and OpenPGP; PuTTY's files; and as dropbear has it, which begins with the length of its kind's name. */
const PRIVATE_KEYS = [
  /^-----BEGIN [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----\r?\n/m,
  /^PuTTY-User-Key-File-\d/,
  // biome-ignore lint/suspicious/noControlCharactersInRegex: the length is binary
  /^\0\0\0[\x07-\x13](ssh-(rsa|dss|ed25519)|ecdsa-sha2-nistp\d+)\0/,
];
/** Indented, or inside a string of JSON or YAML, there with something as long as a key's first line. */
const QUOTED_KEY = /-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----(\\r)?(\\n|\r?\n)[ \t]*[A-Za-z0-9+/=]{16}/;
/** A key file is short; the words alone stand in many a program. */
const MOST_KEY = 64 * 1024;

/** Throws `BuildError` that names every file that has no place in an image. */
export function checkSecrets(tree: Tree): void {
  const found = tree.entries().flatMap(([path, node]) => {
    const why = node.type === "file" ? whySecret(path, node.content) : undefined;
    return why === undefined ? [] : [`${path} (${why})`];
  });
  if (found.length > 0) throw new BuildError(`no secrets in an image; take away: ${found.join("; ")}`);
}

function whySecret(path: string, content: Content): string | undefined {
  if (lengthOf(content) === 0) return undefined;
  const [, why] = PERSONAL.find(([pattern]) => pattern.test(path)) ?? [];
  if (why !== undefined || lengthOf(content) > MOST_KEY) return why;
  const text = Buffer.from(bytesOf(content)).toString("latin1");
  for (const rule of CONTENTS) {
    const found = rule.path.test(path) ? rule.why(text) : undefined;
    if (found !== undefined) return found;
  }
  return undefined;
}

/** Fields by shadow(5): nobody logs in with `*` and `!`; `x` stands elsewhere; a hash that is locked with `!` is a hash all the same. */
function whyPassword(accounts: string): string | undefined {
  const users = accounts.split("\n").flatMap((line) => {
    const [user = "", hash = ""] = line.split(":");
    return /^([!*]*|x)$/.test(hash) ? [] : [user];
  });
  return users.length > 0 ? `a password for ${users.join(", ")}` : undefined;
}

/** machine-id(5): `uninitialized` is what an image may say. */
function whyMachineId(text: string): string | undefined {
  return text.trim() === "uninitialized"
    ? undefined
    : "the id of one machine; an empty one is made out at the first boot";
}
