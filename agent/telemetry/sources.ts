/**
 * Where each group's numbers come from: one function per group, from the kernel's files to values in base units.
 *
 * Invariants
 * - A source that is missing, torn or nonsense leaves its key out; nothing here throws.
 * - What `Machine.read` returns is parsed before the next `read`, which may overwrite it.
 * - No process is started, no file is opened here.
 *
 * Facts: kernel Documentation/filesystems/proc.rst, admin-guide/iostats.rst, accounting/psi.rst, hwmon/sysfs-interface.rst.
 */
import { Cursor, numberOf, pick, textOf } from "./cursor.ts";
import { disk, fs, net, wifi } from "./devices.ts";
import { type Found, ratio, type Surroundings, times } from "./found.ts";
import type { Group } from "./metrics.ts";

/** Every group's source. Add a metric: its row in `metrics.ts` and its value here. */
export const SOURCES: { [G in Group]: (of: Surroundings) => Found<G>[] } = {
  system: (of) => main<"system">(system(of)),
  cpu: (of) => main<"cpu">(cpu(of)),
  memory: (of) => main<"memory">(memory(of)),
  thermal: (of) => main<"thermal">(thermal(of)),
  firmware: (of) => main<"firmware">(firmware(of)),
  disk,
  fs,
  net,
  wifi,
  fan: (of) => main<"fan">(fan(of)),
  // The boards' readings are agent/power's, the lines' numbers agent/console's: they publish them themselves.
  power: () => [],
  console: () => [],
  agent: (of) => main<"agent">(agent(of)),
};

const KIBI = 1024;
/** USER_HZ, the unit of /proc/<pid>/stat: 100 on every architecture we run on. */
const TICKS_PER_SECOND = 100;
const SLASH = 0x2f;

function main<G extends Group>(values: Found<G>["values"]): Found<G>[] {
  return [{ instance: "main", values }];
}

function system({ machine, increase, nowMs }: Surroundings): Found<"system">["values"] {
  const uptime = numberOf(machine.read("/proc/uptime"));
  const load = machine.read("/proc/loadavg");
  const loads = load && new Cursor(load);
  loads?.line();
  const load1 = loads?.number();
  const load5 = loads?.number();
  const load15 = loads?.number();
  loads?.word(SLASH);
  const processes = loads?.number();
  const [bootTime, forks] = pick(machine.read("/proc/stat"), ["btime ", "processes "]);
  const io = pressure(machine.read("/proc/pressure/io"), "io", increase, nowMs);
  const clock = machine.clock();
  return {
    uptime_seconds: uptime,
    boot_time_seconds: clock.synced ? bootTime : undefined,
    load1,
    load5,
    load15,
    processes,
    forks_total: forks,
    io_pressure_some_ratio: io.some,
    io_pressure_full_ratio: io.full,
    clock_synced: clock.synced ? 1 : 0,
    // The kernel's idea of an offset means nothing while nothing disciplines the clock.
    clock_offset_seconds: clock.synced ? clock.offsetSeconds : undefined,
  };
}

