/** What training costs: arithmetic by layer, bytes moved, and money. */
import { paths } from "../data/paths";
import type { Cost, Numbers } from "../data/types";
import { type Chart, middles } from "../draw/chart";
import { bytes, short } from "../format";
import { Lines, savedCharts } from "../parts/lines";
import { Note, Panel, Ready } from "../parts/panel";
import { type Strip, StripChart } from "../parts/strip";
import { useMoment, useSubject } from "../state/context";
import { useLoaded } from "../state/loaded";
import { go } from "../state/place";

const COLUMNS = 200;
const flops = (value: number) => `${short(value)}${/[a-zA-Z]$/.test(short(value)) ? "" : " "}FLOP`;

function chartsOf(cost: Cost): Chart[] {
  const steps = middles(cost.steps);
  const total: Numbers = steps.map((_, i) => {
    const values = cost.flops_per_layer.map((row) => row[i]).filter((value): value is number => typeof value === "number");
    return values.length ? values.reduce((a, b) => a + b) : null;
  });
  return [
    { title: "Arithmetic a step", steps, lines: [{ name: "FLOP", values: total }], write: flops },
    { title: "Bytes between processes", steps, lines: [{ name: "bytes", values: cost.bytes }], write: bytes },
    {
      title: "Money so far",
      steps,
      lines: [{ name: cost.currency ?? "money", values: cost.money }],
      write: (value: number) => `${short(value)} ${cost.currency ?? ""}`,
    },
  ].filter((chart) => chart.lines[0]!.values.some((value) => value !== null));
}

export function CostView() {
  const { source, run, tick } = useSubject();
  const { step } = useMoment();
  const loaded = useLoaded(paths.cost(run.id, COLUMNS), (signal) => source.cost(run.id, COLUMNS, signal), tick, run.id);
  const charts = loaded.data ? chartsOf(loaded.data) : [];
  const strip: Strip | null = loaded.data?.flops_per_layer.length
    ? {
        title: "Arithmetic by layer",
        says: "FLOP of each layer in a step",
        steps: loaded.data.steps,
        layers: run.layers.slice(0, loaded.data.flops_per_layer.length),
        rows: loaded.data.flops_per_layer,
        kind: "over",
        write: flops,
      }
    : null;
  return (
    <Panel
      title="What it costs"
      says={loaded.data?.note}
      savable={savedCharts(`${run.name}_cost`, run.name, charts)}
    >
      <Ready of={loaded} height={240}>
        {() =>
          charts.length ? (
            <div className="charts">
              {charts.map((chart) => (
                <Lines key={chart.title} {...chart} at={step} pick={(to) => go({ step: to })} height={190} />
              ))}
              {strip && <StripChart {...strip} at={step} pick={(to) => go({ step: to })} />}
            </div>
          ) : (
            <Note>This run has no figures of cost: they are counted from its `config.yaml` and the steps that it has recorded.</Note>
          )
        }
      </Ready>
    </Panel>
  );
}
