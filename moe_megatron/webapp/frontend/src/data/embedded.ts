/**
 * Data that lies in the page: a report, which opens from a file, without a server, in ten years.
 *
 * It holds the server's answers by their addresses, frames in base64. A report is condensed: where it has
 * another number of columns or another span than asked for, the nearest it has is the answer.
 */
import { type Frame, decodeFrame } from "./frame";
import { paths } from "./paths";
import { type DataSource, SourceError, type Watcher } from "./source";
import type { RunSummary, Span } from "./types";

export interface RunData {
  runs: RunSummary[];
  calls: Record<string, unknown>;
}

/** The data of this page; null where it came from a server. */
export function dataOfPage(page: Document = document): RunData | null {
  const holder = page.getElementById("run-data");
  return holder?.textContent ? JSON.parse(holder.textContent) : null;
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

  /** The answer whose span is nearest to that asked for, among those for the same cell. */
  private async find<T>(address: string, span?: Span): Promise<T> {
    const [path = "", query = ""] = address.split("?");
    const asked = new URLSearchParams(query);
    const same = (this.byPath.get(path) ?? []).filter((known) =>
      ["layer", "expert"].every((name) => known.query.get(name) === asked.get(name)),
    );
    const far = (known: URLSearchParams) =>
      span && known.has("first")
        ? Math.abs(Number(known.get("first")) - span[0]) + Math.abs(Number(known.get("last")) - span[1])
        : 0;
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
    decodeFrame(fromBase64(await this.find<string>(paths.matrix(id, span), span)));
  layers: DataSource["layers"] = (id, columns) => this.find(paths.layers(id, columns));
  series: DataSource["series"] = (id, columns) => this.find(paths.series(id, columns));
  expert: DataSource["expert"] = (id, layer, expert, columns) => this.find(paths.expert(id, layer, expert, columns));
  flow: DataSource["flow"] = (id, span) => this.find(paths.flow(id, span), span);
  moves: DataSource["moves"] = (id, since, last) => this.find(paths.moves(id, since, last));
  ranks: DataSource["ranks"] = (id, span) => this.find(paths.ranks(id, span), span);
  cost: DataSource["cost"] = (id, columns) => this.find(paths.cost(id, columns));
  views = async (): Promise<never[]> => [];
  own: DataSource["own"] = (id, name, span) => this.find(paths.own(id, name, span), span);
  events: DataSource["events"] = (id, after) => this.find(paths.events(id, after));
  log: DataSource["log"] = (id, after) => this.find(paths.log(id, after));

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
