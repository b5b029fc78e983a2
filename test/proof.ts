/**
 * `bun run proof`: what takes minutes (test/proof/). First, one at a time, what listens to lines as they are at that moment; then the
 * rest, two at a time.
 */
import { close, filesOf, tests } from "./report.ts";

const LIMIT = "--timeout=600000";
/** See `until` in node.ts. */
const PATIENT = { FRUIT_PATIENCE_MS: "60000" };
const ON_LINES = ["consoles", "gpio", "i2c", "labgrid", "pi", "serial", "usb"];
const isOnLines = (file: string) => ON_LINES.some((name) => file.endsWith(`/${name}.proof.ts`));

const all = filesOf("test/proof/*.proof.ts");
close([
  await tests(all.filter(isOnLines), [LIMIT], PATIENT),
  await tests(
    all.filter((file) => !isOnLines(file)),
    [LIMIT, "--parallel=2"],
    PATIENT,
  ),
]);
