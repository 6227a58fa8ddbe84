"""Bars as SVG text, readable on light and dark pages; nothing is drawn by a library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

WIDTH, LABELS, RIGHT, ROW, TOP, BOTTOM = 800, 260, 140, 30, 58, 34
TICKS_MAX: Final = 6
STYLE: Final = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-size: 15px; font-weight: 600 }
  .small { font-size: 11px; fill: #59636e }
  .grid { stroke: #d1d9e0 }
  .line { stroke: #59636e; stroke-width: 1.5 }
  .bar { fill: #8c959f }
  .own { fill: #0969da }
  .far { opacity: .4 }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc }
    .small { fill: #9198a1 }
    .grid { stroke: #3d444d }
    .line { stroke: #9198a1 }
    .bar { fill: #656c76 }
    .own { fill: #4493f8 }
  }
"""


class Bar(NamedTuple):
    """One row: a bar to `near`, a paler one on to `far`, and a line over the spread where there is one."""

    label: str
    near: float
    far: float | None = None
    low: float | None = None
    high: float | None = None
    said: str = ""
    own: bool = False


def step(largest: float) -> float:
    """Between ticks: 1, 2 or 5 times a power of ten, so that at most TICKS_MAX are needed."""
    size = 1e-6
    while True:
        for times in (1, 2, 5):
            if largest / (size * times) <= TICKS_MAX:
                return size * times
        size *= 10


def bars(title: str, unit: str, rows: Sequence[Bar]) -> str:
    """The rows from top to bottom in the order given."""
    largest = max([value for row in rows for value in (row.near, row.far, row.high) if value] or [1.0])
    scale = (WIDTH - LABELS - RIGHT) / largest
    foot = TOP + ROW * len(rows)
    height = foot + BOTTOM

    def x(value: float) -> str:
        return f"{LABELS + value * scale:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" aria-label="{escape(title, {chr(34): "&quot;"})}">',
        f"<style>{STYLE}</style>",
        f'<text class="title" x="12" y="24">{escape(title)}</text>',
        f'<text class="small" x="12" y="42">{escape(unit)}</text>',
    ]
    between = step(largest)
    for number in range(int(largest / between + 1e-9) + 1):
        value = number * between
        parts.append(f'<line class="grid" x1="{x(value)}" x2="{x(value)}" y1="{TOP - 6}" y2="{foot}"/>')
        parts.append(
            f'<text class="small" x="{x(value)}" y="{foot + 16}" text-anchor="middle">{value:g}</text>'
        )
    for index, row in enumerate(rows):
        y, kind = TOP + index * ROW, "own" if row.own else "bar"
        parts.append(f'<text x="{LABELS - 10}" y="{y + 17}" text-anchor="end">{escape(row.label)}</text>')
        if row.far is not None:
            parts.append(_rect(f"{kind} far", y, row.far * scale))
        parts.append(_rect(kind, y, row.near * scale))
        if row.low is not None and row.high is not None:
            parts.append(
                f'<line class="line" x1="{x(row.low)}" x2="{x(row.high)}" y1="{y + 12}" y2="{y + 12}"/>'
            )
        end = max(value for value in (row.near, row.far, row.high) if value is not None)
        parts.append(f'<text x="{LABELS + end * scale + 8:.1f}" y="{y + 17}">{escape(row.said)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _rect(kind: str, y: int, width: float) -> str:
    return f'<rect class="{kind}" x="{LABELS}" y="{y + 3}" width="{max(0.0, width):.1f}" height="18" rx="2"/>'
