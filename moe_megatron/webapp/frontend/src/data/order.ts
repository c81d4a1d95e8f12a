/**
 * In which order the experts of each layer stand.
 *
 * An order is found for the whole run rather than for a moment, so that an expert stays where it is
 * while one goes through the steps.
 */
import { type Frame, EVEN, MISSING } from "./frame";

export const ORDERS = ["id", "load", "similarity", "rank"] as const;
export type Order = (typeof ORDERS)[number];

/** For each layer the experts from left to right. */
export type Columns = Uint16Array[];

const byKey = (count: number, key: (expert: number) => number): Uint16Array =>
  Uint16Array.from(Array.from({ length: count }, (_, e) => e).sort((a, b) => key(a) - key(b) || a - b));

export function byId(layers: number, experts: number): Columns {
  return Array.from({ length: layers }, () => byKey(experts, () => 0));
}

const measured = (byte: number): number => (byte === MISSING ? EVEN : byte);

/** Most loaded first. */
export function byLoad(frame: Frame): Columns {
  return Array.from({ length: frame.layers }, (_, row) =>
    byKey(frame.experts, (e) => -measured(frame.cells[row * frame.experts + e]!)),
  );
}

/** Experts of one EP rank side by side. */
export function byRank(ranks: number[][], layers: number, experts: number): Columns {
  return Array.from({ length: layers }, (_, row) => byKey(experts, (e) => ranks[row]?.[e] ?? 0));
}

/**
 * Experts whose load went alike side by side: along the first principal component of the logarithms of
 * their loads over the given frames.
 */
export function bySimilarity(frames: Frame[]): Columns {
  const { layers, experts } = frames[0]!;
  return Array.from({ length: layers }, (_, row) => {
    const paths = Array.from({ length: experts }, (_, e) =>
      frames.map((frame) => measured(frame.cells[row * experts + e]!) - EVEN),
    );
    const along = firstComponent(paths);
    return byKey(experts, (e) => along[e]!);
  });
}

/** Where each of the rows lies along the direction in which the rows differ most. */
export function firstComponent(rows: number[][], rounds = 30): number[] {
  const width = rows[0]?.length ?? 0;
  const mean = Array.from({ length: width }, (_, c) => rows.reduce((sum, row) => sum + row[c]!, 0) / rows.length);
  const centred = rows.map((row) => row.map((value, c) => value - mean[c]!));
  // Not all alike, or a direction that sums to nothing would never be found.
  let direction = Array.from({ length: width }, (_, c) => 1 + c / width);
  const project = () => centred.map((row) => row.reduce((sum, value, c) => sum + value * direction[c]!, 0));
  for (let round = 0; round < rounds; round++) {
    const along = project();
    const next = direction.map((_, c) => centred.reduce((sum, row, r) => sum + row[c]! * along[r]!, 0));
    const length = Math.hypot(...next);
    if (length === 0) break;
    direction = next.map((value) => value / length);
  }
  return project();
}

/** The cells of a frame as they stand on the screen. */
export function arranged(frame: Frame, columns: Columns): Uint8Array {
  const cells = new Uint8Array(frame.cells.length);
  columns.forEach((experts, row) => {
    const start = row * frame.experts;
    experts.forEach((expert, column) => {
      cells[start + column] = frame.cells[start + expert]!;
    });
  });
  return cells;
}
