// Stand-ins for the panels that are part of Grafana's server and in no package: heatmap and state timeline.
// Texts, colours, units and thresholds are @grafana/data's; where things are placed is ours.

import { DataFrame, Field, getDisplayProcessor, getFieldDisplayName } from '@grafana/data';
import { VizLegend } from '@grafana/ui';
import * as chromatic from 'd3-scale-chromatic';
import { ReactElement, useEffect, useRef } from 'react';
import { Drawn } from './components';
import { Board, theme } from './data';

const FONT = 12, AXIS = 22, LEGEND = 28;

function Canvas({ width, height, draw }: { width: number; height: number; draw: (c: CanvasRenderingContext2D) => void }) {
  const place = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    const context = place.current!.getContext('2d')!;
    context.font = `${FONT}px ${theme.typography.fontFamily}`;
    context.clearRect(0, 0, width, height); // React may draw twice
    draw(context);
  });
  return <canvas ref={place} width={width} height={height} />;
}

function timeAxis(context: CanvasRenderingContext2D, board: Board, left: number, right: number, top: number) {
  context.fillStyle = theme.colors.text.primary;
  context.textAlign = 'center';
  context.textBaseline = 'top';
  const steps = [15, 30, 60, 120, 300, 600].map((it) => it * 1000);
  const step = steps.find((it) => (board.to - board.from) / it * 60 < right - left) ?? 600_000;
  for (let time = Math.ceil(board.from / step) * step; time <= board.to; time += step) {
    const x = left + (time - board.from) / (board.to - board.from) * (right - left);
    context.fillText(new Date(time).toISOString().slice(11, 19), x, top + 6);
  }
}

/** What the legend of a state timeline says of thresholds. */
function ranges(field: Field) {
  const steps = field.config.thresholds!.steps;
  const shown = getDisplayProcessor({ field, theme });
  const text = (value: number) => { const it = shown(value); return `${it.text}${it.suffix ?? ''}`; };
  return steps.map((step, place) => ({
    label: place ? `${text(step.value)}+` : `< ${text(steps[1].value)}`,
    color: theme.visualization.getColorByName(step.color), yAxis: 1,
  }));
}

export function Bands({ panel, board, frames, width, height }: Drawn): ReactElement {
  const rows = frames.map((frame) => ({ field: frame.fields[1] as Field, name: getFieldDisplayName(frame.fields[1], frame, frames) }));
  const byThreshold = rows[0]?.field.config.color?.mode === 'thresholds';
  const bottom = height - AXIS - (byThreshold && panel.options.legend.showLegend ? LEGEND : 0);
  const draw = (context: CanvasRenderingContext2D) => {
    const left = Math.max(...rows.map(({ name }) => context.measureText(name).width)) + 12;
    const tall = bottom / rows.length, thick = tall * panel.options.rowHeight;
    rows.forEach(({ field, name }, row) => {
      const times = frames[row].fields[0].values as number[];
      const y = row * tall + (tall - thick) / 2;
      const x = (time: number) => left + (time - board.from) / (board.to - board.from) * (width - left);
      const same = (a: any, b: any) => a !== null && b !== null && field.display!(a).color === field.display!(b).color && (byThreshold || a === b);
      for (let start = 0; start < times.length;) {
        let end = start + 1;
        while (end < times.length && panel.options.mergeValues && same(field.values[start], field.values[end])) end++;
        const value = field.values[start];
        if (value !== null) {
          const shown = field.display!(value);
          const from = x(times[start]), to = x(times[end] ?? board.to);
          context.globalAlpha = field.config.custom.fillOpacity / 100;
          context.fillStyle = shown.color!;
          context.fillRect(from, y, to - from, thick);
          context.globalAlpha = 1;
          const text = `${shown.text}${shown.suffix ?? ''}`;
          if (panel.options.showValue !== 'never' && thick > FONT && context.measureText(text).width + 6 < to - from) {
            context.fillStyle = theme.colors.getContrastText(shown.color!);
            context.textAlign = 'left';
            context.textBaseline = 'middle';
            context.fillText(text, from + 3, y + thick / 2);
          }
        }
        start = end;
      }
      context.fillStyle = theme.colors.text.primary;
      context.textAlign = 'right';
      context.textBaseline = 'middle';
      context.fillText(name, left - 8, y + thick / 2);
    });
    timeAxis(context, board, left, width, bottom);
  };
  return (
    <>
      <Canvas width={width} height={bottom + AXIS} draw={draw} />
      {bottom + AXIS < height && <VizLegend displayMode={'list' as any} placement="bottom" items={ranges(rows[0].field)} />}
    </>
  );
}

export function Heatmap({ panel, board, frames, width, height }: Drawn): ReactElement {
  const [frame] = frames as DataFrame[];
  const [time, ...buckets] = frame.fields;
  const { color, filterValues, yAxis } = panel.options;
  const scheme = (chromatic as any)[`interpolate${color.scheme}`] as (share: number) => string;
  const all = buckets.flatMap((it) => it.values as number[]).filter((it) => it !== null && it > filterValues.le);
  const [least, most] = [Math.min(...all), Math.max(...all)];
  // On a dark page Grafana turns these schemes round, so that many is bright.
  const paint = (value: number) => scheme(1 - ((value - least) / (most - least || 1)) ** color.exponent);
  const unit = getDisplayProcessor({ field: { type: 'number', config: { unit: yAxis.unit } } as any, theme });
  const bottom = height - AXIS - LEGEND;
  const draw = (context: CanvasRenderingContext2D) => {
    const names = buckets.map((it) => it.name === '+Inf' ? '+Inf' : (({ text, suffix }) => `${text}${suffix ?? ''}`)(unit(Number(it.name))));
    const left = Math.max(...names.map((it) => context.measureText(it).width)) + 12;
    const tall = bottom / buckets.length, wide = (width - left) / time.values.length;
    buckets.forEach((bucket, row) => {
      const y = bottom - (row + 1) * tall;
      bucket.values.forEach((value: number | null, column: number) => {
        if (value === null || value <= filterValues.le) return;
        context.fillStyle = paint(value);
        context.fillRect(left + column * wide, y, Math.max(wide - panel.options.cellGap, 1), tall - panel.options.cellGap);
      });
      context.fillStyle = theme.colors.text.primary;
      context.textAlign = 'right';
      context.textBaseline = 'middle';
      if (row % Math.ceil(14 / tall) === 0) context.fillText(names[row], left - 8, Math.max(y, 7));
    });
    timeAxis(context, board, left, width, bottom);
    const scale = 220, top = bottom + AXIS + 8;
    for (let x = 0; x < scale; x++) {
      context.fillStyle = paint(least + (most - least) * x / scale);
      context.fillRect(left + x, top, 1, 8);
    }
    context.fillStyle = theme.colors.text.primary;
    context.textAlign = 'left';
    context.textBaseline = 'middle';
    context.fillText(`${least.toPrecision(2)} to ${most.toPrecision(3)} experts a cell`, left + scale + 8, top + 4);
  };
  return <Canvas width={width} height={height} draw={draw} />;
}
