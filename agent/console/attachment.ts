import type { LineSettings } from "../../hal/ports.ts";
import { Refusal } from "../commands.ts";
import type { FailureLimit } from "../sign/limit.ts";
import { printable } from "../terminal.ts";
import type { KeptLine } from "./line.ts";
import type { Attachment, Signals } from "./port.ts";
import type { Reader } from "./readers.ts";
import type { WriteRight } from "./writer.ts";

/** What an attachment does things with. */
interface AttachmentMeans {
  line: KeptLine;
  right: WriteRight;
  /** Bytes that the line took. */
  sent: (bytes: number) => void;
  sendBreak: () => Promise<void>;
  /** False when the settings are so already. */
  change: (settings: Partial<LineSettings>) => Promise<boolean>;
  /** False when they are so already. */
  setLines: (signals: Partial<Signals>) => Promise<boolean>;
  audit: (verb: string, facts?: object) => void;
  leave: (why: string) => void;
  /** How many breaks and changes the console takes. */
  controls: FailureLimit;
}

/** A reader's hold on its console: whatever needs the right to write is checked at each call. */
export function attachmentOf(reader: Reader, means: AttachmentMeans): Attachment {
  const { line, right } = means;
  const isWriter = () => right.holder === reader;
  const requireStay = () => {
    if (reader.isGone) throw new Refusal("stopping", "the session is over");
  };
  const requireRight = (typed = 0) => {
    requireStay();
    right.require(reader);
    reader.typed(typed);
  };
  // Each of these is a mark and on record: a program that toggles a line in a loop must not turn those over
  const requireControl = () => {
    requireRight();
    if (!means.controls.take())
      throw new Refusal(
        "busy",
        "too many breaks and changes of settings in a short time; one every few seconds is taken",
      );
  };
  return {
    who: reader.who,
    get mayWrite() {
      return isWriter();
    },
    write: async (bytes) => {
      requireRight(bytes.length);
      await line.open.write(bytes);
      means.sent(bytes.length);
    },
    sendBreak: async () => {
      requireControl();
      await means.sendBreak();
      means.audit("console.break");
    },
    setLines: async (lines) => {
      requireControl();
      if (await means.setLines(lines)) means.audit("console.lines", lines);
    },
    change: async (settings) => {
      requireControl();
      if (await means.change(settings)) means.audit("console.set", settings);
    },
    takeOver: (reason) => {
      requireStay();
      if (reason.trim() === "") throw new Refusal("bad-args", "taking over needs a reason");
      if (isWriter()) return;
      const before = right.takeOver(reader, reason);
      means.audit("console.takeover", { from: before?.who ?? null, reason: printable(reason) });
    },
    release: () => {
      if (isWriter()) right.demote("lets others write");
    },
    replay: (lines) => reader.replay(lines),
    detach: (why = "left") => means.leave(why),
  };
}
