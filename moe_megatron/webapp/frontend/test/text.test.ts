import { expect, it } from "vitest";
import { csvOf, escaped, svgCells } from "../src/draw/svg";
import { bytes, percent, ratio, short } from "../src/format";
import { amountPalette } from "../src/draw/colours";

it("numbers are short", () => {
  expect([0, 0.000123, 0.51234, 12.345, 41234, 6.1e10, null].map(short)).toEqual(["0", "1.2e-4", "0.512", "12.3", "41.2 k", "61 G", "-"]);
  expect([percent(0.051), percent(0.5), percent(0), ratio(1.234), ratio(0), bytes(3.1e9)]).toEqual([
    "5.1 %", "50 %", "0 %", "1.23\u00d7", "0", "3.1 GB",
  ]);
});

it("what runs and tokens are called cannot break a picture or a table", () => {
  expect(escaped('<script>"&')).toBe("&lt;script&gt;&quot;&amp;");
  expect(csvOf(["a"], [['x,"y"\n'], [null]])).toBe('a\r\n"x,""y""\n"\r\n\r\n');
});

it("neighbours of one colour are one rectangle", () => {
  const cells = svgCells(Uint8Array.of(1, 1, 1, 9), 2, amountPalette("light", "over"), { x: 0, y: 0, width: 4, height: 4 });
  expect(cells.match(/<rect/g)).toHaveLength(3);
});
