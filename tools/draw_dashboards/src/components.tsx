// The panels whose components Grafana publishes: time series, single numbers and tables.

import { dateTime, getFieldDisplayValues } from '@grafana/data';
import { BigValue, Table, TimeSeries } from '@grafana/ui';
import { ReactElement } from 'react';
import { Board, filledIn, Panel, theme } from './data';

export interface Drawn { panel: Panel; board: Board; frames: any[]; width: number; height: number }

export function timeRange(board: Board): any {
  const from = dateTime(board.from), to = dateTime(board.to);
  return { from, to, raw: { from, to } };
}

export function Lines({ panel, board, frames, width, height }: Drawn): ReactElement {
  // The lines of annotations are drawn here: the plugin that does it is part of Grafana's server.
  const marked = (config: any) => {
    config.addHook('draw', (plot: any) => {
      for (const mark of board.marks) {
        const x = plot.valToPos(mark.time, 'x', true);
        plot.ctx.strokeStyle = theme.visualization.getColorByName(mark.color);
        plot.ctx.lineWidth = 1;
        plot.ctx.setLineDash([4, 4]);
        plot.ctx.beginPath();
        plot.ctx.moveTo(x, plot.bbox.top);
        plot.ctx.lineTo(x, plot.bbox.top + plot.bbox.height);
        plot.ctx.stroke();
        plot.ctx.setLineDash([]);
      }
    });
    return null;
  };
  return (
    <TimeSeries frames={frames} width={width} height={height} timeRange={timeRange(board)} timeZone="utc"
      legend={panel.options.legend} options={panel.options}>
      {marked as any}
    </TimeSeries>
  );
}

export function Stat({ panel, board, frames, width, height }: Drawn): ReactElement {
  const [shown] = getFieldDisplayValues({
    fieldConfig: panel.fieldConfig, reduceOptions: panel.options.reduceOptions, data: frames, theme,
    replaceVariables: (text: string) => filledIn(text, board.variables), sparkline: panel.options.graphMode !== 'none', timeZone: 'utc',
  } as any);
  return (
    <BigValue value={shown.display} sparkline={shown.sparkline} width={width} height={height} theme={theme}
      colorMode={panel.options.colorMode} graphMode={panel.options.graphMode} textMode={panel.options.textMode}
      justifyMode={'auto' as any} />
  );
}

export function Rows({ panel, board, frames, width, height }: Drawn): ReactElement {
  return (
    <Table data={frames[0]} width={width} height={height} timeRange={timeRange(board)}
      cellHeight={panel.options.cellHeight} initialSortBy={panel.options.sortBy} showTypeIcons={false} />
  );
}
