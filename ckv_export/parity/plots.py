"""Plots as inline SVG, without any library.

Colours are Okabe and Ito's, distinguishable with colour-blindness.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_WIDTH, _HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 28, 44


def bars(title: str, labels: Sequence[str], series: Mapping[str, Sequence[int]]) -> str:
    """Groups of bars over `labels`; heights are log10(1 + count), so that one flip is seen."""
    largest = max((n for counts in series.values() for n in counts), default=0)
    top = max(1.0, math.log10(1 + largest))
    width = (_WIDTH - _LEFT - _RIGHT) / max(1, len(labels))
    each = 0.8 * width / max(1, len(series))
    parts = [_axis_text(_LEFT + (i + 0.5) * width, label) for i, label in enumerate(labels)]
    for decade in range(int(top) + 1):
        parts.append(_grid(_y(decade / top), f"{10**decade:,}"))
    for place, counts in enumerate(series.values()):
        for i, count in enumerate(counts):
            x, y = _LEFT + i * width + 0.1 * width + place * each, _y(math.log10(1 + count) / top)
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{each:.1f}" '
                f'height="{_y(0) - y:.1f}" fill="{COLOURS[place]}"/>'
            )
    return _figure(title, parts, list(series))


def lines(title: str, below: str, series: Mapping[str, Sequence[float | None]]) -> str:
    """Curves over 1, 2, ... on a logarithmic scale; zeros and gaps are left out."""
    values = [v for curve in series.values() for v in curve if v]
    low = math.floor(math.log10(min(values))) if values else -8
    high = max(low + 1, math.ceil(math.log10(max(values)))) if values else -7
    steps = max((len(curve) for curve in series.values()), default=1)
    parts = [_grid(_y((p - low) / (high - low)), f"1e{p}") for p in range(low, high + 1)]
    parts += [_axis_text(_x(n, steps), str(n)) for n in sorted({1, (steps + 1) // 2, steps})]
    parts.append(_axis_text(_WIDTH / 2, below, _HEIGHT - 8))
    for place, curve in enumerate(series.values()):
        points = " ".join(
            f"{_x(n, steps):.1f},{_y((math.log10(v) - low) / (high - low)):.1f}"
            for n, v in enumerate(curve, 1)
            if v
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{COLOURS[place]}" stroke-width="2"/>'
        )
    return _figure(title, parts, list(series))


def _x(step: int, steps: int) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - 1) / max(1, steps - 1)


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share


def _grid(y: float, label: str) -> str:
    return (
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{html.escape(label)}</text>'
    )


def _axis_text(x: float, label: str, y: float = _HEIGHT - _BOTTOM + 16) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{html.escape(label)}</text>'


def _figure(title: str, parts: Sequence[str], names: Sequence[str]) -> str:
    legend = [
        f'<rect x="{_LEFT + 150 * i}" y="6" width="10" height="10" fill="{COLOURS[i]}"/>'
        f'<text x="{_LEFT + 150 * i + 15}" y="15">{html.escape(name)}</text>'
        for i, name in enumerate(names)
    ]
    body = "".join([*legend, *parts])
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" width="{_WIDTH}">{body}</svg>'
        f"<figcaption>{html.escape(title)}</figcaption></figure>"
    )
