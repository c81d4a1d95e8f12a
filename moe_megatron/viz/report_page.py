"""The page around the HTML report: style sheet and script, both inline.

The page must still open from a file, offline, in ten years: it loads no library, font or other
resource. Colours are variables, which dark mode overrides. It knows class names, not data.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --text: #1c2128; --dim: #5d6673; --rule: #e2e5ea;
  --line-0: #2f6fde; --line-1: #d9572b; --line-2: #1f9d78; --line-3: #a25ad0;
  --line-4: #b98900; --line-5: #0e96b3; --line-6: #cf3f7c; --line-7: #6b7785;
  --ramp-start: #2f6fde; --ramp-middle: #b14fb5; --ramp-end: #e8862e;
  --cold-end: #1d4e9e; --cold: #7fabe3; --even: #f1f1ee; --hot: #f0a878; --hot-end: #b3301a;
  --missing: #d3d7dd; --bad: #b3301a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171c; --card: #1c2027; --text: #e4e7ec; --dim: #98a2b0; --rule: #2e343d;
    --line-0: #6ea0ff; --line-1: #ff8a5c; --line-2: #45c99f; --line-3: #c58bf0;
    --line-4: #e0b43c; --line-5: #46bfdb; --line-6: #f278a8; --line-7: #98a2b0;
    --ramp-start: #6ea0ff; --ramp-middle: #d07ad4; --ramp-end: #ffab5e;
    --cold-end: #8ec2ff; --cold: #3a6bb0; --even: #262b33; --hot: #b0602f; --hot-end: #ffb07c;
    --missing: #0d0f12; --bad: #ff8a6e;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 1240px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 4px; }
h3 { font-size: 14px; margin: 0; font-weight: 600; }
p { margin: 0; }
.lead, h2 + p, figcaption p { color: var(--dim); }
h2 + p { margin-bottom: 14px; max-width: 76ch; }
figcaption p { font-size: 12.5px; }
.facts {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(230px, 100%), 1fr)); gap: 12px;
  margin: 24px 0 0;
}
.facts div, figure, .card {
  background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 14px 16px;
}
.facts dt { color: var(--dim); font-size: 12.5px; }
.facts dd { margin: 2px 0 0; font-size: 20px; font-weight: 600; line-height: 1.25; }
.facts small { display: block; color: var(--dim); font-size: 12.5px; font-weight: 400; }
.charts {
  display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr));
}
.charts + details, .card + .card { margin-top: 16px; }
figure { margin: 0; min-width: 0; display: flex; flex-direction: column; gap: 8px; }
figure svg { width: 100%; height: auto; display: block; overflow: visible; touch-action: pan-y; }
.intervals svg { max-width: 720px; }
.grid { stroke: var(--rule); stroke-width: 1; }
.tick { fill: var(--dim); font-size: 11px; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.band { opacity: 0.16; }
.cursor { stroke: var(--dim); stroke-width: 1; stroke-dasharray: 3 3; visibility: hidden; }
.legend {
  display: flex; flex-wrap: wrap; align-items: center; gap: 4px 16px; font-size: 12.5px;
  color: var(--dim);
}
.legend span { display: inline-flex; align-items: center; gap: 6px; }
.legend i { width: 12px; height: 3px; border-radius: 2px; }
.legend .ramp {
  width: 120px; height: 6px; border-radius: 3px;
  background: linear-gradient(90deg in oklab,
    var(--ramp-start), var(--ramp-middle), var(--ramp-end));
}
.strip-body { display: flex; gap: 8px; }
.experts {
  display: flex; flex-direction: column; justify-content: space-between; width: 3ch;
  text-align: right; color: var(--dim); font-size: 11px; line-height: 1;
}
canvas { flex: 1; min-width: 0; width: 0; border-radius: 3px; image-rendering: pixelated; }
.steps {
  display: flex; justify-content: space-between; color: var(--dim); font-size: 11px;
  line-height: 1; padding-left: calc(3ch + 10px);
}
.scale { display: grid; max-width: 420px; gap: 4px; margin: 0 2ch 14px; font-size: 12.5px; }
.scale i {
  height: 10px; border-radius: 3px;
  background: linear-gradient(90deg,
    var(--cold-end), var(--cold), var(--even), var(--hot), var(--hot-end));
}
.scale div { display: flex; justify-content: space-between; color: var(--dim); margin: 0 -2ch; }
.scale span { width: 4ch; text-align: center; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; width: 100%; }
th, td { padding: 5px 14px 5px 0; text-align: right; white-space: nowrap; }
th { color: var(--dim); font-weight: 500; border-bottom: 1px solid var(--rule); }
td.list, th.list { text-align: left; white-space: normal; width: 100%; padding-left: 14px; }
.dense { font-size: 12.5px; }
.dense :is(th, td) { padding-right: 9px; }
.dense th:first-child { text-align: left; }
tbody th { border-bottom: none; text-align: left; }
tr + tr :is(td, th) { border-top: 1px solid var(--rule); }
.bad { color: var(--bad); font-weight: 600; }
details > summary { cursor: pointer; padding: 8px 0; color: var(--dim); }
pre { margin: 0; overflow-x: auto; font: 12.5px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
#tip {
  position: fixed; z-index: 9; pointer-events: none; visibility: hidden; max-width: 280px;
  background: var(--text); color: var(--page); padding: 6px 10px; border-radius: 6px;
  font-size: 12.5px; line-height: 1.4; white-space: pre-line;
}
#tip i { display: inline-block; width: 8px; height: 8px; border-radius: 4px; margin-right: 6px; }
footer { margin-top: 48px; color: var(--dim); font-size: 12.5px; }
@media (max-width: 520px) {
  main { padding: 20px 12px 40px; }
  .tick { font-size: 16px; }
  .facts { grid-template-columns: 1fr 1fr; }
}
@media print { body { background: none; } figure { break-inside: avoid; } }
"""

