/** A view that somebody registered with the server: drawn by its kind, as the page draws its own. */
import { useEffect, useRef, useState } from "react";
import { paths } from "../data/paths";
import type { Numbers, OwnShown } from "../data/types";
import { EVEN, MISSING } from "../data/frame";
import { amountPalette, loadPalette } from "../draw/colours";
import { paintHeat } from "../draw/heat";
import { csvOf } from "../draw/svg";
import { short, spanText } from "../format";
import { type Chart, Lines, chartSvg } from "../parts/lines";
import { Note, Panel, Ready } from "../parts/panel";
import { Table } from "../parts/table";
import { useWidth } from "../parts/width";
import { useMoment, useSubject } from "../state/context";
import { useLoaded } from "../state/loaded";
import { usePlace } from "../state/place";
import { useTheme } from "../state/theme";
import { Bars } from "./expert";

const LINKS_SHOWN = 40;
type Of<K extends OwnShown["kind"]> = Extract<OwnShown, { kind: K }>;

export function OwnView() {
  const { source, run } = useSubject();
  const { own } = usePlace();
  const { span } = useMoment();
  const loaded = useLoaded(own && paths.own(run.id, own, span), (signal) => source.own(run.id, own!, span, signal), 0, `${run.id} ${own}`);
  if (own === null) return <Note>Choose a view above.</Note>;
  const shown = loaded.data;
  return (
    <Panel
      title={shown?.title ?? own}
      says={spanText(span)}
      savable={
        shown
          ? {
              name: `${run.name}_${own}`,
              csv: () => ownCsv(shown),
              svg: shown.kind === "lines" ? () => chartSvg(chartOf(shown, shown.title)) : undefined,
            }
          : null
      }
    >
      <Ready of={loaded} height={240}>
        {(it) =>
          it.kind === "lines" ? (
            <Lines {...chartOf(it, it.title)} height={280} />
          ) : it.kind === "matrix" ? (
            <Heatmap shown={it} title={it.title} />
          ) : it.kind === "table" ? (
            <Table title={it.title} columns={it.columns} rows={it.rows} />
          ) : (
            <Bars
              title="Links, the heaviest first"
              rows={[...it.links]
                .sort((a, b) => (b.weight ?? 0) - (a.weight ?? 0))
                .slice(0, LINKS_SHOWN)
                .map((link) => ({ name: `${link.from} \u2192 ${link.to}`, share: link.weight ?? 0 }))}
              write={short}
            />
          )
        }
      </Ready>
    </Panel>
  );
}

const chartOf = (shown: Of<"lines">, title: string): Chart => ({
  title,
  steps: shown.x,
  lines: Object.entries(shown.lines).map(([name, values]) => ({ name, values })),
});

/** Bytes as a palette wants them: from least to most, or as far from the centre as the farthest is. */
export function bytesOf(values: Numbers[], centre: number | null): Uint8Array {
  const known = values.flat().filter((value): value is number => value !== null);
  const [low, high] = known.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
  const far = centre === null ? high - low || 1 : Math.max(high - centre, centre - low) || 1;
  const start = centre ?? low;
  return Uint8Array.from(values.flat(), (value) => {
    if (value === null) return MISSING;
    const byte = centre === null ? (254 * (value - start)) / far : EVEN + (126 * (value - start)) / far;
    return Math.min(254, Math.max(centre === null ? 0 : 1, Math.round(byte)));
  });
}

function Heatmap({ shown, title }: { shown: Of<"matrix">; title: string }) {
  const theme = useTheme();
  const canvas = useRef<HTMLCanvasElement>(null);
  const [box, width] = useWidth<HTMLDivElement>();
  const [spot, setSpot] = useState<[number, number] | null>(null);
  const rows = shown.values.length;
  const columns = shown.values[0]?.length ?? 0;
  const cellWidth = Math.min(64, width / Math.max(1, columns));
  const cellHeight = Math.max(4, Math.min(28, 420 / Math.max(1, rows)));
  useEffect(() => {
    if (!canvas.current || !width || !columns) return;
    const palette = shown.centre === null ? amountPalette(theme, "over") : loadPalette(theme);
    paintHeat(canvas.current, { cells: bytesOf(shown.values, shown.centre), columns, palette, cellWidth, cellHeight, gap: "transparent", overloadedFrom: 256, ink: "" });
  });
  if (!columns) return <Note>There is nothing in this window.</Note>;
  const value = spot ? shown.values[spot[0]]?.[spot[1]] : null;
  return (
    <figure ref={box}>
      <figcaption>
        {spot && `${shown.rows[spot[0]] ?? spot[0]}, ${shown.columns[spot[1]] ?? spot[1]}: ${short(value)}`}
      </figcaption>
      <canvas
        ref={canvas}
        role="img"
        aria-label={`${title}: ${rows} rows, ${columns} columns`}
        style={{ display: "block", width: cellWidth * columns, height: cellHeight * rows }}
        onPointerMove={(event) => {
          const area = event.currentTarget.getBoundingClientRect();
          setSpot([Math.floor((event.clientY - area.top) / cellHeight), Math.floor((event.clientX - area.left) / cellWidth)]);
        }}
        onPointerLeave={() => setSpot(null)}
      />
    </figure>
  );
}

function ownCsv(shown: OwnShown): string {
  if (shown.kind === "table") return csvOf(shown.columns, shown.rows);
  if (shown.kind === "graph") return csvOf(["from", "to", "weight"], shown.links.map((link) => [link.from, link.to, link.weight]));
  if (shown.kind === "matrix") return csvOf(["", ...shown.columns], shown.values.map((row, i) => [shown.rows[i] ?? i, ...row]));
  return csvOf([shown.x_label, ...Object.keys(shown.lines)], shown.x.map((x, i) => [x, ...Object.values(shown.lines).map((line) => line[i])]));
}
