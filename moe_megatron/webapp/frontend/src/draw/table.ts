/** A table as a picture: columns as wide as what stands in them. */
import { short } from "../format";
import { svgOf, svgText } from "./svg";

export type Cells = (string | number | null)[];

const EDGE = 16;
const ROW = 22;
/** Of 12 px letters, where nothing measures them. */
const LETTER = 6.8;
const LONGEST = 100;

const shown = (cell: string | number | null | undefined): string => {
  const text = typeof cell === "number" ? short(cell) : (cell ?? "");
  return text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}\u2026` : text;
};

export function tableSvg(title: string, columns: string[], rows: Cells[]): string {
  const head = columns.some((name) => name !== "") ? [columns] : [];
  const lines = [...head, ...rows].map((row) => columns.map((_, i) => shown(row[i])));
  const starts = [EDGE];
  columns.forEach((_, i) => starts.push(starts[i]! + EDGE + LETTER * Math.max(1, ...lines.map((line) => line[i]!.length))));
  const width = Math.ceil(Math.max(starts.at(-1)!, 2 * EDGE + 8.2 * title.length));
  let inner = svgText(EDGE, 26, title, 'font-size="14" font-weight="600"');
  lines.forEach((line, i) => {
    const y = 34 + ROW * (i + 1);
    line.forEach((text, j) => {
      const number = typeof rows[i - head.length]?.[j] === "number";
      const x = number ? starts[j + 1]! - EDGE : starts[j]!;
      inner += svgText(x, y, text, `${number ? 'text-anchor="end"' : ""} ${i < head.length ? 'font-weight="600"' : ""}`);
    });
    inner += `<path d="M${EDGE} ${y + 7}H${width - EDGE}" stroke="#e2e5ea"/>`;
  });
  return svgOf(width, 34 + ROW * lines.length + 24, inner, title);
}
