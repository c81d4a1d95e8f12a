/** An answer of the source as state: what was there stays until the next is, and errors are said. */
import { useCallback, useEffect, useRef, useState } from "react";

export interface Loaded<T> {
  data: T | null;
  error: string | null;
  again(): void;
}

/**
 * Loads when `key` changes. `tick` loads again without forgetting; a `key` of another thing forgets.
 * While one request is under way only the newest other one is kept, so that scrubbing never queues.
 */
export function useLoaded<T>(
  key: string | null,
  load: (signal: AbortSignal) => Promise<T>,
  tick: unknown = 0,
  thing: string | null = key,
): Loaded<T> {
  const [state, setState] = useState<{ thing: string | null; data: T | null; error: string | null }>({
    thing,
    data: null,
    error: null,
  });
  const [round, setRound] = useState(0);
  const latest = useRef({ key, load, thing });
  latest.current = { key, load, thing };
  const busy = useRef<{ wanted: boolean; abort: AbortController } | null>(null);

  const start = useCallback(() => {
    if (busy.current) {
      busy.current.wanted = true;
      return;
    }
    const { key: asked, load: now, thing: about } = latest.current;
    if (asked === null) return;
    const mine = { wanted: false, abort: new AbortController() };
    busy.current = mine;
    const done = (change: { data?: T; error: string | null }) => {
      if (busy.current !== mine) return;
      busy.current = null;
      if (about === latest.current.thing) {
        setState((old) => ({ thing: about, data: old.thing === about ? old.data : null, ...change }));
      }
      if (mine.wanted) start();
    };
    now(mine.abort.signal).then(
      (data) => done({ data, error: null }),
      (problem: Error) => done({ error: problem.message }),
    );
  }, []);

  // Another thing is not waited for.
  useEffect(() => () => {
    busy.current?.abort.abort();
    busy.current = null;
  }, [thing]);
  useEffect(start, [start, key, tick, round]);

  const fits = state.thing === thing;
  return { data: fits ? state.data : null, error: fits ? state.error : null, again: () => setRound((n) => n + 1) };
}

/** Counts up every so many seconds while `on`, for what is looked at again. */
export function useTick(on: boolean, seconds: number): number {
  const [tick, setTick] = useState(0);
  useEffect(() => {
    if (!on) return;
    const timer = setInterval(() => document.hidden || setTick((n) => n + 1), seconds * 1000);
    return () => clearInterval(timer);
  }, [on, seconds]);
  return tick;
}
