/** What every view is about: the source, the run, and what the run tells while it goes. */
import { createContext, useContext } from "react";
import { type Frame } from "../data/frame";
import { paths } from "../data/paths";
import type { DataSource } from "../data/source";
import type { Run, RunSummary, Span } from "../data/types";
import { type Live, useNews } from "./live";
import { type Loaded, useLoaded } from "./loaded";
import { usePlace } from "./place";

export interface Subject {
  source: DataSource;
  run: Run;
  runs: RunSummary[];
  live: Live;
  /** Counts up while the run goes: what shows all of it loads again. */
  tick: number;
}

export const SubjectContext = createContext<Subject | null>(null);

export function useSubject(): Subject {
  const subject = useContext(SubjectContext);
  if (!subject) throw new Error("a view stands outside of a run");
  return subject;
}

/** The newest step that is known of. */
export const lastStep = (run: Run, live: Live): number => Math.max(run.last_step, live.news?.step ?? 0, live.frame?.last ?? 0);

/** The steps that a matrix shows: the `over` steps up to the chosen one. */
export function spanOf(run: Run, step: number, over: number): Span {
  const last = Math.min(Math.max(step, run.first_step), Math.max(run.last_step, step));
  return [Math.max(run.first_step, last - over + 1), last];
}

export interface Moment {
  step: number;
  span: Span;
  /** Whether it follows the run. */
  newest: boolean;
}

export function useMoment(): Moment {
  const { run, live } = useSubject();
  const { step, over } = usePlace();
  useNews(live);
  const last = lastStep(run, live);
  const at = Math.min(step ?? last, last);
  return { step: at, span: spanOf(run, at, over), newest: step === null };
}

/** The frame of the moment: from the live run where that is what is asked for, else from its history. */
export function useFrame(): Loaded<Frame> {
  const { source, run, live } = useSubject();
  const { span, newest } = useMoment();
  const { over } = usePlace();
  const streamed = newest && over === 1 ? live.frame : null;
  const key = streamed ? null : paths.matrix(run.id, span);
  const loaded = useLoaded(key, (signal) => source.matrix(run.id, span, signal), 0, run.id);
  return streamed ? { data: streamed, error: null, again: loaded.again } : loaded;
}
