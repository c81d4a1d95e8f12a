import { expect, it } from "vitest";
import { breaksLine, colouring, inspectionCsv, shownToken, textPicture, topExperts, usedExperts, wayOf } from "../src/draw/tokens";

const HOSTILE = '<img src=x onerror="alert(1)">';
const answer = {
  tokens: ["def", HOSTILE, ":\n", ""],
  layers: [2, 5],
  experts: [
    [[3, 1], [3, 0], [7], []],
    [[0, 1], [1, 0], [1, 2], [9, 1]],
  ],
  weights: [
    [[0.6, 0.4], [0.9, 0.1], [1], []],
    [[0.5, 0.5], [0.7, 0], [0.8, 0.2], [0.75, 0.25]],
  ],
};

it("experts are counted by first choices, and the commonest have colours of their own", () => {
  expect(topExperts(answer, 0)).toEqual([3, 3, 7, null]);
  expect(usedExperts(answer, 0)).toEqual([{ expert: 3, times: 2 }, { expert: 7, times: 1 }]);
  expect(usedExperts(answer, 1).map((one) => one.expert)).toEqual([1, 0, 9]);
  const colourOf = colouring(usedExperts(answer, 1), ["red", "blue", "grey"]);
  expect([1, 0, 9, null].map(colourOf)).toEqual(["red", "blue", "grey", "transparent"]);
});

it("a way has each choice of each layer, whether a layer gives one, some or none", () => {
  expect(wayOf(answer, 1)).toEqual([
    { layer: 2, expert: 3, weight: 0.9, first: true },
    { layer: 2, expert: 0, weight: 0.1, first: false },
    { layer: 5, expert: 1, weight: 0.7, first: true },
    { layer: 5, expert: 0, weight: 0, first: false },
  ]);
  expect(wayOf(answer, 3).map((stop) => stop.layer)).toEqual([5, 5]);
});

it("what cannot be seen has a sign", () => {
  expect(["a b", "\n\t", ""].map(shownToken)).toEqual(["a\u00a0b", "\u21b5\u21e5", "\u2205"]);
  expect([":\n", "a"].map(breaksLine)).toEqual([true, false]);
});

it("a table has a line for each choice, and a token cannot break it", () => {
  const lines = inspectionCsv(answer).trimEnd().split("\r\n");
  expect(lines[0]).toBe("layer,token,text,choice,expert,weight");
  expect(lines).toHaveLength(1 + 5 + 8);
  expect(lines[3]).toBe('2,1,"<img src=x onerror=""alert(1)"">",0,3,0.9');
});

it("a picture has every token as text, whatever it says, and its expert as a number", () => {
  const svg = textPicture(answer, 0, ["red", "blue", "grey"], `run ${HOSTILE}`);
  expect(svg).not.toContain("<img");
  expect(svg).toContain("&lt;img\u00a0src=x\u00a0onerror=&quot;alert(1)&quot;&gt;</text>");
  expect(svg.match(/>3<\/text>/g)).toHaveLength(2);
  expect(svg.match(/>-<\/text>/g)).toHaveLength(1);
  // The line break of the text is one of the picture.
  const rows = [...svg.matchAll(/font-family="monospace"/g)].length;
  expect(rows).toBe(4);
  expect(new Set([...svg.matchAll(/<text x="\d+(?:\.\d+)?" y="(\d+)" fill="#3a424d" font-family="monospace"/g)].map((found) => found[1]))).toEqual(new Set(["64", "106"]));
});
