/** The matrix: every expert of every layer at one moment, by its load over a fair share. */
import { type KeyboardEvent, type PointerEvent, useEffect, useMemo, useRef, useState } from "react";
import { type Frame, byteOf, factsOfRow, ratioOf } from "../data/frame";
import { type Columns, type Order, arranged } from "../data/order";
import type { Run } from "../data/types";
import { type Theme, LOAD_TICKS, cssOf, loadPalette } from "../draw/colours";
import { paintHeat } from "../draw/heat";
import { csvOf, svgCells, svgOf, svgText } from "../draw/svg";
import { ratio, spanText } from "../format";
import { Choice, Panel, Ready } from "../parts/panel";
import { useWidth } from "../parts/width";
import { useFrame, useMoment, useSubject } from "../state/context";
import type { Cell } from "../state/link";
import { useColumns } from "../state/ordering";
import { go, usePlace } from "../state/place";
import { useTheme } from "../state/theme";

const LEAST_CELL = 2.5;
const WIDEST_CELL = 132;
const GUTTER = 40;
const FACTS = 116;

const styleOf = (name: string): string => getComputedStyle(document.body).getPropertyValue(name).trim();

export function MatrixView() {
  const { source, run } = useSubject();
  const { order, over, cell } = usePlace();
  const { span, newest } = useMoment();
  const frame = useFrame();
  const columns = useColumns(source, run, order);
  const steps = run.last_step - run.first_step + 1;
  const fitting = frame.data && frame.data.layers === columns.length && frame.data.experts === run.experts;
  return (
    <Panel
      title="Where tokens go"
      says={
        <>
          Load of each expert over its fair share, {spanText(frame.data ? [frame.data.first, frame.data.last] : span)}
          {newest && run.state === "running" ? ", live" : ""}.
        </>
      }
      savable={
        fitting
          ? {
              name: `${run.name}_matrix_step_${span[1]}`,
              csv: () => matrixCsv(frame.data!, run),
              svg: () => matrixSvg(frame.data!, columns, run, `${run.name}: load over fair share, ${spanText(span)}`),
            }
          : null
      }
      actions={
        <>
          <Choice
            label="Order"
            value={order}
            pick={(value: Order) => go({ order: value })}
            options={[
              { value: "id", text: "Id", hint: "Experts by their number" },
              { value: "load", text: "Load", hint: "Most loaded over the whole run first" },
              { value: "similarity", text: "Similar", hint: "Experts whose load went alike side by side" },
              { value: "rank", text: "EP rank", hint: "Experts of one process side by side", off: !run.expert_ranks.length },
            ]}
          />
          <Choice
            label="Mean of"
            value={over}
            pick={(value: number) => go({ over: value })}
            options={[1, 10, 100].map((value) => ({
              value,
              text: value === 1 ? "1 step" : String(value),
              off: value > 1 && value > steps,
            }))}
          />
        </>
      }
    >
      <Ready of={frame} height={280}>
        {(data) =>
          data.layers === columns.length && data.experts === run.experts ? (
            <>
              <Matrix frame={data} columns={columns} run={run} cell={cell} order={order} open={(at) => go({ cell: at })} />
              <LoadLegend overload={run.overload} />
            </>
          ) : null
        }
      </Ready>
    </Panel>
  );
}

export function LoadLegend({ overload }: { overload?: number }) {
  const palette = loadPalette(useTheme());
  return (
    <div className="load-legend">
      <div>
        <canvas
          width={254}
          height={1}
          aria-hidden="true"
          ref={(bar) => {
            if (!bar) return;
            const image = new ImageData(254, 1);
            new Uint32Array(image.data.buffer).set(palette.subarray(1, 255));
            bar.getContext("2d")!.putImageData(image, 0, 0);
          }}
        />
        <ol>
          {LOAD_TICKS.map((tick) => (
            <li key={tick.text} style={{ left: `${(100 * (tick.byte - 1)) / 253}%` }}>
              {tick.text}
            </li>
          ))}
        </ol>
      </div>
      <p>
        <span>
          <i className="mark-dead" /> dead: no token
        </span>
        {overload !== undefined && (
          <span>
            <i className="mark-over" /> overloaded: {ratio(overload)} and more
          </span>
        )}
      </p>
    </div>
  );
}