function cpu({ machine, increase, nowMs }: Surroundings): Found<"cpu">["values"] {
  const { total, idle, iowait, cores } = coreTimes(machine.read("/proc/stat"));
  const grown = increase("cpu.total", total);
  const rested = increase("cpu.idle", idle);
  const waited = increase("cpu.iowait", iowait);
  // iowait of single cores may go backwards (proc.rst), so the two are followed apart.
  const resting = rested === undefined ? undefined : rested + (waited ?? 0);
  const idleRatio = ratio(resting, grown);
  const kilohertz = numberOf(machine.read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"));
  return {
    usage_ratio: idleRatio === undefined ? undefined : 1 - idleRatio,
    iowait_ratio: ratio(waited, grown),
    frequency_hertz: kilohertz === undefined ? undefined : kilohertz * 1000,
    cores: cores || undefined,
    pressure_some_ratio: pressure(machine.read("/proc/pressure/cpu"), "cpu", increase, nowMs).some,
  };
}

/** The first lines of /proc/stat: user nice system idle iowait irq softirq steal, in ticks, then one line a core. */
function coreTimes(bytes: Uint8Array | undefined) {
  const cursor = new Cursor(bytes ?? new Uint8Array());
  if (!cursor.seek("cpu ")) return { total: undefined, idle: undefined, iowait: undefined, cores: 0 };
  const times = Array.from({ length: 8 }, () => cursor.number());
  const total = times.reduce<number>((sum, time) => sum + (time ?? 0), 0);
  let cores = 0;
  while (cursor.line() && cursor.skip("cpu")) cores++;
  return { total, idle: times[3], iowait: times[4], cores };
}

function memory({ machine, increase, nowMs }: Surroundings): Found<"memory">["values"] {
  const [total, available, swapTotal, swapFree] = pick(machine.read("/proc/meminfo"), [
    "MemTotal:",
    "MemAvailable:",
    "SwapTotal:",
    "SwapFree:",
  ]);
  const [oomKills] = pick(machine.read("/proc/vmstat"), ["oom_kill "]);
  const waits = pressure(machine.read("/proc/pressure/memory"), "memory", increase, nowMs);
  return {
    total_bytes: times(total, KIBI),
    available_bytes: times(available, KIBI),
    swap_total_bytes: times(swapTotal, KIBI),
    swap_used_bytes:
      swapTotal === undefined || swapFree === undefined ? undefined : (swapTotal - swapFree) * KIBI,
    oom_kills_total: oomKills,
    pressure_some_ratio: waits.some,
    pressure_full_ratio: waits.full,
  };
}

/** The zone that is the processor's: `cpu-thermal` on every Pi; else the first there is. */
function thermal({ machine, slow }: Surroundings): Found<"thermal">["values"] {
  const zone = slow("thermal", () => {
    const zones = machine.list("/sys/class/thermal").filter((name) => name.startsWith("thermal_zone"));
    const ofCpu = zones.find((name) =>
      /^(cpu[-_]thermal|x86_pkg_temp)/.test(textOf(machine.read(`/sys/class/thermal/${name}/type`)) ?? ""),
    );
    return ofCpu ?? zones[0];
  });
  if (!zone) return {};
  return { temp_celsius: times(numberOf(machine.read(`/sys/class/thermal/${zone}/temp`)), 1e-3) };
}

/** Bits 0–3 of the throttle word are now, 16–19 since boot (firmware mailbox tag 0x00030046). */
function firmware(of: Surroundings): Found<"firmware">["values"] {
  const { machine } = of;
  const throttled = machine.throttled();
  if (!throttled) {
    const { voltage } = hwmon(of);
    return voltage ? { undervoltage: numberOf(machine.read(`${voltage}/in0_lcrit_alarm`)) } : {};
  }
  const bit = (n: number) => (throttled.word >>> n) & 1;
  // Zero and Compute Module have no detector for it: no key is better than a comforting 0.
  const isBlind = of.slow("firmware", () =>
    /\b(Zero|Compute Module)\b/.test(textOf(machine.read("/proc/device-tree/model")) ?? ""),
  );
  return {
    undervoltage: isBlind ? undefined : bit(0),
    undervoltage_seen: isBlind ? undefined : bit(16),
    freq_capped: bit(1),
    freq_capped_seen: bit(17),
    throttled: bit(2),
    throttled_seen: bit(18),
    soft_temp_limit: bit(3),
    soft_temp_limit_seen: bit(19),
  };
}

function fan(of: Surroundings): Found<"fan">["values"] {
  const { machine } = of;
  const { fan: path } = hwmon(of);
  if (!path) return {};
  return {
    rpm: numberOf(machine.read(`${path}/fan1_input`)),
    pwm_ratio: ratio(numberOf(machine.read(`${path}/pwm1`)), 255),
  };
}

/** The hwmon devices that matter here; their numbers depend on the order in which drivers loaded. */
function hwmon({ machine, slow }: Surroundings): { fan: string | undefined; voltage: string | undefined } {
  return slow("hwmon", () => {
    const paths = machine.list("/sys/class/hwmon").map((name) => `/sys/class/hwmon/${name}`);
    return {
      fan: paths.find((path) => machine.read(`${path}/fan1_input`) ?? machine.read(`${path}/pwm1`)),
      voltage: paths.find((path) => textOf(machine.read(`${path}/name`)) === "rpi_volt"),
    };
  });
}

function agent({ machine, increase, nowMs }: Surroundings): Found<"agent">["values"] {
  const [rss, anonymous] = pick(machine.read("/proc/self/status"), ["VmRSS:", "RssAnon:"]);
  const stat = machine.read("/proc/self/stat");
  // The name in parentheses may hold anything, parentheses too: what counts begins behind the last one.
  const cursor = new Cursor(stat?.subarray(stat.lastIndexOf(0x29) + 1) ?? new Uint8Array());
  cursor.line();
  const user = cursor.pass(11).number();
  const kernel = cursor.number();
  const ticks = user === undefined || kernel === undefined ? undefined : user + kernel;
  const used = times(increase("agent.cpu", ticks), 1 / TICKS_PER_SECOND);
  const passed = increase("agent.ms", nowMs);
  return {
    rss_bytes: times(rss, KIBI),
    rss_anon_bytes: times(anonymous, KIBI),
    cpu_ratio: used === undefined || !passed ? undefined : used / (passed / 1000),
  };
}

/** Pressure stall information: `total=` counts microseconds, so any interval has its exact share. */
function pressure(
  bytes: Uint8Array | undefined,
  resource: string,
  increase: Surroundings["increase"],
  nowMs: number,
): { some: number | undefined; full: number | undefined } {
  const passed = increase(`${resource}.ms`, nowMs);
  const [some, full] = stalls(bytes);
  return {
    some: ratio(increase(`${resource}.some`, some), times(passed, 1000)),
    full: ratio(increase(`${resource}.full`, full), times(passed, 1000)),
  };
}

function stalls(bytes: Uint8Array | undefined): (number | undefined)[] {
  const totals: (number | undefined)[] = [undefined, undefined];
  const cursor = new Cursor(bytes ?? new Uint8Array());
  while (cursor.line()) {
    const row = cursor.skip("some ") ? 0 : cursor.skip("full ") ? 1 : undefined;
    if (row === undefined) continue;
    cursor.pass(3).word(0x3d);
    totals[row] = cursor.number();
  }
  return totals;
}
