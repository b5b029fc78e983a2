/** Who is near: on one of this node's own networks, where bytes cost nothing. */
import { BlockList, isIPv4 } from "node:net";
import { type NetworkInterfaceInfo, networkInterfaces } from "node:os";

/** How long the networks that were found count: a cable may be plugged in. */
const FRESH_MS = 60_000;

/** Says of an address whether it is near. */
export function nearness(): (ip: string) => boolean {
  let networks = new BlockList();
  let foundAt = Number.NEGATIVE_INFINITY;
  return (ip) => {
    if (performance.now() - foundAt > FRESH_MS) {
      networks = networksOf(Object.values(networkInterfaces()).flatMap((one) => one ?? []));
      foundAt = performance.now();
    }
    return networks.check(ip.split("%")[0] ?? "", isIPv4(ip) ? "ipv4" : "ipv6");
  };
}

/** The networks these addresses are on. */
export function networksOf(addresses: readonly Pick<NetworkInterfaceInfo, "cidr">[]): BlockList {
  const networks = new BlockList();
  for (const { cidr } of addresses) {
    const [ip = "", prefix] = cidr?.split("/") ?? [];
    // A default route or a typing error is no network
    if (Number(prefix) >= 8) networks.addSubnet(ip, Number(prefix), isIPv4(ip) ? "ipv4" : "ipv6");
  }
  return networks;
}
