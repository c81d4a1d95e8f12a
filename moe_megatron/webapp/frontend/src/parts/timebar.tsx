/** The bar under the page: play, scrub through all steps, return to the newest; behind it runs the loss. */
import { useCallback, useEffect, useRef, useState } from "react";
import { paths } from "../data/paths";
import type { Numbers, Span } from "../data/types";
import { count, short } from "../format";
import { lastStep, spanOf, useMoment, useSubject } from "../state/context";
import { useLoaded } from "../state/loaded";
import { useNews } from "../state/live";
import { go, placeNow } from "../state/place";

/** The whole history plays in about so many pictures, at most so often. */
const PICTURES = 300;
const EACH_MS = 66;

export function TimeBar() {
  const { source, run, live, tick } = useSubject();
  useNews(live);
  const { step, newest } = useMoment();
  const last = lastStep(run, live);
  const first = run.first_step;
  const [playing, setPlaying] = useState(false);
  const stop = useCallback(() => setPlaying(false), []);
  const running = (live.state ?? run.state) === "running";
  const series = useLoaded(paths.series(run.id, 200), (signal) => source.series(run.id, 200, signal), tick, run.id);

  useEffect(() => {
    if (!playing) return;
    let over = false;
    const stride = Math.max(1, Math.round((last - first) / PICTURES));
    const next = async () => {
      const from = placeNow().step ?? first;
      const to = Math.min(last, from + stride);
      // The picture is there before the step is shown: a slow server plays slower, and skips nothing.
      const wait = new Promise((resolve) => setTimeout(resolve, EACH_MS));
      await source.matrix(run.id, spanOf(run, to, placeNow().over)).catch(() => {});
      await wait;
      if (over) return;
      go({ step: to });
      if (to >= last) stop();
      else void next();
    };
    void next();
    return () => {
      over = true;
    };
    // A run that goes on while it plays does not start it over.
    // eslint-disable-next-line
  }, [playing, source, run.id]);

  const play = useCallback(() => {
    setPlaying((on) => {
      if (!on && (placeNow().step ?? last) >= last) go({ step: first });
      return !on;
    });
  }, [first, last]);
  const move = useCallback(
    (by: number) => {
      stop();
      go({ step: Math.min(last, Math.max(first, (placeNow().step ?? last) + by)) });
    },
    [first, last, stop],
  );

  useEffect(() => {
    const key = (event: KeyboardEvent) => {
      const target = event.target as HTMLElement;
      if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName)) return;
      if (event.key === " " && target.tagName !== "BUTTON") play();
      else if (event.key === "," || event.key === "<") move(event.key === "<" ? -10 : -1);
      else if (event.key === "." || event.key === ">") move(event.key === ">" ? 10 : 1);
      else if (event.key === "l") go({ step: null });
      else return;
      event.preventDefault();
    };
    window.addEventListener("keydown", key);
    return () => window.removeEventListener("keydown", key);
  }, [play, move]);

  return (
    <nav className="timebar" aria-label="Time">
      <button className="play" onClick={play} aria-label={playing ? "Pause" : "Play the history"} aria-keyshortcuts="Space">
        <svg viewBox="0 0 16 16" aria-hidden="true">
          {playing ? <path d="M4 3h3v10H4zM9 3h3v10H9z" /> : <path d="M4 2.5v11l9-5.5z" />}
        </svg>
      </button>
      <div className="scrub">
        {series.data && <Spark steps={series.data.steps} values={series.data.loss} first={first} last={last} />}
        <i className="reach" style={{ width: `${(100 * (step - first)) / (last - first || 1)}%` }} />
        <input
          type="range"
          aria-label="Step"
          aria-valuetext={`step ${step} of ${last}`}
          min={first}
          max={Math.max(last, first + 1)}
          value={step}
          onChange={(event) => {
            stop();
            const value = Number(event.target.value);
            go({ step: value >= last && running ? null : Math.min(value, last) });
          }}
        />
      </div>
      <StepInput step={step} first={first} last={last} pick={(value) => (stop(), go({ step: value }))} />
      {running ? (
        <button className="newest" aria-pressed={newest} onClick={() => (stop(), go({ step: null }))} title="Follow the newest step (L)">
          <i /> Live
        </button>
      ) : (
        <button className="newest" aria-pressed={newest} onClick={() => (stop(), go({ step: null }))} title="Go to the last step (L)">
          End
        </button>
      )}
    </nav>
  );
}

function StepInput({ step, first, last, pick }: { step: number; first: number; last: number; pick(step: number): void }) {
  const [text, setText] = useState<string | null>(null);
  const done = () => {
    const value = Number(text);
    if (text !== null && Number.isInteger(value)) pick(Math.min(last, Math.max(first, value)));
    setText(null);
  };
  return (
    <label className="step-input">
      <span>Step</span>
      <input
        inputMode="numeric"
        value={text ?? count(step)}
        size={Math.max(4, count(last).length)}
        onFocus={(event) => (setText(String(step)), requestAnimationFrame(() => event.target.select?.()))}
        onChange={(event) => setText(event.target.value)}
        onBlur={done}
        onKeyDown={(event) => event.key === "Enter" && event.currentTarget.blur()}
      />
      <small>of {count(last)}</small>
    </label>
  );
}

/** The loss as a faint line behind the bar: where something happened is seen before one goes there. */
function Spark({ steps, values, first, last }: { steps: Span[]; values: Numbers; first: number; last: number }) {
  const path = useRef<string>("");
  const known = values.filter((value): value is number => value !== null);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const x = (step: number) => (1000 * (step - first)) / (last - first || 1);
  const y = (value: number) => 30 - (26 * (value - low)) / (high - low || 1);
  const points = steps.flatMap(([, at], i) => (values[i] === null || values[i] === undefined ? [] : [`${x(at).toFixed(1)} ${y(values[i]!).toFixed(1)}`]));
  path.current = points.length > 1 ? `M${points.join("L")}` : "";
  const title = known.length ? `Loss ${short(known[0])} to ${short(known.at(-1))}` : "No loss";
  return (
    <svg viewBox="0 0 1000 32" preserveAspectRatio="none" role="img" aria-label={title}>
      {path.current && <path d={`${path.current}V32H${points[0]!.split(" ")[0]}Z`} className="spark-area" />}
      <path d={path.current} className="spark" vectorEffect="non-scaling-stroke" />
    </svg>
  );
}
