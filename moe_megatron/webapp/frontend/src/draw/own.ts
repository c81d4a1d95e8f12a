/** A view of one's own as it is kept: a picture and a table of each kind. */
import { EVEN, MISSING } from "../data/frame";
import type { Numbers, OwnShown } from "../data/types";
import { short } from "../format";
import { type Chart, chartSvg } from "./chart";
import { type Palette, amountPalette, cssOf, loadPalette, type Theme } from "./colours";
import { csvOf, svgCells, svgOf, svgText } from "./svg";
import { tableSvg } from "./table";

export type Of<K extends OwnShown["kind"]> = Extract<OwnShown, { kind: K }>;

const LINKS_SHOWN = 40;

export const chartOf = (shown: Of<"lines">): Chart => ({
  title: shown.title,
  steps: shown.x,
  lines: Object.entries(shown.lines).map(([name, values]) => ({ name, values })),
});

export const heaviest = ({ links }: Of<"graph">): { name: string; share: number }[] =>
  [...links]
    .sort((a, b) => (b.weight ?? 0) - (a.weight ?? 0))
    .slice(0, LINKS_SHOWN)
    .map((link) => ({ name: `${link.from} \u2192 ${link.to}`, share: link.weight ?? 0 }));

/** The least and the most; as far from the centre as the farthest is, where there is one. */
function endsOf(values: Numbers[], centre: number | null): [number, number] {
  const known = values.flat().filter((value): value is number => value !== null);
  const [low, high] = known.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
  if (!known.length) return [0, 1];
  if (centre === null) return [low, high > low ? high : low + 1];
  const far = Math.max(high - centre, centre - low) || 1;
  return [centre - far, centre + far];
}

/** Bytes as a palette wants them; with a centre its middle is the centre. */
export function bytesOf(values: Numbers[], centre: number | null): Uint8Array {
  const [low, high] = endsOf(values, centre);
  return Uint8Array.from(values.flat(), (value) => {
    if (value === null) return MISSING;
    const byte = centre === null ? (254 * (value - low)) / (high - low) : EVEN + (252 * (value - centre)) / (high - low);
    return Math.min(254, Math.max(centre === null ? 0 : 1, Math.round(byte)));
  });
}

export const paletteOf = (shown: Of<"matrix">, theme: Theme): Palette => (shown.centre === null ? amountPalette(theme, "over") : loadPalette(theme));

const LONGEST_NAME = 30;

/** What rows or columns are called: what they are given, else their numbers. */
const namesOf = (count: number, given: string[]): string[] => Array.from({ length: count }, (_, i) => (given[i] ?? String(i)).slice(0, LONGEST_NAME));

const longest = (names: string[]): number => names.reduce((most, { length }) => Math.max(most, length), 1);

/** Every n-th place, so that names have room. */
const thinned = (count: number, each: number, room: number): number[] => {
  const by = Math.max(1, Math.ceil(room / each));
  return Array.from({ length: Math.ceil(count / by) }, (_, i) => i * by);
};

function matrixSvg(shown: Of<"matrix">): string {
  const { title, values, rows, columns, centre } = shown;
  const [high, wide] = [values.length, values[0]?.length ?? 0];
  if (!wide) return svgOf(480, 60, svgText(16, 26, `${title}: no values`), title);
  const [names, heads] = [namesOf(high, rows), namesOf(wide, columns)];
  const left = 24 + 6 * longest(names);
  const box = { x: left, y: 44, width: Math.max(360, Math.min(1000, 24 * wide)), height: Math.max(48, Math.min(22 * high, 800)) };
  const [cellWidth, cellHeight] = [box.width / wide, box.height / high];
  const palette = paletteOf(shown, "light");
  let inner = svgText(16, 24, title, 'font-size="14" font-weight="600"') + svgCells(bytesOf(values, centre), wide, palette, box);
  for (const row of thinned(high, cellHeight, 12)) inner += svgText(left - 6, box.y + (row + 0.5) * cellHeight + 4, names[row]!, 'text-anchor="end" font-size="10"');
  const below = box.y + box.height;
  for (const column of thinned(wide, cellWidth, 8 + 6 * longest(heads))) {
    inner += svgText(left + (column + 0.5) * cellWidth, below + 16, heads[column]!, 'text-anchor="middle" font-size="10"');
  }
  for (let i = 0; i < 127; i++) inner += `<rect x="${left + i * 2}" y="${below + 32}" width="2.2" height="8" fill="${cssOf(palette, 1 + 2 * i)}"/>`;
  const [least, most] = endsOf(values, centre);
  inner += svgText(left, below + 54, short(least), 'font-size="10"') + svgText(left + 254, below + 54, short(most), 'text-anchor="end" font-size="10"');
  return svgOf(left + box.width + 24, below + 68, inner, title);
}

function graphSvg(shown: Of<"graph">): string {
  const rows = heaviest(shown);
  const left = 24 + 6.8 * longest(rows.map(({ name }) => name));
  const most = Math.max(...rows.map(({ share }) => share)) || 1;
  let inner = svgText(16, 24, `${shown.title}: ${rows.length} of ${shown.links.length} links, the heaviest first`, 'font-size="14" font-weight="600"');
  rows.forEach(({ name, share }, i) => {
    const y = 40 + 22 * i;
    const width = Math.max(0, (320 * share) / most);
    inner += svgText(left - 8, y + 14, name, 'text-anchor="end"');
    inner += `<rect x="${left}" y="${y + 4}" width="${width.toFixed(1)}" height="12" rx="3" fill="#2d68b8"/>`;
    inner += svgText(left + width + 8, y + 14, short(share));
  });
  return svgOf(Math.ceil(Math.max(left + 400, 2 * 16 + 8.2 * (shown.title.length + 40))), 56 + 22 * rows.length, inner, shown.title);
}

export function ownSvg(shown: OwnShown): string {
  if (shown.kind === "lines") return chartSvg(chartOf(shown));
  if (shown.kind === "table") return tableSvg(shown.title, shown.columns, shown.rows);
  return shown.kind === "matrix" ? matrixSvg(shown) : graphSvg(shown);
}

export function ownCsv(shown: OwnShown): string {
  if (shown.kind === "table") return csvOf(shown.columns, shown.rows);
  if (shown.kind === "graph") return csvOf(["from", "to", "weight"], shown.links.map((link) => [link.from, link.to, link.weight]));
  if (shown.kind === "matrix") {
    const columns = (shown.values[0] ?? []).map((_, i) => shown.columns[i] ?? String(i));
    return csvOf(["", ...columns], shown.values.map((row, i) => [shown.rows[i] ?? i, ...row]));
  }
  return csvOf([shown.x_label, ...Object.keys(shown.lines)], shown.x.map((x, i) => [x, ...Object.values(shown.lines).map((line) => line[i])]));
}
