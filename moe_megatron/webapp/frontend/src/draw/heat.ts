/** Paints bytes on a canvas, a pixel each, and enlarges that: 61 x 256 cells take under a millisecond. */
import { DEAD } from "../data/frame";
import type { Palette } from "./colours";

export interface Heat {
  cells: Uint8Array;
  columns: number;
  palette: Palette;
  /** Size of a cell in CSS pixels. */
  cellWidth: number;
  cellHeight: number;
  /** Colour between cells that are large enough to stand apart. */
  gap: string;
  /** Bytes from here on are marked, as are dead ones; 256 marks none. */
  overloadedFrom: number;
  ink: string;
}

const ROOM_FOR_GAPS = 7;
const ROOM_FOR_MARKS = 8;

const small = new WeakMap<HTMLCanvasElement, HTMLCanvasElement>();

function sized(canvas: HTMLCanvasElement, width: number, height: number): void {
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
}

export function paintHeat(canvas: HTMLCanvasElement, heat: Heat): void {
  const { cells, columns, palette } = heat;
  const rows = cells.length / columns;
  if (!rows) return;
  const scale = window.devicePixelRatio || 1;
  sized(canvas, Math.round(columns * heat.cellWidth * scale), Math.round(rows * heat.cellHeight * scale));

  let source = small.get(canvas);
  if (!source) small.set(canvas, (source = document.createElement("canvas")));
  sized(source, columns, rows);
  const pixels = source.getContext("2d")!;
  const image = pixels.createImageData(columns, rows);
  const words = new Uint32Array(image.data.buffer);
  for (let i = 0; i < words.length; i++) words[i] = palette[cells[i]!]!;
  pixels.putImageData(image, 0, 0);

  const context = canvas.getContext("2d")!;
  context.imageSmoothingEnabled = false;
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  const w = canvas.width / columns;
  const h = canvas.height / rows;
  if (Math.min(w, h) >= ROOM_FOR_GAPS * scale) gaps(context, heat.gap, columns, rows, w, h, scale);
  if (Math.min(w, h) >= ROOM_FOR_MARKS * scale && heat.overloadedFrom <= 255) marks(context, heat, w, h, scale);
}

function gaps(context: CanvasRenderingContext2D, colour: string, columns: number, rows: number, w: number, h: number, scale: number): void {
  const { width, height } = context.canvas;
  context.fillStyle = colour;
  for (let c = 1; c < columns; c++) context.fillRect(Math.round(c * w) - scale / 2, 0, scale, height);
  for (let r = 1; r < rows; r++) context.fillRect(0, Math.round(r * h) - scale / 2, width, scale);
}

/** A cross for the dead, a ring for the overloaded: shapes as well as colours. */
function marks(context: CanvasRenderingContext2D, heat: Heat, w: number, h: number, scale: number): void {
  const size = Math.min(w, h, 18 * scale) * 0.26;
  context.lineWidth = Math.max(1, 1.25 * scale);
  context.lineCap = "round";
  for (let i = 0; i < heat.cells.length; i++) {
    const byte = heat.cells[i]!;
    const dead = byte === DEAD;
    if (!dead && (byte < heat.overloadedFrom || byte === 255)) continue;
    const x = ((i % heat.columns) + 0.5) * w;
    const y = (Math.floor(i / heat.columns) + 0.5) * h;
    context.beginPath();
    context.strokeStyle = dead ? heat.gap : heat.ink;
    if (dead) {
      context.moveTo(x - size, y - size);
      context.lineTo(x + size, y + size);
      context.moveTo(x + size, y - size);
      context.lineTo(x - size, y + size);
    } else {
      context.arc(x, y, size, 0, 2 * Math.PI);
    }
    context.stroke();
  }
}
