/**
 * What Home Assistant (and openHAB, Domoticz) needs to know to show a node: one device for the node, one for each of its
 * outlets, pointing at the topics that are published anyway.
 *
 * Facts: Home Assistant, "MQTT" integration, device-based discovery: a document has `dev`, `o` and `cmps`; a component
 * has `p` and `unique_id`; one that is sent with `p` alone is removed; an empty document removes the device.
 */
import { HOSTS, ROOT } from "../messages.ts";
import { type Group, METRICS } from "../telemetry/metrics.ts";
import { diagnostic, VIEWS, type View } from "./views.ts";

/** What there is to show. */
export interface Facts {
  /** `homeassistant` unless the configuration says otherwise. */
  prefix: string;
  site: string;
  node: string;
  name?: string;
  model?: string;
  serial?: string;
  version: string;
  /** `cpu/main`, `power/3.1` → the keys that are really published there; with slots `state/boot` too. */
  telemetry: ReadonlyMap<string, ReadonlySet<string>>;
  /** Seconds between two messages of a group: an entity is unavailable after three of them. */
  intervalSeconds(group: string): number;
  outlets: readonly { id: string; name?: string; isSwitchable: boolean }[];
  /** Ids of alarms this node has raised or may raise. */
  alarms: Iterable<string>;
}

/** One thing on a dashboard; keys as Home Assistant spells them. */
export interface Component {
  /** Platform. */
  p: "sensor" | "binary_sensor" | "switch" | "button" | "update";
  unique_id: string;
  name: string;
  [option: string]: unknown;
}

/** One discovery document; published retained as JSON. */
export interface Device {
  dev: Record<string, unknown>;
  o: { name: string; sw_version: string };
  cmps: Record<string, Component>;
  availability: Record<string, string>[];
  availability_mode: "all";
  qos: 1;
}

/** What a node with slots publishes among the rest. */
export const SLOTS = "state/boot";

/** The discovery documents of a node by topic: the node itself, and one for each outlet. */
export function discovery(facts: Facts): Map<string, Device> {
  const base = `${ROOT}/${facts.site}/${facts.node}`;
  const outlets = new Set(facts.outlets.map(({ id }) => id));
  const isOutlet = (instance: string) => instance.startsWith("power/") && outlets.has(instance.slice(6));
  const own = [...facts.telemetry.keys()].filter((instance) => !isOutlet(instance));
  const identity = idOf(facts.site, facts.node);
  const documents = new Map<string, Device>();
  documents.set(topicOf(facts, "node"), {
    ...frame(facts, [], {
      identifiers: [identity],
      name: facts.name ?? facts.node,
      manufacturer: "FRUIT",
      ...(facts.model ? { model: facts.model } : {}),
      ...(facts.serial ? { serial_number: facts.serial } : {}),
      sw_version: facts.version,
    }),
    cmps: byId([
      ...own.flatMap((instance) => sensors(facts, instance)),
      ...[...facts.alarms].sort().map((id) => alarm(facts, id)),
      ...(facts.telemetry.has(SLOTS) ? slots(base, identity) : []),
      {
        p: "button",
        unique_id: idOf(identity, "identify"),
        name: "Identify",
        device_class: "identify",
        command_topic: `${base}/set/identify/main`,
        ...diagnostic,
      },
    ]),
  });
  for (const outlet of facts.outlets) {
    const state = `${base}/state/outlet/${outlet.id}`;
    const readable = {
      topic: state,
      value_template: "{{ 'offline' if value_json.supply == 'unknown' else 'online' }}",
    };
    documents.set(topicOf(facts, `outlet-${outlet.id.replace(".", "-")}`), {
      ...frame(facts, [readable], {
        identifiers: [idOf(identity, outlet.id)],
        name: outlet.name ?? `Outlet ${outlet.id}`,
        manufacturer: "FRUIT",
        via_device: identity,
      }),
      cmps: byId([
        supply(facts, outlet, state),
        {
          p: "sensor",
          unique_id: idOf(identity, outlet.id, "host"),
          name: "Host",
          state_topic: state,
          value_template: "{{ value_json.host }}",
          device_class: "enum",
          options: [...HOSTS],
        },
        ...sensors(facts, `power/${outlet.id}`),
      ]),
    });
  }
  return documents;
}

/** Two levels, `<node>/<object>`, so that an ACL pattern `…/device/%u/#` fits. */
function topicOf({ prefix, node }: Facts, object: string): string {
  return `${prefix}/device/${node}/${object}/config`;
}

