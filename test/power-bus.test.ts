import { afterEach, beforeEach, expect, jest, test } from "bun:test";
import { Bus } from "../agent/power/bus.ts";
import { HalError, type PowerController } from "../hal/ports.ts";
import { Rack } from "./rack.ts";

beforeEach(() => {
  jest.useFakeTimers();
});
afterEach(() => {
  jest.useRealTimers();
});

const LONG_MS = 10_000;

/** Operations that end when told to, in the order in which they began. */
function hands() {
  const begun: string[] = [];
  const ends = new Map<string, () => void>();
  const operation = (name: string) => (_: PowerController) =>
    new Promise<string>((resolve) => {
      begun.push(name);
      ends.set(name, () => resolve(name));
    });
  return { begun, operation, end: (name: string) => ends.get(name)?.() };
}

async function settle() {
  for (let turns = 0; turns < 20; turns++) await Promise.resolve();
}

test("one operation at a time, lines in turn, an emergency first", async () => {
  const bus = new Bus("bus 0", new Rack(2));
  const { begun, operation, end } = hands();
  const asked = ["a1", "a2", "a3", "b1", "b2", "c1"];
  const all = asked.map((name) => bus.do(name[0] ?? "", "read", operation(name)));
  const urgent = bus.do("c", "switch off", operation("URGENT"), { lane: "emergency" });
  await settle();
  expect(begun).toEqual(["a1"]);
  for (let ended = 0; ended < 7; ended++) {
    end(begun.at(-1) ?? "");
    await settle();
  }
  expect(begun).toEqual(["a1", "URGENT", "a2", "b1", "c1", "a3", "b2"]);
  expect(await Promise.all(all)).toEqual(asked);
  expect(await urgent).toBe("URGENT");
});

test("no more wait than fit, and an emergency still does", async () => {
  const bus = new Bus("bus 0", new Rack(1), 3);
  const { begun, operation, end } = hands();
  const all = ["a1", "a2", "a3", "a4"].map((name) => bus.do("a", "read", operation(name)));
  await settle();
  expect(bus.waiting).toBe(3);
  await expect(bus.do("b", "read", operation("b1"))).rejects.toMatchObject({ code: "busy" });
  const urgent = bus.do("b", "switch off", operation("URGENT"), { lane: "emergency" });
  end("a1");
  await settle();
  expect(begun).toEqual(["a1", "URGENT"]);
  for (const name of ["URGENT", "a2", "a3", "a4"]) {
    end(name);
    await settle();
  }
  await Promise.all([...all, urgent]);
});

test("readings that fill their lane keep nobody from switching, and switching goes first", async () => {
  const bus = new Bus("bus 0", new Rack(1), 2);
  const { begun, operation, end } = hands();
  const reads = ["a1", "a2", "a3"].map((name) => bus.do("a", "read", operation(name)));
  const switches = ["s1", "s2"].map((name) =>
    bus.do("a", "switch on", operation(name), { lane: "switching" }),
  );
  await expect(bus.do("a", "read", operation("a4"))).rejects.toMatchObject({ code: "busy" });
  const third = bus.do("a", "switch on", operation("s3"), { lane: "switching" });
  await expect(third).rejects.toMatchObject({ code: "busy" });
  await settle();
  for (let ended = 0; ended < 5; ended++) {
    end(begun.at(-1) ?? "");
    await settle();
  }
  expect(begun).toEqual(["a1", "s1", "s2", "a2", "a3"]);
  await Promise.all([...reads, ...switches]);
});

test("a driver that throws before it returns a promise does not stop the bus", async () => {
  const bus = new Bus("bus 0", new Rack(1));
  const thrown = bus.do("a", "read", () => {
    throw new HalError("refused", "not on this bus");
  });
  await expect(thrown).rejects.toThrow("not on this bus");
  expect(await bus.do("a", "read", async () => 5)).toBe(5);
});

test("whoever is told to stop waits no longer: what had not begun is left out", async () => {
  const bus = new Bus("bus 0", new Rack(1));
  const { begun, operation, end } = hands();
  const stop = new AbortController();
  const { signal } = stop;
  const both = ["a1", "a2"].map((name) => bus.do("a", "switch on", operation(name), { signal }));
  const other = bus.do("b", "read", operation("b1"));
  await settle();
  stop.abort();
  for (const outcome of await Promise.allSettled(both))
    expect(outcome).toMatchObject({ status: "rejected", reason: { name: "AbortError" } });
  await expect(bus.do("a", "read", operation("a3"), { signal })).rejects.toMatchObject({
    name: "AbortError",
  });
  end("a1");
  await settle();
  expect(begun).toEqual(["a1", "b1"]);
  end("b1");
  expect(await other).toBe("b1");
});

