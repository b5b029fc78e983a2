/**
 * `bun run proof`: what takes minutes (test/proof/). First, one at a time, what listens to lines as they are at that moment; then the
 * rest on two cores, the longest first.
 */
import { close, filesOf, tests } from "./report.ts";

const LIMIT = "--timeout=600000";
const isOf = (names: readonly string[]) => (file: string) =>
  names.some((name) => file.endsWith(`/${name}.proof.ts`));
const isOnLines = isOf(["consoles", "gpio", "i2c", "labgrid", "pi", "serial", "usb"]);
const isLong = isOf(["fruitos", "fruitos-cuts", "fruitos-rescue"]);

const all = filesOf("test/proof/*.proof.ts");
const others = all.filter((file) => !isOnLines(file));
close([
  await tests(all.filter(isOnLines), [LIMIT]),
  await tests([...others.filter(isLong), ...others.filter((file) => !isLong(file))], [LIMIT, "--parallel=2"]),
]);
