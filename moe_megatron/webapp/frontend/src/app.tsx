/** The frame of the page: which run, which view, how it stands, and the bar of time. */
import { type ComponentType, Suspense, lazy, useEffect, useMemo, useState } from "react";
import { paths } from "./data/paths";
import { type DataSource, LOG_IN } from "./data/source";
import type { Run, RunState, RunSummary } from "./data/types";
import { count, short } from "./format";
import { Note, Problem, Waiting } from "./parts/panel";
import { TimeBar } from "./parts/timebar";
import { SubjectContext, lastStep } from "./state/context";
import type { View } from "./state/link";
import { type Live, useNews, useWatched } from "./state/live";
import { type Loaded, useLoaded, useTick } from "./state/loaded";
import { go, usePlace } from "./state/place";
import { turnTheme, useTheme } from "./state/theme";
import { ChangesView } from "./views/changes";
import { CompareView } from "./views/compare";
import { RanksView } from "./views/ranks";
import { RoutingView } from "./views/routing";
import { TrainingView } from "./views/training";

/** Laid out by a library of its own. What is lazy is fetched when it is needed; a report has it in its one script. */
const CostView = lazy(() => import("./views/cost").then(({ CostView: Cost }) => ({ default: Cost as ComponentType })));
const FlowView = lazy(() => import("./views/flow").then(({ FlowView: Flow }) => ({ default: Flow as ComponentType })));
const OwnView = lazy(() => import("./views/own").then(({ OwnView: Own }) => ({ default: Own as ComponentType })));
const SummaryView = lazy(() => import("./views/summary").then(({ SummaryView: Summary }) => ({ default: Summary as ComponentType })));
const TokensView = lazy(() => import("./views/tokens").then(({ TokensView: Tokens }) => ({ default: Tokens })));

/** Few servers ask who one is, and each once a day. */
const Login = lazy(() => import("./views/login").then(({ Login: Form }) => ({ default: Form })));

const VIEWS: { view: View; name: string; draw: ComponentType }[] = [
  { view: "routing", name: "Routing", draw: RoutingView },
  { view: "training", name: "Training", draw: TrainingView },
  { view: "changes", name: "Changes", draw: ChangesView },
  { view: "ranks", name: "EP ranks", draw: RanksView },
  { view: "compare", name: "Compare", draw: CompareView },
  { view: "cost", name: "Cost", draw: CostView },
  { view: "flow", name: "Flow", draw: FlowView },
  { view: "summary", name: "Summary", draw: SummaryView },
  { view: "tokens", name: "Tokens", draw: TokensView },
  { view: "own", name: "Own view", draw: OwnView },
];

const LOOK_AGAIN_S = 4;

export function App({ source }: { source: DataSource }) {
  const place = usePlace();
  const look = useTick(source.live, LOOK_AGAIN_S);
  const runs = useLoaded(paths.runs(), (signal) => source.runs(signal), look);
  const locked = runs.error === LOG_IN;
  const summary = locked ? null : chosen(runs.data ?? [], place.run);
  const id = summary && summary.state !== "empty" && summary.state !== "unreadable" ? summary.id : null;
  const live = useWatched(source, id);
  const tick = summary?.state === "running" ? look : 0;
  const detail = useLoaded(id && paths.run(id), (signal) => source.run(id!, signal), tick);
  useKeys();
  useEffect(() => {
    document.title = summary ? `${summary.name} - MoE Lab` : "MoE Lab";
  }, [summary?.name]);
  return (
    <>
      <a className="skip" href="#main" onClick={(event) => (event.preventDefault(), document.getElementById("main")?.focus())}>
        To the content
      </a>
      <Top runs={locked ? [] : (runs.data ?? [])} run={summary} live={live} source={source} can={detail.data} none={!locked && runs.data?.length === 0} />
      <main id="main" tabIndex={-1}>
        {locked ? (
          <Suspense fallback={<Waiting height={420} />}>
            <Login source={source} entered={runs.again} />
          </Suspense>
        ) : (
          runs.error && <Problem text={runs.error} again={runs.again} />
        )}
        {locked ? null : runs.data ? <Body source={source} runs={runs.data} summary={summary} detail={detail} live={live} tick={tick} /> : !runs.error && <Waiting height={420} />}
      </main>
    </>
  );
}