/** The canvas with its axes; also drawn twice to compare runs. */
export function Matrix(props: {
  frame: Frame;
  columns: Columns;
  run: Run;
  cell: Cell | null;
  order: Order;
  open?: (cell: Cell) => void;
  write?: (value: number | null) => string;
  plain?: boolean;
}) {
  const { frame, columns, run, cell, order, open, write = ratio, plain = false } = props;
  const theme = useTheme();
  const [box, width] = useWidth<HTMLDivElement>();
  const canvas = useRef<HTMLCanvasElement>(null);
  const [spot, setSpot] = useState<{ row: number; column: number; keyboard: boolean } | null>(null);
  const cells = useMemo(() => arranged(frame, columns), [frame, columns]);
  const room = Math.max(0, width - GUTTER - (plain ? 0 : FACTS));
  const narrow = room < Math.max(260, LEAST_CELL * run.experts);
  const across = narrow ? Math.max(0, width - GUTTER) : room;
  const cellWidth = Math.min(WIDEST_CELL, Math.max(LEAST_CELL, across / run.experts));
  const cellHeight = Math.max(frame.layers > 40 ? 9 : 12, Math.min(44, cellWidth, 420 / frame.layers));
  useEffect(() => {
    if (!canvas.current || !width) return;
    paintHeat(canvas.current, {
      cells,
      columns: frame.experts,
      palette: loadPalette(theme),
      cellWidth,
      cellHeight,
      gap: styleOf("--card"),
      overloadedFrom: plain ? 256 : byteOf(run.overload),
      ink: styleOf("--ink"),
    });
  }, [cells, frame.experts, theme, width, cellWidth, cellHeight, plain, run.overload]);

  const cellAt = (row: number, column: number): Cell => ({ layer: run.layers[row]!, expert: columns[row]![column]! });
  const at = spot && cellAt(spot.row, spot.column);
  const value = spot ? ratioOf(cells[spot.row * frame.experts + spot.column]!) : null;
  const chosenRow = cell ? run.layers.indexOf(cell.layer) : -1;
  const chosenColumn = chosenRow >= 0 ? columns[chosenRow]!.indexOf(cell!.expert) : -1;

  const follow = (event: PointerEvent) => {
    const area = event.currentTarget.getBoundingClientRect();
    const row = Math.floor((event.clientY - area.top) / cellHeight);
    const column = Math.floor((event.clientX - area.left) / cellWidth);
    const inside = row >= 0 && row < frame.layers && column >= 0 && column < frame.experts;
    setSpot(inside ? { row, column, keyboard: false } : null);
  };
  const key = (event: KeyboardEvent) => {
    const { row, column } = spot ?? { row: Math.max(0, chosenRow), column: Math.max(0, chosenColumn) };
    const moves: Record<string, [number, number]> = {
      ArrowUp: [row - 1, column],
      ArrowDown: [row + 1, column],
      ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1],
      Home: [row, 0],
      End: [row, frame.experts - 1],
      PageUp: [0, column],
      PageDown: [frame.layers - 1, column],
    };
    const next = moves[event.key];
    if (next) {
      const clamp = (n: number, size: number) => Math.min(size - 1, Math.max(0, n));
      setSpot({ row: clamp(next[0], frame.layers), column: clamp(next[1], frame.experts), keyboard: true });
    } else if ((event.key === "Enter" || event.key === " ") && open) {
      open(cellAt(row, column));
    } else if (event.key === "Escape" && spot) {
      setSpot(null);
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  };
  const words = at
    ? `Layer ${at.layer}, expert ${at.expert}: ${value === null ? "not measured" : value === 0 ? "no token" : `${write(value)} its fair share`}`
    : "";
  const height = cellHeight * frame.layers;
  return (
    <div className="matrix" ref={box} style={cellWidth * run.experts > across + 1 ? { overflowX: "auto" } : undefined}>
      <div className="matrix-scroll" tabIndex={-1}>
        <div className="matrix-layers" style={{ height, width: GUTTER }} aria-hidden="true">
          {axisTicks(frame.layers, cellHeight, 14).map((row) => (
            <span key={row} style={{ top: (row + 0.5) * cellHeight }}>
              {run.layers[row]}
            </span>
          ))}
        </div>
        <div className="matrix-canvas" style={{ width: cellWidth * frame.experts, height }}>
          <canvas
            ref={canvas}
            tabIndex={0}
            role="application"
            aria-roledescription="matrix"
            aria-label={`Load of ${frame.experts} experts in ${frame.layers} layers. Arrow keys move from cell to cell, Enter opens an expert.`}
            onPointerMove={follow}
            onPointerLeave={() => setSpot((old) => (old?.keyboard ? old : null))}
            onClick={() => at && open?.(at)}
            onKeyDown={key}
            onBlur={() => setSpot(null)}
          />
          {chosenColumn >= 0 && (
            <i className="cell chosen" style={boxOf(chosenRow, chosenColumn, cellWidth, cellHeight)} />
          )}
          {spot && <i className="cell" style={boxOf(spot.row, spot.column, cellWidth, cellHeight)} />}
          {spot && at && (
            <div
              className="tip"
              style={{
                top: (spot.row + 1) * cellHeight + 6,
                ...(spot.column * cellWidth > (cellWidth * frame.experts) / 2
                  ? { right: (frame.experts - 1 - spot.column) * cellWidth }
                  : { left: spot.column * cellWidth }),
              }}
            >
              <b>{value === null ? "not measured" : value === 0 ? "dead" : write(value)}</b>
              <span>
                layer {at.layer}, expert {at.expert}
                {run.expert_ranks.length ? `, EP rank ${run.expert_ranks[spot.row]?.[at.expert] ?? "-"}` : ""}
              </span>
            </div>
          )}
        </div>
        {!plain && !narrow && <RowFactsColumn frame={frame} run={run} cellHeight={cellHeight} theme={theme} />}
      </div>
      <div className="matrix-experts" style={{ marginLeft: GUTTER, width: cellWidth * frame.experts }} aria-hidden="true">
        {order === "id" ? (
          axisTicks(frame.experts, cellWidth, 34).map((expert) => (
            <span key={expert} style={{ left: (expert + 0.5) * cellWidth }}>
              {expert}
            </span>
          ))
        ) : (
          <em>{{ load: "most loaded first", similarity: "alike side by side", rank: "by EP rank", id: "" }[order]}</em>
        )}
      </div>
      <p className="unseen" aria-live="polite">
        {spot?.keyboard ? words : ""}
      </p>
    </div>
  );
}

