/**
 * What a simulated Pi says on its UART and does with what is typed there: a boot log, a login, a shell of a few commands,
 * SysRq. Text only; when the Pi boots and stops is its owner's business, who is asked by what somebody typed.
 */
import type { HostState } from "./pi.ts";

/** What somebody at the console made the Pi's software want. */
export type Wanted = "reboot" | "poweroff" | "reset";

/** Who the Pi is, and who hears of it. */
interface PiConsoleOptions {
  hostname: string;
  /** The boot log is spread over this, milliseconds. */
  bootMs: number;
  /** Goes out on the UART. */
  say: (bytes: Uint8Array) => void;
  wanted: (what: Wanted) => void;
}

/** Messages of a Pi 4's kernel and of its init; a line that begins with a blank has the kernel's time before it. */
const BOOT_LOG = `
 Booting Linux on physical CPU 0x0000000000 [0x410fd083]
 Linux version 6.12.31-0-rpi (buildozer@build) #1-Alpine SMP PREEMPT
 Machine model: Raspberry Pi 4 Model B Rev 1.4
 Memory: 3884532K/4050944K available
 Kernel command line: console=ttyAMA0,115200 root=/dev/mmcblk0p2 rootwait
 smp: Brought up 1 node, 4 CPUs
 raspberrypi-firmware soc:firmware: Attached to firmware
 fe201000.serial: ttyAMA0 at MMIO 0xfe201000 (irq = 36) is a PL011 rev2
 mmc0: new ultra high speed DDR50 SDHC card at address aaaa
 mmcblk0: mmc0:aaaa SC32G 29.7 GiB
 bcmgenet fd580000.ethernet eth0: Link is Up - 1Gbps/Full
 EXT4-fs (mmcblk0p2): mounted filesystem with ordered data mode
 Run /sbin/init as init process
   OpenRC 0.62.6 is starting up Linux 6.12.31-0-rpi (aarch64)
 * Mounting /proc ... [ ok ]
 * Mounting /run ... [ ok ]
 * Setting hostname ... [ ok ]
 * Starting networking ... [ ok ]
 * Starting sshd ... [ ok ]
 * Starting fruit ... [ ok ]`
  .slice(1)
  .split("\n");

const STOP_LOG = [
  " * Stopping fruit ... [ ok ]",
  " * Stopping sshd ... [ ok ]",
  " * Unmounting filesystems ... [ ok ]",
];
const SYSRQ_MS = 5000;
const LINE_MAX = 1024;
const KEYS = { interrupt: 3, end: 4, backspace: 8, newline: 10, enter: 13, space: 32, delete: 127 };

/** One Pi's UART. */
export class PiConsole {
  readonly #options: PiConsoleOptions;
  #state: HostState = "off";
  #since = Date.now();
  #printing: NodeJS.Timeout | undefined;
  #unprinted: string[] = [];
  /** What stands before the cursor, and what an entered line is taken for. */
  #prompt: "login" | "password" | "shell" = "login";
  #typed = "";
  #sysrqUntil = 0;

  constructor(options: PiConsoleOptions) {
    this.#options = options;
  }

