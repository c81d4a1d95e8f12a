/** How training goes: loss, speed, where time went, what happened, checkpoints and the log. */
import { Suspense, lazy, useEffect, useRef, useState } from "react";
import { paths } from "../data/paths";
import type { Numbers, RunEvent, Series } from "../data/types";
import { type Chart, merged, middles } from "../draw/chart";
import { bytes, count, percent, short } from "../format";
import { Lines, savedCharts } from "../parts/lines";
import { Note, Panel, Ready } from "../parts/panel";
import { useMoment, useSubject } from "../state/context";
import { useNews } from "../state/live";
import { useLoaded } from "../state/loaded";
import { go } from "../state/place";

/** Fetched by operators alone. */
const AskPanel = lazy(() => import("./ask").then(({ AskPanel: Ask }) => ({ default: Ask })));

const COLUMNS = 400;
const LOG_KEPT = 2000;

const anything = (values: Numbers): boolean => values.some((value) => value !== null);

function chartsOf(series: Series): Chart[] {
  const steps = middles(series.steps);
  const names = [...new Set(series.evaluations.map((evaluation) => evaluation.name))];
  const held = names.map((name) => {
    const of = series.evaluations.filter((evaluation) => evaluation.name === name);
    return { steps: of.map((one) => one.step), lines: [{ name, values: of.map((one) => one.loss), dots: true }] };
  });
  const loss = merged([{ steps, lines: [{ name: "training", values: series.loss }] }, ...held]);
  const one = (title: string, values: Numbers, write: (value: number) => string = short): Chart => ({
    title,
    steps,
    lines: [{ name: title, values }],
    write,
  });
  return [
    { title: "Loss", ...loss },
    one("Tokens a second", series.tokens_per_second),
    one("Gradient norm", series.grad_norm),
    one("Learning rate", series.learning_rate),
    {
      title: "Memory",
      steps,
      lines: [
        { name: "end of a step", values: series.memory_bytes },
        { name: "peak", values: series.peak_memory_bytes },
      ].filter((line) => anything(line.values)),
      write: bytes,
    },
  ].filter((chart) => chart.lines.some((line) => anything(line.values)));
}

export function TrainingView() {
  const { source, run, tick } = useSubject();
  const { step } = useMoment();
  const loaded = useLoaded(paths.series(run.id, COLUMNS), (signal) => source.series(run.id, COLUMNS, signal), tick, run.id);
  const charts = loaded.data ? chartsOf(loaded.data) : [];
  return (
    <div className="training">
      <Panel
        title="Training"
        says="Click a line to go to its step."
        savable={savedCharts(`${run.name}_training`, run.name, charts)}
      >
        <Ready of={loaded} height={320}>
          {() =>
            charts.length ? (
              <div className="charts">
                {charts.map((chart, i) => (
                  <Lines key={chart.title} {...chart} at={step} pick={(to) => go({ step: to })} height={i ? 150 : 220} />
                ))}
              </div>
            ) : (
              <Note>No step has been written yet.</Note>
            )
          }
        </Ready>
      </Panel>
      {loaded.data && Object.keys(loaded.data.phases).length > 0 && <Phases phases={loaded.data.phases} />}
      {run.user?.role === "operator" && run.state === "running" && (
        <Suspense>
          <AskPanel />
        </Suspense>
      )}
      <Events />
      <Checkpoints />
      <Log />
    </div>
  );
}

/** As docs/uptime.md names them. */
const PHASES: Record<string, string> = { kept: "training", load: "loading", save: "saving", recomputed: "done again", hang: "hanging" };

function Phases({ phases }: { phases: Record<string, number> }) {
  const parts = Object.entries(phases)
    .filter(([, share]) => share >= 0.0005)
    .sort(([, a], [, b]) => b - a);
  const tone = (i: number) => `tone-${Math.min(i, 6)}`;
  return (
    <Panel title="Where time went" says="Shares of the wall time.">
      <div className="phases" role="img" aria-label={parts.map(([name, share]) => `${name} ${percent(share)}`).join(", ")}>
        {parts.map(([name, share], i) => (
          <i key={name} className={tone(i)} style={{ width: `${100 * share}%` }} title={`${PHASES[name] ?? name}: ${percent(share)}`} />
        ))}
      </div>
      <ul className="phase-names">
        {parts.map(([name, share], i) => (
          <li key={name}>
            <i className={tone(i)} /> {PHASES[name] ?? name.replaceAll("_", " ")} <b>{percent(share)}</b>
          </li>
        ))}
      </ul>
    </Panel>
  );
}

