/** Two runs side by side: losses, balance, and both matrices in one order of experts. */
import { difference } from "../data/frame";
import { type Order } from "../data/order";
import { paths } from "../data/paths";
import type { Frame } from "../data/frame";
import type { LayerSeries, Run, RunSummary, Series } from "../data/types";
import { type Chart, chartCsv, chartSvg, merged, middles } from "../draw/chart";
import { stacked } from "../draw/svg";
import { count, ratio } from "../format";
import { Lines } from "../parts/lines";
import { Note, Panel, Ready } from "../parts/panel";
import { spanOf, useFrame, useMoment, useSubject } from "../state/context";
import { useLoaded } from "../state/loaded";
import { useColumns } from "../state/ordering";
import { go, usePlace } from "../state/place";
import { LoadLegend, Matrix, matrixCsv, matrixSvg } from "./matrix";

const COLUMNS = 300;

export function CompareView() {
  const { run, runs } = useSubject();
  const { other } = usePlace();
  const others = runs.filter((each) => each.id !== run.id && each.last_step > 0);
  const chosen = others.find((each) => each.id === other) ?? others[0];
  if (!chosen) {
    return (
      <Panel title="Compare">
        <Note>There is one run here. Give the dashboard the folder of another one too: `moe-megatron dashboard RUN_A RUN_B`.</Note>
      </Panel>
    );
  }
  return (
    <div className="compare">
      <label className="field">
        <span>
          <b>{run.name}</b> against
        </span>
        <select value={chosen.id} onChange={(event) => go({ other: event.target.value })}>
          {others.map((each) => (
            <option key={each.id} value={each.id}>
              {each.name}
            </option>
          ))}
        </select>
      </label>
      <Curves key={`${chosen.id} curves`} other={chosen} />
      <Matrices key={chosen.id} other={chosen} />
    </div>
  );
}

/** The mean over layers of the load of the busiest expert. */
const balance = ({ steps, max_over_mean: rows }: LayerSeries) =>
  steps.map((_, i) => {
    const values = rows.map((row) => row[i]).filter((value): value is number => value !== null && value !== undefined);
    return values.length ? values.reduce((a, b) => a + b) / values.length : null;
  });

function Curves({ other }: { other: RunSummary }) {
  const { source, run, tick } = useSubject();
  const { step } = useMoment();
  const loaded = useLoaded(
    `${run.id} with ${other.id}`,
    async (signal) => {
      const ids = [run.id, other.id];
      const series = await Promise.all(ids.map((id) => source.series(id, COLUMNS, signal)));
      return { series, layers: await Promise.all(ids.map((id) => source.layers(id, COLUMNS, signal))) };
    },
    tick,
  );
  const names = [run.name, other.name === run.name ? `${other.name} (2)` : other.name];
  const charts = loaded.data ? chartsOf(names, loaded.data.series, loaded.data.layers) : [];
  return (
    <Panel
      title="Loss and balance"
      savable={
        charts.length
          ? {
              name: `${names.join("_against_")}`,
              csv: () => charts.map((chart) => `# ${chart.title}\r\n${chartCsv(chart)}`).join("\r\n"),
              svg: () => stacked(charts.map((chart) => chartSvg(chart))),
            }
          : null
      }
    >
      <Ready of={loaded} height={260}>
        {() => (
          <div className="charts pair">
            {charts.map((chart) => (
              <Lines key={chart.title} {...chart} at={step} pick={(to) => go({ step: to })} height={220} />
            ))}
          </div>
        )}
      </Ready>
    </Panel>
  );
}

function chartsOf(names: string[], series: Series[], layers: LayerSeries[]): Chart[] {
  const loss = series.map((one, i) => ({ steps: middles(one.steps), lines: [{ name: names[i]!, values: one.loss }] }));
  const busiest = layers.map((one, i) => ({ steps: middles(one.steps), lines: [{ name: names[i]!, values: balance(one) }] }));
  return [
    { title: "Loss", ...merged(loss) },
    { title: "Busiest expert, mean of layers", write: ratio, ...merged(busiest) },
  ];
}

function Matrices({ other }: { other: RunSummary }) {
  const { source, run } = useSubject();
  const { order, over, cell } = usePlace();
  const { step } = useMoment();
  const here = useFrame();
  const at = Math.min(step, other.last_step);
  const span = spanOf({ ...run, ...other } as Run, at, over);
  const there = useLoaded(paths.matrix(other.id, span), (signal) => source.matrix(other.id, span, signal), 0, other.id);
  const columns = useColumns(source, run, order);
  const alike = other.layers.length === run.layers.length && other.experts === run.experts;
  if (!alike) {
    return (
      <Panel title="Matrices">
        <Note>
          {run.name} has {run.layers.length} layers of {run.experts} experts, {other.name} {other.layers.length} of {other.experts}: they have no cells in
          common. Losses and balance are above.
        </Note>
      </Panel>
    );
  }
  const both = { run, columns, cell, order: order as Order, plain: true };
  const sheets: { title: string; says: string; frame: Frame; write?: (value: number | null) => string }[] =
    here.data && there.data && here.data.cells.length === there.data.cells.length
      ? [
          { title: run.name, says: `Step ${count(here.data.last)}`, frame: here.data },
          { title: other.name, says: `Step ${count(there.data.last)}${at < step ? ", its last" : ""}`, frame: there.data },
          {
            title: "Difference",
            says: `Load in ${run.name} over load in ${other.name}`,
            frame: difference(here.data, there.data),
            write: (value) => (value === null ? "-" : `${ratio(value)} the other's`),
          },
        ]
      : [];
  return (
    <>
      {here.error && <Note>{here.error}</Note>}
      {there.error && <Note>{there.error}</Note>}
      <div className={run.experts <= 32 ? "sheets beside" : "sheets"}>
      {sheets.map((sheet) => (
        <Panel
          key={sheet.title + sheet.says.slice(0, 4)}
          title={sheet.title}
          says={sheet.says}
          savable={{ name: `${run.name}_against_${other.name}`, csv: () => matrixCsv(sheet.frame, run), svg: () => matrixSvg(sheet.frame, columns, run, `${sheet.title}: ${sheet.says}`) }}
        >
          <Matrix {...both} frame={sheet.frame} write={sheet.write} open={(to) => go({ cell: to })} />
        </Panel>
      ))}
      </div>
      {sheets.length > 0 && <LoadLegend />}
    </>
  );
}
