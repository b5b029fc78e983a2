/**
 * One simulated Pi on its outlet: supply, life and current, as plain data that time is a parameter of.
 * Times are milliseconds of the stack's clock.
 */
import type { SETTINGS } from "../pistack.ts";

/** What the Pi's own software is doing. */
export type HostState = "off" | "starting" | "running" | "stopping" | "halted";

/** Every `HostState`, to judge what is read back from a file. */
export const HOST_STATES: readonly string[] = ["off", "starting", "running", "stopping", "halted"];

/** What a board keeps per Pi; times in seconds, one byte each. */
export type Settings = Record<keyof typeof SETTINGS, number>;

/** Settings of a board that nobody has changed. Ours: the real defaults and units are not published. */
export const DEFAULTS: Readonly<Settings> = {
  heartbeatTime: 12,
  heartbeatDelay: 60,
  offDelay: 20,
  signalOffDelay: 10,
  onAtStart: 1,
  signalWidth: 2,
};

/** One Pi, as the stack keeps it and writes it to its state file. */
export interface PiState {
  supply: boolean;
  supplyAt: number;
  host: HostState;
  hostAt: number;
  /** Heartbeats were sent from then until then; null: not since power on, and still being sent. */
  beatsFrom: number | null;
  beatsTo: number | null;
  /** When a timer of the board will cut the supply. */
  cutAt: number | null;
  /** False: this power on leads nowhere (fault `wont-boot`). */
  boots: boolean;
  /** Settings in use, and in the board's EEPROM. */
  live: Settings;
  stored: Settings;
}

/** How long a Pi without an attached host takes to boot and to shut down. */
export const BOOT_MS = 8_000;
export const HALT_MS = 3_000;
/** A Pi's heartbeat (`stackdaemon.py`: every 5 s). */
export const BEAT_MS = 5_000;

/** Peak above the boot current when supply is applied, and how fast it decays: 5 % is left after 150 ms. */
const INRUSH_AMPERES = 1.3;
const INRUSH_DECAY_MS = 50;

/** Amperes at 5 V of a Pi 3 by what it does; running lies between idle and busy. */
const AMPERES = { dark: 0.2, starting: 0.55, idle: 0.35, busy: 0.95, stopping: 0.45, halted: 0.07 };

/** A Pi without supply. */
export function newPi(): PiState {
  return {
    supply: false,
    supplyAt: 0,
    host: "off",
    hostAt: 0,
    beatsFrom: null,
    beatsTo: null,
    cutAt: null,
    boots: true,
    live: { ...DEFAULTS },
    stored: { ...DEFAULTS },
  };
}

/** Applies the supply: the Pi starts, unless it is one that does not. */
export function applySupply(pi: PiState, at: number, boots: boolean): void {
  pi.supply = true;
  pi.supplyAt = at;
  pi.boots = boots;
  setHost(pi, "starting", at);
}

/** Cuts the supply: the Pi forgets everything but its board's settings. */
export function cutSupply(pi: PiState, at: number): void {
  pi.supply = false;
  pi.supplyAt = at;
  pi.cutAt = null;
  setHost(pi, "off", at);
  pi.beatsFrom = null; // a board whose Pi lost supply waits for a first heartbeat again: an assumption
}

/** The Pi's software goes from one state to the next; it beats while it runs. */
export function setHost(pi: PiState, host: HostState, at: number): void {
  if (host === "running" && pi.host !== "running") {
    pi.beatsFrom = at;
    pi.beatsTo = null;
  } else if (host !== "running" && pi.host === "running") {
    pi.beatsTo = at;
  }
  pi.host = host;
  pi.hostAt = at;
}

/** What the built-in host has become by `at`. */
export function advance(pi: PiState, at: number): void {
  if (pi.host === "starting" && pi.boots && at >= pi.hostAt + BOOT_MS)
    setHost(pi, "running", pi.hostAt + BOOT_MS);
  if (pi.host === "stopping" && at >= pi.hostAt + HALT_MS) setHost(pi, "halted", pi.hostAt + HALT_MS);
}

/** Whether the board saw a heartbeat within its heartbeat time. */
export function isHealthy(pi: PiState, at: number): boolean {
  if (pi.beatsFrom === null) return false;
  const until = pi.beatsTo ?? at;
  const last = pi.beatsFrom + Math.floor((until - pi.beatsFrom) / BEAT_MS) * BEAT_MS;
  return at - last <= pi.live.heartbeatTime * 1000;
}

/** What the Pi draws, in amperes at 5 V; `load` is 0 to 1. */
export function amperes(pi: PiState, at: number, load: number): number {
  if (!pi.supply) return 0;
  return steady(pi, load) + INRUSH_AMPERES * Math.exp((pi.supplyAt - at) / INRUSH_DECAY_MS);
}

function steady(pi: PiState, load: number): number {
  if (!pi.boots) return AMPERES.dark;
  switch (pi.host) {
    case "off":
      return 0;
    case "running":
      return AMPERES.idle + (AMPERES.busy - AMPERES.idle) * load;
    default:
      return AMPERES[pi.host];
  }
}
