/** The addresses of the server's answers, which are also the names of what a report holds. */
import type { Span } from "./types";

function query(words: Record<string, string | number>): string {
  const text = new URLSearchParams(Object.entries(words).map(([name, value]) => [name, String(value)]));
  return `?${text}`;
}

const ofRun = (id: string, what = "", words?: Record<string, string | number>) =>
  `/api/runs/${encodeURIComponent(id)}${what && `/${what}`}${words ? query(words) : ""}`;

export const paths = {
  runs: () => "/api/runs",
  run: (id: string) => ofRun(id),
  matrix: (id: string, [first, last]: Span) => ofRun(id, "matrix", { first, last, quantity: "load" }),
  layers: (id: string, columns: number) => ofRun(id, "layers", { columns }),
  summary: (id: string) => ofRun(id, "summary"),
  series: (id: string, columns: number) => ofRun(id, "series", { columns }),
  expert: (id: string, layer: number, expert: number, columns: number) =>
    ofRun(id, "expert", { layer, expert, columns }),
  flow: (id: string, [first, last]: Span) => ofRun(id, "flow", { first, last }),
  moves: (id: string, since: number, last: number) => ofRun(id, "moves", { since, last }),
  ranks: (id: string, [first, last]: Span) => ofRun(id, "ranks", { first, last }),
  cost: (id: string, columns: number) => ofRun(id, "cost", { columns }),
  expertCost: (id: string, [first, last]: Span) => ofRun(id, "expert_cost", { first, last }),
  views: () => "/api/views",
  own: (id: string, name: string, [first, last]: Span) => ofRun(id, "view", { name, first, last }),
  events: (id: string, after: number) => ofRun(id, "events", { after }),
  log: (id: string, after: number) => ofRun(id, "log", { after }),
  logIn: () => "/api/login",
  logOut: () => "/api/logout",
  ask: (id: string) => ofRun(id, "ask"),
  models: () => "/api/models",
  inspect: () => "/api/inspect",
  live: (id: string) => `/api/live${query({ run: id })}`,
};
