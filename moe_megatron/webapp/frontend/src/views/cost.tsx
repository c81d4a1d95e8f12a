/** What training costs, in arithmetic, bytes moved and money: all of it, by layer over steps, and by expert. */
import { useState } from "react";
import { paths } from "../data/paths";
import type { Cost, ExpertCost, Numbers } from "../data/types";
import { type Chart, middles } from "../draw/chart";
import { type Of, ownSvg } from "../draw/own";
import { csvOf } from "../draw/svg";
import { bytes, short, spanText } from "../format";
import { Lines, savedCharts } from "../parts/lines";
import { Choice, Note, Panel, Ready } from "../parts/panel";
import { type Strip, StripChart, stripCsv, stripSvg } from "../parts/strip";
import { useMoment, useSubject } from "../state/context";
import { useLoaded } from "../state/loaded";
import { go } from "../state/place";
import { Heatmap } from "./own";

const COLUMNS = 200;
const flops = (value: number) => `${short(value)}${/[a-zA-Z]$/.test(short(value)) ? "" : " "}FLOP`;
const money = (currency: string | null) => (value: number) => `${short(value)} ${currency ?? ""}`.trim();

type Kind = "flops" | "bytes" | "money";
const KINDS: { kind: Kind; name: string; says: string }[] = [
  { kind: "flops", name: "Arithmetic", says: "FLOP of each layer in a step" },
  { kind: "bytes", name: "Bytes", says: "bytes between processes for each layer in a step" },
  { kind: "money", name: "Money", says: "what the steps of a column cost, by layer" },
];

const writer = (kind: Kind, currency: string | null) => ({ flops, bytes, money: money(currency) })[kind];
const rowsOf = (cost: Cost, kind: Kind): Numbers[] => cost[`${kind}_per_layer`];

function chartsOf(cost: Cost): Chart[] {
  const steps = middles(cost.steps);
  const total: Numbers = steps.map((_, i) => {
    const values = cost.flops_per_layer.map((row) => row[i]).filter((value): value is number => typeof value === "number");
    return values.length ? values.reduce((a, b) => a + b) : null;
  });
  return [
    { title: "Arithmetic a step", steps, lines: [{ name: "FLOP", values: total }], write: flops },
    { title: "Bytes between processes", steps, lines: [{ name: "bytes", values: cost.bytes }], write: bytes },
    { title: "Money so far", steps, lines: [{ name: cost.currency ?? "money", values: cost.money }], write: money(cost.currency) },
  ].filter((chart) => chart.lines[0]!.values.some((value) => value !== null));
}

function stripOf(cost: Cost, layers: number[], kind: Kind): Strip {
  const { name, says } = KINDS.find((known) => known.kind === kind)!;
  const rows = rowsOf(cost, kind);
  return { title: `${name} by layer`, says, steps: cost.steps, layers: layers.slice(0, rows.length), rows, kind: "over", write: writer(kind, cost.currency) };
}

/** What experts have cost, as a matrix. */
function matrixOf(cost: ExpertCost, kind: Kind): Of<"matrix"> {
  const each = cost[`${kind}_each`] ?? 0;
  const { name } = KINDS.find((known) => known.kind === kind)!;
  return {
    kind: "matrix",
    title: `${name} by expert`,
    values: cost.assignments.map((row) => row.map((times) => times * each)),
    rows: cost.layers.map((layer) => `layer ${layer}`),
    columns: (cost.assignments[0] ?? []).map((_, expert) => `expert ${expert}`),
    centre: null,
  };
}

const expertCsv = (cost: ExpertCost): string =>
  csvOf(
    ["layer", "expert", "assignments", "flop", "bytes", cost.currency ? `money_${cost.currency}` : "money"],
    cost.layers.flatMap((layer, row) =>
      cost.assignments[row]!.map((times, expert) => [
        layer,
        expert,
        times,
        ...([cost.flops_each, cost.bytes_each, cost.money_each] as const).map((each) => (each === null ? null : times * each)),
      ]),
    ),
  );

export function CostView() {
  const { source, run, tick } = useSubject();
  const { step } = useMoment();
  const [wanted, choose] = useState<Kind>("flops");
  const loaded = useLoaded(paths.cost(run.id, COLUMNS), (signal) => source.cost(run.id, COLUMNS, signal), tick, run.id);
  const cost = loaded.data;
  const charts = cost ? chartsOf(cost) : [];
  const there = KINDS.filter(({ kind }) => cost && rowsOf(cost, kind).length);
  const kind = there.some((known) => known.kind === wanted) ? wanted : (there[0]?.kind ?? null);
  const strip = cost && kind && stripOf(cost, run.layers, kind);
  return (
    <>
      <Panel title="What it costs" says={cost?.note} savable={savedCharts(`${run.name}_cost`, run.name, charts)}>
        <Ready of={loaded} height={240}>
          {() =>
            charts.length ? (
              <div className="charts">
                {charts.map((chart) => (
                  <Lines key={chart.title} {...chart} at={step} pick={(to) => go({ step: to })} height={190} />
                ))}
              </div>
            ) : (
              <Note>This run has no figures of cost: they are counted from its `config.yaml` and the steps that it has recorded.</Note>
            )
          }
        </Ready>
      </Panel>
      {strip && (
        <Panel
          title="By layer"
          actions={there.length > 1 && <Choice<Kind> label="Cost" value={kind} options={there.map(({ kind: value, name }) => ({ value, text: name }))} pick={choose} />}
          savable={{ name: `${run.name}_${kind}_by_layer`, csv: () => stripCsv(strip), svg: () => stripSvg(strip) }}
        >
          <StripChart {...strip} at={step} pick={(to) => go({ step: to })} />
        </Panel>
      )}
      {strip && <ByExpert kind={kind} />}
    </>
  );
}

function ByExpert({ kind }: { kind: Kind }) {
  const { source, run } = useSubject();
  const { step, newest } = useMoment();
  // While it follows the run, as often as the list of runs looks for news: it is about all steps.
  const span: [number, number] = [run.first_step, Math.max(run.first_step, newest ? run.last_step : step)];
  const loaded = useLoaded(paths.expertCost(run.id, span), (signal) => source.expertCost(run.id, span, signal), 0, run.id);
  const shown = loaded.data && matrixOf(loaded.data, kind);
  const write = writer(kind, loaded.data?.currency ?? null);
  const values = shown?.values.flat().filter((value): value is number => value !== null) ?? [];
  const [least, most] = values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, 0]);
  return (
    <Panel
      title="By expert"
      says={values.length ? `A row for each layer. Over ${spanText(loaded.data!.steps)} the lightest cell is ${write(least)} and the darkest ${write(most)}.` : undefined}
      savable={shown && { name: `${run.name}_cost_by_expert`, csv: () => expertCsv(loaded.data!), svg: () => ownSvg(shown) }}
    >
      <Ready of={loaded} height={160}>
        {(it) => <Heatmap shown={matrixOf(it, kind)} title={`${run.name}, cost by expert`} write={write} />}
      </Ready>
    </Panel>
  );
}
