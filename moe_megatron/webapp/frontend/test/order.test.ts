import { expect, it } from "vitest";
import { type Frame } from "../src/data/frame";
import { arranged, byId, byLoad, byRank, bySimilarity, firstComponent } from "../src/data/order";

const frame = (rows: number[][]): Frame => ({
  first: 1,
  last: 1,
  layers: rows.length,
  experts: rows[0]!.length,
  cells: Uint8Array.from(rows.flat()),
});

const lists = (columns: Uint16Array[]) => columns.map((row) => [...row]);

it("orders by load, each layer by itself, the highest first and equals by number", () => {
  expect(lists(byLoad(frame([[5, 9, 9, 0], [1, 2, 3, 4]])))).toEqual([[1, 2, 0, 3], [3, 2, 1, 0]]);
});

it("orders by EP rank, and by number where there are no ranks", () => {
  expect(lists(byRank([[1, 0, 1, 0]], 1, 4))).toEqual([[1, 3, 0, 2]]);
  expect(lists(byRank([], 1, 3))).toEqual([[0, 1, 2]]);
});

it("puts experts side by side whose load went alike", () => {
  // 0 and 3 rise, 1 and 2 fall.
  const frames = [frame([[10, 200, 190, 20]]), frame([[100, 100, 110, 90]]), frame([[220, 20, 10, 210]])];
  const [order] = lists(bySimilarity(frames));
  const far = (a: number, b: number) => Math.abs(order!.indexOf(a) - order!.indexOf(b));
  expect([far(0, 3), far(1, 2)]).toEqual([1, 1]);
});

it("finds the direction in which rows differ most, as an eigenvector does", () => {
  // On a line along (3, 4): distances along it are 5 each.
  const along = firstComponent([[0, 0], [3, 4], [6, 8]]);
  expect(Math.abs(along[1]! - along[0]!)).toBeCloseTo(5, 6);
  expect(Math.abs(along[2]! - along[1]!)).toBeCloseTo(5, 6);
  expect(firstComponent([[1, 1], [1, 1]])).toEqual([0, 0]);
});

it("arranges each row in its own order", () => {
  const cells = arranged(frame([[1, 2, 3], [4, 5, 6]]), [Uint16Array.of(2, 0, 1), Uint16Array.of(0, 1, 2)]);
  expect([...cells]).toEqual([3, 1, 2, 4, 5, 6]);
  expect(lists(byId(1, 3))).toEqual([[0, 1, 2]]);
});
