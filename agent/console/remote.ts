/** The way to a console through the site's broker. */
import * as v from "valibot";
import type { CommandResult } from "../commands.ts";
import type { SigningKey } from "../sign/keys.ts";
import { SignatureError, verifySshsig } from "../sign/sshsig.ts";
import { CliError, EXIT, exitOf } from "../terminal.ts";
import {
  AgreementError,
  agree,
  CONSOLE_NAMESPACE,
  type Ephemeral,
  ephemeral,
  transcriptOf,
} from "./agreement.ts";
import { SealedChannel, type Way } from "./sealed.ts";

/** Who attaches to what, and how they get there. */
export interface RemoteOpening {
  site: string;
  node: string;
  /** Id of the command, and so of the session. */
  id: string;
  key: SigningKey;
  /** Sends `console.open` with this ephemeral key among its arguments; frames are listened for already. */
  open(ephemeralKey: string): Promise<CommandResult>;
  /** Throws when the node that has this key is not the one that was asked for. */
  check(nodeKey: Uint8Array): void;
  way: Way;
}

const Answer = v.object({ key: v.string(), proof: v.string() });

/** Opens a sealed session. Throws `CliError`: what the node said against it, and unauthorised when it was not the node that answered. */
export async function attachRemotely(opening: RemoteOpening): Promise<SealedChannel> {
  const own = ephemeral();
  const result = await opening.open(own.publicKey);
  const exit = exitOf(result);
  if (exit !== EXIT.done) throw new CliError(exit, result.message ?? `console.open: ${result.state}`);
  const { toNode, toPerson } = conclude(opening, own, result.result);
  return new SealedChannel({
    keys: { send: toNode, receive: toPerson },
    way: opening.way,
    peer: `node ${opening.node}`,
    isPerson: true,
  });
}

/** Makes sure that the answer is the node's own, to this very command. */
function conclude(opening: RemoteOpening, own: Ephemeral, result: unknown) {
  const { site, node, id, key, check } = opening;
  try {
    const answer = v.parse(Answer, result);
    const transcript = transcriptOf({
      site,
      node,
      id,
      signer: key.fingerprint,
      personKey: own.publicKey,
      nodeKey: answer.key,
    });
    check(verifySshsig(answer.proof, CONSOLE_NAMESPACE, transcript).publicKey);
    return agree(own, answer.key, transcript);
  } catch (cause) {
    const isForged =
      cause instanceof SignatureError || cause instanceof AgreementError || cause instanceof v.ValiError;
    if (!isForged) throw cause;
    throw new CliError(
      EXIT.unauthorised,
      `node ${node} did not prove that it opened the session (${cause.message}); somebody may stand between you and it, and nothing was sent`,
      { cause },
    );
  }
}
