/**
 * The one place where the runtime decides: under Bun the native halves of i2c-bus, epoll and node-serialport are ours
 * (Bun has no libuv to run theirs), under Node each package uses its own.
 */

/** Bun runs this, not Node. */
export const isBun = process.versions.bun !== undefined;
