"""The page of every report: one HTML file with inline style, no script, nothing to load.

`page` is the template. `table`, `cell`, `chip` and `facts` make what stands in it; toolkit/charts.py draws.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

# Blue and orange stay apart for colour-blind eyes; marks are words as well as colours.
STYLE = """
:root{color-scheme:light dark;--ink:#1d2430;--quiet:#5f687a;--page:#f5f6f8;--card:#fff;--rule:#e2e5ea;
--a:#2563eb;--b:#d9480f;--c:#8b94a4;--good:#1a7f4b;--look:#8f5600;--bad:#c0262d;
--h0:#3d85c6;--h1:#9fc5e8;--h2:#f6b26b;--h3:#e0651f;--h4:#9c2f00;--h-:#c3c9d3}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--quiet:#a2abbc;--page:#12151b;--card:#1b2029;--rule:#313946;
--a:#6ea0ff;--b:#ff8563;--c:#7d889b;--good:#4cc38a;--look:#e0a040;--bad:#ff7b80;
--h0:#3a6fa8;--h1:#7fb0dc;--h2:#e3b778;--h3:#ff9a4d;--h4:#ff5630;--h-:#4a5362}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1060px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;line-height:1.25;margin:0 0 2px}h2{font-size:17px;margin:0 0 4px}h3{font-size:14px;margin:14px 0 2px}
h1,h2,h3,p,li,summary{overflow-wrap:anywhere}td{overflow-wrap:break-word}a{color:var(--a)}
h3 span{color:var(--quiet);font-weight:400;margin-left:8px}
section{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:18px 20px;margin:16px 0}
p{margin:4px 0 10px}.quiet{color:var(--quiet)}ul{margin:4px 0;padding-left:20px}
code{font:13px ui-monospace,monospace;overflow-wrap:anywhere}
summary{cursor:pointer;color:var(--quiet)}
.verdict{font-size:19px;line-height:1.45;margin:0}
.verdict .chip{font-size:15px;margin-right:8px;vertical-align:2px}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%}th{text-align:left;font-weight:600;color:var(--quiet);font-size:13px}
td,th{padding:6px 12px 6px 0;border-bottom:1px solid var(--rule);vertical-align:top}tr:last-child td{border:0}
td{min-width:3em}td.n{font-variant-numeric:tabular-nums;white-space:nowrap}td.said{font-size:13px;color:var(--quiet)}
td.name{overflow-wrap:anywhere;min-width:9em}
td.plot{width:190px}td.plot svg{min-width:140px}
table.facts td:first-child{color:var(--quiet);width:210px}table.facts td{overflow-wrap:anywhere}
table:has(th:nth-child(8)) td{font-size:13.5px;padding-right:9px}
.chip{display:inline-block;border-radius:99px;padding:0 10px;font-size:13px;font-weight:600;border:1px solid;
white-space:nowrap}
.good{color:var(--good)}.look{color:var(--look)}.bad{color:var(--bad)}.none{color:var(--quiet)}
svg{display:block;width:100%;height:auto;max-width:100%}
.plot svg,svg.plot{overflow:visible}
.chart{padding:12px 16px 40px 62px}.chart svg{height:var(--high)}.bars{padding:0 96px 0 158px}
.bars svg{height:var(--high);overflow:visible}
svg.key{display:inline-block;width:22px;height:8px;margin-right:6px;vertical-align:middle}
.grid{stroke:var(--rule)}.axis{stroke:var(--quiet)}.mark{stroke:var(--quiet);stroke-dasharray:3 3}
.tick{font-size:11px;fill:var(--quiet)}.label{font-size:12px;fill:var(--ink)}
.bar{fill:var(--a)}path{fill:none;stroke-linejoin:round;vector-effect:non-scaling-stroke}
path.measured{stroke:var(--a);stroke-width:1.6}path.simulated{stroke:var(--b);stroke-width:1.4}
path.sent{stroke:var(--c);stroke-width:1}path.wanted{stroke:var(--good);stroke-width:1.6}
path.band{fill:var(--b);fill-opacity:.2;stroke:none}
.zone{fill:var(--rule)}.dot{fill:var(--a)}.whisker{stroke:var(--a);stroke-width:2}
.legend{display:flex;gap:4px 20px;font-size:13px;color:var(--quiet);margin:2px 0 10px 62px;flex-wrap:wrap}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(400px,100%),1fr));gap:4px 20px}.two>*{min-width:0}
video{width:100%;border-radius:6px}
@media(max-width:600px){main{padding:16px 10px 40px}section{padding:14px 12px}h1{font-size:21px}.verdict{font-size:17px}
table{font-size:14px}td,th{padding-right:10px}table.facts td:first-child{width:110px}
table:not(:has(th:nth-child(5))) td.n{white-space:normal}
.tick.every-other{display:none}.legend{margin-left:0}.chart{padding-left:56px}.bars{padding:0 80px 0 140px}
.bars .label{font-size:11px}
.scroll table:has(th:nth-child(5)){min-width:560px}.scroll table:has(th:nth-child(8)){min-width:780px}}
"""


def page(title: str, about: str, sections: Iterable[tuple[str, str, str]], more_style: str = "") -> str:
    """A page of sections: (heading, what it shows, HTML); the first two may be empty."""
    body = "".join(
        "<section>"
        + (f"<h2>{escape(heading)}</h2>" if heading else "")
        + (f'<p class="quiet">{escape(said)}</p>' if said else "")
        + f"{content}</section>"
        for heading, said, content in sections
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}{more_style}</style></head>'
        f'<body><main><h1>{escape(title)}</h1><p class="quiet">{escape(about)}</p>{body}</main></body></html>\n'
    )


def chip(mark: str | bool, text: str) -> str:
    """A word in a mark's colour: good, look, bad or none; True is good, False is bad."""
    name = mark if isinstance(mark, str) else "good" if mark else "bad"
    return f'<span class="chip {name}">{escape(text)}</span>'


def cell(text: str) -> str:
    """A cell of a table with a figure as text."""
    return f'<td class="n">{escape(text)}</td>'


def prose(text: str) -> str:
    """A sentence as HTML, in which a line never breaks between a figure and its unit."""
    return re.sub(r"(?<=\d) (?=%|(?:rad|ms|s|Hz|m|kg|N)\b)", "\u00a0", escape(text))


def quiet(text: str) -> str:
    """A cell of a table with what matters less, as text."""
    return f'<td class="quiet">{escape(text)}</td>'


def table(head: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; each cell of `rows` is HTML, with its own <td> or without. An empty `head` leaves the heading out."""
    top = f"<tr>{''.join(f'<th>{escape(h)}</th>' for h in head)}</tr>" if head else ""
    body = "".join(f"<tr>{''.join(c if c.startswith('<td') else f'<td>{c}</td>' for c in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{top}{body}</table></div>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Names and what they are; the latter is HTML."""
    body = "".join(f"<tr><td>{escape(k)}</td><td>{v}</td></tr>" for k, v in rows)
    return f'<table class="facts">{body}</table>'


def two(*parts: str) -> str:
    """Parts beside each other where there is room."""
    return f'<div class="two">{"".join(f"<div>{part}</div>" for part in parts)}</div>'
