/** An image is handed to everybody: nothing in it may be a secret, and nothing may be the same on two nodes that must differ. */
import { BuildError } from "./tools.ts";
import { bytesOf, type Content, lengthOf, type Tree } from "./tree.ts";

/** What belongs to one node, by path. */
const PERSONAL: readonly [RegExp, string][] = [
  [/^etc\/ssh\/ssh_host_[^/]*_key$/, "a host key: sshd makes its own at the first boot"],
  [/^etc\/machine-id$/, "the id of one machine; an empty one is made out at the first boot"],
  [/(^|\/)\.ssh\/(id_[^/.]*|authorized_keys)$/, "somebody's key: keys come from the boot partition"],
  [/^etc\/fruit\/(node\.json|trust\.json|.*\.key)$/, "a node's own: it comes from the boot partition"],
  [/^var\/lib\/(systemd\/)?random-seed$/, "randomness that everybody would know"],
];

const PRIVATE_KEY = /^-----BEGIN [A-Z ]*PRIVATE KEY-----\r?\n/m;
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
  const users = path === "etc/shadow" ? passwords(text) : [];
  if (users.length > 0) return `a password for ${users.join(", ")}`;
  return PRIVATE_KEY.test(text) ? "a private key" : undefined;
}

function passwords(shadow: string): string[] {
  return shadow.split("\n").flatMap((line) => {
    const [user = "", hash = ""] = line.split(":");
    return /^[!*]*$/.test(hash) || hash.startsWith("!") ? [] : [user];
  });
}