const timeOf = (time: string | number): string => {
  const date = new Date(typeof time === "number" ? time * 1000 : time);
  return Number.isNaN(date.getTime()) ? String(time) : date.toLocaleTimeString("en-GB");
};

/** What an event says beyond its name. */
function detailOf({ kind, text }: RunEvent): string {
  const name = kind.replaceAll("_", " ");
  return text.startsWith(name) ? text.slice(name.length).trim().replace(/^\((.*)\)$/, "$1") : text;
}

function Events() {
  const { source, run, live, tick } = useSubject();
  useNews(live);
  const loaded = useLoaded(paths.events(run.id, 0), (signal) => source.events(run.id, 0, signal), tick);
  return (
    <Panel title="Events and alerts" says="Newest first.">
      <Ready of={loaded}>
        {(answer) => {
          const known = new Map<number, RunEvent>();
          for (const event of [...answer.events, ...live.events]) known.set(event.seq, event);
          const events = [...known.values()].sort((a, b) => b.seq - a.seq);
          return events.length ? (
            <ol className="events" tabIndex={0} aria-label="Events">
              {events.map((event) => (
                <li key={event.seq} className={event.level}>
                  <time>{timeOf(event.time)}</time>
                  <b>{event.kind.replaceAll("_", " ")}</b>
                  <span>{detailOf(event)}</span>
                  {event.step !== null && <button onClick={() => go({ step: event.step })}>step {count(event.step)}</button>}
                </li>
              ))}
            </ol>
          ) : (
            <Note>Nothing unusual so far.</Note>
          );
        }}
      </Ready>
    </Panel>
  );
}

function Checkpoints() {
  const { run } = useSubject();
  return (
    <Panel title="Checkpoints" says={run.checkpoints.length ? `${run.checkpoints.length} on disk.` : undefined}>
      {run.checkpoints.length ? (
        <div className="table" tabIndex={0} role="region" aria-label="Table of checkpoints">
          <table>
            <thead>
              <tr>
                <th>Step</th>
                <th>Size</th>
                <th className="words">Folder</th>
                <th>
                  <span className="unseen">Go there</span>
                </th>
              </tr>
            </thead>
            <tbody>
              {[...run.checkpoints].reverse().map((checkpoint) => (
                <tr key={checkpoint.step}>
                  <td>{count(checkpoint.step)}</td>
                  <td>{bytes(checkpoint.size_bytes)}</td>
                  <td className="words">
                    {checkpoint.path} {checkpoint.best && <em className="best">best</em>}
                  </td>
                  <td>
                    <button onClick={() => go({ step: checkpoint.step, view: "routing" })}>show</button>
                  </td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      ) : (
        <Note>None yet. `--save-interval N` writes one every N steps.</Note>
      )}
    </Panel>
  );
}

/** The log grows at its end: only what is new is asked for. */
function Log() {
  const { source, run, tick } = useSubject();
  const [lines, setLines] = useState<string[]>([]);
  const next = useRef(0);
  const loaded = useLoaded(
    `${run.id} log`,
    async (signal) => {
      const answer = await source.log(run.id, next.current, signal);
      if (answer.next !== next.current) {
        next.current = answer.next;
        setLines((old) => [...old, ...answer.lines].slice(-LOG_KEPT));
      }
      return true;
    },
    tick,
  );
  const box = useRef<HTMLPreElement>(null);
  const atEnd = useRef(true);
  useEffect(() => {
    if (box.current && atEnd.current) box.current.scrollTop = box.current.scrollHeight;
  }, [lines]);
  return (
    <Panel title="Log" className="log-panel">
      <Ready of={loaded}>
        {() =>
          lines.length ? (
            <pre
              className="log"
              ref={box}
              tabIndex={0}
              aria-label="Log"
              onScroll={(event) => {
                const { scrollTop, scrollHeight, clientHeight } = event.currentTarget;
                atEnd.current = scrollTop + clientHeight > scrollHeight - 8;
              }}
            >
              {lines.join("\n")}
            </pre>
          ) : (
            <Note>The run has written no log.</Note>
          )
        }
      </Ready>
    </Panel>
  );
}
