/** What `fruit doctor --image ROOT` looks at: a root file system that nobody has started yet. No bus, no network, no root rights. */
import { type Dirent, lstatSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { ConfigError, readConfig } from "../config.ts";
import { type Check, fail, ok, reason, warn } from "./check.ts";
import { checkExecutable } from "./executable.ts";
import { inRoot } from "./root.ts";

const CONFIG = "/etc/fruit/node.json";
const SERVICE = "/etc/init.d/fruit";
const RUNLEVELS = "/etc/runlevels";
/** Where secrets are left behind; libraries and programs are not searched. */
const SECRET_FOLDERS = ["etc", "root", "home", "data", "opt", "srv", "boot", "var", "tmp"];
const SECRET_FILE_BYTES = 65_536;
const SECRET_FILES_MOST = 20_000;
const PRIVATE_KEY = /-----BEGIN [A-Z ]*PRIVATE KEY-----/;

/** All checks of an image's root file system. */
export function checkImage(root: string): Check[] {
  if (!statSync(root, { throwIfNoEntry: false })?.isDirectory())
    return [fail("image", `${root} is no folder`, "name the root of an unpacked image")];
  return [...checkExecutable(root), config(root), service(root), ...secrets(root)];
}

function config(root: string): Check {
  const name = "config";
  const path = inRoot(root, CONFIG);
  if (!path) return ok(name, `no ${CONFIG}; the first boot brings it`);
  try {
    const { node } = readConfig(path);
    if (node !== undefined)
      return warn(
        name,
        `${CONFIG} calls every node of this image ${node}`,
        "leave out node; it follows from the serial number",
      );
    return ok(name, `${CONFIG} is valid`);
  } catch (cause) {
    if (!(cause instanceof ConfigError)) throw cause;
    return fail(name, `${CONFIG}: ${cause.problems.join("; ")}`, `mend it (fruit config check ${path})`);
  }
}

function service(root: string): Check {
  const name = "service";
  const path = inRoot(root, SERVICE);
  if (!path) return warn(name, `no ${SERVICE}`, "something else has to start the agent");
  if (!readFileSync(path, "utf8").startsWith("#!/sbin/openrc-run"))
    return fail(name, `${SERVICE} does not begin with #!/sbin/openrc-run`, "mend it");
  if (!(statSync(path).mode & 0o111)) return fail(name, `${SERVICE} is not executable`, "chmod 755 it");
  const levels = entries(inRoot(root, RUNLEVELS)).map((level) => level.name);
  const level = levels.find((one) =>
    entries(inRoot(root, `${RUNLEVELS}/${one}`)).some((entry) => entry.name === "fruit"),
  );
  return level
    ? ok(name, `${SERVICE} starts in runlevel ${level}`)
    : warn(name, `${SERVICE} is in no runlevel`, "rc-update add fruit default");
}

/** A secret in an image is every node's secret: keys and host names are made at first boot. */
function secrets(root: string): Check[] {
  const name = "secrets";
  const checks: Check[] = [];
  let files = 0;
  for (const path of filesUnder(root)) {
    if (++files > SECRET_FILES_MOST) {
      checks.push(
        warn(
          name,
          `more than ${SECRET_FILES_MOST} files; ${path} and what follows was not searched`,
          "search it by hand",
        ),
      );
      break;
    }
    checks.push(...secret(root, path));
  }
  const machineId = inRoot(root, "/etc/machine-id");
  if (machineId && /^[0-9a-f]{32}/.test(readFileSync(machineId, "latin1")))
    checks.push(
      warn(name, "/etc/machine-id is set: all nodes of this image would share it", "empty the file"),
    );
  return checks.length > 0 ? checks : [ok(name, `no private key in ${files} files`)];
}

function secret(root: string, path: string): Check[] {
  const name = "secrets";
  const file = join(root, path);
  try {
    if (statSync(file).size > SECRET_FILE_BYTES) return [];
    return PRIVATE_KEY.test(readFileSync(file, "latin1"))
      ? [
          fail(
            name,
            `${path} is a private key`,
            "remove it from the image; a node makes or enrols its own at first boot",
          ),
        ]
      : [];
  } catch (cause) {
    return [warn(name, `${path} could not be searched: ${reason(cause)}`, "run as a user who may read it")];
  }
}

/** Links are left alone: what they lead to is found under its own name, or is the build host's. */
function* filesUnder(root: string): Generator<string> {
  const folders = SECRET_FOLDERS.map((folder) => `/${folder}`).filter((folder) =>
    lstatSync(join(root, folder), { throwIfNoEntry: false })?.isDirectory(),
  );
  for (let folder = folders.shift(); folder !== undefined; folder = folders.shift()) {
    for (const entry of entries(join(root, folder))) {
      const path = `${folder}/${entry.name}`;
      if (entry.isDirectory()) folders.push(path);
      else if (entry.isFile()) yield path;
    }
  }
}

function entries(folder: string | undefined): Dirent[] {
  try {
    return folder === undefined ? [] : readdirSync(folder, { withFileTypes: true });
  } catch {
    return [];
  }
}