test("an operation that fails is its asker's matter only", async () => {
  const bus = new Bus("bus 0", new Rack(1));
  const failing = bus.do("a", "read", () => Promise.reject(new HalError("timeout", "board 0: silent")));
  const good = bus.do("a", "read", async () => 5);
  await expect(failing).rejects.toThrow("board 0: silent");
  expect(await good).toBe(5);
});

test("an operation that hangs is named, nobody overtakes it on the wire, and the bus recovers when it ends", async () => {
  const bus = new Bus("bus 0 (scripted)", new Rack(1));
  const { begun, operation, end } = hands();
  const hanging = bus.do("0.1", "read", operation("hangs"));
  const waiting = bus.do("0.0", "read", operation("waits"));
  const outcomes = Promise.allSettled([hanging, waiting]);
  await settle();
  jest.advanceTimersByTime(LONG_MS);
  await settle();
  for (const outcome of await outcomes)
    expect(outcome).toMatchObject({
      status: "rejected",
      reason: { code: "timeout", message: 'bus 0 (scripted): "read 0.1" does not end and holds the bus' },
    });
  await expect(bus.do("0.0", "read", operation("later"))).rejects.toMatchObject({ code: "timeout" });
  expect(begun).toEqual(["hangs"]);
  end("hangs");
  await settle();
  const again = bus.do("0.0", "read", operation("again"));
  await settle();
  end("again");
  expect(await again).toBe("again");
});

test("what goes beside does not wait for a reading that holds the bus, and one at a time goes", async () => {
  const bus = new Bus("bus 0", new Rack(1));
  const { begun, operation, end } = hands();
  const poll = bus.do("a", "read", operation("poll"));
  await settle();
  const first = bus.beside("a", "identify", operation("led1"));
  const second = bus.beside("a", "identify", operation("led2"));
  await settle();
  expect(begun).toEqual(["poll", "led1"]);
  end("led1");
  await settle();
  const third = bus.beside("a", "identify", operation("led3"));
  await settle();
  expect(begun).toEqual(["poll", "led1", "led3"]);
  for (const name of ["led3", "poll", "led2"]) {
    end(name);
    await settle();
  }
  expect(await Promise.all([poll, first, second, third])).toEqual(["poll", "led1", "led2", "led3"]);
});

test("nothing goes beside a switch, in front of one, or beside a reading that a guest has held up already", async () => {
  const bus = new Bus("bus 0", new Rack(1));
  const { begun, operation, end } = hands();
  const all = [bus.do("a", "read", operation("poll"))];
  await settle();
  all.push(bus.beside("b", "identify", operation("slow")));
  jest.advanceTimersByTime(300);
  end("slow");
  await settle();
  all.push(bus.beside("a", "identify", operation("late")));
  all.push(bus.do("a", "switch off", operation("URGENT"), { lane: "emergency" }));
  await settle();
  all.push(bus.beside("a", "identify", operation("later")));
  await settle();
  expect(begun).toEqual(["poll", "slow"]);
  end("poll");
  await settle();
  all.push(bus.beside("a", "identify", operation("last")));
  await settle();
  expect(begun).toEqual(["poll", "slow", "URGENT"]);
  for (const name of ["URGENT", "late", "later", "last"]) {
    end(name);
    await settle();
  }
  expect(await Promise.all(all)).toHaveLength(6);
});

test("nothing goes beside a reading once somebody waits to switch", async () => {
  const bus = new Bus("bus 0", new Rack(1));
  const { begun, operation, end } = hands();
  const all = [bus.do("a", "read", operation("poll"))];
  await settle();
  all.push(bus.do("a", "switch on", operation("SWITCH"), { lane: "switching" }));
  all.push(bus.beside("a", "identify", operation("led")));
  await settle();
  expect(begun).toEqual(["poll"]);
  for (const name of ["poll", "SWITCH", "led"]) {
    end(name);
    await settle();
  }
  expect(begun).toEqual(["poll", "SWITCH", "led"]);
  await Promise.all(all);
});

test("what goes beside and does not end is given up", async () => {
  const bus = new Bus("bus 0", new Rack(1));
  const { operation, end } = hands();
  const poll = bus.do("a", "read", operation("poll"));
  await settle();
  const stuck = bus.beside("a", "identify", operation("stuck"));
  stuck.catch(() => undefined);
  poll.catch(() => undefined);
  await settle();
  jest.advanceTimersByTime(LONG_MS);
  await expect(stuck).rejects.toMatchObject({ code: "timeout" });
  end("poll");
});
