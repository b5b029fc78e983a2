/** One number this node reports: base units, counters end in `_total`, flags are 0 or 1. */
export interface Metric {
  /** One sentence: what it is for, with its unit. */
  help: string;
  type: "gauge" | "counter";
}

/** A set of numbers taken at the same moment and published as one flat message. */
export interface MetricGroup {
  /** `main`, or what the instances are: `<device>`, `<interface>`. */
  instance: string;
  summary: string;
  keys: Record<string, Metric>;
}

const gauge = (help: string) => ({ help, type: "gauge" }) as const;
const counter = (help: string) => ({ help, type: "counter" }) as const;

/** Every number of every group. A metric without a row here cannot be published. */
export const METRICS = {
  system: {
    instance: "main",
    summary: "The machine as a whole",
    keys: {
      uptime_seconds: gauge("Seconds since the kernel started"),
      boot_time_seconds: gauge("When the kernel started, Unix seconds; only with a synchronised clock"),
      load1: gauge("Runnable and waiting tasks, averaged over 1 minute"),
      load5: gauge("Runnable and waiting tasks, averaged over 5 minutes"),
      load15: gauge("Runnable and waiting tasks, averaged over 15 minutes"),
      processes: gauge("Tasks that exist now, threads included"),
      forks_total: counter("Tasks ever started"),
      io_pressure_some_ratio: gauge("Share of the interval in which some task waited for storage"),
      io_pressure_full_ratio: gauge("Share of the interval in which every task waited for storage"),
      clock_synced: gauge("1 while the clock follows a time source"),
      clock_offset_seconds: gauge("What the kernel still has to correct the clock by, seconds"),
    },
  },
  cpu: {
    instance: "main",
    summary: "All cores together",
    keys: {
      usage_ratio: gauge("Share of the interval in which the cores worked, 0 to 1"),
      iowait_ratio: gauge("Share of the interval in which the cores were idle for want of storage, 0 to 1"),
      frequency_hertz: gauge("Clock of the first core now"),
      cores: gauge("Cores that are online"),
      pressure_some_ratio: gauge("Share of the interval in which some task waited for a core"),
    },
  },
  memory: {
    instance: "main",
    summary: "Main memory and swap",
    keys: {
      total_bytes: gauge("Memory that the kernel manages"),
      available_bytes: gauge("Memory that programs can still get without swapping"),
      swap_total_bytes: gauge("Swap space, 0 without any"),
      swap_used_bytes: gauge("Swap space in use"),
      oom_kills_total: counter("Processes the kernel killed for want of memory"),
      pressure_some_ratio: gauge("Share of the interval in which some task waited for memory"),
      pressure_full_ratio: gauge("Share of the interval in which every task waited for memory"),
    },
  },
  thermal: {
    instance: "main",
    summary: "The processor's own sensor",
    keys: { temp_celsius: gauge("Temperature of the processor") },
  },
  firmware: {
    instance: "main",
    summary: "What the firmware does to protect the board; absent where the board cannot tell",
    keys: {
      undervoltage: gauge("1 while the 5 V input is too low"),
      undervoltage_seen: gauge("1 when the 5 V input was too low since boot"),
      freq_capped: gauge("1 while the processor's clock is capped"),
      freq_capped_seen: gauge("1 when the processor's clock was capped since boot"),
      throttled: gauge("1 while the processor is throttled"),
      throttled_seen: gauge("1 when the processor was throttled since boot"),
      soft_temp_limit: gauge("1 while the soft temperature limit is in force"),
      soft_temp_limit_seen: gauge("1 when the soft temperature limit was in force since boot"),
    },
  },
  disk: {
    instance: "<device>",
    summary: "One whole storage device",
    keys: {
      read_bytes_total: counter("Bytes read"),
      written_bytes_total: counter("Bytes written: what wears an SD card"),
      reads_total: counter("Read requests completed"),
      writes_total: counter("Write requests completed"),
      busy_seconds_total: counter("Seconds in which requests were under way"),
      life_used_ratio: gauge(
        "Wear by the eMMC's own estimate, upper end of its 10 % step; above 1 past its life",
      ),
      pre_eol: gauge("The eMMC's spare blocks: 1 normal, 2 most used up, 3 urgent"),
    },
  },
  fs: {
    instance: "<name>",
    summary: "One mounted file system, by its name in the configuration",
    keys: {
      size_bytes: gauge("Size of the file system"),
      avail_bytes: gauge("Space that is left for programs"),
      readonly: gauge("1 while mounted read-only: how a dying SD card shows itself"),
      ext4_errors_total: counter("Errors that ext4 has recorded in the file system itself"),
    },
  },
  net: {
    instance: "<interface>",
    summary: "One network interface with hardware behind it",
    keys: {
      rx_bytes_total: counter("Bytes received"),
      tx_bytes_total: counter("Bytes sent"),
      rx_packets_total: counter("Packets received"),
      tx_packets_total: counter("Packets sent"),
      rx_errors_total: counter("Packets that arrived damaged"),
      tx_errors_total: counter("Packets that could not be sent"),
      rx_dropped_total: counter("Packets that arrived and were dropped"),
      tx_dropped_total: counter("Packets that were dropped instead of sent"),
      carrier: gauge("1 while there is a link"),
      speed_bits: gauge("Negotiated speed of the link, bits per second"),
    },
  },
  wifi: {
    instance: "<interface>",
    summary: "One associated wireless interface",
    keys: {
      signal_dbm: gauge("Strength of the access point's signal, dBm"),
      quality_ratio: gauge("Link quality by the driver's own scale, 0 to 1"),
    },
  },
  fan: {
    instance: "main",
    summary: "The first fan",
    keys: {
      rpm: gauge("Revolutions per minute by its tachometer"),
      pwm_ratio: gauge("Share of full power it is driven with, 0 to 1"),
    },
  },
  power: {
    instance: "<board>.<pi>, or input-<board>",
    summary: "One outlet, or the supply of one board, as the board measures it",
    keys: {
      volts: gauge("Voltage"),
      amperes: gauge("Current"),
      watts: gauge("Power"),
      energy_joules_total: counter("Energy since the agent started, summed from the power readings"),
      rail_volts: gauge("Voltage of the board's own 5 V rail"),
    },
  },
  console: {
    instance: "<console>",
    summary: "One serial line since the agent started",
    keys: {
      up: gauge("1 while the line is open"),
      rx_bytes_total: counter("Bytes that came from the line"),
      tx_bytes_total: counter("Bytes that were written to it"),
      skipped_bytes_total: counter("Bytes that slow readers were not shown, summed over them"),
      readers: gauge("Attached now, the writer among them"),
    },
  },
  agent: {
    instance: "main",
    summary: "What this agent costs and how it fares",
    keys: {
      rss_bytes: gauge("Memory of the agent's process that is resident"),
      rss_anon_bytes: gauge("The part of it that is the agent's own"),
      cpu_ratio: gauge("Processor time it used over the interval, in cores"),
      mqtt_reconnects_total: counter("Connections to the broker after the first"),
      dropped_total: counter("Messages lost because the buffer was full"),
      events_buffered: gauge("Events and alarms that wait for the broker"),
      bus_errors_total: counter("Exchanges on the power buses that failed"),
      serial_errors_total: counter("Times that a console's line went away"),
      sample_seconds: gauge("Time it took to take this set of samples"),
    },
  },
} as const satisfies Record<string, MetricGroup>;
export type Group = keyof typeof METRICS;
export const GROUPS = Object.keys(METRICS) as [Group, ...Group[]];

/** Whether a group is sampled from the machine; the others are published by the services that have the numbers. */
export function isSampled(group: Group): boolean {
  return group !== "power" && group !== "console";
}

/** The names a group has. */
export type Key<G extends Group> = Extract<keyof (typeof METRICS)[G]["keys"], string>;
