/** What a watched run told last; components take the part they need, at the pace of the screen. */
import { useEffect, useState, useSyncExternalStore } from "react";
import type { Frame } from "../data/frame";
import type { Connection, DataSource } from "../data/source";
import type { RunEvent, RunState, StepNews } from "../data/types";

const EVENTS_KEPT = 500;

export class Live {
  frame: Frame | null = null;
  news: StepNews | null = null;
  state: RunState | null = null;
  events: RunEvent[] = [];
  connection: Connection = "none";
  retrySeconds = 0;
  private version = 0;
  private drawn = 0;
  private readonly listeners = new Set<() => void>();

  subscribe = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    return () => void this.listeners.delete(listener);
  };
  snapshot = (): number => this.version;

  private tell(): void {
    // At most once for each picture on the screen; a hidden page draws none, and is told at once.
    if (this.drawn) return;
    this.drawn = (document.hidden ? setTimeout : requestAnimationFrame)(() => {
      this.drawn = 0;
      this.version++;
      for (const listener of this.listeners) listener();
    }) as number;
  }

  watch(source: DataSource, id: string): () => void {
    return source.watch(id, {
      frame: (frame) => this.set({ frame }),
      step: (news) => this.set({ news }),
      state: (state) => this.set({ state }),
      event: (event) => this.set({ events: [...this.events, event].slice(-EVENTS_KEPT) }),
      connection: (connection, retrySeconds = 0) => this.set({ connection, retrySeconds }),
    });
  }

  private set(change: Partial<Pick<Live, "frame" | "news" | "state" | "events" | "connection" | "retrySeconds">>): void {
    Object.assign(this, change);
    this.tell();
  }
}

/** Watches a run as long as the component stands. */
export function useWatched(source: DataSource, id: string | null): Live {
  const [live, setLive] = useState(() => new Live());
  useEffect(() => {
    const fresh = new Live();
    setLive(fresh);
    return id === null ? undefined : fresh.watch(source, id);
  }, [source, id]);
  return live;
}

/** Draws the component again whenever the run tells something. */
export function useNews(live: Live): Live {
  useSyncExternalStore(live.subscribe, live.snapshot);
  return live;
}