function chosen(runs: RunSummary[], id: string | null): RunSummary | null {
  if (id !== null) return runs.find((run) => run.id === id) ?? null;
  return runs.find((run) => run.state === "running") ?? runs.find((run) => run.last_step > 0) ?? runs[0] ?? null;
}

function Body(props: { source: DataSource; runs: RunSummary[]; summary: RunSummary | null; detail: Loaded<Run>; live: Live; tick: number }) {
  const { source, runs, summary, detail, live, tick } = props;
  const { view } = usePlace();
  const run = detail.data;
  const subject = useMemo(() => run && { source, run, runs, live, tick }, [source, run, runs, live, tick]);
  if (!runs.length) {
    // A model needs no run to be asked.
    if (view === "tokens") {
      return (
        <Suspense fallback={<Waiting height={420} />}>
          <TokensView source={source} />
        </Suspense>
      );
    }
    return (
      <Note title="No runs here yet">
        Start one with `moe-megatron train --config demo_moe`, or give the dashboard a folder: `moe-megatron dashboard runs/NAME`. This page shows it as
        soon as it is there.
      </Note>
    );
  }
  if (!summary) return <Note title="This run is not here">The address names a run that the server does not show. Choose another one above.</Note>;
  if (summary.state === "unreadable") return <Problem text={summary.problem ?? "This run cannot be read."} />;
  if (summary.state === "empty") return <Note title="Nothing measured yet">{summary.problem ?? "The first step of this run will appear here by itself."}</Note>;
  if (!subject) return detail.error ? <Problem text={detail.error} again={detail.again} /> : <Waiting height={420} />;
  const { draw: Draw } = VIEWS.find((known) => known.view === view) ?? VIEWS[0]!;
  return (
    <SubjectContext.Provider value={subject}>
      <Facts run={subject.run} live={live} />
      <Suspense fallback={<Waiting height={420} />}>
        <Draw key={subject.run.id} />
      </Suspense>
      <TimeBar key={`${subject.run.id} time`} />
    </SubjectContext.Provider>
  );
}

/** A view that the server cannot fill is not offered; an address may still name it. */
const offered = (view: View, current: View, can: Run | null, none: boolean): boolean =>
  view === "tokens" ? view === current || none || can?.has.inspector === true : view !== "own";

function Top({ runs, run, live, source, can, none }: { none: boolean; can: Run | null; runs: RunSummary[]; run: RunSummary | null; live: Live; source: DataSource }) {
  const { view, own: chosenOwn } = usePlace();
  const own = useLoaded(paths.views(), (signal) => source.views(signal));
  const theme = useTheme();
  return (
    <header className="top">
      <h1 className="unseen">{`${run?.name ?? "MoE Lab"}: ${VIEWS.find((known) => known.view === view)!.name}`}</h1>
      <div className="top-row">
        <span className="brand">
          <Mark />
          <b>MoE Lab</b>
        </span>
        {runs.length > 0 && (
          <label className="pick">
            <span className="unseen">Run</span>
            <select value={run?.id ?? ""} onChange={(event) => go({ run: event.target.value, step: null, cell: null, since: null })}>
              {!run && <option value="">choose a run</option>}
              {runs.map((each) => (
                <option key={each.id} value={each.id}>
                  {each.name}
                  {each.state === "ended" ? "" : ` (${each.state})`}
                </option>
              ))}
            </select>
          </label>
        )}
        {run && <State run={run} live={live} source={source} />}
        <span className="room" />
        <CopyLink />
        {can?.user && (
          <button className="plain wide" title={can.user.role} onClick={() => void source.logOut?.().then(() => location.reload())}>
            Log out {can.user.name}
          </button>
        )}
        <button className="plain" onClick={turnTheme} aria-label={theme === "dark" ? "Light colours" : "Dark colours"} title="Dark or light (T)">
          <svg viewBox="0 0 16 16" aria-hidden="true">
            {theme === "dark" ? (
              <path d="M8 4.5a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7zM7.3 0h1.4v2.6H7.3zM7.3 13.4h1.4V16H7.3zM0 7.3h2.6v1.4H0zM13.4 7.3H16v1.4h-2.6zM2 3l1-1 1.8 1.8-1 1zM11.2 12.2l1-1L14 13l-1 1zM2 13l1.8-1.8 1 1L3 14zM11.2 3.8 13 2l1 1-1.8 1.8z" />
            ) : (
              <path d="M13.8 10.2A6.3 6.3 0 0 1 5.8 2.2a6.3 6.3 0 1 0 8 8z" />
            )}
          </svg>
        </button>
      </div>
      <nav className="tabs" aria-label="Views">
        {VIEWS.filter((each) => offered(each.view, view, can, none)).map(({ view: each, name }) => (
          <button key={each} aria-current={each === view ? "page" : undefined} onClick={() => go({ view: each, own: null })}>
            {name}
          </button>
        ))}
        {own.data?.map(({ name, title }) => (
          <button key={name} aria-current={view === "own" && name === chosenOwn ? "page" : undefined} onClick={() => go({ view: "own", own: name })}>
            {title}
          </button>
        ))}
      </nav>
    </header>
  );
}

