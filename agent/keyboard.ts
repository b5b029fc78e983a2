/** Standard input and output of this process as bytes: the real keyboard and screen. */
import { stdin, stdout } from "node:process";
import { isatty } from "node:tty";
import { isBun } from "../hal/native/runtime.ts";
import type { Keyboard } from "./terminal.ts";

/** The keyboard and the screen of whoever started the program. */
export function openKeyboard(): Keyboard {
  return {
    isTerminal: isatty(stdin.fd),
    async *read(signal) {
      const stop = () => stdin.destroy();
      signal.addEventListener("abort", stop, { once: true });
      try {
        if (!signal.aborted) yield* stdin;
      } catch (error) {
        if (!signal.aborted) throw error;
      } finally {
        signal.removeEventListener("abort", stop);
      }
    },
    raw,
    show: (bytes) =>
      new Promise((resolve, reject) => {
        stdout.write(bytes, (error) => (error ? reject(error) : resolve()));
      }),
  };
}

async function raw(): Promise<Disposable> {
  const makeRaw = await rawMaker();
  const restore = makeRaw();
  // Whoever was stopped with SIGSTOP comes back to a terminal that the shell has set for itself
  const again = () => void makeRaw();
  process.on("exit", restore).on("SIGCONT", again);
  return {
    [Symbol.dispose]() {
      restore();
      process.off("exit", restore).off("SIGCONT", again);
    },
  };
}

/** Node has no way of its own to keep the kernel from adding carriage returns; all else is the same. */
async function rawMaker(): Promise<() => () => void> {
  if (isBun) {
    const { makeRaw } = await import("../hal/native/keyboard.ts");
    return () => makeRaw(stdin.fd);
  }
  return () => {
    stdin.setRawMode(true);
    return () => void stdin.setRawMode(false);
  };
}
