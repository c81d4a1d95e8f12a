/** A strip for each quantity of layers: how balanced each layer was, over all steps. */
import { useMemo } from "react";
import { paths } from "../data/paths";
import type { LayerQuantity, LayerSeries, Numbers } from "../data/types";
import { stacked } from "../draw/svg";
import { percent, ratio } from "../format";
import { Note, Panel, Ready } from "../parts/panel";
import { type Strip, StripChart, stripCsv, stripSvg } from "../parts/strip";
import { useMoment, useSubject } from "../state/context";
import { useLoaded } from "../state/loaded";
import { go } from "../state/place";

const COLUMNS = 240;

type Look = Pick<Strip, "title" | "says" | "kind" | "write" | "from" | "to">;

const LOOKS: Record<LayerQuantity, Look> = {
  max_over_mean: { title: "Busiest expert", says: "Load of the busiest expert over the mean of its layer", kind: "over", write: ratio, from: 1 },
  entropy: { title: "Entropy", says: "Entropy of the loads; less is less even", kind: "under" },
  drop_rate: { title: "Dropped", says: "Share of assignments that found no room", kind: "over", write: percent, from: 0 },
  dead: { title: "Dead experts", says: "Experts without a token", kind: "over", from: 0 },
  z_loss: { title: "Router z-loss", says: "How large the router's logits are", kind: "over" },
  bias_spread: { title: "Bias spread", says: "Between the lowest and the highest balancing bias", kind: "under", from: 0 },
};

/** Said in words where nothing of it ever happened: an empty picture says less. */
const NEVER: Partial<Record<LayerQuantity, string>> = { drop_rate: "Nothing was dropped.", dead: "No expert was without tokens for a whole column." };

const never = (series: LayerSeries): string[] =>
  (Object.keys(NEVER) as LayerQuantity[]).flatMap((name) => {
    const values = (series[name] ?? []).flat();
    return values.length && values.every((value) => value === null || value === 0) && values.includes(0) ? [NEVER[name]!] : [];
  });

const isEmpty = (rows: Numbers[]): boolean => !rows.some((row) => row.some((value) => value !== null));

export function stripsOf(series: LayerSeries): Strip[] {
  const ownWords = (series.more ?? [])
    .filter(({ values }) => !isEmpty(values))
    .map(({ title, says, values }): Strip => ({ title, says, kind: "over", steps: series.steps, layers: series.layers, rows: values }));
  const known = (Object.keys(LOOKS) as LayerQuantity[])
    .filter((name) => !isEmpty(series[name] ?? []) && !(NEVER[name] && !series[name].flat().some((value) => value)))
    .map((name) => ({ ...LOOKS[name], steps: series.steps, layers: series.layers, rows: series[name] }));
  return [...known, ...ownWords];
}

export function LayersView() {
  const { source, run, tick } = useSubject();
  const { step } = useMoment();
  const loaded = useLoaded(paths.layers(run.id, COLUMNS), (signal) => source.layers(run.id, COLUMNS, signal), tick, run.id);
  const strips = useMemo(() => (loaded.data ? stripsOf(loaded.data) : []), [loaded.data]);
  const words = useMemo(() => (loaded.data ? never(loaded.data) : []), [loaded.data]);
  return (
    <Panel
      title="Layers over time"
      says={["A row for each layer, the first on top. Click to go to a step.", ...words].join(" ")}
      savable={
        strips.length
          ? {
              name: `${run.name}_layers`,
              csv: () => strips.map((strip) => `# ${strip.title}\r\n${stripCsv(strip)}`).join("\r\n"),
              svg: () => stacked(strips.map(stripSvg)),
            }
          : null
      }
    >
      <Ready of={loaded} height={200}>
        {() =>
          strips.length ? (
            <div className="strips">
              {strips.map((strip) => (
                <StripChart key={strip.title} {...strip} at={step} pick={(to) => go({ step: to })} />
              ))}
            </div>
          ) : (
            <Note>This run has not recorded its layers yet. They appear with its first measured step.</Note>
          )
        }
      </Ready>
    </Panel>
  );
}

