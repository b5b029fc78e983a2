/** What a bench found: a table with ratios, and what one has to know to read it. */
export interface Table {
  title: string;
  head: readonly string[];
  rows: readonly (readonly string[])[];
  notes: readonly string[];
}

/** The table as Markdown whose columns also line up on a terminal. */
export function render({ title, head, rows, notes }: Table): string {
  const widths = head.map((word, at) => Math.max(3, word.length, ...rows.map((row) => row[at]?.length ?? 0)));
  const line = (cells: readonly string[]) =>
    `| ${widths.map((width, at) => (at === 0 ? (cells[at] ?? "").padEnd(width) : (cells[at] ?? "").padStart(width))).join(" | ")} |`;
  const rule = `|${widths.map((width, at) => (at === 0 ? "-".repeat(width + 2) : `${"-".repeat(width + 1)}:`)).join("|")}|`;
  return [
    `## ${title}`,
    "",
    line(head),
    rule,
    ...rows.map(line),
    "",
    ...notes.map((note) => `- ${note}`),
    "",
  ].join("\n");
}

/** The value below which a share of all lies; `share` 0.5 is the median. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] ?? Number.NaN;
}

/** A number with so many digits after the point; a dash where there is none. */
export function digits(value: number | undefined, places: number): string {
  return value === undefined || !Number.isFinite(value) ? "–" : value.toFixed(places);
}

/** How many times as much ours is as theirs. */
export function ratio(ours: number, theirs: number): string {
  return theirs > 0 ? `${digits(ours / theirs, ours / theirs < 10 ? 2 : 0)} ×` : "–";
}

/** Whether a measured value keeps to its target, in words for a note. */
export function verdict(what: string, value: number, most: number, unit: string): string {
  return `${what}: ${digits(value, 1)} ${unit}, target ≤ ${most} ${unit}: ${value <= most ? "kept" : "MISSED"}`;
}
