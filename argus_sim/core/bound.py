"""The hindsight bound: the quality that no policy can exceed, even knowing everything before it happens.

A served request takes at least some worker time, and all of it between arrival and deadline. Leave only that:
models switch for free, requests are served by fractions and put aside at will, batches always fill, nothing
fails. What remains is a fluid that N workers drain, and its best schedule is found exactly. With a price of
:math:`\\lambda` on a worker-second, request k is worth

.. math:: \\max_v\\ q_{kv} - \\lambda w_{kv}

so at this price it asks for the work :math:`c_k(\\lambda)` of the maximising variant (none if that is negative).
Let :math:`r(\\lambda)` be how much of that work the workers can do in time if each request is free to take part
of what it asks for: a queue served in the order of arrival that turns away what would finish late. Then

.. math:: \\text{bound} = \\int_0^\\infty r(\\lambda)\\, d\\lambda

The proof, and what the bound leaves out, is in docs/bound.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer]

#: Relative; above what adding up times of day can lose, below what could ever matter.
_TOLERANCE = 1e-9

# Products are summed without BLAS here: its last digits depend on how many threads there are.

#: How many values a table of the sweep holds: few enough to stay in a processor's cache.
_CHUNK = 1 << 17


@dataclass(frozen=True)
class Bound:
    """What hindsight could make of a workload at most.

    Attributes:
        total_quality: No policy's sum of on-time qualities is above this.
        quality: float64[n], how the requests, in the order given, contribute to the total, which they sum to. A
            picture of where it comes from; for a part of the requests alone it bounds nothing.
        rounding: How much lower, at most, the exact optimum of the fluid is.
    """

    total_quality: float
    quality: Floats
    rounding: float

    @property
    def quality_yield(self) -> float:
        """Total quality / arrived; NaN if none arrived."""
        return self.total_quality / len(self.quality) if len(self.quality) else math.nan


def least_work_s(times_s: Sequence[Mapping[int, Sequence[float]]], limit_s: float) -> Floats:
    r"""The worker time that a request served in time takes at least, by variant and by its luck.

    A batch runs for the time that its first request drew. Let m be what every other request of a batch is
    charged; then the first one can be charged what is left,

    .. math:: w_v(u) = \min\Big(m_v,\ \min_b\ t_v(b, u) - (b - 1)\, m_v\Big)

    and whoever is in a batch and whoever is first, their charges sum to no more than its time. Every m is
    valid; the one with the largest mean charge is taken. If service times do not vary, this is
    :math:`\min_b t_v(b) / b`.

    Args:
        times_s: ``times_s[v][b][u]``: how long a batch of b takes at variant v if its first request drew u.
        limit_s: The longest time from arrival to deadline. A batch that takes longer serves nobody in time.

    Returns:
        float64[V, U], infinite for a variant that serves nobody in time.
    """
    rows = []
    for batches in times_s:
        size = np.array(sorted(batches), dtype=np.float64)[:, None]
        time_s = np.array([batches[b] for b in sorted(batches)], dtype=np.float64)
        time_s[time_s > limit_s * (1.0 + _TOLERANCE)] = np.inf
        if not np.isfinite(time_s).any():
            rows.append(np.full(time_s.shape[1], np.inf))
            continue
        share_s = time_s / size
        others_s = np.linspace(share_s.min(), share_s[np.isfinite(share_s)].max(), 257)
        charges = [np.minimum(m, (time_s - (size - 1.0) * m).min(axis=0)) for m in others_s.tolist()]
        # The first m is the least share of all and charges everybody the same. A charge near 0 is left out: it
        # would be lost to rounding in a sum.
        fair = [c for c in charges if c.min() > 0.01 * share_s.min()]
        rows.append(max(fair, key=lambda charge: float(charge.mean())))
    return np.array(rows)


def pooled_work_s(works_s: Sequence[Floats], workers: Sequence[int]) -> tuple[Floats, float]:
    r"""The least work of requests on workers of several kinds, in a unit that is the same on all of them.

    Count a second of a worker of kind k as :math:`\sigma_k` units. A request then takes at least

    .. math:: w_v(u) = \min_k\ \sigma_k w_{kv}(u)

    units, whoever serves it, and there are :math:`\sum_k \sigma_k N_k` units in a second. That is so for any
    positive :math:`\sigma`, so each gives a bound. Taken is how much faster than the first kind each of them is,
    as a geometric mean: exact where a kind is that much faster at everything.

    Args:
        works_s: By kind: float64[V, U] as from :func:`least_work_s`.
        workers: By kind: how many there are.

    Returns:
        The work, float64[V, U], and the workers that there are in that unit; the same as given for one kind.
    """
    useful = [k for k, work_s in enumerate(works_s) if np.isfinite(work_s).any()]
    if len(works_s) == 1 or not useful:
        return works_s[0], workers[0]
    first = works_s[useful[0]]
    pooled, units = np.full_like(first, np.inf), 0.0
    for k in useful:
        both = np.isfinite(first) & np.isfinite(works_s[k])
        if both.any():
            sigma = math.exp(float(np.log(first[both] / works_s[k][both]).mean()))
        else:
            sigma = float(first[np.isfinite(first)].min() / works_s[k][np.isfinite(works_s[k])].min())
        pooled = np.minimum(pooled, sigma * works_s[k])
        units += sigma * workers[k]
    return pooled, units


def quality_bound(
    arrival_s: Floats,
    deadline_s: Floats,
    prompt: Ints,
    quality: Floats,
    work_s: Floats,
    workers: float,
    *,
    draw: Ints | None = None,
    resolution: int = 1024,
) -> Bound:
    """No policy gets more on-time quality out of these requests with so many workers.

    The optimum of the fluid if deadlines are in the order of arrivals, as with one SLO for all. Else a deadline
    counts as no earlier than those of earlier arrivals, and the result is above the optimum.

    Args:
        arrival_s: float64[n], when each request can start at the earliest; in any order.
        deadline_s: float64[n], when it must be finished.
        prompt: int[n], row of ``quality``.
        quality: float64[P, V], what serving a prompt in time by a variant is worth; not negative.
        work_s: float64[V] or float64[V, U], as from :func:`least_work_s`.
        workers: How many there are; a fraction counts as much, see :func:`pooled_work_s`.
        draw: int[n], column of ``work_s``; needed if there are several.
        resolution: How many prices to tell apart, which bounds ``Bound.rounding`` and the time that this takes.

    Raises:
        ValueError: A quality is negative or missing, work is not positive, or draws are missing.
    """
    work_s = work_s.reshape(len(work_s), -1)
    if draw is None and work_s.shape[1] > 1:
        raise ValueError("work that depends on a draw needs the draws")
    order = np.lexsort((deadline_s, arrival_s))
    kind, kinds = _kinds(prompt[order], None if draw is None else draw[order], work_s)
    worth, work = quality[kinds[:, 0]], work_s.T[kinds[:, 1]]
    if not (worth >= 0.0).all() or not (work > 0.0).all():
        raise ValueError("qualities must be 0 or more, and work more than 0")
    steps_s, density = _hulls(worth, work)
    used = steps_s[kind] > 0.0
    if not used.any():
        return Bound(0.0, np.zeros(len(order)), 0.0)
    step_s, step_density = steps_s[kind][used], density[kind][used]
    prices = _prices(step_density, resolution)

    arrival = arrival_s[order]
    room_s = workers * (np.maximum.accumulate(deadline_s[order]) - arrival).clip(min=0.0)
    drained_s = workers * np.diff(arrival, prepend=arrival[:1])
    level = np.where(steps_s > 0.0, _level(density, prices), 0)
    rank_s, parts = _sweep(steps_s, level, kind, room_s, drained_s, prices)

    # From one price to the next the rank grows by so much. At best, the densest of the steps between them did it.
    growth_s = np.diff(rank_s, prepend=0.0)
    step_level = _level(step_density, prices)
    spare_s = np.bincount(step_level, step_s, minlength=len(prices)) - growth_s
    total = _densest(step_s, step_density, step_level, growth_s)
    least = float((step_s * step_density).sum()) - _densest(step_s, step_density, step_level, spare_s)
    quality_of = np.empty(len(order))
    quality_of[order] = parts * (total / parts.sum() if total else 0.0)
    return Bound(total, quality_of, max(0.0, total - least))


def _kinds(prompt: Ints, draw: Ints | None, work_s: Floats) -> tuple[Ints, Ints]:
    """What tells requests apart: the kind of each, and the row of ``quality`` and column of ``work_s`` it has."""
    columns = work_s.shape[1]
    codes = prompt.astype(np.int64) * columns
    if draw is not None and (work_s != work_s[:, :1]).any():
        codes += draw
    distinct, kind = np.unique(codes, return_inverse=True)
    return kind, np.stack(np.divmod(distinct, columns), axis=1)


def _hulls(quality: Floats, work: Floats) -> tuple[Floats, Floats]:
    """The upper concave hull of (0, 0) and each variant's (work, quality), by kind, as steps to the right.

    Returns:
        Work and density (quality per work) of each step: float64[K, V] each. Densities do not rise along a row;
        where a row has no more steps, there are zeros.
    """
    steps, density = np.zeros_like(work), np.zeros_like(work)
    rows = np.arange(len(work))
    work_before, quality_before = np.zeros((2, len(work), 1))
    for step in range(work.shape[1]):
        further = work - work_before
        slope = np.zeros_like(work)
        np.divide(quality - quality_before, further, out=slope, where=further > 0.0)
        best = slope.argmax(axis=1)
        rising = slope[rows, best] > 0.0
        if not rising.any():
            break
        steps[:, step] = np.where(rising, further[rows, best], 0.0)
        density[:, step] = np.where(rising, slope[rows, best], 0.0)
        work_before[rising, 0] = work[rows, best][rising]
        quality_before[rising, 0] = quality[rows, best][rising]
    return steps, density


def _prices(density: Floats, resolution: int) -> Floats:
    """The densities themselves, falling, or as many quantiles of them as may be told apart."""
    distinct = np.unique(density)
    if len(distinct) > resolution:
        shares = np.linspace(0.0, 1.0, resolution + 1)[1:]
        distinct = np.unique(np.quantile(density, shares, method="higher"))
    return distinct[::-1]


def _level(density: Floats, prices: Floats) -> Ints:
    """The lowest price that is not below each density, by its position."""
    return len(prices) - 1 - np.searchsorted(prices[::-1], density)


def _sweep(
    steps_s: Floats, level: Ints, kind: Ints, room_s: Floats, drained_s: Floats, prices: Floats
) -> tuple[Floats, Floats]:
    """Serve the fluid in the order of arrival, at all prices at once.

    Args:
        steps_s, level: Work of each step, and the first price that pays for it: [K, V].
        kind: [n], of each request.
        room_s: [n], how much work there may be once a request is in, for it to finish in time.
        drained_s: [n], how much work can be done since the arrival before.
        prices: [L], falling.

    Returns:
        Work done by price: [L]; and the area under each request's work over the price: [n].
    """
    levels, requests = len(prices), len(kind)
    height = -np.diff(prices, append=0.0)
    backlog, zero = np.zeros(levels), np.zeros(levels)
    done_s, area = np.zeros(levels), np.empty(requests)
    upto_s, width = _staircases(steps_s, level, levels)
    rows = max(1, _CHUNK // levels)
    for first in range(0, requests, rows):
        chunk = slice(first, min(first + rows, requests))
        mine = kind[chunk]
        after = np.repeat(upto_s[mine].ravel(), width[mine].ravel()).reshape(len(mine), levels)
        before = np.empty_like(after)
        for was, now, drained, room in zip(
            before, after, drained_s[chunk].tolist(), room_s[chunk].tolist(), strict=True
        ):
            np.subtract(backlog, drained, out=was)
            np.maximum(was, zero, out=was)
            np.add(now, was, out=now)
            if now[-1] > room:  # the most, since the backlog rises as the price falls
                np.minimum(now, room, out=now)
            backlog = now
        backlog = backlog.copy()
        after -= before
        done_s += after.sum(axis=0)
        after *= height
        area[chunk] = after.sum(axis=1)
    return done_s, area


def _staircases(steps_s: Floats, level: Ints, levels: int) -> tuple[Floats, Ints]:
    """The work asked for as the price falls: by kind the heights of its stairs, and how many prices each is wide.

    A kind has some steps, and there are a thousand prices: spreading heights over them takes a quarter of the
    time that adding up along them does. Steps of one price are added up first, as they would be there.
    """
    level = np.maximum.accumulate(level, axis=1)  # where a row has no more steps: nothing, with the last one
    height_s = np.zeros((len(level), level.shape[1] + 1))
    before_s, at_price_s = np.zeros((2, len(level)))
    for step in range(level.shape[1]):
        same = level[:, step] == level[:, step - 1] if step else np.zeros(len(level), dtype=bool)
        before_s = np.where(same, before_s, height_s[:, step])
        at_price_s = np.where(same, at_price_s, 0.0) + steps_s[:, step]
        height_s[:, step + 1] = before_s + at_price_s
    return height_s, np.diff(level, axis=1, prepend=0, append=levels)


def _densest(step_s: Floats, density: Floats, level: Ints, amount_s: Floats) -> float:
    """The quality of ``amount_s[l]`` worker-seconds of the steps of each level l, the densest ones first."""
    order = np.lexsort((-density, level))
    step_s, density, level = step_s[order], density[order], level[order]
    end_s = np.cumsum(step_s)
    of_level_s = np.bincount(level, step_s, minlength=len(amount_s))
    start_s = end_s - step_s - (np.cumsum(of_level_s) - of_level_s)[level]
    return float(((amount_s[level] - start_s).clip(0.0, step_s) * density).sum())
