/** What the demo shows, made of nothing but the messages on its broker: a consumer like any other. */
import { ROOT } from "../messages.ts";
import { lasting, table } from "../terminal.ts";

/** One line of the table. */
interface Row {
  node: string;
  outlet: string;
  status: string;
  supply: string;
  host: string;
  celsius?: number;
  watts?: number;
  /** Uptime as last told, and when that was, milliseconds. */
  uptime?: { seconds: number; at: number };
  last: string;
}

/** The site as its consumers see it. */
export class Screen {
  readonly #site: string;
  readonly #rows: Map<string, Row>;
  readonly #byOutlet: Map<string, Row>;
  readonly #say: (line: string) => void;

  /** `say` gets one line per event, for a terminal that cannot redraw. */
  constructor(site: string, nodes: readonly { node: string; outlet: string }[], say: (line: string) => void) {
    this.#site = site;
    this.#say = say;
    const rows = nodes.map(
      ({ node, outlet }): Row => ({ node, outlet, status: "-", supply: "-", host: "-", last: "" }),
    );
    this.#rows = new Map(rows.map((row) => [row.node, row]));
    this.#byOutlet = new Map(rows.map((row) => [row.outlet, row]));
  }

  heard(topic: string, bytes: Uint8Array): void {
    const prefix = `${ROOT}/${this.#site}/`;
    if (!topic.startsWith(prefix) || bytes.length === 0) return;
    const [node = "", kind = "", ...rest] = topic.slice(prefix.length).split("/");
    const row = this.#rows.get(node);
    if (!row) return;
    const text = new TextDecoder().decode(bytes);
    if (kind === "status") {
      this.#status(row, text);
      return;
    }
    const payload = read(text);
    const path = `${kind}/${rest.join("/")}`;
    if (path === "tele/thermal/main") row.celsius = Number(payload.temp_celsius);
    else if (path === "tele/system/main")
      row.uptime = { seconds: Number(payload.uptime_seconds), at: Date.now() };
    else if (path.startsWith("state/outlet/")) this.#outlet(rest.at(-1) ?? "", payload);
    else if (path.startsWith("tele/power/")) this.#watts(rest.at(-1) ?? "", payload);
    else if (kind === "event") this.#event(row, rest.join("/"), payload);
  }

  /** The table as it stands, a line per node. */
  table(): string {
    const rows = [...this.#rows.values()].map((row) => [
      row.node,
      row.outlet,
      row.status,
      row.supply,
      row.host,
      row.celsius === undefined || row.status !== "online" ? "-" : row.celsius.toFixed(1),
      row.watts === undefined ? "-" : row.watts.toFixed(2),
      row.uptime === undefined || row.status !== "online"
        ? "-"
        : lasting(row.uptime.seconds + (Date.now() - row.uptime.at) / 1000),
      row.last,
    ]);
    return table([
      ["NODE", "OUTLET", "STATUS", "SUPPLY", "HOST", "°C", "WATT", "UPTIME", "LAST EVENT"],
      ...rows,
    ]);
  }

  /** How many nodes say they are there. */
  get online(): number {
    return [...this.#rows.values()].filter((row) => row.status === "online").length;
  }

  #status(row: Row, status: string): void {
    if (row.status === status) return;
    row.status = status;
    delete row.uptime;
    this.#happened(row, status);
  }

  #outlet(outlet: string, payload: Record<string, unknown>): void {
    const row = this.#byOutlet.get(outlet);
    if (!row) return;
    const before = `${row.supply} ${row.host}`;
    row.supply = String(payload.supply);
    row.host = String(payload.host);
    if (typeof payload.watts === "number") row.watts = payload.watts;
    if (`${row.supply} ${row.host}` !== before)
      this.#say(`${clock()} ${row.node} outlet ${outlet}: supply ${row.supply}, host ${row.host}`);
  }

  #watts(outlet: string, payload: Record<string, unknown>): void {
    const row = this.#byOutlet.get(outlet);
    if (row && typeof payload.watts === "number") row.watts = payload.watts;
  }

  #event(row: Row, type: string, payload: Record<string, unknown>): void {
    const about = typeof payload.outlet === "string" ? this.#byOutlet.get(payload.outlet) : undefined;
    const words = [
      type,
      payload.alarm,
      payload.verb,
      payload.code,
      payload.by && `by ${payload.by}`,
      payload.reason && `(${payload.reason})`,
    ];
    this.#happened(about ?? row, words.filter(Boolean).join(" "));
  }

  #happened(row: Row, what: string): void {
    row.last = `${clock()} ${what}`;
    this.#say(`${clock()} ${row.node} ${what}`);
  }
}

/** Anybody on this machine can publish here: what is no JSON object says nothing, and ends nothing. */
function read(text: string): Record<string, unknown> {
  try {
    return Object(JSON.parse(text));
  } catch {
    return {};
  }
}

function clock(): string {
  return new Date().toTimeString().slice(0, 8);
}
