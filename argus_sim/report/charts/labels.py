"""Where to write the names of points: each beside its point, none on another name or on another point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

#: Parts of a chart's box, as wide as on a phone: a letter, what a name keeps free on both sides, a line, a point.
_LETTER, _ROOM, _LINE, _POINT = 0.0205, 0.012, 0.05, 0.03
#: How far from its point a name may be written: to the side, and up or down.
_ASIDE = (0.0, 0.03, 0.07, 0.12, 0.18, 0.25, 0.33)
_UP = tuple(0.03 * k for k in range(-13, 14))
#: A name further away than this has a line that leads to it.
_NEAR = 0.065
_ROUNDS = 6


#: Parts of the box; of a box: its left, right, low and high edge.
_Point = tuple[float, float]
_Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Label:
    """The edge of a name that is next to its point, in parts of the box; ``led``: by a line from the point."""

    x: float
    y: float
    left: bool
    led: bool


def place_labels(points: Sequence[_Point], names: Sequence[str]) -> list[Label]:
    """Places for the names of points, in parts of the box; the same for the same points.

    Each name takes the best of its places while the others stay, a few times over. Of too many names some lie on
    each other in the end.

    >>> place_labels([(0.5, 0.5)], ["alone"])
    [Label(x=0.53, y=0.5, left=False, led=False)]
    """
    widths = [_LETTER * len(name) + 2 * _ROOM for name in names]
    dots = [_box_of_point(point) for point in points]
    places = [_places(point, width, dots) for point, width in zip(points, widths, strict=True)]
    # Those in the middle of a crowd choose first: they have the fewest places.
    order = sorted(range(len(points)), key=lambda i: sum(_square(points[i], other) for other in points))
    chosen: dict[int, Label] = {}
    for _ in range(_ROUNDS):
        before = dict(chosen)
        for i in order:
            others = [_box(label, widths[k]) for k, label in chosen.items() if k != i]
            leads = [(points[k], (label.x, label.y)) for k, label in chosen.items() if k != i and label.led]
            best = math.inf
            for cost, label in places[i]:
                if cost >= best:
                    break
                cost += _among(points[i], label, widths[i], others, leads)
                if cost < best:
                    best, chosen[i] = cost, label
        if chosen == before:
            break
    return [chosen[i] for i in range(len(points))]


def _places(point: _Point, width: float, dots: Sequence[_Box]) -> list[tuple[float, Label]]:
    """All places for a name and what each costs whatever the others choose, the cheapest first."""
    found = []
    for aside, up, left in product(_ASIDE, _UP, (False, True)):
        if math.hypot(aside, up) < 0.03:
            continue
        x, y = point[0] + (-aside if left else aside), point[1] + up
        label = Label(round(x, 6), round(y, 6), left, math.hypot(aside, up) > _NEAR)
        low, high, bottom, top = box = _box(label, width)
        outside = max(0.0, -low) + max(0.0, high - 1) + max(0.0, -bottom) + max(0.0, top - 1)
        cost = 40 * outside + math.hypot(aside, up) + (0.004 if left else 0.0)
        cost += sum(15 * math.sqrt(_shared(box, dot)) for dot in dots)
        if label.led:
            cost += sum(_crosses(point, (x, y), dot) for dot in dots if not _inside(point, dot))
        found.append((cost, label))
    return sorted(found, key=lambda place: place[0])


def _among(
    point: _Point, label: Label, width: float, others: Sequence[_Box], leads: Sequence[tuple[_Point, _Point]]
) -> float:
    """What a place costs beside the names of others and the lines that lead to them: nothing is to be crossed."""
    box, end = _box(label, width), (label.x, label.y)
    cost = sum(30 * math.sqrt(_shared(box, other)) for other in others)
    if label.led:
        cost += sum(_crosses(point, end, other) for other in others)
        cost += sum(0.3 * _meet(point, end, *lead) for lead in leads if lead[0] != point)
    return cost + sum(_crosses(*lead, box) for lead in leads)


def _box(label: Label, width: float) -> _Box:
    left = label.x - width if label.left else label.x
    return left, left + width, label.y - _LINE / 2, label.y + _LINE / 2


def _box_of_point(point: _Point) -> _Box:
    return point[0] - _POINT / 2, point[0] + _POINT / 2, point[1] - _POINT / 2, point[1] + _POINT / 2


def _square(a: _Point, b: _Point) -> float:
    return float((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2)


def _shared(a: _Box, b: _Box) -> float:
    """The area that two boxes share."""
    wide, tall = min(a[1], b[1]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[2], b[2])
    return wide * tall if wide > 0.0 and tall > 0.0 else 0.0


def _crosses(start: _Point, end: _Point, box: _Box) -> float:
    """How much of a line is in a box, of its length, at most 1; looked at in a dozen places."""
    (x, y), (to_x, to_y), (left, right, low, high) = start, end, box
    # Most lines are nowhere near: there are thousands of places to judge, each beside a dozen boxes.
    if (x <= left and to_x <= left) or (x >= right and to_x >= right):
        return 0.0
    if (y <= low and to_y <= low) or (y >= high and to_y >= high):
        return 0.0
    return sum(_inside((x + (to_x - x) * k / 12, y + (to_y - y) * k / 12), box) for k in range(1, 12)) / 12


def _inside(point: _Point, box: _Box) -> bool:
    return box[0] < point[0] < box[1] and box[2] < point[1] < box[3]


def _meet(a: _Point, b: _Point, c: _Point, d: _Point) -> bool:
    """Whether the line from a to b crosses the one from c to d."""

    def side(p: _Point, q: _Point, r: _Point) -> bool:
        return (q[0] - p[0]) * (r[1] - p[1]) > (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) != side(a, b, d) and side(c, d, a) != side(c, d, b)
