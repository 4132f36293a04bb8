"""The style sheet of a report: light or dark depending on the reader's system, and light on paper.

Series colours are custom properties --c0 ... --c5; elements of class s0 ... s5 have their colour in --c.
"""

from __future__ import annotations

import re

COLOURS = 6  # further series repeat the colours

_LIGHT = """
  --page: #f7f7f5; --card: #ffffff; --ink: #1c2127; --soft: #5a6470; --line: #e2e4e8; --shade: #f1f2f4;
  --good: #1f7a4d; --bad: #b3382c; --accent: #1f5f8b;
  --c0: #1f6fb2; --c1: #d1620d; --c2: #2b8a5b; --c3: #8b4fae; --c4: #b3894a; --c5: #5a6470;
"""

_DARK = """
  --page: #121518; --card: #1a1e23; --ink: #e7eaed; --soft: #9ba6b2; --line: #2c333b; --shade: #22272d;
  --good: #5fc48f; --bad: #ef8a7e; --accent: #7db9e3;
  --c0: #66b0ee; --c1: #f4a259; --c2: #6ccb98; --c3: #c69be3; --c4: #d9bd85; --c5: #9ba6b2;
"""

_RULES = """
* { box-sizing: border-box; }
html { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Liberation Sans",
  sans-serif; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); }
main, header, footer { max-width: 1120px; margin: 0 auto; padding: 0 28px; }
header { padding-top: 52px; }
h1 { font-size: 2.15rem; line-height: 1.15; letter-spacing: -.018em; margin: .15em 0 .35em; font-weight: 680; }
h2 { font-size: 1.32rem; letter-spacing: -.01em; margin: 0 0 .3em; font-weight: 650; }
h3 { font-size: 1rem; margin: 1.9em 0 .7em; font-weight: 650; }
p { margin: .4em 0 1em; max-width: 76ch; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
code, pre { font: .86em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
.kicker { font-size: .78rem; letter-spacing: .09em; text-transform: uppercase; color: var(--soft); margin: 0; }
.lead { font-size: 1.1rem; line-height: 1.5; }
.soft { color: var(--soft); } .small { font-size: .87rem; }
.facts { display: flex; flex-wrap: wrap; gap: 6px 30px; margin: 1.1em 0 0; padding: 14px 0;
  border-top: 1px solid var(--line); border-bottom: 1px solid var(--line); }
.facts div { min-width: 0; } .facts dt { font-size: .77rem; color: var(--soft); } .facts dd { margin: 0; }
nav { margin: 16px 0 30px; font-size: .92rem; display: flex; flex-wrap: wrap; gap: 4px 20px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 26px 30px 28px;
  margin: 0 0 22px; overflow-x: auto; scroll-margin-top: 12px; }
footer { color: var(--soft); font-size: .85rem; padding-bottom: 44px; }

.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 16px; margin: 18px 0 6px; }
.card { border: 1px solid var(--line); border-radius: 10px; padding: 16px 20px 15px;
  border-top: 3px solid var(--c, var(--line)); }
.card .name { font-weight: 600; overflow-wrap: anywhere; } .card .what { color: var(--soft); font-size: .84rem; }
.card .big { font-size: 2.5rem; font-weight: 640; letter-spacing: -.03em; line-height: 1.2;
  font-variant-numeric: tabular-nums; }
.verdict { font-weight: 600; } .good { color: var(--good); } .bad { color: var(--bad); }

table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .94rem; margin: 10px 0; }
th, td { text-align: left; padding: 8px 14px 8px 0; border-bottom: 1px solid var(--line); vertical-align: middle; }
thead th { font-size: .82rem; font-weight: 600; color: var(--soft); vertical-align: bottom; }
tbody th { font-weight: 500; } tbody tr:last-child > * { border-bottom: 0; }
th.n, td.n { text-align: right; } td.n:last-child, th.n:last-child { padding-right: 0; }
td .range, th .range { color: var(--soft); font-size: .84rem; } td .range { white-space: nowrap; }
th .range { font-weight: 400; overflow-wrap: anywhere; } td b { font-weight: 640; }
tr.main > * { background: var(--shade); } tr.main > :first-child { box-shadow: inset 3px 0 var(--accent);
  padding-left: 12px; }
tr.group th { padding-top: 18px; font-weight: 650; border-bottom-color: var(--soft); }
.swatch { display: inline-block; width: .72em; height: .72em; border-radius: 3px; background: var(--c);
  margin-right: .5em; }
.keys td { vertical-align: top; overflow-wrap: anywhere; } .keys th { white-space: nowrap; width: 1%;
  padding-right: 26px;
  font-weight: 500; vertical-align: top; color: var(--soft); }

svg { display: block; max-width: 100%; height: auto; } td svg { max-width: none; }
svg text { fill: var(--soft); font-size: 12px; }
svg .axis { stroke: var(--soft); stroke-width: 1; } svg .grid { stroke: var(--line); stroke-width: 1; }
svg .rule { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 4; }
svg .title { fill: var(--ink); font-weight: 600; font-size: 13px; }
svg .line { fill: none; stroke: var(--c); stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
svg .faint { stroke-width: 1; opacity: .3; } svg .band { fill: var(--c); opacity: .13; stroke: none; }
svg .dot { fill: var(--card); stroke: var(--c); stroke-width: 2.2; } svg .mark { stroke: var(--c);
  stroke-dasharray: 3 3; }
svg .bar { stroke: var(--c); stroke-width: 5; stroke-linecap: round; opacity: .32; }
  svg .point { fill: var(--c); }
svg .track { stroke: var(--line); stroke-width: 2; stroke-linecap: round; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 22px; font-size: .9rem; margin: 8px 0 2px; }
.multiples { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 16px 24px;
  margin: 14px 0; }
.wide { max-width: 860px; margin: 12px auto 0; } .square { max-width: 620px; margin: 12px auto 0; }

.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(225px, 1fr)); gap: 18px; margin: 12px 0; }
figure { margin: 0; break-inside: avoid; }
.picture { position: relative; background: #000; border-radius: 8px; overflow: hidden; }
.picture img { display: block; width: 100%; height: auto; }
.picture svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.picture rect { fill: none; stroke-width: 2px; vector-effect: non-scaling-stroke; }
.picture .gt { stroke: #39d98a; } .picture .ignored { stroke: #b8c0c8; stroke-dasharray: 2 3; }
.picture .pred { stroke: #ffb020; stroke-dasharray: 5 3; }
.picture text { fill: #ffd27a; font-weight: 600; paint-order: stroke; stroke: rgba(0,0,0,.75); stroke-width: .28em;
  stroke-linejoin: round; }
figure:has(:checked) { grid-column: span 2; grid-row: span 2; }
label.picture { display: block; cursor: zoom-in; } figure:has(:checked) .picture { cursor: zoom-out; }
.picture input { position: absolute; opacity: 0; } .picture:focus-within { outline: 2px solid var(--accent); }
.strips { display: grid; gap: 18px; margin: 12px 0; grid-template-columns: repeat(auto-fill, minmax(135px, 1fr)); }
.strips.wide2 { grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); }
.strips.wide3 { grid-template-columns: repeat(auto-fill, minmax(430px, 1fr)); }
.strip { display: flex; gap: 3px; position: relative; cursor: zoom-in; border-radius: 8px; overflow: hidden; }
.strip .picture { flex: 1 1 0; min-width: 0; border-radius: 0; } .strip input { position: absolute; opacity: 0; }
figure:has(:checked) .strip { cursor: zoom-out; } .strip:focus-within { outline: 2px solid var(--accent); }
.picture .corner { fill: none; stroke: #39d98a; stroke-width: 2px; vector-effect: non-scaling-stroke; }
.steps { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 4px 16px; align-items: center;
  margin: 12px 0; font-size: .9rem; max-width: 900px; }
.steps img { display: block; max-width: 100%; max-height: 128px; background: #000; }
figcaption { font-size: .85rem; line-height: 1.4; margin-top: 6px; }
  figcaption b { overflow-wrap: anywhere; }
.key { display: inline-block; width: 1.5em; border-top: 2.5px solid #1fa869; vertical-align: middle;
  margin-right: .45em; }
.key.pred { border-top: 2.5px dashed #e8940a; } .key.ignored { border-top: 2.5px dotted #98a2ad; }

details { border-top: 1px solid var(--line); padding: 10px 0; } details:first-of-type { margin-top: 12px; }
summary { cursor: pointer; font-weight: 550; } details[open] > summary { margin-bottom: 8px; }
"""

