/** Pictures to keep: SVG from what stands on the page or from numbers, PNG from SVG. */
import { type Palette, cssOf } from "./colours";

const SPACE = "http://www.w3.org/2000/svg";
const FONT = "Inter, system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";

export const escaped = (text: string): string =>
  text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]!);

export function svgOf(width: number, height: number, inner: string, title: string): string {
  return (
    `<svg xmlns="${SPACE}" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="${FONT}" font-size="12">` +
    `<title>${escaped(title)}</title><rect width="100%" height="100%" fill="#fff"/>${inner}</svg>`
  );
}

/** Pictures one below the other, as one. */
export function stacked(pictures: string[]): string {
  let [width, height, inner] = [0, 0, ""];
  for (const picture of pictures) {
    const [, w, h] = /width="([\d.]+)" height="([\d.]+)"/.exec(picture)!;
    inner += picture.replace("<svg ", `<svg y="${height}" `);
    width = Math.max(width, Number(w));
    height += Number(h);
  }
  return `<svg xmlns="${SPACE}" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">${inner}</svg>`;
}

export const svgText = (x: number, y: number, text: string, more = ""): string =>
  `<text x="${x}" y="${y}" fill="#3a424d" ${more}>${escaped(text)}</text>`;

/** Rows of bytes as rectangles; neighbours of one colour are one. */
export function svgCells(
  cells: Uint8Array,
  columns: number,
  palette: Palette,
  box: { x: number; y: number; width: number; height: number },
): string {
  const rows = cells.length / columns;
  const w = box.width / columns;
  const h = box.height / rows;
  let rects = "";
  for (let row = 0; row < rows; row++) {
    for (let start = 0; start < columns; ) {
      let end = start + 1;
      const byte = cells[row * columns + start]!;
      while (end < columns && cells[row * columns + end] === byte) end++;
      const at = [box.x + start * w, box.y + row * h, (end - start) * w, h].map((n) => n.toFixed(2));
      rects += `<rect x="${at[0]}" y="${at[1]}" width="${at[2]}" height="${at[3]}" fill="${cssOf(palette, byte)}"/>`;
      start = end;
    }
  }
  return `<g shape-rendering="crispEdges">${rects}</g>`;
}

const MARGIN = 16;
const KEPT = [
  "fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "fill-opacity", "stroke-opacity",
  "font-size", "font-weight", "text-anchor", "dominant-baseline",
];

/** A picture that the page shows as SVG, with the colours of its style sheet written into it. */
export function svgOfElement(element: SVGSVGElement, title: string): string {
  const copy = element.cloneNode(true) as SVGSVGElement;
  const from = [element, ...element.querySelectorAll("*")];
  const to = [copy, ...copy.querySelectorAll("*")];
  from.forEach((node, i) => {
    const style = getComputedStyle(node);
    for (const name of KEPT) to[i]!.setAttribute(name, style.getPropertyValue(name));
    to[i]!.removeAttribute("class");
    to[i]!.removeAttribute("style");
  });
  const { width, height } = element.getBoundingClientRect();
  const inner = [...copy.childNodes].map((node) => new XMLSerializer().serializeToString(node)).join("");
  const style = getComputedStyle(document.body);
  const [w, h] = [Math.ceil(width) + 2 * MARGIN, Math.ceil(height) + 2 * MARGIN + 28];
  return (
    `<svg xmlns="${SPACE}" width="${w}" height="${h}" viewBox="0 0 ${w} ${h}" font-family="${FONT}" font-size="12">` +
    `<title>${escaped(title)}</title><rect width="100%" height="100%" fill="${style.getPropertyValue("--card")}"/>` +
    `<text x="${MARGIN}" y="${MARGIN + 10}" font-size="14" font-weight="600" fill="${style.getPropertyValue("--ink")}">${escaped(title)}</text>` +
    `<g transform="translate(${MARGIN} ${MARGIN + 28})">${inner}</g></svg>`
  );
}

/** Draws an SVG at twice its size. */
export async function pngOf(svg: string): Promise<Blob> {
  const address = URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" }));
  try {
    const image = new Image();
    image.src = address;
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = 2 * image.width;
    canvas.height = 2 * image.height;
    canvas.getContext("2d")!.drawImage(image, 0, 0, canvas.width, canvas.height);
    return await new Promise((resolve, reject) =>
      canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the browser made no PNG"))), "image/png"),
    );
  } finally {
    URL.revokeObjectURL(address);
  }
}

/** A row of a table as CSV (RFC 4180). */
export const csvRow = (values: (string | number | null | undefined)[]): string =>
  values
    .map((value) => String(value ?? ""))
    .map((text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text))
    .join(",");

export const csvOf = (head: string[], rows: (string | number | null | undefined)[][]): string =>
  [head, ...rows].map(csvRow).join("\r\n") + "\r\n";

export function save(content: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name.replace(/[^\w.-]+/g, "_");
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
