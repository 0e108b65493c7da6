"""The page of every report: one HTML file with inline style, nothing to load."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root{--ink:#1d2430;--quiet:#677083;--page:#f5f6f8;--card:#fff;--rule:#e2e5ea;--a:#2563eb;--b:#e4572e;--c:#9aa3b2;
--good:#1a7f4b;--look:#a86400;--bad:#c0262d}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--quiet:#98a1b3;--page:#12151b;--card:#1b2029;--rule:#2c3340;
--a:#6ea0ff;--b:#ff8563;--c:#5c6678;--good:#4cc38a;--look:#e0a040;--bad:#ff7b80}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1060px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;margin:0 0 2px}h2{font-size:17px;margin:0 0 4px}
section{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:18px 20px;margin:16px 0}
p{margin:4px 0 10px}.quiet{color:var(--quiet)}
table{border-collapse:collapse;width:100%}th{text-align:left;font-weight:600;color:var(--quiet);font-size:13px}
td,th{padding:6px 10px 6px 0;border-bottom:1px solid var(--rule);vertical-align:top}tr:last-child td{border:0}
td.n{font-variant-numeric:tabular-nums;white-space:nowrap}
.chip{display:inline-block;border-radius:99px;padding:0 10px;font-size:13px;font-weight:600;border:1px solid}
.good{color:var(--good)}.look{color:var(--look)}.bad{color:var(--bad)}.none{color:var(--quiet)}
svg{display:block;width:100%;height:auto;max-width:100%}
svg.key{display:inline-block;width:22px;height:8px;margin-right:6px;vertical-align:middle}
.grid{stroke:var(--rule)}.axis{stroke:var(--quiet)}.mark{stroke:var(--quiet);stroke-dasharray:3 3}
.tick{font-size:11px;fill:var(--quiet)}.label{font-size:12px;fill:var(--ink)}
.bar{fill:var(--a)}path{fill:none;stroke-linejoin:round}
path.measured{stroke:var(--a);stroke-width:1.6}path.simulated{stroke:var(--b);stroke-width:1.4}
path.sent{stroke:var(--c);stroke-width:1}
.legend{display:flex;gap:20px;font-size:13px;color:var(--quiet);margin:2px 0 10px 62px;flex-wrap:wrap}
.two{display:grid;grid-template-columns:repeat(auto-fit,minmax(400px,1fr));gap:16px}
h3{font-size:14px;margin:14px 0 2px}
.verdict{font-size:19px;line-height:1.45;margin:0}.verdict b.good{color:var(--good)}.verdict b.bad{color:var(--bad)}
table.facts td:first-child{color:var(--quiet);width:210px}code{font:13px ui-monospace,monospace;word-break:break-all}
td.said{font-size:13px;color:var(--quiet)}.zone{fill:var(--rule)}.dot{fill:var(--a)}.whisker{stroke:var(--a);stroke-width:2}
td.plot{width:230px;padding-right:0}ul{margin:4px 0;padding-left:20px}.scroll{overflow-x:auto}
"""


def page(title: str, about: str, sections: Sequence[tuple[str, str, str]]) -> str:
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
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{STYLE}</style></head><body><main>'
        f'<h1>{escape(title)}</h1><p class="quiet">{escape(about)}</p>{body}</main></body></html>\n'
    )


def chip(good: bool, text: str) -> str:
    mark = "good" if good else "bad"
    return f'<span class="chip {mark}">{escape(text)}</span>'


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Cells are HTML."""
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join(f"<tr>{''.join(c if c.startswith('<td') else f'<td>{c}</td>' for c in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def cell(text: str) -> str:
    return f'<td class="n">{escape(text)}</td>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    body = "".join(f"<tr><td>{escape(k)}</td><td>{v}</td></tr>" for k, v in rows)
    return f'<table class="facts">{body}</table>'
