import { expect, it } from "vitest";
import { nodeId, pathsOf } from "../src/draw/flow";

const link = (from_layer: number, from_expert: number, to_expert: number, share: number) => ({ from_layer, from_expert, to_expert, share });
const links = [link(1, 0, 5, 0.4), link(1, 1, 5, 0.3), link(1, 2, 6, 0.2), link(1, 3, 7, 0.1), link(2, 5, 0, 0.7), link(9, 0, 0, 1)];

it("names the busiest and keeps all others as one, with nothing lost", () => {
  const paths = pathsOf(links, [1, 2], 1);
  expect(paths.map((path) => [nodeId(path.from), nodeId(path.to)])).toEqual([
    ["1.0", "2.5"],
    ["1.rest", "2.5"],
    ["1.rest", "2.rest"],
  ]);
  expect(paths.reduce((sum, path) => sum + path.share, 0)).toBeCloseTo(1);
});

it("names the chosen expert however little it gets", () => {
  const paths = pathsOf(links, [1, 2], 1, { layer: 1, expert: 3 });
  expect(paths.map((path) => nodeId(path.from))).toContain("1.3");
});

it("goes to the next layer that has experts, which need not be the next number", () => {
  expect(nodeId(pathsOf([link(1, 0, 4, 1)], [1, 3], 2)[0]!.to)).toBe("3.4");
});
