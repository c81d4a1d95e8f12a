/** What the server says, as it says it. Layers are counted from 1, experts from 0, steps from 1. */

export type RunState = "running" | "ended" | "stopped" | "empty" | "unreadable";
export type Numbers = (number | null)[];
export type Span = [first: number, last: number];

export interface RunSummary {
  id: string;
  name: string;
  path: string;
  state: RunState;
  problem: string | null;
  layers: number[];
  experts: number;
  top_k: number;
  first_step: number;
  last_step: number;
  loss: number | null;
}

export interface Checkpoint {
  step: number;
  path: string;
  size_bytes: number;
  best: boolean;
}

export interface User {
  name: string;
  role: "viewer" | "operator";
}

export interface Run extends RunSummary {
  quantities: string[];
  config: string;
  /** The EP rank of each expert of each layer; empty with one rank. */
  expert_ranks: number[][];
  checkpoints: Checkpoint[];
  /** The ratio of load to fair share from which an expert counts as overloaded. */
  overload: number;
  show_tokens: boolean;
  /** Who looks; nobody in particular where the server asks for no token. */
  user?: User | null;
  has: { profile: boolean; affinity: boolean; tokens: boolean; tasks: boolean; inspector?: boolean };
}

export const LAYER_QUANTITIES = ["max_over_mean", "entropy", "drop_rate", "dead", "z_loss", "bias_spread"] as const;
export type LayerQuantity = (typeof LAYER_QUANTITIES)[number];

/** Of each quantity a row for each layer, a column for each span of steps; [] where the run has none. */
export type LayerSeries = { steps: Span[]; layers: number[]; more?: FurtherQuantity[] } & Record<LayerQuantity, Numbers[]>;

/** A quantity that this run measures, with its words. */
export interface FurtherQuantity {
  name: string;
  title: string;
  says: string;
  values: Numbers[];
}

export interface Series {
  steps: Span[];
  loss: Numbers;
  learning_rate: Numbers;
  grad_norm: Numbers;
  tokens_per_second: Numbers;
  memory_bytes: Numbers;
  peak_memory_bytes: Numbers;
  evaluations: { step: number; name: string; loss: number | null }[];
  phases: Record<string, number>;
}

export interface SummaryTable {
  title: string;
  says: string;
  columns: string[];
  rows: string[][];
}

export interface Summary {
  facts: { name: string; value: string; note: string }[];
  tables: SummaryTable[];
  charts: { title: string; steps: number[]; lines: Record<string, Numbers> }[];
}

export interface Expert {
  steps: Span[];
  load: Numbers;
  drop_rate: Numbers;
  bias: Numbers;
  ep_rank: number | null;
  partners: { expert: number; share: number; null_share: number | null }[];
  tokens: ExpertToken[];
  /** The step whose tokens they are. */
  tokens_step: number | null;
  domains: { name: string; share: number; null_share: number | null }[];
  /** Why there are none, and what to do. */
  domains_note: string;
  /** What is left out. */
  note?: string;
}

/** Numbers of all experts in bytes, as base64; see cells_call.py. */
export interface Cells {
  steps: Span[];
  /** Least and largest bias of each layer. */
  low: Numbers;
  high: Numbers;
  /** Column, layer, expert. */
  bias: string;
  /** How many partners of each expert: layer, expert, partner. */
  each: number;
  partners?: string;
  share?: string;
  null_share?: string;
}

export interface ExpertToken {
  id: number;
  /** Null where the run has no tokenizer. */
  text: string | null;
  share: number | null;
  null_share: number | null;
}

export interface Flow {
  layers: number[];
  links: FlowLink[];
  source: string;
  note: string;
}

export interface FlowLink {
  from_layer: number;
  from_expert: number;
  to_expert: number;
  share: number;
}

export interface Move {
  layer: number;
  expert: number;
  rank_before: number;
  rank_after: number;
  ratio_before: number | null;
  ratio_after: number | null;
}

export interface Moves {
  since: number;
  last: number;
  moves: Move[];
}

export interface Ranks {
  ranks: { rank: number; load: number | null; wait_seconds: number | null }[];
}

export interface Cost {
  steps: Span[];
  flops_per_layer: Numbers[];
  bytes: Numbers;
  bytes_per_layer: Numbers[];
  money: Numbers;
  /** What the steps of a column cost. */
  money_per_layer: Numbers[];
  currency: string | null;
  note: string;
}

/** What each expert has cost in a window: so many assignments, and what each of them costs. */
export interface ExpertCost {
  steps: Span;
  layers: number[];
  assignments: number[][];
  flops_each: number | null;
  bytes_each: number | null;
  money_each: number | null;
  currency: string | null;
  note: string;
}

export interface RunEvent {
  seq: number;
  time: string | number;
  step: number | null;
  kind: string;
  text: string;
  level: string;
}

export interface Inspection {
  tokens: string[];
  layers: number[];
  /** Layer, token, choice. */
  experts: number[][][];
  weights: number[][][];
}

/** A view that somebody registered with the server. */
export interface OwnName {
  name: string;
  title: string;
}

/** What such a view shows. */
export type OwnShown = { title: string } & (
  | { kind: "matrix"; values: Numbers[]; rows: string[]; columns: string[]; centre: number | null }
  | { kind: "lines"; x: number[]; lines: Record<string, Numbers>; x_label: string }
  | { kind: "table"; columns: string[]; rows: (string | number | null)[][] }
  | { kind: "graph"; nodes: string[]; links: { from: string; to: string; weight: number | null }[] }
);

/** What the last step of a live run was like. */
export interface StepNews {
  step: number;
  loss: number | null;
  tokens_per_second: number | null;
  max_over_mean: Numbers;
  entropy: Numbers;
}
