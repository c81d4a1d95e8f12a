/**
 * Data that lies in the page: a report, which opens from a file, without a server, in ten years.
 *
 * It holds the server's answers by their addresses, frames in base64. A report is condensed: where it has
 * another number of columns or another span than asked for, the nearest it has is the answer.
 */
import { type Frame, decodeFrame, ratioOf } from "./frame";
import { paths } from "./paths";
import { type DataSource, SourceError, type Watcher } from "./source";
import type { Cells, Expert, LayerSeries, Numbers, OwnName, Run, RunSummary, Span } from "./types";

export interface RunData {
  runs: RunSummary[];
  calls: Record<string, unknown>;
  /** The spans of the frames that follow each other through a run. */
  columns?: Record<string, Span[]>;
}

const fromBase64 = (text: string): ArrayBuffer => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;

export class EmbeddedSource implements DataSource {
  readonly live = false;
  private readonly byPath = new Map<string, { query: URLSearchParams; value: unknown }[]>();

  constructor(private readonly data: RunData) {
    for (const [address, value] of Object.entries(data.calls)) {
      const [path = "", query = ""] = address.split("?");
      const known = this.byPath.get(path) ?? [];
      known.push({ query: new URLSearchParams(query), value });
      this.byPath.set(path, known);
    }
  }

  /** The answer whose steps are nearest to those asked for, among those for the same cell or view. */
  private async find<T>(address: string): Promise<T> {
    const [path = "", query = ""] = address.split("?");
    const asked = new URLSearchParams(query);
    const same = (this.byPath.get(path) ?? []).filter((known) =>
      ["layer", "expert", "name"].every((name) => known.query.get(name) === asked.get(name)),
    );
    const far = (known: URLSearchParams) =>
      ["first", "last", "since"].reduce((sum, name) => sum + Math.abs(Number(known.get(name)) - Number(asked.get(name))), 0);
    const best = same.reduce<(typeof same)[number] | null>(
      (nearest, known) => (nearest && far(nearest.query) <= far(known.query) ? nearest : known),
      null,
    );
    if (!best) {
      throw new SourceError("This report does not hold that. Open the run with `moe-megatron dashboard RUN_DIR` to see it.");
    }
    return best.value as T;
  }

  runs = async (): Promise<RunSummary[]> => this.data.runs;
  run: DataSource["run"] = (id) => this.find(paths.run(id));
  matrix = async (id: string, span: Span): Promise<Frame> =>
    decodeFrame(fromBase64(await this.find<string>(paths.matrix(id, span))));
  layers: DataSource["layers"] = (id, columns) => this.find(paths.layers(id, columns));
  summary: DataSource["summary"] = (id) => this.find(paths.summary(id));
  series: DataSource["series"] = (id, columns) => this.find(paths.series(id, columns));
  expert: DataSource["expert"] = (id, layer, expert, columns) =>
    this.find<Expert>(paths.expert(id, layer, expert, columns)).catch((problem: Error) => this.expertOfFrames(id, layer, expert, problem));
  flow: DataSource["flow"] = (id, span) => this.find(paths.flow(id, span));
  moves: DataSource["moves"] = (id, since, last) => this.find(paths.moves(id, since, last));
  ranks: DataSource["ranks"] = (id, span) => this.find(paths.ranks(id, span));
  cost: DataSource["cost"] = (id, columns) => this.find(paths.cost(id, columns));
  expertCost: DataSource["expertCost"] = (id, span) => this.find(paths.expertCost(id, span));
  views = async (): Promise<OwnName[]> => (this.data.calls[paths.views()] ?? []) as OwnName[];
  own: DataSource["own"] = (id, name, span) => this.find(paths.own(id, name, span));
  events: DataSource["events"] = (id, after) => this.find(paths.events(id, after));
  log: DataSource["log"] = (id, after) => this.find(paths.log(id, after));

  /** What frames, layers and bytes of all experts tell of one of them. */
  private async expertOfFrames(id: string, layer: number, expert: number, problem: Error): Promise<Expert> {
    const steps = this.data.columns?.[id] ?? [];
    if (!steps.length) throw problem;
    const run = await this.find<Run>(paths.run(id));
    const row = run.layers.indexOf(layer);
    const frames = await Promise.all(steps.map((span) => this.matrix(id, span)));
    const load = frames.map((frame) => ratioOf(frame.cells[row * frame.experts + expert]!));
    const layers = await this.find<LayerSeries>(paths.layers(id, 0)).catch(() => null);
    const cells = await this.find<Cells>(`${paths.run(id)}/cells`).catch(() => null);
    return {
      steps,
      load,
      drop_rate: layers ? steps.map((span) => layers.drop_rate[layers.layers.indexOf(layer)]?.[columnOf(layers.steps, middle(span))] ?? null) : [],
      bias: cells?.bias ? biasOf(cells, steps, run, row, expert) : [],
      ep_rank: run.expert_ranks[row]?.[expert] ?? null,
      partners: cells?.each ? partnersOf(cells, run, row, expert) : [],
      tokens: [],
      tokens_step: null,
      domains: [],
      domains_note: "",
      note: run.has.affinity ? leftOut(cells, run) : undefined,
    };
  }

  models = async (): Promise<never[]> => [];
  inspect = async (): Promise<never> => {
    throw new SourceError("A report cannot ask a model. Open the run with `moe-megatron dashboard RUN_DIR` for that.");
  };
  ask = async (): Promise<never> => {
    throw new SourceError("A report cannot reach a run.");
  };
  watch(_id: string, watcher: Watcher): () => void {
    watcher.connection("none");
    return () => {};
  }
}

const middle = ([first, last]: Span): number => (first + last) / 2;

/** The column that a step is in. */
const columnOf = (columns: Span[], step: number): number => columns.findIndex(([, last]) => step <= last);

/** The bias at the moments that there are; other columns have none, and the line goes on. */
function biasOf(cells: Cells, steps: Span[], run: Run, row: number, expert: number): Numbers {
  const bytes = new Uint8Array(fromBase64(cells.bias));
  const low = cells.low[row] ?? 0;
  const found: Numbers = steps.map(() => null);
  cells.steps.forEach(([, last], column) => {
    const byte = bytes[(column * run.layers.length + row) * run.experts + expert]!;
    if (byte < 255) found[columnOf(steps, last)] = low + (byte / 254) * ((cells.high[row] ?? low) - low);
  });
  return found;
}

const shareOf = (byte: number): number => (byte ? 2 ** ((byte - 255) / 16) : 0);

function partnersOf(cells: Cells, run: Run, row: number, expert: number): Expert["partners"] {
  const share = new Uint8Array(fromBase64(cells.share!));
  const chance = new Uint8Array(fromBase64(cells.null_share!));
  const numbers = fromBase64(cells.partners!);
  const partners = run.experts <= 256 ? new Uint8Array(numbers) : new Uint16Array(numbers);
  const first = (row * run.experts + expert) * cells.each;
  return Array.from({ length: cells.each }, (_, i) => ({
    expert: partners[first + i]!,
    share: shareOf(share[first + i]!),
    null_share: shareOf(chance[first + i]!),
  })).filter((partner) => partner.share > 0);
}

/** What a report of a large model does not say of an expert. */
function leftOut(cells: Cells | null, run: Run): string | undefined {
  const more = "`moe-megatron dashboard RUN_DIR` shows all.";
  if (!cells) return `Bias and partners of so many experts are too large for a report; ${more}`;
  if (cells.each >= Math.min(8, run.experts - 1)) return undefined;
  return `Of this model, a report has the bias at ${cells.steps.length} moments and ${cells.each} partners of each expert; ${more}`;
}
