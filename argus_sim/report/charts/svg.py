"""Paths, scales and colours of inline charts.

A chart is a box with an SVG of 2,000 x 1,000 units that is stretched over it, so that it fits any screen; what
must not be stretched (text, dots) is HTML at percentages of the box. Whole units keep paths short.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from argus_sim.report.moving import Floats

WIDTH, HEIGHT = 2000, 1000


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high`` on an axis."""

    low: float
    high: float

    def part(self, value: float) -> float:
        """Where a value is along the axis: 0 at its start, 1 at its end."""
        return (value - self.low) / (self.high - self.low)

    def percent(self, value: float) -> str:
        return f"{100 * self.part(value):.2f}%"

    def x(self, values: Floats) -> Floats:
        return WIDTH * (values - self.low) / (self.high - self.low)

    def y(self, values: Floats) -> Floats:
        return HEIGHT * (1 - (values - self.low) / (self.high - self.low))


@dataclass(frozen=True)
class Tick:
    at: str
    text: str


def rounds(scale: Scale, count: int) -> list[float]:
    """About ``count`` round values on an axis.

    >>> rounds(Scale(0, 10), 5)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    raw = (scale.high - scale.low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(scale.low / step - 1e-9), math.floor(scale.high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def ticks(scale: Scale, count: int, *, percent: bool = False) -> list[Tick]:
    """About ``count`` marks of an axis, with what is written at them."""
    values = rounds(scale, count)
    return [Tick(scale.percent(v), f"{100 * v:.4g} %" if percent else f"{v:.6g}") for v in values]


def around(values: Iterable[float], *, zero: bool = False, most: float = math.inf, room: float = 0.05) -> Scale:
    """A scale that holds the values, with some room; from zero if wanted, not past ``most``."""
    known = [value for value in values if math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if zero:
        low = min(0.0, low)
    if high - low < 1e-9:
        low, high = (low, low + 1.0) if zero else (low - 0.05, high + 0.05)
    margin = room * (high - low)
    return Scale(low if zero else low - margin, min(most, high + margin))


def line(x: Floats, y: Floats) -> str:
    """A path through the points, with a gap where a value is NaN.

    >>> line(np.array([0.0, 10.0, 20.0, 30.0]), np.array([5.0, 6.0, np.nan, 8.0]))
    'M0 5l10 1M30 8h0'
    """
    parts: list[str] = []
    before: tuple[int, int] | None = None
    alone = False
    for value_x, value_y in zip(x.tolist(), y.tolist(), strict=True):
        if math.isnan(value_y):
            parts += ["h0"] if alone else []
            before, alone = None, False
            continue
        here = (round(value_x), round(value_y))
        if before is None:
            parts.append(f"M{here[0]} {here[1]}")
            alone = True
        elif here != before:
            dx, dy = here[0] - before[0], here[1] - before[1]
            parts.append(f"l{dx}{'' if dy < 0 else ' '}{dy}" if dy and dx else f"h{dx}" if dx else f"v{dy}")
            alone = False
        before = here
    return "".join(parts) + ("h0" if alone else "")


def area(x: Floats, low: Floats, high: Floats) -> str:
    """The closed path between two lines; NaN counts as nothing."""
    there = line(x, np.nan_to_num(high, nan=HEIGHT))
    back = line(x[::-1], np.nan_to_num(low, nan=HEIGHT)[::-1])
    return f"{there}L{back[1:]}Z" if len(x) else ""


def box(left: float, right: float, top: float, bottom: float) -> str:
    a, b, c, d = round(left), round(right), round(top), round(bottom)
    return f"M{a} {c}h{max(1, b - a)}v{d - c}H{a}z"


def efficient(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that none beats by being lower in the first and higher in the second, from left to right.

    >>> efficient([(1.0, 0.5), (2.0, 0.9), (3.0, 0.7)])
    [(1.0, 0.5), (2.0, 0.9)]
    """
    chosen: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not chosen or y > chosen[-1][1]:
            chosen.append((x, y))
    return chosen


def steps(points: list[tuple[float, float]], x: Scale, y: Scale) -> str:
    """The border of what the points beat: up at each point, then right to the next and on to the edge."""
    if not points:
        return ""
    at = [round(v) for v in x.x(np.array([p[0] for p in points]))]
    up = [round(v) for v in y.y(np.array([p[1] for p in points]))]
    turns = "".join(f"H{a}V{b}" for a, b in zip(at[1:], up[1:], strict=True))
    return f"M{at[0]} {HEIGHT}V{up[0]}{turns}H{WIDTH}"


def luminance(colour: str) -> float:
    """Relative luminance, in [0, 1], as the contrast rules of the web define it (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in _rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """Contrast of two colours, 1 to 21.

    >>> contrast("#000000", "#ffffff")
    21.0
    """
    low, high = sorted((luminance(a), luminance(b)))
    return round((high + 0.05) / (low + 0.05), 6)


def readable(colour: str, page: str, wanted: float = 3.2) -> str:
    """The colour, mixed with black or white as far as it takes to stand out from the page."""
    towards = 0.0 if luminance(page) > 0.5 else 1.0
    for mix in np.linspace(0.0, 1.0, 41).tolist():
        mixed = _hex([c + (towards - c) * mix for c in _rgb(colour)])
        if contrast(mixed, page) >= wanted:
            return mixed
    return _hex([towards] * 3)


def _rgb(colour: str) -> list[float]:
    """The three parts of ``#rrggbb``, each in [0, 1]."""
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


def _hex(parts: list[float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)
