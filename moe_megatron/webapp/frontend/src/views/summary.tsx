/** A run in facts and tables, as the server words them, and its configuration. */
import { paths } from "../data/paths";
import type { SummaryTable } from "../data/types";
import { csvOf } from "../draw/svg";
import { tableSvg } from "../draw/table";
import { Lines, savedCharts } from "../parts/lines";
import { Panel, Ready } from "../parts/panel";
import { Table } from "../parts/table";
import { useMoment, useSubject } from "../state/context";
import { useLoaded } from "../state/loaded";
import { go } from "../state/place";

export function SummaryView() {
  const { source, run, tick } = useSubject();
  const { step } = useMoment();
  const loaded = useLoaded(paths.summary(run.id), (signal) => source.summary(run.id, signal), tick, run.id);
  const charts = (loaded.data?.charts ?? []).map(({ title, steps, lines }) => ({
    title,
    steps,
    lines: Object.entries(lines).map(([name, values]) => ({ name, values, dots: true })),
  }));
  const facts = { title: "Summary", says: "", columns: ["", "", ""], rows: (loaded.data?.facts ?? []).map(({ name, value, note }) => [name, value, note]) };
  return (
    <>
      <Panel title="Summary" savable={saved(run.name, facts)}>
        <Ready of={loaded} height={240}>
          {() => <Table text title="Summary" rows={facts.rows} />}
        </Ready>
      </Panel>
      {loaded.data?.tables.map((table) => (
        <Panel key={table.title} title={table.title} says={table.says} savable={saved(run.name, table)}>
          {table.rows.length > 0 && <Table text title={table.title} columns={table.columns} rows={table.rows} />}
        </Panel>
      ))}
      {charts.map((chart) => (
        <Panel key={chart.title} title={chart.title} savable={savedCharts(`${run.name}_accuracy`, run.name, [chart])}>
          <Lines {...chart} at={step} pick={(to) => go({ step: to })} height={190} />
        </Panel>
      ))}
      {run.config && (
        <Panel title="Configuration" says="config.yaml">
          <pre className="log" tabIndex={0} aria-label="Configuration">
            {run.config}
          </pre>
        </Panel>
      )}
    </>
  );
}

const saved = (run: string, { title, columns, rows }: SummaryTable) =>
  rows.length
    ? { name: `${run}_${title.toLowerCase().replaceAll(" ", "_")}`, csv: () => csvOf(columns, rows), svg: () => tableSvg(`${run}: ${title}`, columns, rows) }
    : null;
