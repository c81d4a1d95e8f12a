// Draws one dashboard into the page, as Grafana places its panels; `draw_dashboard.py` takes the picture.

import { initPluginTranslations } from '@grafana/i18n';
import { ThemeContext } from '@grafana/data';
import { GlobalStyles, PanelChrome } from '@grafana/ui';
import { ReactElement } from 'react';
import { createRoot } from 'react-dom/client';
import { Drawn, Lines, Rows, Stat } from './components';
import { Board, filledIn, framesOf, Panel, theme } from './data';
import { Bands, Heatmap } from './stand_ins';

const KINDS: Record<string, { draw: (it: Drawn) => ReactElement; standIn: boolean }> = {
  'timeseries': { draw: Lines, standIn: false },
  'stat': { draw: Stat, standIn: false },
  'table': { draw: Rows, standIn: false },
  'heatmap': { draw: Heatmap, standIn: true },
  'state-timeline': { draw: Bands, standIn: true },
};
const COLUMNS = 24, ROW = 30, GAP = 8, PAGE = 1600;

function Placed({ panel, board, frames }: { panel: Panel; board: Board; frames: any[] }): ReactElement {
  const { x, y, w, h } = panel.gridPos;
  const column = (PAGE - 2 * GAP + GAP) / COLUMNS;
  const place = {
    position: 'absolute' as const, left: GAP + x * column, top: 52 + y * (ROW + GAP),
    width: w * column - GAP, height: h * (ROW + GAP) - GAP,
  };
  const title = filledIn(panel.title, board.variables);
  if (panel.type === 'row') return <h4 style={{ ...place, margin: 0, paddingTop: 4 }}>&#9662; {title}</h4>;
  const kind = KINDS[panel.type];
  const Draw = kind.draw;
  const empty = !frames.some((it) => it.length);
  return (
    <div style={place}>
      <PanelChrome title={title} width={place.width} height={place.height}
        titleItems={kind.standIn ? [<em key="it" style={{ opacity: 0.6, fontSize: 11, paddingLeft: 6 }}>stand-in</em>] as any : undefined}>
        {(width, height) => empty ? <p>No data</p> :
          <Draw panel={panel} board={board} frames={frames} width={width} height={height} />}
      </PanelChrome>
    </div>
  );
}

async function draw(board: Board) {
  await initPluginTranslations('moe-megatron');
  const frames = await Promise.all(board.panels.map((it) => it.type === 'row' ? [] : framesOf(it, board)));
  const lines = Math.max(...board.panels.map(({ gridPos: { y, h } }) => y + h));
  const page = document.getElementById('page')!;
  page.style.cssText = `position: relative; width: ${PAGE}px; height: ${60 + lines * (ROW + GAP)}px`;
  createRoot(page).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <div style={{ padding: '12px 16px', display: 'flex', gap: 24, alignItems: 'baseline' }}>
        <strong style={{ fontSize: 18 }}>{board.title}</strong><span>{board.caption}</span>
        <em style={{ opacity: 0.6 }}>Drawn without a Grafana server; what is marked stand-in is not Grafana's own panel.</em>
      </div>
      {board.panels.map((it, place) => <Placed key={it.id} panel={it} board={board} frames={frames[place]} />)}
    </ThemeContext.Provider>,
  );
}

(window as any).drawDashboard = draw;