function frame(
  { site, node, version }: Facts,
  availability: Record<string, string>[],
  dev: Record<string, unknown>,
): Omit<Device, "cmps"> {
  return {
    dev,
    o: { name: "fruit", sw_version: version },
    availability: [{ topic: `${ROOT}/${site}/${node}/status` }, ...availability],
    availability_mode: "all",
    qos: 1,
  };
}

function supply(
  { site, node }: Facts,
  { id, isSwitchable }: Facts["outlets"][number],
  state: string,
): Component {
  const common = {
    // Another id for another platform: the one that no longer applies is then removed as any other that vanished.
    unique_id: idOf(site, node, id, isSwitchable ? "switch" : "supply"),
    name: "Supply",
    state_topic: state,
    value_template: "{{ value_json.supply }}",
  };
  if (!isSwitchable)
    return { ...common, p: "binary_sensor", device_class: "power", payload_on: "on", payload_off: "off" };
  return {
    ...common,
    p: "switch",
    device_class: "outlet",
    state_on: "on",
    state_off: "off",
    command_topic: `${ROOT}/${site}/${node}/set/outlet/${id}`,
    payload_on: "ON",
    payload_off: "OFF",
    optimistic: false,
    retain: false,
  };
}

function alarm({ site, node }: Facts, id: string): Component {
  return {
    p: "binary_sensor",
    unique_id: idOf(site, node, "alarm", id),
    name: `Alarm ${id}`,
    device_class: "problem",
    ...diagnostic,
    state_topic: `${ROOT}/${site}/${node}/alarm/${id}`,
    // Empty when cleared, and an empty result would be ignored.
    value_template: "{{ 'ON' if value else 'OFF' }}",
  };
}

/** The release that runs, the one that comes, and whether it is being tried. */
function slots(base: string, identity: string): Component[] {
  const boot = { state_topic: `${base}/state/boot/main`, ...diagnostic };
  const share = "(100 * value_json.bytes_done / value_json.bytes_total) | round(0)";
  return [
    {
      p: "update",
      unique_id: idOf(identity, "release"),
      name: "Release",
      state_topic: `${base}/state/update/main`,
      // Home Assistant refuses keys that it does not know.
      value_template: `{{ {'installed_version': value_json.installed_version | default(''), 'latest_version': value_json.latest_version | default(''), 'in_progress': value_json.phase != 'idle', 'update_percentage': ${share} if value_json.bytes_total | default(0) > 0 else none} | tojson }}`,
      ...diagnostic,
    },
    {
      p: "binary_sensor",
      unique_id: idOf(identity, "trial"),
      name: "On trial",
      value_template: "{{ 'ON' if value_json.trial else 'OFF' }}",
      ...boot,
    },
    {
      p: "sensor",
      unique_id: idOf(identity, "slot"),
      name: "Slot",
      value_template: "{{ value_json.active }}",
      ...boot,
    },
  ];
}

function sensors(facts: Facts, instance: string): Component[] {
  const [group = "", name = ""] = instance.split("/");
  const views: Record<string, View> = VIEWS[group as Group] ?? {};
  const keys = facts.telemetry.get(instance) ?? new Set<string>();
  const isShared =
    METRICS[group as Group]?.instance === "main" || facts.outlets.some(({ id }) => id === name);
  return Object.entries(views)
    .filter(([key, { needs = [] }]) => [key, ...needs].every((needed) => keys.has(needed)))
    .map(([key, view]) => {
      const { p = "sensor", value = `value_json.${key}` } = view;
      const shown = p === "sensor" ? value : `'ON' if ${value} else 'OFF'`;
      return {
        p,
        unique_id: idOf(facts.site, facts.node, group, name, key),
        name: isShared ? view.name : `${name} ${view.name}`,
        state_topic: `${ROOT}/${facts.site}/${facts.node}/tele/${instance}`,
        // A missing key is a source that could not be read: no value, until `expire_after` says unavailable.
        value_template: `{% if value_json.${key} is defined %}{{ ${shown} }}{% endif %}`,
        expire_after: Math.ceil(facts.intervalSeconds(group) * 3),
        ...view.options,
      };
    });
}

function byId(components: Component[]): Record<string, Component> {
  return Object.fromEntries(components.map((component) => [component.unique_id, component]));
}

function idOf(...parts: string[]): string {
  return ["fruit", ...parts.map((part) => part.replace(/^fruit_/, "").replace(/[^A-Za-z0-9-]/g, "_"))].join(
    "_",
  );
}
