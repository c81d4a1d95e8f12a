/** The place of link.ts as state: kept in memory, and written to the address when it has come to rest. */
import { useSyncExternalStore } from "react";
import { type Place, hashOf, placeOf } from "./link";

/** Browsers refuse addresses that change at the pace of a scrub bar. */
const REST_MS = 200;

let place = placeOf(location.hash);
let timer = 0;
const listeners = new Set<() => void>();

function tell(next: Place): void {
  place = next;
  for (const listener of listeners) listener();
}

function write(push: boolean): void {
  const hash = hashOf(place);
  if (hash === location.hash) return;
  if (push) history.pushState(null, "", hash);
  else history.replaceState(null, "", hash);
}

/** Goes somewhere. A change of view or run is a step that the browser's Back undoes. */
export function go(change: Partial<Place>): void {
  const push = (["view", "run", "own"] as const).some((name) => name in change && change[name] !== place[name]);
  tell({ ...place, ...change });
  clearTimeout(timer);
  if (push) write(true);
  else timer = window.setTimeout(() => write(false), REST_MS);
}

for (const kind of ["hashchange", "popstate"]) {
  window.addEventListener(kind, () => tell(placeOf(location.hash)));
}

const subscribe = (listener: () => void) => {
  listeners.add(listener);
  return () => void listeners.delete(listener);
};

export const usePlace = (): Place => useSyncExternalStore(subscribe, () => place);
export const placeNow = (): Place => place;
