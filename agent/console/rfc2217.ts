/** RFC 2217 on a port: telnet around the bytes of a line, and the line's settings in it. */
import { type Client, type Speech, WAITING_MAX } from "./client.ts";
import { ComPort } from "./comport.ts";
import type { Console } from "./port.ts";
import { COM_PORT, Telnet } from "./telnet.ts";

/** A request weighs as much as some bytes, so that many of them wait too. */
const REQUEST_WEIGHT = 64;

/** What is spoken with one client of a console. */
export function rfc2217(client: Client, console: Console): Speech {
  /** While the client wants no bytes; resolves when it does again. */
  let suspended: PromiseWithResolvers<void> | undefined;
  const resume = () => {
    suspended?.resolve();
    suspended = undefined;
  };
  const answer = (bytes: Uint8Array) => {
    // Whoever asks and does not read the answers is not listened to meanwhile.
    if (!client.send(bytes)) client.later(WAITING_MAX + 1, () => client.drained());
  };
  const sendBreak = () => client.try((attachment) => attachment.sendBreak());
  const port = new ComPort(
    {
      settings: () => console.settings,
      lines: () => console.signals,
      isUp: () => console.state.state === "up",
      modemLines: () => console.modemLines(),
      change: (settings) => client.try((attachment) => attachment.change(settings)),
      setLines: async (lines) => {
        await client.try((attachment) => attachment.setLines(lines));
      },
      sendBreak,
      suspend: (isSuspended) => {
        if (isSuspended) suspended ??= Promise.withResolvers();
        else resume();
      },
      send: answer,
    },
    `fruit ${console.name}`,
  );
  const telnet = new Telnet({
    bytes: (bytes) => client.type(bytes),
    send: answer,
    sub: (option, body) => {
      if (option !== COM_PORT) return;
      if (ComPort.isPatient(body)) client.later(REQUEST_WEIGHT, () => port.obey(body));
      else void port.obey(body);
    },
    breakAsked: () => client.later(REQUEST_WEIGHT, sendBreak),
  });
  return {
    begin: () => telnet.open(),
    heard: (chunk) => telnet.receive(chunk),
    take: async (item) => {
      await suspended?.promise;
      if (item.kind === "bytes") {
        if (!client.send(telnet.carried(item.bytes))) await client.drained();
      } else if (item.kind === "view") port.tellState();
      else if (item.mark.kind === "skipped") port.tellSkipped();
    },
    end: () => {
      resume();
      port.end();
    },
  };
}
