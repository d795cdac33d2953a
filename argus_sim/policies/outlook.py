"""What `argus` expects of a ladder: how much comes in time, and where load and workers are best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from argus_sim.core.solvers import Allocation, Row

#: Load is spread in this many parts.
_PARTS = 100


def in_time(
    capacity_per_s: float, demand_per_s: npt.ArrayLike, slack_s: float, dispersion: float = 1.0
) -> npt.NDArray[np.float64]:
    """The part of the requests that are served before their wait exceeds ``slack_s``; what cannot is dropped.

    The queue as a Brownian motion between 0 and the length that takes the slack to serve, reflected at both
    (Harrison, Brownian Motion and Stochastic Flow Systems, 1985, section 5.6), for equal service times. Far below
    capacity the answer is 1, far above it capacity over demand, and 0 where there is no slack.

    Args:
        demand_per_s: One or many; the answer has its shape.
        dispersion: Variance over mean of the number of arrivals; 1 for Poisson arrivals.
    """
    demand = np.asarray(demand_per_s, dtype=float)
    if slack_s <= 0.0:
        return np.zeros_like(demand)
    longest = max(slack_s, 1e-12) * capacity_per_s
    excess, noise = np.abs(demand - capacity_per_s), demand * dispersion
    # What is lost to chance, beyond the excess of demand over capacity; it is the same on both sides.
    exponent = np.minimum(2.0 * excess * longest / noise, 700.0)
    at_capacity = exponent < 1e-9
    chance_per_s = np.where(
        at_capacity, noise / (2.0 * longest), excess / np.expm1(np.where(at_capacity, 1.0, exponent))
    )
    served = np.minimum(demand, capacity_per_s)
    # To first order what is left; and some are in time however short the queue, which a diffusion does not know.
    return np.asarray(served / demand / (1.0 + chance_per_s / served))


class Outlook(NamedTuple):
    """What is expected of the levels of a ladder in the time that a plan is made for.

    Workers are counted by kind and level: those of the first kind by level, then of the second, and so on.

    Attributes:
        quality: Mean relative quality of each level.
        rate_per_s: By kind and level: images/s of one worker; 0 for a level that the kind cannot serve.
        slack_s: By kind and level: how long a request may wait.
        demand_per_s: Requests/s to come.
        dispersion: Variance over mean of their number.
        prompts: Share of each affinity among the prompts.
        loss: L x L: mean quality that prompts of affinity i lose at level j.
    """

    quality: Row
    rate_per_s: Row
    slack_s: Row
    demand_per_s: float
    dispersion: float
    prompts: Row
    loss: tuple[Row, ...]

    def of_kinds(self, counts: Sequence[int]) -> list[int]:
        """Workers of each kind."""
        levels = len(self.quality)
        return [sum(counts[first : first + levels]) for first in range(0, len(counts), levels)]

    def is_able(self, counts: Sequence[int]) -> bool:
        """Whether these workers can serve anything."""
        return any(n and rate for n, rate in zip(counts, self.rate_per_s, strict=True))

    def load_per_s(self, counts: Sequence[int]) -> Row:
        """The load on each level, with these workers, that yields most in time: see :func:`carried`."""
        return self._carried(counts)[0]

    def yield_per_s(self, counts: Sequence[int]) -> float:
        """Expected quality per second that is in time, with that load and each prompt where it loses least."""
        load, worth = self._carried(counts)
        return worth + self.demand_per_s * alignment_gain(self.prompts, load, self.loss)

    def _carried(self, counts: Sequence[int]) -> tuple[Row, float]:
        capacity, slack_s = tuple(n * rate for n, rate in zip(counts, self.rate_per_s, strict=True)), self.slack_s
        if len(capacity) > len(self.quality):
            capacity, slack_s = _pooled(capacity, slack_s, len(self.quality))
        return carried(self.quality, capacity, slack_s, self.demand_per_s, self.dispersion)


def _pooled(capacity_per_s: Row, slack_s: Row, levels: int) -> tuple[Row, Row]:
    """Capacity and slack of each level, which has one queue for the workers of all kinds.

    A request meets a worker of each kind as often as that is free.
    """
    capacities, slacks = [], []
    for j in range(levels):
        parts = capacity_per_s[j::levels]
        capacities.append(sum(parts))
        waits = sum(part * slack for part, slack in zip(parts, slack_s[j::levels], strict=True))
        slacks.append(round(waits / capacities[j], 1) if capacities[j] else 0.0)
    return tuple(capacities), tuple(slacks)


@lru_cache(maxsize=1 << 16)
def alignment_gain(prompts: Row, load: Row, loss: tuple[Row, ...]) -> float:
    """How much more quality a request keeps when levels are given out by affinity instead of by lot.

    Prompts in the order of their affinity, on levels in the order of the ladder: the best that can be done where
    losses are those of nested choices, and never more than can be.

    Args:
        prompts: Share of each affinity; sums to 1.
        load: On each level; any unit.
        loss: As in :class:`Outlook`.
    """
    total = sum(load)
    share = [y / total for y in load]
    mixed = [(j, f) for j, f in enumerate(share) if f]
    by_lot, aligned, level, room = 0.0, 0.0, 0, share[0]
    for part, row in zip(prompts, loss, strict=True):
        for j, f in mixed:
            by_lot += part * f * row[j]
        left = part
        while left > 1e-12 and level < len(share):
            moved = min(left, room)
            aligned += moved * row[level]
            left, room = left - moved, room - moved
            if room <= 1e-12:
                level += 1
                room = share[level] if level < len(share) else 0.0
    return max(0.0, by_lot - aligned)


@lru_cache(maxsize=1 << 16)
def carried(
    quality: Row, capacity_per_s: Row, slack_s: Row, demand_per_s: float, dispersion: float = 1.0
) -> tuple[Row, float]:
    """The load on each level that yields most in time, to a hundredth of the demand, and that yield per second.

    Each level is a queue of its own. Each hundredth goes where it adds most: what is in time rises with the load,
    but ever less. So a level that is hardly better is not filled up to where its queue costs more than it gains.
    """
    # Of equals, the level with the most capacity first.
    levels = sorted((j for j, c in enumerate(capacity_per_s) if c), key=lambda j: -capacity_per_s[j])
    curves = [_curve(quality[j], capacity_per_s[j], slack_s[j], demand_per_s, dispersion) for j in levels]
    # The largest additions.
    first = np.argsort(np.concatenate([falls for falls, _ in curves]), kind="stable")[:_PARTS]
    parts = np.bincount(first // _PARTS, minlength=len(levels)).tolist()
    load = [0.0] * len(quality)
    for j, n in zip(levels, parts, strict=True):
        load[j] = n * demand_per_s / _PARTS
    return tuple(load), float(sum(worth[n - 1] for (_, worth), n in zip(curves, parts, strict=True) if n))


@lru_cache(maxsize=1 << 12)
def _curve(
    quality: float, capacity_per_s: float, slack_s: float, demand_per_s: float, dispersion: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Of one level: what each hundredth of the demand adds there, negated, and the yield per second up to it.

    What is added falls: a level is loaded from its first hundredth on. Remembered, since the allocations that
    are compared for a plan have most of their levels in common.
    """
    y = demand_per_s / _PARTS * np.arange(1, _PARTS + 1)
    worth = quality * y * in_time(capacity_per_s, y, slack_s, dispersion)
    adds = worth.copy()
    adds[1:] -= worth[:-1]
    return -np.minimum.accumulate(adds.round(12)), worth


