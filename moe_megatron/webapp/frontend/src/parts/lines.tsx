/** Lines over steps (uPlot), which one reads at a step and clicks to go there. */
import { useEffect, useRef } from "react";
import uPlot from "uplot";
import { type Chart, chartCsv, chartSvg, merged } from "../draw/chart";
import { LINES } from "../draw/colours";
import { stacked } from "../draw/svg";
import { count, short } from "../format";
import { useTheme } from "../state/theme";
import type { Savable } from "./panel";

/** A line that never moves lies in the middle of its chart, or on its ground. */
export function rangeOf(low: number | null, high: number | null): [number, number] {
  if (low === null || high === null) return [0, 1];
  if (low === high) return low === 0 ? [0, 0.01] : [low - Math.abs(low) / 10, high + Math.abs(high) / 10];
  return uPlot.rangeNum(low, high, 0.1, true) as [number, number];
}

const styleOf = (name: string): string => getComputedStyle(document.body).getPropertyValue(name).trim();

export function Lines(props: Chart & { at?: number; pick?: (step: number) => void; height?: number }) {
  const { title, steps, lines, log = false, write = short, at, pick, height = 180 } = props;
  const theme = useTheme();
  const holder = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const latest = useRef({ at, pick });
  latest.current = { at, pick };
  const shape = JSON.stringify([theme, log, height, lines.map(({ name, colour, dashed, dots }) => [name, colour, dashed, dots])]);
  const data: uPlot.AlignedData = [steps, ...lines.map((line) => line.values.map((v) => (log && v !== null && v <= 0 ? null : v)))];

  useEffect(() => {
    const box = holder.current!;
    const faint = styleOf("--dim");
    const axis: uPlot.Axis = {
      stroke: faint,
      font: `11px ${styleOf("--font")}`,
      grid: { stroke: styleOf("--rule"), width: 1 },
      ticks: { show: false },
    };
    const chart = new uPlot(
      {
        width: box.clientWidth,
        height,
        padding: [8, 12, 0, 0],
        legend: { show: false },
        cursor: { y: false, sync: { key: "steps" }, drag: { x: false, y: false }, points: { size: 7 } },
        scales: { x: { time: false }, y: log ? { distr: 3 } : { range: (_u, low, high) => rangeOf(low, high) } },
        axes: [
          { ...axis, values: (_u, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? short(tick) : "")), size: 26, space: 70 },
          { ...axis, values: (_u, ticks) => ticks.map((tick) => (tick === null ? "" : write(tick))), size: (_u, labels) => Math.max(58, 14 + 6.6 * Math.max(0, ...(labels ?? []).map(({ length }) => length))) },
        ],
        series: [
          {},
          ...lines.map((line, i) => ({
            label: line.name,
            stroke: line.colour ?? LINES[theme][i % LINES[theme].length]!,
            width: line.dots ? 0 : 1.6,
            dash: line.dashed ? [5, 4] : undefined,
            spanGaps: true,
            points: line.dots || steps.length < 3 ? { show: true, size: 6 } : { show: false },
          })),
        ],
        hooks: {
          draw: [
            (u) => {
              const step = latest.current.at;
              if (step === undefined || !u.data[0].length) return;
              const x = Math.round(u.valToPos(step, "x", true));
              u.ctx.save();
              u.ctx.strokeStyle = styleOf("--ink");
              u.ctx.globalAlpha = 0.55;
              u.ctx.lineWidth = devicePixelRatio;
              u.ctx.beginPath();
              u.ctx.moveTo(x, u.bbox.top);
              u.ctx.lineTo(x, u.bbox.top + u.bbox.height);
              u.ctx.stroke();
              u.ctx.restore();
            },
          ],
          setCursor: [(u) => read(u, box, write)],
        },
      },
      data,
      box.querySelector<HTMLElement>(".plot")!,
    );
    plot.current = chart;
    const clicked = () => {
      const step = chart.data[0][chart.cursor.idx ?? -1];
      if (step !== undefined) latest.current.pick?.(step);
    };
    chart.over.addEventListener("click", clicked);
    const observer = new ResizeObserver(() => chart.setSize({ width: box.clientWidth, height }));
    observer.observe(box);
    return () => {
      observer.disconnect();
      chart.destroy();
      plot.current = null;
    };
    // The rest reaches the chart by the effects below.
    // eslint-disable-next-line
  }, [shape]);
  useEffect(() => plot.current?.setData(data));
  useEffect(() => plot.current?.redraw(false), [at]);

  return (
    <figure className="lines" ref={holder}>
      <figcaption>
        <strong>{title}</strong>
        {lines.length > 1 &&
          lines.map((line, i) => (
            <span key={line.name}>
              <i style={{ background: line.colour ?? LINES[theme][i % LINES[theme].length] }} />
              {line.name}
            </span>
          ))}
        <output />
      </figcaption>
      <div className="plot" role="img" aria-label={described(props)} />
    </figure>
  );
}

function described({ title, steps, lines }: Chart): string {
  const ends = lines.map((line) => `${line.name} ${short(line.values.findLast((value) => value !== null))}`);
  return `${title} over ${steps.length} points; last: ${ends.join(", ")}`;
}

/** Writes the values under the pointer beside the title. */
function read(u: uPlot, box: HTMLElement, write: (value: number) => string): void {
  const out = box.querySelector("output")!;
  const i = u.cursor.idx;
  if (i === null || i === undefined || u.data[0][i] === undefined) {
    out.textContent = "";
    return;
  }
  const values = u.data
    .slice(1)
    .map((line) => line[i])
    .filter((value) => value !== null && value !== undefined)
    .map((value) => write(value!));
  out.textContent = `${values.join("  ")}  at ${count(u.data[0][i]!)}`;
}

/** What is saved of charts that stand together: one table, and one picture with all of them. */
export const savedCharts = (name: string, about: string, charts: Chart[]): Savable | null =>
  charts.length
    ? {
        name,
        csv: () => chartCsv({ ...charts[0]!, ...merged(charts) }),
        svg: () => stacked(charts.map((chart) => chartSvg({ ...chart, title: `${about}: ${chart.title}` }))),
      }
    : null;
