/** Where the page has its data from: a server, or the page itself (a report). Views know nothing else. */
import type { Frame } from "./frame";
import type {
  Cost, Expert, ExpertCost, Flow, Inspection, LayerSeries, Moves, OwnName, OwnShown, Ranks, Run, RunEvent, RunState, RunSummary, Series, Span, StepNews,
  Summary,
} from "./types";

/** What went wrong, in words for the reader. */
export class SourceError extends Error {}

/** What is said instead of runs to whom the server does not know. */
export const LOG_IN = "Log in to see the runs.";

export type Connection = "connecting" | "open" | "lost" | "none";

/** What a run that is watched may tell. */
export interface Watcher {
  frame(frame: Frame): void;
  step(news: StepNews): void;
  event(event: RunEvent): void;
  state(state: RunState): void;
  /** With the seconds until the next attempt, where the connection is lost. */
  connection(connection: Connection, retrySeconds?: number): void;
}

/** Which model: a checkpoint of a run, or one of `models`. */
export type Asked = { run: string; checkpoint: number } | { model: string };

export interface DataSource {
  /** Whether anything can still change. */
  readonly live: boolean;
  runs(signal?: AbortSignal): Promise<RunSummary[]>;
  run(id: string, signal?: AbortSignal): Promise<Run>;
  /** The mean load over a span of steps. */
  matrix(id: string, span: Span, signal?: AbortSignal): Promise<Frame>;
  layers(id: string, columns: number, signal?: AbortSignal): Promise<LayerSeries>;
  summary(id: string, signal?: AbortSignal): Promise<Summary>;
  series(id: string, columns: number, signal?: AbortSignal): Promise<Series>;
  expert(id: string, layer: number, expert: number, columns: number, signal?: AbortSignal): Promise<Expert>;
  flow(id: string, span: Span, signal?: AbortSignal): Promise<Flow>;
  moves(id: string, since: number, last: number, signal?: AbortSignal): Promise<Moves>;
  ranks(id: string, span: Span, signal?: AbortSignal): Promise<Ranks>;
  cost(id: string, columns: number, signal?: AbortSignal): Promise<Cost>;
  expertCost(id: string, span: Span, signal?: AbortSignal): Promise<ExpertCost>;
  /** Views that were registered beside those of the page. */
  views(signal?: AbortSignal): Promise<OwnName[]>;
  own(id: string, name: string, span: Span, signal?: AbortSignal): Promise<OwnShown>;
  events(id: string, after: number, signal?: AbortSignal): Promise<{ next: number; events: RunEvent[] }>;
  log(id: string, after: number, signal?: AbortSignal): Promise<{ next: number; lines: string[] }>;
  /** A server may ask who one is; a report has nobody to ask. */
  logIn?(token: string): Promise<void>;
  logOut?(): Promise<void>;
  /** Models that can be asked besides the checkpoints of a run. */
  models(signal?: AbortSignal): Promise<{ id: string; name: string }[]>;
  inspect(asked: Asked, text: string, signal?: AbortSignal): Promise<Inspection>;
  ask(id: string, what: "checkpoint" | "stop"): Promise<void>;
  /** Returns what ends it. */
  watch(id: string, watcher: Watcher): () => void;
}