def climb(
    starts: Sequence[tuple[int, ...]], worth: Callable[[tuple[int, ...]], float], levels: int
) -> tuple[int, ...]:
    """The best workers per level that moving workers between two levels at a time comes to from the best start.

    Half of the workers at a time first, then ever fewer, down to one. The first of equals stays. Counts are by
    kind and ``levels`` levels, as in :class:`Outlook`: nobody changes the kind.
    """
    known: dict[tuple[int, ...], float] = {}

    def rate(counts: tuple[int, ...]) -> float:
        if counts not in known:
            known[counts] = worth(counts)
        return known[counts]

    best = max(starts, key=rate)
    step = 1 << max(0, (sum(best) // 2).bit_length() - 1)
    while step:
        moved = []
        for of in (of for of, n in enumerate(best) if n >= step):
            first = of - of % levels
            for to in range(first, first + levels):
                if to != of:
                    counts = list(best)
                    counts[of] -= step
                    counts[to] += step
                    moved.append(tuple(counts))
        found = max(moved, key=rate, default=best)
        if rate(found) > rate(best):
            best = found
        else:
            step //= 2
    return best


def all_at(level: int, of_kind: Sequence[int], outlook: Outlook) -> tuple[int, ...]:
    """All workers, so many of each kind, at one level; where their kind cannot serve that, at the nearest."""
    levels = len(outlook.quality)
    counts = [0] * len(outlook.rate_per_s)
    for first, workers in zip(range(0, len(counts), levels), of_kind, strict=True):
        able = [j for j in range(levels) if outlook.rate_per_s[first + j]]
        counts[first + min(able, key=lambda j: abs(j - level))] = workers
    return tuple(counts)


def placed(counts: Sequence[int], load_per_s: Row) -> Allocation:
    """The allocation of workers by kind and level."""
    levels = len(load_per_s)
    of_kinds = tuple(tuple(counts[first : first + levels]) for first in range(0, len(counts), levels))
    return Allocation(tuple(map(sum, zip(*of_kinds, strict=True))), load_per_s, of_kinds)


def spread(counts: Sequence[int], ready: Sequence[int], outlook: Outlook) -> Allocation:
    """The allocation of these workers, with load only where workers are ready."""
    # Where everything is loading: queue where there will be most.
    return placed(counts, outlook.load_per_s(ready if outlook.is_able(ready) else counts))
