r"""How many of the workers, all alike, serve each level: an exact search that takes less than a millisecond.

A worker at level l carries up to :math:`\mu_l` images/s of quality :math:`q_l`: the point
:math:`(\mu_l, q_l \mu_l)`. Were fractions of workers allowed, the best that N can do at demand D is N times
the height at D/N of the concave hull over these points and the idle worker's (0, 0). Let the line of the hull's
edge there be :math:`\nu + \lambda x`. Any whole numbers of workers fall short of that bound by

.. math:: \sum_l r_l n_l + \sum_j (q_j - \lambda)\, e_j, \qquad r_l = \nu + \lambda \mu_l - q_l \mu_l \ge 0

where the e are what they could carry beyond D, left away at the lowest quality. The edge's two levels have r = 0.
So the others are tried in the order of what they lose, each time with the best numbers of the two; once they lose
more than the best answer so far, there is no better one. Rounding loses little, so few are tried: some tens, for
8 workers as for 1000.
"""

from __future__ import annotations

import heapq
import itertools
from typing import NamedTuple

#: Numbers of workers to try; after as many HiGHS is faster. Few need it: many levels near one line.
MOST_TRIED = 2_000
#: An answer this close to the bound's value is not improved upon.
RELATIVE_GAP = 1e-9


class _Edge(NamedTuple):
    """The hull's edge at the demand: its two levels, the line's slope and value at 0, and its height there."""

    slow: int
    fast: int
    slope: float
    idle_loss: float
    height: float


class _Tried(NamedTuple):
    """Workers at other levels than the edge's: how many, what they carry, and which, each with those before."""

    workers: int
    load: float
    last: int
    which: tuple[object, int] | None


def best_counts(
    quality: tuple[float, ...], throughput_per_s: tuple[float, ...], workers: int, demand_per_s: float
) -> tuple[list[int], list[float]] | None:
    """The workers per level that carry the demand at the highest mean quality, and the load of each level.

    Args:
        quality: Of each level.
        throughput_per_s: Images/s of one worker at each level; 0 for a level that cannot be served.
        workers: All alike, at least 1.
        demand_per_s: Images/s; positive, and less than all workers carry at the fastest level.

    Returns:
        Workers, no more than the load needs, and images/s by level; None if too many ways are as good to try all.
    """
    unit, idle = max(throughput_per_s), len(quality)
    rate, worth, demand = [*(r / unit for r in throughput_per_s), 0.0], [*quality, 0.0], demand_per_s / unit
    levels = [*(i for i in range(idle) if rate[i] > 0.0), idle]
    edge = _edge_at(worth, rate, levels, demand / workers)
    step, gap = rate[edge.fast] - rate[edge.slow], RELATIVE_GAP * abs(edge.height) * workers
    loss = {i: max(0.0, edge.idle_loss + (edge.slope - worth[i]) * rate[i]) for i in levels}
    # A level that loses more than an idle worker is in no answer: the first one below loses less than that.
    others = sorted((i for i in levels if i not in edge[:2] and loss[i] < edge.idle_loss), key=loss.__getitem__)
    least, used, beyond = float("inf"), dict[int, int](), 0.0
    number = itertools.count()
    heap = [(0.0, next(number), _Tried(0, 0.0, 0, None))]
    for tries in itertools.count():
        if not heap or heap[0][0] + gap >= least:
            break
        if tries == MOST_TRIED:
            return None
        lost, _, tried = heapq.heappop(heap)
        rest = workers - tried.workers
        spare = rest * rate[edge.fast] + tried.load - demand
        # As many of the slower as the demand leaves. One fewer is better if what is left away is then worse.
        slow = min(rest, int(spare / step + 1e-9)) if spare > -1e-12 else -1
        for at_slow in range(slow, max(slow - 2, -1), -1):
            counts, excess = _counts(tried, edge, at_slow, rest - at_slow, idle), max(0.0, spare - at_slow * step)
            away = _left_away(counts, rate, worth, excess)
            total = lost + sum((worth[i] - edge.slope) * load for i, load in away.items())
            if total < least:
                least, used, beyond = total, counts, excess
        if rest:
            for k in range(tried.last, len(others)):
                more = lost + loss[others[k]]
                if more + gap >= least:
                    break
                after = _Tried(tried.workers + 1, tried.load + rate[others[k]], k, (tried.which, others[k]))
                heapq.heappush(heap, (more, next(number), after))
    loads = [used.get(i, 0) * throughput_per_s[i] for i in range(idle)]
    for i, load in _left_away(used, rate, worth, beyond).items():
        loads[i] -= load * unit
    return [used.get(i, 0) for i in range(idle)], loads


def _edge_at(worth: list[float], rate: list[float], levels: list[int], x: float) -> _Edge:
    """The edge of the hull over the levels at a rate of x: the highest line from left of x to right of it."""
    best: _Edge | None = None
    for slow in (i for i in levels if rate[i] <= x):
        for fast in (i for i in levels if rate[i] > x):
            left = worth[slow] * rate[slow]
            slope = (worth[fast] * rate[fast] - left) / (rate[fast] - rate[slow])
            height = left + slope * (x - rate[slow])
            if best is None or height > best.height:
                best = _Edge(slow, fast, slope, left - slope * rate[slow], height)
    assert best is not None, "the idle worker is left of any demand, and the fastest level right of it"
    return best


def _counts(tried: _Tried, edge: _Edge, slow: int, fast: int, idle: int) -> dict[int, int]:
    """Workers by level, the idle ones left out."""
    counts: dict[int, int] = {edge.slow: slow, edge.fast: fast}
    which: object = tried.which
    while isinstance(which, tuple):
        which, level = which
        counts[level] = counts.get(level, 0) + 1
    return {i: n for i, n in counts.items() if n and i != idle}


def _left_away(counts: dict[int, int], rate: list[float], worth: list[float], excess: float) -> dict[int, float]:
    """By level: the load that its workers could carry and need not, from the lowest quality up."""
    away = {}
    for i in sorted(counts, key=lambda i: (worth[i], -rate[i])):
        away[i] = min(excess, counts[i] * rate[i])
        excess -= away[i]
        if excess <= 0.0:
            break
    return away
