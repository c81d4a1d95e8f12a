/**
 * A frame: the load of each expert of each layer over a span of steps, a byte each.
 *
 * Byte 0 means that no token came at all, 255 that nothing was measured; between them the logarithm of
 * load over fair share, 31.75 to an octave, 127.5 being a fair share.
 */

export const DEAD = 0;
export const MISSING = 255;
export const EVEN = 127.5;
export const PER_OCTAVE = 31.75;
const HEADER = 16;
const MAGIC = "MOE1";

export interface Frame {
  first: number;
  last: number;
  layers: number;
  experts: number;
  /** Row by row: [layers x experts]. */
  cells: Uint8Array;
}

export function decodeFrame(buffer: ArrayBuffer): Frame {
  const view = new DataView(buffer);
  const magic = buffer.byteLength < HEADER ? "" : String.fromCharCode(...new Uint8Array(buffer, 0, 4));
  if (magic !== MAGIC) {
    throw new Error(`The server sent ${buffer.byteLength} bytes that are not a frame of loads; update the page or the server.`);
  }
  const layers = view.getUint16(12, true);
  const experts = view.getUint16(14, true);
  if (buffer.byteLength !== HEADER + layers * experts) {
    throw new Error(
      `The server sent ${buffer.byteLength - HEADER} cells for ${layers} layers of ${experts} experts; load the page again.`,
    );
  }
  return {
    first: view.getUint32(4, true),
    last: view.getUint32(8, true),
    layers,
    experts,
    cells: new Uint8Array(buffer, HEADER),
  };
}

/** Load over fair share; null where nothing was measured. */
export function ratioOf(byte: number): number | null {
  if (byte === MISSING) return null;
  if (byte === DEAD) return 0;
  return 2 ** ((byte - EVEN) / PER_OCTAVE);
}

export function byteOf(ratio: number | null): number {
  if (ratio === null || Number.isNaN(ratio)) return MISSING;
  if (ratio <= 0) return DEAD;
  return Math.min(254, Math.max(1, Math.round(EVEN + PER_OCTAVE * Math.log2(ratio))));
}

/** Loads of one frame over those of another, cell by cell; both must have one shape. */
export function difference(after: Frame, before: Frame): Frame {
  const cells = after.cells.map((byte, i) => {
    const old = before.cells[i]!;
    if (byte === MISSING || old === MISSING) return MISSING;
    if (byte === DEAD && old === DEAD) return Math.round(EVEN);
    return Math.min(254, Math.max(1, Math.round(EVEN + byte - old)));
  });
  return { ...after, cells };
}

export interface RowFacts {
  dead: number;
  overloaded: number;
  highest: number | null;
}

export function factsOfRow(frame: Frame, row: number, overload: number): RowFacts {
  const facts: RowFacts = { dead: 0, overloaded: 0, highest: null };
  for (const byte of frame.cells.subarray(row * frame.experts, (row + 1) * frame.experts)) {
    const ratio = ratioOf(byte);
    if (ratio === null) continue;
    if (ratio === 0) facts.dead++;
    if (ratio >= overload) facts.overloaded++;
    facts.highest = Math.max(facts.highest ?? 0, ratio);
  }
  return facts;
}
