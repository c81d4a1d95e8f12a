/** Lines over steps as numbers: several on one axis, and as a picture or a table to keep. */
import type { Numbers, Span } from "../data/types";
import { count, short } from "../format";
import { LINES } from "./colours";
import { csvOf, svgOf, svgText } from "./svg";

export interface Line {
  name: string;
  values: Numbers;
  /** In place of the colour of its number. */
  colour?: string;
  dashed?: boolean;
  /** Points that stand alone: measured at some steps only. */
  dots?: boolean;
}

export interface Chart {
  title: string;
  steps: number[];
  lines: Line[];
  log?: boolean;
  write?: (value: number) => string;
}

export const middles = (steps: Span[]): number[] => steps.map(([, last]) => last);

/** Points of several lines on one axis of steps. */
export function merged(parts: { steps: number[]; lines: Line[] }[]): { steps: number[]; lines: Line[] } {
  const steps = [...new Set(parts.flatMap((part) => part.steps))].sort((a, b) => a - b);
  const lines = parts.flatMap((part) => {
    const at = new Map(part.steps.map((step, i) => [step, i]));
    return part.lines.map((line) => ({
      ...line,
      values: steps.map((step) => (at.has(step) ? (line.values[at.get(step)!] ?? null) : null)),
    }));
  });
  return { steps, lines };
}

export function chartCsv({ steps, lines }: Chart): string {
  return csvOf(["step", ...lines.map((line) => line.name)], steps.map((step, i) => [step, ...lines.map((line) => line.values[i])]));
}

/** The same chart as vectors, with light colours, for a document. */
export function chartSvg(chart: Chart, width = 640, height = 280): string {
  const { title, steps, lines, log = false, write = short } = chart;
  const at = (value: number) => (log ? Math.log10(value) : value);
  const values = lines.flatMap((line) => line.values).filter((v): v is number => v !== null && (!log || v > 0));
  if (!values.length) return svgOf(width, height, svgText(16, 28, `${title}: no values`), title);
  const [low, high] = [Math.min(...values.map(at)), Math.max(...values.map(at))];
  const box = { x: 64, y: 48, width: width - 84, height: height - 84 };
  const x = (step: number) => box.x + (box.width * (step - steps[0]!)) / (steps.at(-1)! - steps[0]! || 1);
  const y = (value: number) => box.y + box.height * (1 - (at(value) - low) / (high - low || 1));
  let inner = svgText(16, 24, title, 'font-size="14" font-weight="600"');
  for (let i = 0; i <= 4; i++) {
    const value = low + ((high - low) * i) / 4;
    const line = box.y + box.height * (1 - i / 4);
    inner += `<path d="M${box.x} ${line.toFixed(1)}h${box.width}" stroke="#e2e5ea"/>`;
    inner += svgText(box.x - 8, line + 4, write(log ? 10 ** value : value), 'text-anchor="end" font-size="11"');
  }
  for (const share of [0, 0.5, 1]) {
    const step = Math.round(steps[0]! + share * (steps.at(-1)! - steps[0]!));
    inner += svgText(x(step), height - 14, count(step), `font-size="11" text-anchor="${share === 0 ? "start" : share === 1 ? "end" : "middle"}"`);
  }
  lines.forEach((line, i) => {
    const colour = LINES.light[i % LINES.light.length]!;
    const points = steps.flatMap((step, j) => {
      const value = line.values[j];
      return value === null || value === undefined || (log && value <= 0) ? [] : [`${x(step).toFixed(1)},${y(value).toFixed(1)}`];
    });
    inner += `<polyline points="${points.join(" ")}" fill="none" stroke="${colour}" stroke-width="1.6"${line.dashed ? ' stroke-dasharray="5 4"' : ""}/>`;
    if (lines.length > 1) inner += svgText(box.x + i * 120, 40, line.name, `font-size="11" style="fill:${colour}"`);
  });
  return svgOf(width, height, inner, title);
}