const boxOf = (row: number, column: number, w: number, h: number) => ({
  left: column * w,
  top: row * h,
  width: w,
  height: h,
});

/** Which rows are named where each needs so many pixels. */
export function axisTicks(size: number, each: number, room: number): number[] {
  const steps = [1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100, 128];
  const step = steps.find((n) => n * each >= room) ?? size;
  return Array.from({ length: Math.ceil(size / step) }, (_, i) => i * step);
}

/** Beside each layer: the highest load as a bar, and how many are dead or overloaded. */
function RowFactsColumn({ frame, run, cellHeight, theme }: { frame: Frame; run: Run; cellHeight: number; theme: Theme }) {
  const palette = loadPalette(theme);
  const rows = useMemo(
    () => Array.from({ length: frame.layers }, (_, row) => factsOfRow(frame, row, run.overload)),
    [frame, run.overload],
  );
  const roomy = cellHeight >= 12;
  return (
    <div className={roomy ? "row-facts" : "row-facts thin"} style={{ width: FACTS - 12 }} aria-hidden="true">
      {rows.map((facts, row) => (
        <div key={row} style={{ height: cellHeight }} title={`Layer ${run.layers[row]}: highest ${ratio(facts.highest)}, ${facts.dead} dead, ${facts.overloaded} overloaded`}>
          <i
            style={{
              width: `${Math.min(100, (100 * Math.log2(1 + (facts.highest ?? 0))) / 4)}%`,
              background: cssOf(palette, byteOf(facts.highest ?? 1)),
            }}
          />
          {roomy && <span>{ratio(facts.highest)}</span>}
          {roomy && facts.dead > 0 && <b>{facts.dead} dead</b>}
        </div>
      ))}
    </div>
  );
}

export function matrixCsv(frame: Frame, run: Run): string {
  const rows = run.layers.flatMap((layer, row) =>
    Array.from({ length: frame.experts }, (_, expert) => {
      const value = ratioOf(frame.cells[row * frame.experts + expert]!);
      return [layer, expert, value === null ? null : Number(value.toPrecision(4))];
    }),
  );
  return csvOf(["layer", "expert", "load_over_fair_share"], rows);
}

export function matrixSvg(frame: Frame, columns: Columns, run: Run, title: string): string {
  const width = Math.max(480, Math.min(1200, 20 * frame.experts));
  const height = Math.max(60, Math.min(24, width / frame.experts + 4) * frame.layers);
  const palette = loadPalette("light");
  const box = { x: 52, y: 44, width, height };
  let inner = svgText(16, 24, title, 'font-size="14" font-weight="600"');
  inner += svgCells(arranged(frame, columns), frame.experts, palette, box);
  for (const row of axisTicks(frame.layers, height / frame.layers, 12)) {
    inner += svgText(46, box.y + ((row + 0.5) * height) / frame.layers + 4, String(run.layers[row]), 'text-anchor="end" font-size="10"');
  }
  const below = box.y + height + 24;
  for (let i = 0; i < 127; i++) {
    inner += `<rect x="${52 + i * 2}" y="${below}" width="2.2" height="8" fill="${cssOf(palette, 1 + 2 * i)}"/>`;
  }
  for (const tick of LOAD_TICKS) inner += svgText(51 + tick.byte, below + 22, tick.text, 'text-anchor="middle" font-size="10"');
  return svgOf(width + 72, height + 104, inner, title);
}
