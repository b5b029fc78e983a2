/** `bun run proof`: what takes minutes (test/proof/). One file at a time: some of them time themselves. */
import { close, tests } from "./report.ts";

close([await tests("test/proof/*.proof.ts", ["--timeout=600000"])]);
