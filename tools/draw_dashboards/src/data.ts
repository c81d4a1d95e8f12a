// From answers of Prometheus to Grafana's data frames with the panel's settings applied.
// It does what Grafana's Prometheus data source does; all of units, colours and thresholds is @grafana/data's.

import {
  applyFieldOverrides, createTheme, DataFrame, Field, FieldConfigOptionsRegistry, FieldType,
  identityOverrideProcessor, standardTransformers, standardTransformersRegistry, transformDataFrame,
} from '@grafana/data';
import { firstValueFrom } from 'rxjs';

export interface Series { metric: Record<string, string>; values: [number, string][] }
export interface Target { refId: string; format: string; legendFormat: string; series: Series[] }
export interface Panel {
  id: number; type: string; title: string; options: any; fieldConfig: any; targets: Target[];
  gridPos: { x: number; y: number; w: number; h: number }; transformations?: any[];
}
export interface Board {
  title: string; from: number; to: number; interval: number; variables: Record<string, string>;
  panels: Panel[]; caption: string; marks: { name: string; color: string; time: number }[];
}

export const theme = createTheme({ colors: { mode: 'dark' } });

const SETTINGS = ['unit', 'min', 'max', 'decimals', 'color', 'thresholds', 'mappings', 'links', 'noValue', 'displayName'];
const CUSTOM = ['cellOptions', 'width', 'minWidth', 'drawStyle', 'fillOpacity', 'lineWidth', 'lineInterpolation', 'showPoints',
  'pointSize', 'spanNulls', 'stacking', 'hideFrom', 'scaleDistribution', 'thresholdsStyle', 'axisPlacement'];

const setting = (path: string, isCustom: boolean): any => ({
  id: isCustom ? `custom.${path}` : path, path, isCustom, name: path,
  process: identityOverrideProcessor, shouldApply: () => true, settings: {},
});
const registry = new FieldConfigOptionsRegistry(() => [
  ...SETTINGS.map((it) => setting(it, false)), ...CUSTOM.map((it) => setting(it, true)),
]);
standardTransformersRegistry.setInit(() =>
  [standardTransformers.organizeFieldsTransformer, standardTransformers.mergeTransformer].map((it: any) => ({ id: it.id, name: it.name, transformation: () => Promise.resolve(it), editor: null as any })) as any);

export const filledIn = (text: string, values: Record<string, string>) =>
  text.replace(/\$\{?(\w+)\}?/g, (all, name) => values[name] ?? all);

const number = (text: string) => (text === 'NaN' ? null : text.endsWith('Inf') ? (text[0] === '-' ? -Infinity : Infinity) : Number(text));
const named = (target: Target, labels: Record<string, string>) =>
  target.legendFormat.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => labels[label] ?? '');
const field = (name: string, type: FieldType, values: any[], more: object = {}): Field =>
  ({ name, type, values, config: {}, ...more }) as Field;

/** A frame for each series, with the gaps of a scrape that had no value as null. */
function lineFrames(target: Target, board: Board): DataFrame[] {
  return target.series.map((series) => {
    const found = new Map(series.values.map(([time, value]) => [Math.round(time * 1000), number(value)]));
    const times = [], values = [];
    for (let time = board.from; time <= board.to; time += board.interval) {
      times.push(time);
      values.push(found.get(time) ?? null);
    }
    return {
      refId: target.refId, length: times.length,
      fields: [
        field('Time', FieldType.time, times, { config: { interval: board.interval } }),
        field('Value', FieldType.number, values,
          { labels: series.metric, config: { displayNameFromDS: named(target, series.metric) } }),
      ],
    };
  });
}

/** One frame with a column for each upper limit, of the counts in that bucket alone. */
function histogramFrames(target: Target, board: Board): DataFrame[] {
  const rows = lineFrames(target, board).map((frame) => frame.fields[1])
    .sort((a, b) => number(a.labels!.le)! - number(b.labels!.le)!);
  if (!rows.length) return [];
  const alone = rows.map((row, place) =>
    ({ ...row, name: row.labels!.le, values: row.values.map((v, t) => v === null ? null : v - (place ? rows[place - 1].values[t] ?? 0 : 0)) }));
  const times = lineFrames(target, board)[0].fields[0];
  return [{ refId: target.refId, length: times.values.length, fields: [times, ...alone] }];
}

/** One frame with a line for each series and a column for each label. */
function tableFrames(target: Target, several: boolean): DataFrame[] {
  const labels = [...new Set(target.series.flatMap((it) => Object.keys(it.metric)))].sort();
  const last = target.series.map((it) => it.values[it.values.length - 1]);
  return [{
    refId: target.refId, length: target.series.length,
    fields: [
      field('Time', FieldType.time, last.map(([time]) => time * 1000)),
      ...labels.map((it) => field(it, FieldType.string, target.series.map((s) => s.metric[it] ?? ''))),
      field(several ? `Value #${target.refId}` : 'Value', FieldType.number, last.map(([, value]) => number(value))),
    ],
  }];
}

export async function framesOf(panel: Panel, board: Board): Promise<DataFrame[]> {
  let frames = panel.targets.flatMap((target) =>
    target.format === 'heatmap' ? histogramFrames(target, board)
      : target.format === 'table' ? tableFrames(target, panel.targets.length > 1) : lineFrames(target, board));
  if (panel.transformations) {
    const context: any = { interpolate: (text: string) => filledIn(text, board.variables) };
    frames = await firstValueFrom(transformDataFrame(panel.transformations, frames, context));
  }
  // Grafana's panels have a palette as their default, which a dashboard therefore need not name.
  const fieldConfig = { ...panel.fieldConfig, defaults: { color: { mode: 'palette-classic' }, ...panel.fieldConfig.defaults } };
  return applyFieldOverrides({
    data: frames, fieldConfig: panel.type === 'timeseries' ? fieldConfig : panel.fieldConfig, fieldConfigRegistry: registry, theme, timeZone: 'utc',
    replaceVariables: (text) => filledIn(text, board.variables),
  });
}
