/** Where one is, as the address of the page holds it: everything that someone else needs to see the same. */
import { ORDERS, type Order } from "../data/order";

export const VIEWS = ["routing", "training", "changes", "ranks", "compare", "cost", "flow", "summary", "tokens", "own"] as const;
export type View = (typeof VIEWS)[number];

export interface Cell {
  layer: number;
  expert: number;
}

export interface Place {
  run: string | null;
  view: View;
  /** null: the newest, whatever it is. */
  step: number | null;
  /** How many steps, up to that one, a matrix is the mean of. */
  over: number;
  cell: Cell | null;
  order: Order;
  /** The run that this one is compared with. */
  other: string | null;
  /** The step since which changes are listed; null: the first checkpoint. */
  since: number | null;
  /** The name of the registered view, where the view is one. */
  own: string | null;
}

export const START: Place = {
  run: null,
  view: "routing",
  step: null,
  over: 1,
  cell: null,
  order: "id",
  other: null,
  since: null,
  own: null,
};

const whole = (text: string | null): number | null => (text && /^\d{1,9}$/.test(text) ? Number(text) : null);
const oneOf = <T extends string>(words: readonly T[], text: string | null, otherwise: T): T =>
  words.find((word) => word === text) ?? otherwise;

/** Reads an address; what makes no sense is left at its default. */
export function placeOf(hash: string): Place {
  const words = new URLSearchParams(hash.replace(/^#/, ""));
  const cell = /^(\d{1,5})\.(\d{1,5})$/.exec(words.get("cell") ?? "");
  return {
    run: words.get("run"),
    view: oneOf(VIEWS, words.get("view"), START.view),
    step: whole(words.get("step")),
    over: Math.max(1, whole(words.get("over")) ?? START.over),
    cell: cell && { layer: Number(cell[1]), expert: Number(cell[2]) },
    order: oneOf(ORDERS, words.get("order"), START.order),
    other: words.get("with"),
    since: whole(words.get("since")),
    own: words.get("own"),
  };
}

export function hashOf(place: Place): string {
  const words = new URLSearchParams();
  if (place.run !== null) words.set("run", place.run);
  if (place.view !== START.view) words.set("view", place.view);
  if (place.step !== null) words.set("step", String(place.step));
  if (place.over !== START.over) words.set("over", String(place.over));
  if (place.cell) words.set("cell", `${place.cell.layer}.${place.cell.expert}`);
  if (place.order !== START.order) words.set("order", place.order);
  if (place.other !== null) words.set("with", place.other);
  if (place.since !== null) words.set("since", String(place.since));
  if (place.own !== null) words.set("own", place.own);
  return `#${words}`;
}
