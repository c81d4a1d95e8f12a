import { expect, it } from "vitest";
import type { OwnShown } from "../src/data/types";
import { bytesOf, ownCsv, ownSvg } from "../src/draw/own";
import { tableSvg } from "../src/draw/table";

const HOSTILE = '<img src=x onerror="alert(1)">';
const SHOWN: OwnShown[] = [
  { title: "Loads", kind: "matrix", values: [[0, 1, null], [2, 3, 4]], rows: [HOSTILE], columns: ["a", "b"], centre: null },
  { title: "Curves", kind: "lines", x: [1, 2], lines: { one: [1, null] }, x_label: "step" },
  { title: "Words", kind: "table", columns: ["expert", "load"], rows: [[HOSTILE, 1.5], [null, 2]] },
  { title: "Paths", kind: "graph", nodes: [HOSTILE, "b"], links: [{ from: HOSTILE, to: "b", weight: 2 }, { from: "b", to: HOSTILE, weight: null }] },
];

it("each kind becomes a picture with its title, and no name breaks it", () => {
  for (const shown of SHOWN) {
    const svg = ownSvg(shown);
    expect(svg).toContain(`<title>${shown.title}</title>`);
    expect(svg).toMatch(/^<svg [^>]*width="[\d.]+" height="[\d.]+"/);
    expect(svg).not.toContain("<img");
    expect(svg).not.toMatch(/NaN|Infinity|undefined/);
  }
  expect(ownSvg(SHOWN[0]!).match(/<rect/g)!.length).toBeGreaterThan(127 + 5);
});

it("each kind becomes a table whose rows are what it shows", () => {
  expect(SHOWN.map((shown) => ownCsv(shown).replaceAll(`"${HOSTILE.replaceAll('"', '""')}"`, "X").split("\r\n").slice(0, -1))).toEqual([
    [",a,b,2", "X,0,1,", "1,2,3,4"],
    ["step,one", "1,1", "2,"],
    ["expert,load", "X,1.5", ",2"],
    ["from,to,weight", "X,b,2", "b,X,"],
  ]);
});

it("nothing to show is a picture that says so", () => {
  expect(ownSvg({ title: "Loads", kind: "matrix", values: [], rows: [], columns: [], centre: 1 })).toContain("no values");
  for (const kind of ["table", "graph"] as const) {
    expect(ownSvg({ title: "T", kind, columns: [], rows: [], nodes: [], links: [] } as OwnShown)).not.toMatch(/NaN|Infinity/);
  }
});

it("bytes go from the least to the most, or as far from the centre as the farthest is", () => {
  expect([...bytesOf([[0, 5, 10, null]], null)]).toEqual([0, 127, 254, 255]);
  expect([...bytesOf([[1, 2, 0.5]], 1)]).toEqual([128, 254, 65]);
});

it("columns of a table are as wide as what stands in them", () => {
  const widthOf = (svg: string) => Number(/width="([\d.]+)"/.exec(svg)![1]);
  expect(widthOf(tableSvg("T", ["a"], [["x".repeat(50)]]))).toBeGreaterThan(2 * widthOf(tableSvg("T", ["a"], [["x"]])));
});