SCRIPT = """
"use strict";
const tip = document.getElementById("tip");
const dataOf = (figure) => JSON.parse(figure.querySelector("script").textContent);
const MAX_TIP_LINES = 8;

function showTip(event, title, lines) {
  tip.replaceChildren(title);
  for (const [color, text] of lines) {
    const dot = document.createElement("i");
    dot.style.background = color;
    tip.append("\\n");
    if (color) tip.append(dot);
    tip.append(text);
  }
  const box = tip.getBoundingClientRect();
  const left = event.clientX + 14 + box.width > innerWidth
    ? event.clientX - 14 - box.width : event.clientX + 14;
  tip.style.left = Math.max(4, left) + "px";
  tip.style.top = Math.max(4, Math.min(event.clientY + 14, innerHeight - box.height - 4)) + "px";
  tip.style.visibility = "visible";
}
function hideTip() { tip.style.visibility = "hidden"; }

function nearest(sorted, value) {
  let best = 0;
  sorted.forEach((x, i) => {
    if (Math.abs(x - value) < Math.abs(sorted[best] - value)) best = i;
  });
  return best;
}

for (const figure of document.querySelectorAll("figure.chart")) {
  const svg = figure.querySelector("svg");
  const cursor = svg.querySelector(".cursor");
  let series = null;
  svg.addEventListener("pointermove", (event) => {
    series ??= dataOf(figure);
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    const longest = series.reduce((a, b) => (b.x.length > a.x.length ? b : a));
    const main = nearest(longest.x, x);
    const column = longest.x[main];
    cursor.setAttribute("x1", column);
    cursor.setAttribute("x2", column);
    cursor.style.visibility = "visible";
    // A tooltip holds few lines: of many, evenly chosen ones.
    const every = Math.ceil(series.length / MAX_TIP_LINES);
    const lines = series.filter((_, i) => i % every === 0).map((line) => {
      const i = nearest(line.x, column);
      const at = line.step[i] === longest.step[main] ? "" : ` (step ${line.step[i]})`;
      return [line.color, `${line.name}: ${line.y[i]}${at}`];
    });
    showTip(event, `step ${longest.step[main].toLocaleString("en")}`, lines);
  });
  svg.addEventListener("pointerleave", () => {
    cursor.style.visibility = "hidden";
    hideTip();
  });
}

const OCTAVES = 3, MAX_LEVEL = 254, NO_DATA = 255;
const strips = [...document.querySelectorAll("figure.strip")].map((figure) => {
  const data = dataOf(figure);
  data.levels = Uint8Array.from(atob(data.levels), (c) => c.charCodeAt(0));
  data.canvas = figure.querySelector("canvas");
  return data;
});

function palette() {
  const style = getComputedStyle(document.documentElement);
  const rgb = (name) => {
    const hex = style.getPropertyValue(name).trim();
    return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  };
  const stops = ["--cold-end", "--cold", "--even", "--hot", "--hot-end"].map(rgb);
  const colors = [];
  for (let level = 0; level <= MAX_LEVEL; level++) {
    const at = level / MAX_LEVEL * (stops.length - 1);
    const i = Math.min(Math.floor(at), stops.length - 2);
    colors.push(stops[i].map((from, c) => Math.round(from + (stops[i + 1][c] - from) * (at - i))));
  }
  colors[NO_DATA] = rgb("--missing");
  return colors;
}

function paint() {
  const colors = palette();
  for (const { canvas, columns, rows, levels } of strips) {
    canvas.width = columns;
    canvas.height = rows;
    const context = canvas.getContext("2d");
    const image = context.createImageData(columns, rows);
    for (let column = 0; column < columns; column++) {
      for (let row = 0; row < rows; row++) {
        const [r, g, b] = colors[levels[column * rows + row]];
        image.data.set([r, g, b, 255], 4 * (row * columns + column));
      }
    }
    context.putImageData(image, 0, 0);
  }
}
paint();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);

function describeLevel(level) {
  if (level === NO_DATA) return "no tokens";
  const times = 2 ** (level / MAX_LEVEL * 2 * OCTAVES - OCTAVES);
  if (level === 0) return "at most " + times.toFixed(2) + "x its fair share";
  if (level === MAX_LEVEL) return "at least " + times.toFixed(1) + "x its fair share";
  return "about " + times.toFixed(2) + "x its fair share";
}

for (const data of strips) {
  const { canvas, columns, rows, levels } = data;
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const clamp = (part, count) => Math.max(0, Math.min(count - 1, Math.floor(part * count)));
    const column = clamp((event.clientX - box.left) / box.width, columns);
    const row = clamp((event.clientY - box.top) / box.height, rows);
    const first = row * data.experts_per_row;
    const last = Math.min(first + data.experts_per_row, data.experts) - 1;
    const [from, to] = strips[0].steps[column];
    showTip(
      event,
      `layer ${data.layer}, ` + (from === to ? `step ${from}` : `steps ${from} to ${to}`),
      [["", (first === last ? `expert ${first}: ` : `experts ${first} to ${last}: `) +
        describeLevel(levels[column * rows + row])]]
    );
  });
  canvas.addEventListener("pointerleave", hideTip);
}
"""


def render_page(title: str, body: str) -> str:
    """Wraps HTML in a complete document.

    Args:
        title: escaped text of the title.
        body: content of `<main>`, as HTML.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n"
        f'</main>\n<div id="tip" role="status"></div>\n<script>{SCRIPT}</script>\n'
        "</body>\n</html>\n"
    )
