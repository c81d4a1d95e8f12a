import { expect, it } from "vitest";
import { type Place, START, hashOf, placeOf } from "../src/state/link";

it("an address is read as it was written", () => {
  const place: Place = {
    run: "a b/c&d=<script>",
    view: "compare",
    step: 1200,
    over: 10,
    cell: { layer: 3, expert: 17 },
    order: "similarity",
    other: "x#y",
    since: 0,
    own: "my_view",
  };
  expect(placeOf(hashOf(place))).toEqual(place);
});

it("a place that is all defaults is an empty address", () => {
  expect(hashOf(START)).toBe("#");
  expect(placeOf("")).toEqual(START);
});

it.each(["#step=-1&cell=1&view=nothing", "#step=1e9&cell=a.b&order=up", "#over=0&step=12345678901&cell=1.2.3", "#%%%"])(
  "nonsense is left out: %s",
  (hash) => {
    expect(placeOf(hash)).toEqual(START);
  },
);
