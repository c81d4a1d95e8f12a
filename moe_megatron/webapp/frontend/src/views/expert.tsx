/** One expert: how its load went, with whom it works, and what it works on. */
import { Suspense, lazy, useEffect } from "react";
import { paths } from "../data/paths";
import type { Expert } from "../data/types";
import { type Chart, middles } from "../draw/chart";
import { percent, ratio, short } from "../format";
import { Lines, savedCharts } from "../parts/lines";
import { Note, Panel, Ready } from "../parts/panel";
import { useMoment, useSubject } from "../state/context";
import type { Cell } from "../state/link";
import { useLoaded } from "../state/loaded";
import { go } from "../state/place";

/** Few dashboards show tokens. */
const Vocabulary = lazy(() => import("./vocabulary").then(({ Vocabulary: Tokens }) => ({ default: Tokens })));

const COLUMNS = 200;
const LISTED = 8;

const anything = (values: (number | null)[]): boolean => values.some((value) => value !== null);

function chartsOf(expert: Expert): Chart[] {
  const steps = middles(expert.steps);
  return [
    { title: "Load over fair share", steps, lines: [{ name: "load", values: expert.load }], write: ratio },
    { title: "Dropped", steps, lines: [{ name: "dropped", values: expert.drop_rate }], write: percent },
    { title: "Balancing bias", steps, lines: [{ name: "bias", values: expert.bias }], write: short },
  ].filter((chart, i) => anything(chart.lines[0]!.values) && (i === 0 || chart.lines[0]!.values.some((value) => value)));
}

export function ExpertView({ cell }: { cell: Cell }) {
  const { source, run, tick } = useSubject();
  const { step } = useMoment();
  const loaded = useLoaded(
    paths.expert(run.id, cell.layer, cell.expert, COLUMNS),
    (signal) => source.expert(run.id, cell.layer, cell.expert, COLUMNS, signal),
    tick,
  );
  useEffect(() => {
    const key = (event: KeyboardEvent) => event.key === "Escape" && go({ cell: null });
    window.addEventListener("keydown", key);
    return () => window.removeEventListener("keydown", key);
  }, []);
  const charts = loaded.data ? chartsOf(loaded.data) : [];
  const beside = (by: number) => go({ cell: { ...cell, expert: (cell.expert + by + run.experts) % run.experts } });
  return (
    <Panel
      className="expert"
      title={`Layer ${cell.layer}, expert ${cell.expert}`}
      says={loaded.data && loaded.data.ep_rank !== null ? `On EP rank ${loaded.data.ep_rank}` : undefined}
      savable={savedCharts(
        `${run.name}_layer_${cell.layer}_expert_${cell.expert}`,
        `${run.name}, layer ${cell.layer}, expert ${cell.expert}`,
        charts,
      )}
      actions={
        <div className="stepper">
          <button onClick={() => beside(-1)} aria-label="Expert before">{"\u2039"}</button>
          <button onClick={() => beside(1)} aria-label="Next expert">{"\u203a"}</button>
          <button onClick={() => go({ cell: null })} aria-label="Close the expert" title="Close (Esc)">{"\u00d7"}</button>
        </div>
      }
    >
      <Ready of={loaded}>
        {(expert) => (
          <>
            {expert.note && <Note>{expert.note}</Note>}
            {charts.map((chart, i) => (
              <Lines key={chart.title} {...chart} at={step} pick={(to) => go({ step: to })} height={i ? 90 : 130} />
            ))}
            {expert.partners.length > 0 && (
              <Bars
                title="Chosen together with"
                rows={expert.partners.slice(0, LISTED).map((partner) => ({
                  name: `expert ${partner.expert}`,
                  share: partner.share,
                  mark: partner.null_share,
                  open: () => go({ cell: { layer: cell.layer, expert: partner.expert } }),
                }))}
                note="The mark is what loads alone would give."
              />
            )}
            {expert.domains.length > 0 ? (
              <Bars
                title="Domains"
                rows={expert.domains.slice(0, LISTED).map((domain) => ({ ...domain, mark: domain.null_share }))}
                note={expert.domains.some((domain) => domain.null_share !== null) ? "The mark is what chance would give." : undefined}
              />
            ) : (
              expert.domains_note && <Note title="No domains">{expert.domains_note}</Note>
            )}
            {run.show_tokens ? (
              <Suspense>
                <Vocabulary expert={expert} />
              </Suspense>
            ) : (
              run.has.tokens && <Note>Tokens are hidden, since training data can be private. `moe-megatron dashboard --show-tokens` shows them.</Note>
            )}
          </>
        )}
      </Ready>
    </Panel>
  );
}

interface Bar {
  name: string;
  /** Where names may be alike. */
  key?: number;
  hint?: string;
  /** In place of the share. */
  says?: string;
  share: number;
  mark?: number | null;
  open?: () => void;
}

export function Bars(props: { title: string; rows: Bar[]; note?: string; code?: boolean; write?: (value: number) => string }) {
  const { title, rows, note, code, write = percent } = props;
  const most = Math.max(...rows.flatMap((row) => [row.share, row.mark ?? 0])) || 1;
  return (
    <div className="bars">
      <h3>{title}</h3>
      <ul>
        {rows.map((row) => (
          <li key={row.key ?? row.name} title={row.hint}>
            {row.open ? <button onClick={row.open}>{row.name}</button> : code ? <code>{row.name}</code> : <span>{row.name}</span>}
            <i>
              <b style={{ width: `${(100 * row.share) / most}%` }} />
              {row.mark !== null && row.mark !== undefined && <em style={{ left: `${(100 * row.mark) / most}%` }} />}
            </i>
            <small>{row.says ?? write(row.share)}</small>
          </li>
        ))}
      </ul>
      {note && <p>{note}</p>}
    </div>
  );
}
