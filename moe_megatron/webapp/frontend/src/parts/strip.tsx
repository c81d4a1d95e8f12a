/** Rows over steps on a canvas: a quantity of each layer, and how it went. */
import { useEffect, useMemo, useRef, useState } from "react";
import type { Numbers, Span } from "../data/types";
import { MISSING } from "../data/frame";
import { amountPalette } from "../draw/colours";
import { paintHeat } from "../draw/heat";
import { csvOf, svgCells, svgOf, svgText } from "../draw/svg";
import { count, short, spanText } from "../format";
import { useTheme } from "../state/theme";
import { useWidth } from "./width";

export interface Strip {
  title: string;
  says: string;
  steps: Span[];
  layers: number[];
  rows: Numbers[];
  kind: "over" | "under";
  /** Ends of the colours; by default those of the values. */
  from?: number;
  to?: number;
  write?: (value: number) => string;
}

export function endsOf({ rows, from, to }: Strip): [number, number] {
  const values = rows.flat().filter((value): value is number => value !== null);
  const low = from ?? values.reduce((a, b) => Math.min(a, b), Infinity);
  const high = to ?? values.reduce((a, b) => Math.max(a, b), -Infinity);
  return high > low ? [low, high] : [low, low + 1];
}

export function stripCells(strip: Strip): Uint8Array {
  const [low, high] = endsOf(strip);
  return Uint8Array.from(strip.rows.flat(), (value) =>
    value === null ? MISSING : Math.min(254, Math.max(0, Math.round((254 * (value - low)) / (high - low)))),
  );
}

export const stripCsv = ({ steps, layers, rows }: Strip): string =>
  csvOf(["first_step", "last_step", ...layers.map((layer) => `layer_${layer}`)], steps.map((span, i) => [...span, ...rows.map((row) => row[i])]));

export function stripSvg(strip: Strip): string {
  const height = Math.max(80, 12 * strip.layers.length);
  const palette = amountPalette("light", strip.kind);
  const [low, high] = endsOf(strip);
  const write = strip.write ?? short;
  const inner =
    svgText(16, 24, strip.title, 'font-size="14" font-weight="600"') +
    svgText(624, 24, `${write(low)} to ${write(high)}`, 'font-size="11" text-anchor="end"') +
    svgCells(stripCells(strip), strip.steps.length, palette, { x: 48, y: 40, width: 576, height }) +
    svgText(40, 52, `layer ${strip.layers[0]}`, 'font-size="10" text-anchor="end"') +
    svgText(40, 36 + height, `${strip.layers.at(-1)}`, 'font-size="10" text-anchor="end"') +
    svgText(48, 58 + height, `${count(strip.steps[0]![0])}`, 'font-size="11"') +
    svgText(624, 58 + height, `step ${count(strip.steps.at(-1)![1])}`, 'font-size="11" text-anchor="end"');
  return svgOf(640, height + 72, inner, strip.title);
}

export function StripChart(props: Strip & { at?: number; pick?: (step: number, layer: number) => void }) {
  const { title, says, steps, layers, kind, rows, at, pick, write = short } = props;
  const theme = useTheme();
  const canvas = useRef<HTMLCanvasElement>(null);
  const [box, width] = useWidth<HTMLDivElement>();
  const [spot, setSpot] = useState<[row: number, column: number] | null>(null);
  const rowHeight = Math.min(18, Math.max(3, 132 / layers.length));
  const palette = amountPalette(theme, kind);
  const [low, high] = useMemo(() => endsOf(props), [rows]);
  // A live run draws this again with each step: not so the picture, which has not changed.
  useEffect(() => {
    if (!canvas.current || !width) return;
    paintHeat(canvas.current, {
      cells: stripCells(props),
      columns: steps.length,
      palette,
      cellWidth: width / steps.length,
      cellHeight: rowHeight,
      gap: "transparent",
      overloadedFrom: 256,
      ink: "",
    });
  }, [rows, palette, width]);
  const where = (event: React.PointerEvent | React.MouseEvent): [number, number] => {
    const area = event.currentTarget.getBoundingClientRect();
    const row = Math.floor(((event.clientY - area.top) / area.height) * layers.length);
    const column = Math.floor(((event.clientX - area.left) / area.width) * steps.length);
    return [Math.min(layers.length - 1, Math.max(0, row)), Math.min(steps.length - 1, Math.max(0, column))];
  };
  const current = at === undefined ? -1 : steps.findIndex(([first, last]) => first <= at && at <= last);
  const value = spot && rows[spot[0]]![spot[1]];
  return (
    <figure className="strip">
      <figcaption>
        <strong title={says}>{title}</strong>
        <span className="scale">
          {write(low)}
          <canvas ref={(bar) => void (bar && paintScale(bar, palette))} width={64} height={1} aria-hidden="true" />
          {write(high)}
        </span>
        <output>
          {spot && `layer ${layers[spot[0]]}: ${value === null || value === undefined ? "not measured" : write(value)} at ${spanText(steps[spot[1]]!)}`}
        </output>
      </figcaption>
      <div className="strip-body">
        <div className="strip-layers" aria-hidden="true">
          <span>{layers[0]}</span>
          {layers.length > 1 && <span>{layers.at(-1)}</span>}
        </div>
        <div ref={box} className="strip-canvas" style={{ height: rowHeight * layers.length }}>
          <canvas
            ref={canvas}
            role="img"
            aria-label={`${title} of ${layers.length} layers over ${steps.length} spans of steps, ${write(low)} to ${write(high)}`}
            onPointerMove={(event) => setSpot(where(event))}
            onPointerLeave={() => setSpot(null)}
            onClick={(event) => {
              const [row, column] = where(event);
              pick?.(steps[column]![1], layers[row]!);
            }}
          />
          {current >= 0 && <i className="now" style={{ left: `${(100 * (current + 0.5)) / steps.length}%` }} />}
        </div>
      </div>
    </figure>
  );
}

function paintScale(bar: HTMLCanvasElement, palette: Uint32Array): void {
  const image = new ImageData(64, 1);
  const words = new Uint32Array(image.data.buffer);
  for (let i = 0; i < 64; i++) words[i] = palette[i * 4]!;
  bar.getContext("2d")!.putImageData(image, 0, 0);
}
