/** The order of experts that the reader chose, found from the whole run. */
import { useMemo } from "react";
import type { Frame } from "../data/frame";
import { type Columns, type Order, byId, byLoad, byRank, bySimilarity } from "../data/order";
import type { DataSource } from "../data/source";
import type { Run, Span } from "../data/types";
import { useLoaded } from "./loaded";

/** At so many moments loads are compared. */
const MOMENTS = 24;

async function framesFor(source: DataSource, run: Run, order: Order, signal: AbortSignal): Promise<Frame[]> {
  const { first_step: first, last_step: last, id } = run;
  if (order === "load") return [await source.matrix(id, [first, last], signal)];
  const parts = Math.min(MOMENTS, last - first + 1);
  const edge = (part: number) => first + Math.floor(((last - first + 1) * part) / parts);
  const spans = Array.from({ length: parts }, (_, i): Span => [edge(i), edge(i + 1) - 1]);
  return Promise.all(spans.map((span) => source.matrix(id, span, signal)));
}

export function useColumns(source: DataSource, run: Run, order: Order): Columns {
  const wanted = order === "load" || order === "similarity";
  const frames = useLoaded(wanted ? `${run.id} ${order}` : null, (signal) => framesFor(source, run, order, signal));
  const { layers, experts, expert_ranks: ranks } = run;
  return useMemo(() => {
    const [first] = frames.data ?? [];
    if (order === "rank") return byRank(ranks, layers.length, experts);
    if (!first || first.layers !== layers.length) return byId(layers.length, experts);
    if (order === "load") return byLoad(first);
    return order === "similarity" ? bySimilarity(frames.data!) : byId(layers.length, experts);
  }, [order, frames.data, ranks, layers.length, experts]);
}
