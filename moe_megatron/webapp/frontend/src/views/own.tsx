/** A view that somebody registered with the server: drawn by its kind, as the page draws its own. */
import { useEffect, useRef, useState } from "react";
import { paths } from "../data/paths";
import { paintHeat } from "../draw/heat";
import { type Of, bytesOf, chartOf, heaviest, ownCsv, ownSvg, paletteOf } from "../draw/own";
import { short, spanText } from "../format";
import { Lines } from "../parts/lines";
import { Note, Panel, Ready } from "../parts/panel";
import { Table } from "../parts/table";
import { useWidth } from "../parts/width";
import { useMoment, useSubject } from "../state/context";
import { useLoaded } from "../state/loaded";
import { usePlace } from "../state/place";
import { useTheme } from "../state/theme";
import { Bars } from "./expert";

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
              svg: () => ownSvg(shown),
            }
          : null
      }
    >
      <Ready of={loaded} height={240}>
        {(it) =>
          it.kind === "lines" ? (
            <Lines {...chartOf(it)} height={280} />
          ) : it.kind === "matrix" ? (
            <Heatmap shown={it} title={it.title} />
          ) : it.kind === "table" ? (
            <Table title={it.title} columns={it.columns} rows={it.rows} />
          ) : (
            <Bars title="Links, the heaviest first" rows={heaviest(it)} write={short} />
          )
        }
      </Ready>
    </Panel>
  );
}

export function Heatmap({ shown, title, write = short }: { shown: Of<"matrix">; title: string; write?: (value: number) => string }) {
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
    paintHeat(canvas.current, { cells: bytesOf(shown.values, shown.centre), columns, palette: paletteOf(shown, theme), cellWidth, cellHeight, gap: "transparent", overloadedFrom: 256, ink: "" });
  });
  if (!columns) return <Note>There is nothing in this window.</Note>;
  const value = spot ? shown.values[spot[0]]?.[spot[1]] : null;
  return (
    <figure ref={box}>
      <figcaption>
        {spot && `${shown.rows[spot[0]] ?? spot[0]}, ${shown.columns[spot[1]] ?? spot[1]}: ${typeof value === "number" ? write(value) : "-"}`}
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
