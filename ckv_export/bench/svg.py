"""Line plots as SVG text with logarithmic axes, for pages that need nothing else.

Colours are Okabe and Ito's; lines also differ in their dashes.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("", "6 3", "2 3", "8 3 2 3")
# On an axis of less than so many powers of ten: which multiples of each. The shortest is of 0.3.
_STEPS: tuple[tuple[float, tuple[float, ...]], ...] = (
    (1, (1, 1.5, 2, 3, 4, 6, 8)),
    (3, (1, 2, 5)),
    (math.inf, (1,)),
)
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _LEGEND = 900, 400, 70, 40, 50, 300
_ENTRY = 18


@dataclass(frozen=True)
class Series:
    """A named line through points (x, y), x and y above 0; others are left out."""

    name: str
    points: Sequence[tuple[float, float]]

    @property
    def drawn(self) -> list[tuple[float, float]]:
        """The points that logarithmic axes have."""
        return [(x, y) for x, y in self.points if x > 0 and y > 0]


class _Axis:
    """Numbers to pixels by their logarithm, from `start` to `stop`."""

    def __init__(self, numbers: Sequence[float], start: float, stop: float) -> None:
        logs = [math.log10(n) for n in numbers] or [0.0]
        self.low, self.high = min(logs), max(logs)
        if self.high - self.low < 0.3:
            self.low, self.high = self.low - 0.15, self.high + 0.15
        self.start, self.stop = start, stop

    def place(self, number: float) -> float:
        share = (math.log10(number) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.stop - self.start), 1)

    def ticks(self) -> list[float]:
        """Round numbers within the axis; powers of ten alone on a long one, more on a short one."""
        steps = next(steps for most, steps in _STEPS if self.high - self.low < most)
        exponents = range(math.floor(self.low), math.ceil(self.high) + 1)
        numbers = (step * 10.0**e for e in exponents for step in steps)
        return [n for n in numbers if self.low - 1e-9 <= math.log10(n) <= self.high + 1e-9]


def line_plot(title: str, x_name: str, y_name: str, series: Sequence[Series]) -> str:
    """An <svg> element; series without a point that can be drawn are only in the legend."""
    points = [p for s in series for p in s.drawn]
    right = _WIDTH - _LEGEND
    x_axis = _Axis([x for x, _ in points], _LEFT, right)
    y_axis = _Axis([y for _, y in points], _HEIGHT - _BOTTOM, _TOP)
    parts = [_text(_LEFT, 22, title, "font-weight='bold'"), *_ticks(x_axis, y_axis, right)]
    parts.append(_text((_LEFT + right) / 2, _HEIGHT - 8, x_name, "text-anchor='middle'"))
    parts.append(_text(8, _TOP - 6, y_name))
    for number, one in enumerate(series):
        parts += _line(one, number, x_axis, y_axis, right)
    height = max(_HEIGHT, _TOP + _ENTRY * len(series))  # a long legend reaches below the plot
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {height}' width='100%' "
        f"font-family='sans-serif' font-size='12' role='img'>{''.join(parts)}</svg>"
    )


def _ticks(x_axis: _Axis, y_axis: _Axis, right: float) -> list[str]:
    parts = []
    for n in x_axis.ticks():
        x = x_axis.place(n)
        parts.append(_rule(x, _TOP, x, _HEIGHT - _BOTTOM))
        parts.append(_text(x, _HEIGHT - _BOTTOM + 16, f"{n:g}", "text-anchor='middle'"))
    for n in y_axis.ticks():
        y = y_axis.place(n)
        parts.append(_rule(_LEFT, y, right, y))
        parts.append(_text(_LEFT - 6, y + 4, f"{n:g}", "text-anchor='end'"))
    return parts


def _line(one: Series, number: int, x_axis: _Axis, y_axis: _Axis, right: float) -> list[str]:
    colour = _COLOURS[number % len(_COLOURS)]
    dash = _DASHES[number % len(_DASHES)]  # 7 colours and 4 dashes make 28 pens
    pen = f"fill='none' stroke='{colour}' stroke-width='2' stroke-dasharray='{dash}'"
    places = [(x_axis.place(x), y_axis.place(y)) for x, y in one.drawn]
    y = _TOP + _ENTRY * number
    return [
        f"<polyline {pen} points='{' '.join(f'{a},{b}' for a, b in places)}'/>",
        *(f"<circle cx='{a}' cy='{b}' r='3' fill='{colour}'/>" for a, b in places),
        f"<polyline {pen} points='{right + 14},{y} {right + 44},{y}'/>",
        _text(right + 50, y + 4, one.name),
    ]


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f"<line x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}' stroke='#ddd'/>"


def _text(x: float, y: float, text: str, extra: str = "") -> str:
    return f"<text x='{x}' y='{y}' {extra}>{html.escape(text)}</text>"
