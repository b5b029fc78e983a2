/** `bun run proof`: what takes minutes (test/proof/). One file at a time, in its order: some time themselves, some share a machine. */
import { close, tests } from "./report.ts";

close([await tests("test/proof/*.proof.ts", ["--timeout=600000"])]);
