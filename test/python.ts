/** Peers written in Python, run by Debian's own interpreter, for which Debian packages the modules. */

const PYTHON = "/usr/bin/python3";

/** A test title with what would have to be installed for a peer to run. */
export function needsModule(
  title: string,
  module: string,
  install: string,
): { title: string; isSkipped: boolean } {
  const isThere =
    Bun.which(PYTHON) !== null &&
    Bun.spawnSync([PYTHON, "-c", `import ${module}`], { stderr: "ignore" }).exitCode === 0;
  return { title: isThere ? title : `${title} [needs: apt-get install ${install}]`, isSkipped: !isThere };
}

/** Runs a peer to its end; what it complained of comes back with its exit code. */
export async function python(
  script: string,
  ...args: string[]
): Promise<{ exit: number; out: string; err: string }> {
  const peer = Bun.spawn([PYTHON, "-c", script, ...args], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, err, exit] = await Promise.all([
    new Response(peer.stdout).text(),
    new Response(peer.stderr).text(),
    peer.exited,
  ]);
  return { exit, out, err };
}
