/** Times of the week at which something may happen: `01:00-05:00`, or `sat,sun 22:00-04:00`; UTC, over midnight too. */

/** A window as it was read: minutes of the day, and the days it begins on, 0 for Sunday. */
export interface Window {
  days: readonly number[];
  from: number;
  to: number;
}

const DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const FORM = /^(?:([a-z]{3}(?:,[a-z]{3})*) )?(\d\d):(\d\d)-(\d\d):(\d\d)$/;
const DAY_MINUTES = 24 * 60;
const WEEK_MINUTES = 7 * DAY_MINUTES;

/** Undefined where it is no window: 05:00-05:00 is none either. */
export function readWindow(text: string): Window | undefined {
  const [, names, ...clock] = FORM.exec(text) ?? [];
  const [fromHour = 99, fromMinute = 99, toHour = 99, toMinute = 99] = clock.map(Number);
  const days =
    names === undefined ? DAYS.map((_, day) => day) : names.split(",").map((name) => DAYS.indexOf(name));
  const [from, to] = [fromHour * 60 + fromMinute, toHour * 60 + toMinute];
  const isSound =
    Math.max(fromMinute, toMinute) < 60 && from < DAY_MINUTES && to <= DAY_MINUTES && from !== to;
  return isSound && !days.includes(-1) ? { days, from, to } : undefined;
}

/** Seconds until it opens; 0 while it is open. `unixSeconds` is now. */
export function opensIn({ days, from, to }: Window, unixSeconds: number): number {
  const at = new Date(unixSeconds * 1000);
  const second =
    (at.getUTCDay() * DAY_MINUTES + at.getUTCHours() * 60 + at.getUTCMinutes()) * 60 + at.getUTCSeconds();
  const length = ((to - from + DAY_MINUTES) % DAY_MINUTES || DAY_MINUTES) * 60;
  const waits = days.map((day) => {
    const sinceBegin = (second - (day * DAY_MINUTES + from) * 60 + WEEK_MINUTES * 60) % (WEEK_MINUTES * 60);
    return sinceBegin < length ? 0 : WEEK_MINUTES * 60 - sinceBegin;
  });
  return Math.min(...waits);
}
