/** Standard input and output of this process as bytes: the real keyboard and screen. */
import { stdin, stdout } from "node:process";
import { isatty } from "node:tty";
import { isBun } from "../hal/native/runtime.ts";
import type { Output } from "./output.ts";
import type { Keyboard } from "./terminal.ts";

/** Whoever is done with a raw terminal waits so long for it to take the last words. */
const FINISH_MS = 500;

/** The keyboard and the screen of whoever started the program; `output` has the way to a terminal. */
export function openKeyboard(output: Output): Keyboard {
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
    raw: () => raw(output),
    show: (bytes) => {
      if (isatty(stdout.fd)) return output.write(stdout.fd, bytes);
      return new Promise((resolve, reject) => {
        stdout.write(bytes, (error) => (error ? reject(error) : resolve()));
      });
    },
  };
}

async function raw(output: Output): Promise<AsyncDisposable> {
  const makeRaw = await rawMaker();
  const restore = makeRaw();
  // Whoever was stopped with SIGSTOP comes back to a terminal that the shell has set for itself
  const again = () => void makeRaw();
  process.on("exit", restore).on("SIGCONT", again);
  output.isUsed = true;
  return {
    async [Symbol.asyncDispose]() {
      // They were made for a raw terminal
      await output.finish(FINISH_MS);
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
