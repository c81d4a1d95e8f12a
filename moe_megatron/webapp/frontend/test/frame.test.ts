import { describe, expect, it } from "vitest";
import { DEAD, MISSING, byteOf, decodeFrame, difference, factsOfRow, ratioOf } from "../src/data/frame";

/** A frame byte by byte, as the wire has it. */
function wire(first: number, last: number, layers: number, experts: number, cells: number[]): ArrayBuffer {
  const bytes = new Uint8Array(16 + cells.length);
  bytes.set([...new TextEncoder().encode("MOE1"), first & 255, first >> 8, 0, 0, last & 255, last >> 8, 0, 0, layers, 0, experts & 255, experts >> 8]);
  bytes.set(cells, 16);
  return bytes.buffer;
}

describe("a frame", () => {
  it("is read as it was written", () => {
    const frame = decodeFrame(wire(300, 700, 2, 3, [0, 1, 127, 128, 254, 255]));
    expect([frame.first, frame.last, frame.layers, frame.experts]).toEqual([300, 700, 2, 3]);
    expect([...frame.cells]).toEqual([0, 1, 127, 128, 254, 255]);
  });

  it("of more than 255 experts keeps their number", () => {
    expect(decodeFrame(wire(1, 1, 1, 300, Array(300).fill(9))).experts).toBe(300);
  });

  it.each([
    ["nothing", new ArrayBuffer(0)],
    ["another thing", new TextEncoder().encode("<html>no frame</html>").buffer as ArrayBuffer],
    ["too few cells", wire(1, 1, 2, 2, [1, 2, 3])],
  ])("that is %s is refused in words", (_what, buffer) => {
    expect(() => decodeFrame(buffer)).toThrow(/The server sent \d+/);
  });
});

describe("a byte", () => {
  it("holds four octaves either side of a fair share", () => {
    expect(ratioOf(1)).toBeCloseTo(1 / 16, 1);
    expect(ratioOf(254)).toBeGreaterThan(15);
    expect(byteOf(1000)).toBe(254);
    expect(byteOf(1e-9)).toBe(1);
  });

  it("keeps a ratio to within its step", () => {
    for (const ratio of [0.07, 0.3, 0.9, 1, 1.1, 2, 7, 15]) {
      expect(Math.abs(Math.log2(ratioOf(byteOf(ratio))! / ratio))).toBeLessThanOrEqual(0.5 / 31.75 + 1e-9);
    }
  });

  it("tells none from not measured", () => {
    expect([ratioOf(DEAD), ratioOf(MISSING), byteOf(0), byteOf(null)]).toEqual([0, null, 0, 255]);
  });
});

it("a difference of frames is the ratio of their loads", () => {
  const one = decodeFrame(wire(1, 1, 1, 4, [byteOf(1), byteOf(2), 0, 255]));
  const other = decodeFrame(wire(1, 1, 1, 4, [byteOf(2), byteOf(1), 0, byteOf(1)]));
  const cells = [...difference(one, other).cells].map(ratioOf);
  expect(cells[0]).toBeCloseTo(0.5, 1);
  expect(cells[1]).toBeCloseTo(2, 1);
  expect(cells[2]).toBeCloseTo(1, 1);
  expect(cells[3]).toBe(null);
});

it("a row counts its dead and overloaded", () => {
  const frame = decodeFrame(wire(1, 1, 2, 4, [9, 9, 9, 9, 0, 255, byteOf(3.2), byteOf(1)]));
  const facts = factsOfRow(frame, 1, 3);
  expect([facts.dead, facts.overloaded]).toEqual([1, 1]);
  expect(facts.highest).toBeCloseTo(3.2, 1);
});
