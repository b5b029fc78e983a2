/** Engines for tests: each remembers what it told, and all end with the test. */
import {
  type Engine,
  type EngineOptions,
  type Member,
  openEngine,
  type SwarmEvent,
} from "../../agent/swarm/engine.ts";
import { until } from "../node.ts";
import { MemoryKeep, type Payload } from "./payload.ts";

/** An engine and what it told. */
export interface Node extends AsyncDisposable {
  engine: Engine;
  told: SwarmEvent[];
  /** Joins, and begins with what it has. */
  share(
    whole: Payload,
    has?: (leaf: number) => boolean,
    isFirstSeed?: boolean,
  ): { member: Member; keep: MemoryKeep };
}

export async function node(options: Partial<EngineOptions> = {}): Promise<Node> {
  const told: SwarmEvent[] = [];
  const stop = new AbortController();
  const engine = await openEngine({
    tell: (event) => void told.push(event),
    signal: stop.signal,
    ...options,
  });
  return {
    engine,
    told,
    share(whole, has, isFirstSeed = false) {
      const keep = new MemoryKeep(whole, has);
      const member = engine.join(whole.infohash, { isFirstSeed });
      member.begin(whole.update, keep);
      return { member, keep };
    },
    [Symbol.asyncDispose]: () => engine[Symbol.asyncDispose](),
  };
}

/** Everything. */
export const ALL = () => true;

/** Waits for the whole payload. */
export const whole = (member: Member) =>
  until("the payload is whole", () => member.status().phase === "whole", 20_000);