const Mark = () => (
  <svg viewBox="0 0 22 22" aria-hidden="true">
    {["u1", "n", "o1", "n", "o2", "u0", "u2", "o0", "n"].map((kind, i) => (
      <rect key={i} className={`mark-${kind}`} x={1 + 7 * (i % 3)} y={1 + 7 * Math.floor(i / 3)} width="6" height="6" rx="1.5" />
    ))}
  </svg>
);

const STATES: Record<RunState, string> = {
  running: "live",
  ended: "ended",
  stopped: "stopped",
  empty: "no data yet",
  unreadable: "unreadable",
};

function State({ run, live, source }: { run: RunSummary; live: Live; source: DataSource }) {
  const { connection, retrySeconds, state } = useNews(live);
  if (!source.live) return <span className="state ended">report</span>;
  if (connection === "lost") {
    return (
      <span className="state lost" role="status">
        server lost, trying again{retrySeconds >= 2 ? ` in ${Math.round(retrySeconds)} s` : ""}
      </span>
    );
  }
  const shown = state ?? run.state;
  return (
    <span className={`state ${shown}`} role="status">
      {STATES[shown]}
    </span>
  );
}

function CopyLink() {
  const [said, setSaid] = useState("");
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      setSaid("Link copied");
    } catch {
      setSaid("Copy the address of this page");
    }
    setTimeout(() => setSaid(""), 2000);
  };
  return (
    <button className="plain wide" onClick={copy} title="This view, step and cell as a link">
      <span aria-live="polite">{said || "Copy link"}</span>
    </button>
  );
}

/** What one wants to know first, large. */
function Facts({ run, live }: { run: Run; live: Live }) {
  const { news } = useNews(live);
  const loads = (news?.max_over_mean ?? []).map((value, row) => [value ?? 0, run.layers[row]!] as const);
  const worst = loads.length ? loads.reduce((a, b) => (b[0] > a[0] ? b : a)) : null;
  return (
    <dl className="facts">
      <div>
        <dt>Step</dt>
        <dd>{count(lastStep(run, live))}</dd>
      </div>
      <div>
        <dt>Loss</dt>
        <dd>{short(news?.loss ?? run.loss)}</dd>
      </div>
      {news?.tokens_per_second ? (
        <div>
          <dt>Tokens a second</dt>
          <dd>{short(news.tokens_per_second)}</dd>
        </div>
      ) : null}
      {worst && worst[0] > 0 && (
        <div>
          <dt>Busiest expert</dt>
          <dd>
            {worst[0].toFixed(2)}
            {"\u00d7"} <small>layer {worst[1]}</small>
          </dd>
        </div>
      )}
      <div>
        <dt>Model</dt>
        <dd>
          {run.layers.length} {"\u00d7"} {run.experts} <small>top {run.top_k}</small>
        </dd>
      </div>
    </dl>
  );
}

function useKeys(): void {
  useEffect(() => {
    const key = (event: KeyboardEvent) => {
      if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test((event.target as HTMLElement).tagName)) return;
      const view = VIEWS[Number(event.key) - 1];
      if (view) go({ view: view.view, own: null });
      else if (event.key === "t") turnTheme();
    };
    window.addEventListener("keydown", key);
    return () => window.removeEventListener("keydown", key);
  }, []);
}
