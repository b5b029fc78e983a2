/**
 * What i2c-bus and epoll get when they ask the package `bindings` for their native part: under Bun ours, under Node
 * their own, found as the original `bindings` finds it.
 */
const { dirname } = require("node:path");
const { isBun } = require("../runtime.ts");

/** By the name they ask for; loaded when asked for. */
const OURS = {
  "i2c.node": () => require("../i2c.ts").I2C,
  "epoll.node": () => require("../epoll.ts"),
};

/** The original looks for its caller's folder on the stack, where it would find this file. */
const PACKAGES = { "i2c.node": "i2c-bus", "epoll.node": "epoll" };

module.exports = (name) => {
  const ours = OURS[name];
  if (!ours) throw new Error(`bindings: nobody here has a native part called ${name}`);
  if (isBun) return ours();
  const root = dirname(require.resolve(`${PACKAGES[name]}/package.json`));
  return require("bindings-of-node")({ bindings: name, module_root: root });
};