_PAPER = """
@page { margin: 15mm 13mm; }
@media print {
  :root { color-scheme: light; %LIGHT% --page: #fff; }
  html { font-size: 12px; }
  header { padding-top: 0; } header, main, footer { max-width: none; padding-left: 0; padding-right: 0; }
  nav { display: none; }
  section { border: 0; border-top: 1px solid var(--line); border-radius: 0; padding: 16px 0;
  overflow: visible; }
  .gallery { grid-template-columns: repeat(4, 1fr); gap: 10px; }
  .strips { grid-template-columns: repeat(6, 1fr); } .strips.wide2 { grid-template-columns: repeat(3, 1fr); }
  .strips.wide3 { grid-template-columns: repeat(2, 1fr); }
  .cards { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; }
  .card { padding: 10px 14px; } .multiples { grid-template-columns: repeat(3, 1fr); gap: 8px; }
  h2, h3 { break-after: avoid; } tr, .card, svg { break-inside: avoid; }
  .picture { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
}
"""


def style_sheet() -> str:
    """The whole style sheet."""
    classes = "".join(f".s{i} {{ --c: var(--c{i}); }}\n" for i in range(COLOURS))
    return (
        f":root {{ color-scheme: light dark; {_LIGHT} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}\n"
        f"{classes}{_RULES}{_PAPER.replace('%LIGHT%', _LIGHT)}"
    )


def picture_style() -> str:
    """Only the rules of charts, in light colours written out, as not every program supports custom properties."""
    colours = dict(re.findall(r"--(\w+): (#\w+)", _LIGHT))
    rules = []
    for selector, body in re.findall(r"\bsvg (\.?\w+) (\{[^}]*\})", _RULES):
        if "var(--c)" in body:
            rules += [f".s{i} {selector} {body.replace('var(--c)', colours[f'c{i}'])}" for i in range(COLOURS)]
        else:
            rules.append(f"{selector} {body}")
    return re.sub(r"var\(--(\w+)\)", lambda name: colours[name[1]], "\n".join(rules))
