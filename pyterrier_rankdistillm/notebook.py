"""What notebooks show of an object: a small table with a title, and curves. Everything is escaped.

Colours and fonts are the notebook's own, so that views are readable on light and on dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_WIDE, _HIGH, _LEFT, _TOP, _BOTTOM = 320, 130, 52, 18, 22  # pixels: the picture, and what is left for its labels


def card(title: str, rows: Iterable[tuple[str, Any]], *, note: str = "", figures: Sequence[str] = ()) -> str:
    """A titled table of names and values.

    Args:
        title: What it is.
        rows: Names and values; None is left out.
        note: A line below it.
        figures: Pictures below it, as ``curve`` draws them.
    """
    cell = "text-align:left;vertical-align:top"  # notebooks align each cell to the right
    body = "".join(
        f'<tr><td style="{cell};opacity:.7">{escape(name)}</td><td style="{cell}">{_breakable(str(value))}</td></tr>'
        for name, value in rows
        if value is not None
    )
    below = f'<p style="opacity:.7;margin:.3em 0">{escape(note)}</p>' if note else ""
    drawn = f'<div style="display:flex;flex-wrap:wrap;gap:1em">{"".join(figures)}</div>' if figures else ""
    return f'<div style="max-width:60em"><strong>{escape(title)}</strong><table>{body}</table>{below}{drawn}</div>'


def curve(points: Sequence[tuple[float, float]], label: str, *, mark: float | None = None, dots: bool = False) -> str:
    """A line over steps, as a picture in HTML, with its lowest and highest value.

    Args:
        points: Step and value, steps rising, at least one; all finite.
        label: What is drawn.
        mark: A step to be marked.
        dots: Whether each point is drawn too.
    """
    steps, values = [step for step, _ in points], [value for _, value in points]
    low, high = min(values), max(values)
    length = (steps[-1] - steps[0]) or 1.0

    def x(step: float) -> float:
        return _LEFT + (_WIDE - _LEFT - 8) * (step - steps[0]) / length

    def y(value: float) -> float:
        return _TOP + (_HIGH - _TOP - _BOTTOM) * ((high - value) / (high - low) if high > low else 0.5)

    line = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
    marked = "" if mark is None else (
        f'<line x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{_TOP}" y2="{_HIGH - _BOTTOM}" stroke="currentColor" '
        f'stroke-dasharray="3 3" opacity=".6"><title>kept: step {mark:g}</title></line>'
    )  # fmt: skip
    circles = "".join(
        f'<circle cx="{x(step):.1f}" cy="{y(value):.1f}" r="3" fill="#4a7dd6"><title>step {step:g}: {value:.4f}</title>'
        f"</circle>"
        for step, value in points
        if dots
    )
    ends = dict.fromkeys((high, low))
    texts = [f'<text x="{_LEFT - 6}" y="{y(end) + 4:.1f}" text-anchor="end">{end:.4g}</text>' for end in ends]
    texts += [f'<text x="{_LEFT}" y="11" font-weight="bold">{escape(label)}</text>']
    texts += [f'<text x="{x(steps[0]):.1f}" y="{_HIGH - 6}">{steps[0]:g}</text>']
    texts += [f'<text x="{_WIDE - 8}" y="{_HIGH - 6}" text-anchor="end">step {steps[-1]:g}</text>']
    return (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {_WIDE} {_HIGH}" width="{_WIDE}" height="{_HIGH}" '
        f'style="max-width:100%" font-size="11" font-family="sans-serif" fill="currentColor">{"".join(texts)}{marked}'
        f'<polyline points="{line}" fill="none" stroke="#4a7dd6" stroke-width="1.6"/>{circles}</svg>'
    )


def finite(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that can be drawn."""
    return [(step, value) for step, value in points if math.isfinite(step) and math.isfinite(value)]


def size(count: float) -> str:
    """A number of bytes, as people read it."""
    if count < 1000:
        return f"{count:.0f} B"
    power = min(int(math.log10(count)) // 3, 4)
    return f"{count / 1000**power:.1f} {('KB', 'MB', 'GB', 'TB')[power - 1]}"


def _breakable(text: str) -> str:
    """Long paths and names may break after a slash."""
    return escape(text).replace("/", "/<wbr>") if len(text) > 60 else escape(text)
