"""Pages of reports: well-formed, self-contained, and what they are like in headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="needs chromium, for pages as a browser shows them")

_LOADS = re.compile(r"<script|<link|<img|<iframe|src=|@import|url\(|https?://", re.IGNORECASE)


class Balanced(HTMLParser):
    """Checks that what is opened is closed, in order; collects the text."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def text_of(page: str) -> str:
    """The text of a page; fails where the page is not well-formed, or would load anything."""
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert not _LOADS.search(page), _LOADS.search(page)
    return " ".join(parser.text)


# Of a document: its width, what sticks out of it, the size of text as seen, and the contrast of each text.
LOOK = """
function look(d) {
  const v = d.defaultView, wide = d.documentElement.clientWidth, out = [], small = [], faint = [];
  const parts = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = c => { const [r, g, b] = parts(c).slice(0, 3).map(x => (x /= 255) <= .03928 ? x / 12.92
    : ((x + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = v.getComputedStyle(e).backgroundColor;
    const p = parts(c); if (p.length < 4 || p[3] > .99) return c; } return 'rgb(255,255,255)'; };
  d.querySelectorAll('details').forEach(e => e.open = true);
  for (const e of d.body.querySelectorAll('*')) {
    const box = e.getBoundingClientRect(), style = v.getComputedStyle(e);
    const beside = box.width && (box.right > wide + 1 || box.left < -1);
    if (beside && !e.closest('.scroll')) out.push(e.outerHTML.slice(0, 90));
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || style.display === 'none' || !box.width) continue;
    const svg = e.ownerSVGElement, grow = svg && e.getCTM ? e.getCTM().a || Math.abs(e.getCTM().b) : 1;
    const size = parseFloat(style.fontSize) * grow;
    if (size < 8) small.push([size, e.textContent.slice(0, 40)]);
    const a = light(svg ? style.fill : style.color), b = light(behind(e));
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < 4.5) faint.push([contrast, e.textContent.slice(0, 40)]);
  }
  return {width: wide, scroll_width: d.documentElement.scrollWidth, out, small, faint,
          page: v.getComputedStyle(d.body).backgroundColor};
}
"""


WIDTHS = (1200, 390)


def assert_readable(page: str, folder: Path) -> None:
    """On a desk and on a phone, light and dark: nothing sticks out, no text is too small or too faint."""
    backgrounds = set()
    for dark in (False, True):
        for width, found in zip(WIDTHS, look(page, folder, dark=dark), strict=True):
            assert found["scroll_width"] <= found["width"] == width and not found["out"], found["out"]
            assert not found["small"] and not found["faint"], (width, dark, found["small"], found["faint"])
            backgrounds.add(found["page"])
    assert len(backgrounds) == 2  # it follows the reader's scheme


def look(page: str, folder: Path, *, dark: bool) -> list[dict[str, Any]]:
    """What a page is like, all of its details open, in a window of each of WIDTHS.

    Args:
        page: its HTML.
        folder: for the browser's files.
        dark: the colour scheme that the reader prefers.

    Returns:
        `width` and `scroll_width` [px]; `out`: elements beside the window that are not in a part of their own that
        scrolls; `small`: text below 8 px; `faint`: text with a contrast below 4.5; `page`: the background.
    """
    frames = "".join(
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{escape(page)}"></iframe>' for width in WIDTHS
    )
    file = folder / "outer.html"
    file.write_text(
        f"<!doctype html><body>{frames}<pre id=found></pre><script>{LOOK}onload=()=>found.textContent=JSON.stringify("
        "[...document.querySelectorAll('iframe')].map(f=>look(f.contentDocument)))</script></body>",
        encoding="utf-8",
    )
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--user-data-dir={folder / 'profile'}", f"--blink-settings=preferredColorScheme={0 if dark else 1}"),
            *("--virtual-time-budget=20000", "--window-size=1400,1000", "--dump-dom", file.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.S)
    assert found, f"chromium: {done.returncode}: {done.stderr[-500:]}"
    return json.loads(unescape(found.group(1)))
