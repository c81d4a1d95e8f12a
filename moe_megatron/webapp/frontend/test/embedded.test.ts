import { expect, it } from "vitest";
import { EmbeddedSource } from "../src/data/embedded";
import { retrySeconds } from "../src/data/server";

const frame = (first: number, last: number, byte: number) =>
  btoa(String.fromCharCode(...new TextEncoder().encode("MOE1"), first, 0, 0, 0, last, 0, 0, 0, 1, 0, 1, 0, byte));

const source = new EmbeddedSource({
  runs: [],
  calls: {
    "/api/runs/r/matrix?first=1&last=10&quantity=load": frame(1, 10, 7),
    "/api/runs/r/matrix?first=11&last=20&quantity=load": frame(11, 20, 9),
    "/api/runs/r/layers?columns=50": { steps: [] },
    "/api/runs/r/expert?layer=1&expert=0&columns=50": { load: [1] },
  },
});

it("a report answers with the span nearest to that asked for", async () => {
  expect([...(await source.matrix("r", [3, 3])).cells]).toEqual([7]);
  expect([...(await source.matrix("r", [18, 18])).cells]).toEqual([9]);
  expect((await source.matrix("r", [500, 500])).last).toBe(20);
});

it("a report answers whatever number of columns is asked for", async () => {
  expect(await source.layers("r", 240)).toEqual({ steps: [] });
});

it("a report gives no other cell for the one asked for, and says what to do", async () => {
  expect((await source.expert("r", 1, 0, 9)).load).toEqual([1]);
  await expect(source.expert("r", 1, 1, 9)).rejects.toThrow(/moe-megatron dashboard/);
});

it("a cell that a report does not hold is answered from its frames", async () => {
  const calls = {
    "/api/runs/r": { layers: [3], expert_ranks: [[1]], has: {} },
    "/api/runs/r/matrix?first=1&last=10&quantity=load": frame(1, 10, 0),
    "/api/runs/r/matrix?first=11&last=20&quantity=load": frame(11, 20, 111),
    "/api/runs/r/matrix?first=1&last=20&quantity=load": frame(1, 20, 9),
  };
  const report = new EmbeddedSource({ runs: [], calls, columns: { r: [[1, 10], [11, 20]] } });
  const found = await report.expert("r", 3, 0, 200);
  expect(found.steps).toEqual([[1, 10], [11, 20]]);
  expect(found.load[0]).toBe(0);
  expect(found.load[1]).toBeCloseTo(2 ** ((111 - 127.5) / 31.75));
  expect(found.ep_rank).toBe(1);
});

const bytes = (...values: number[]) => btoa(String.fromCharCode(...values));

it("an expert of a report has drops of its layer, and bias and partners from bytes", async () => {
  const calls = {
    "/api/runs/r": { layers: [3, 5], experts: 3, expert_ranks: [], has: { affinity: true } },
    "/api/runs/r/layers?columns=2": { steps: [[1, 15], [16, 20]], layers: [3, 5], drop_rate: [[0, 0], [0.1, 0.2]] },
    "/api/runs/r/cells?columns=2&partners=2": {
      steps: [[1, 10], [11, 20]],
      low: [null, -1],
      high: [null, 1],
      bias: bytes(255, 255, 255, 9, 9, 255, 255, 255, 255, 9, 9, 254),
      each: 2,
      partners: bytes(1, 2, 0, 2, 0, 1, 1, 2, 0, 2, 0, 1),
      share: bytes(255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 239, 0),
      null_share: bytes(255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 223, 0),
    },
    "/api/runs/r/matrix?first=1&last=10&quantity=load": frame(1, 10, 0),
    "/api/runs/r/matrix?first=11&last=20&quantity=load": frame(11, 20, 111),
  };
  const report = new EmbeddedSource({ runs: [], calls, columns: { r: [[1, 10], [11, 20]] } });
  const found = await report.expert("r", 5, 2, 200);
  expect(found.drop_rate).toEqual([0.1, 0.2]);
  expect(found.bias).toEqual([null, 1]);
  expect(found.partners).toEqual([{ expert: 0, share: 0.5, null_share: 0.25 }]);
  expect(found.note).toBeUndefined();
  expect((await report.expert("r", 3, 0, 200)).bias).toEqual([null, null]);
  const { "/api/runs/r/cells?columns=2&partners=2": _, ...without } = calls;
  const thin = new EmbeddedSource({ runs: [], calls: without, columns: { r: [[1, 10], [11, 20]] } });
  expect((await thin.expert("r", 5, 2, 200)).note).toMatch(/too large for a report/);
});

it("a report answers with the moves since the checkpoint nearest to that asked for", async () => {
  const calls = { "/api/runs/r/moves?since=1&last=20": { since: 1 }, "/api/runs/r/moves?since=10&last=20": { since: 10 } };
  const report = new EmbeddedSource({ runs: [], calls });
  expect((await report.moves("r", 9, 20)).since).toBe(10);
  expect((await report.moves("r", 2, 19)).since).toBe(1);
});

it("attempts come less and less often, and never stop", () => {
  const waits = [0, 1, 2, 3, 10, 1000].map(retrySeconds);
  expect(waits).toEqual([0.5, 1, 2, 4, 15, 15]);
});
