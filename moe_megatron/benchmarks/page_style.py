"""The page around a bench: its style sheet, inline.

The page must still open from a file, offline, in ten years: it loads no library, font or other
resource. Colours are variables, which dark mode overrides. It knows class names, not data.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --text: #1c2128; --dim: #5d6673; --rule: #e2e5ea;
  --line-0: #2f6fde; --line-1: #d9572b; --line-2: #1f9d78; --line-3: #a25ad0;
  --line-4: #b98900; --line-5: #0e96b3; --line-6: #cf3f7c; --line-7: #6b7785;
  --bad: #b3301a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171c; --card: #1c2027; --text: #e4e7ec; --dim: #98a2b0; --rule: #2e343d;
    --line-0: #6ea0ff; --line-1: #ff8a5c; --line-2: #45c99f; --line-3: #c58bf0;
    --line-4: #e0b43c; --line-5: #46bfdb; --line-6: #f278a8; --line-7: #98a2b0;
    --bad: #ff8a6e;
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
.legend {
  display: flex; flex-wrap: wrap; align-items: center; gap: 4px 16px; font-size: 12.5px;
  color: var(--dim);
}
.legend span { display: inline-flex; align-items: center; gap: 6px; }
.legend i { width: 12px; height: 3px; border-radius: 2px; }
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
footer { margin-top: 48px; color: var(--dim); font-size: 12.5px; }
@media (max-width: 520px) {
  main { padding: 20px 12px 40px; }
  .tick { font-size: 16px; }
  .facts { grid-template-columns: 1fr 1fr; }
}
@media print { body { background: none; } figure { break-inside: avoid; } }
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
        "</main>\n</body>\n</html>\n"
    )