  /** The Pi's software goes to another state, and says so. */
  became(state: HostState): void {
    const before = this.#state;
    this.#state = state;
    if (state === "starting") {
      // The boot loader says nothing; the kernel's time begins after it
      const apartMs = this.#options.bootMs / (BOOT_LOG.length + 1);
      this.#since = Date.now() + apartMs;
      this.#sysrqUntil = 0;
      this.#print(BOOT_LOG, apartMs);
    } else if (state === "running") {
      this.#flush();
      if (before === "starting")
        this.#say("\nWelcome to Alpine Linux 3.22\nKernel 6.12.31-0-rpi on an aarch64 (ttyAMA0)\n\n");
      this.#ask("login");
    } else if (state === "stopping") {
      this.#flush();
      this.#say("\nThe system is going down NOW!\n");
      this.#print(STOP_LOG, 0);
    } else if (state === "halted") {
      this.#flush();
      this.#say(this.#stamped("reboot: System halted"));
    } else {
      clearTimeout(this.#printing);
      this.#unprinted = [];
    }
  }

  /** Bytes came in. */
  typed(bytes: Uint8Array): void {
    for (const byte of bytes) {
      if (this.#state === "off" || this.#state === "halted") return;
      if (Date.now() < this.#sysrqUntil) this.#sysrq(byte);
      else if (this.#state === "running") this.#key(byte);
    }
  }

  /** A break came in: the next key is the kernel's (SysRq on a serial console). */
  broke(): void {
    if (this.#state !== "off" && this.#state !== "halted") this.#sysrqUntil = Date.now() + SYSRQ_MS;
  }

  #sysrq(byte: number): void {
    this.#sysrqUntil = 0;
    const key = String.fromCharCode(byte);
    if (key === "b") {
      this.#say(this.#stamped("sysrq: Resetting"));
      this.#options.wanted("reset");
    } else if (key === "s") this.#say(this.#stamped("sysrq: Emergency Sync"));
    else this.#say(this.#stamped("sysrq: HELP : reboot(b) sync(s)"));
  }

  #key(byte: number): void {
    const isShell = this.#prompt === "shell";
    if (byte === KEYS.enter || byte === KEYS.newline) this.#enter();
    else if (byte === KEYS.interrupt) {
      this.#say("^C\n");
      this.#ask(isShell ? "shell" : "login");
    } else if (byte === KEYS.end && isShell && this.#typed === "") this.#run("exit");
    else if (byte === KEYS.backspace || byte === KEYS.delete) this.#erase();
    else if (byte >= KEYS.space && this.#typed.length < LINE_MAX) {
      this.#typed += String.fromCharCode(byte);
      if (this.#prompt !== "password") this.#options.say(Uint8Array.of(byte));
    }
  }

  #erase(): void {
    if (this.#typed !== "" && this.#prompt !== "password") this.#say("\b \b");
    this.#typed = this.#typed.slice(0, -1);
  }

  #enter(): void {
    const line = this.#typed.trim();
    this.#say("\n");
    if (this.#prompt === "shell") this.#run(line);
    else if (this.#prompt === "login") this.#ask(line ? "password" : "login");
    else {
      this.#say("Welcome to Alpine!\n\n");
      this.#ask("shell");
    }
  }

  #run(line: string): void {
    const [name = "", ...words] = line.split(/\s+/);
    if (name === "reboot" || name === "poweroff") this.#options.wanted(name);
    else if (name === "exit" || name === "logout") this.#ask("login");
    else {
      const answer = Object.hasOwn(ANSWERS, name) ? ANSWERS[name] : undefined;
      if (answer) this.#say(`${answer(words, this.#options.hostname, this.#seconds())}\n`);
      else if (name !== "") this.#say(`-sh: ${name}: not found\n`);
      this.#ask("shell");
    }
  }

  #ask(prompt: "login" | "password" | "shell"): void {
    const { hostname } = this.#options;
    this.#prompt = prompt;
    this.#typed = "";
    this.#say({ login: `${hostname} login: `, password: "Password: ", shell: `${hostname}:~# ` }[prompt]);
  }

  /** Prints lines one after the other, so many milliseconds apart. */
  #print(lines: readonly string[], apartMs: number): void {
    clearTimeout(this.#printing);
    this.#unprinted = [...lines];
    const next = () => {
      const line = this.#unprinted.shift();
      if (line === undefined) return;
      this.#say(this.#line(line));
      this.#printing = setTimeout(next, apartMs).unref();
    };
    this.#printing = setTimeout(next, apartMs).unref();
  }

  #flush(): void {
    clearTimeout(this.#printing);
    for (const line of this.#unprinted.splice(0)) this.#say(this.#line(line));
  }

  #line(line: string): string {
    return /^ [^ *]/.test(line) ? this.#stamped(line.slice(1)) : `${line}\n`;
  }

  #stamped(text: string): string {
    return `[${this.#seconds().toFixed(6).padStart(12)}] ${text}\n`;
  }

  #seconds(): number {
    return Math.max(0, Date.now() - this.#since) / 1000;
  }

  #say(text: string): void {
    this.#options.say(Buffer.from(text.replaceAll("\n", "\r\n")));
  }
}

/** What the shell's commands print. */
const ANSWERS: Record<string, (words: string[], hostname: string, upSeconds: number) => string> = {
  echo: (words) => words.join(" "),
  hostname: (_, hostname) => hostname,
  uname: (words, hostname) =>
    words.includes("-a") ? `Linux ${hostname} 6.12.31-0-rpi #1-Alpine SMP PREEMPT aarch64 Linux` : "Linux",
  uptime: (_, __, seconds) => ` up ${Math.floor(seconds / 60)} min,  load average: 0.08, 0.03, 0.01`,
  help: () => "echo hostname uname uptime reboot poweroff exit",
};
