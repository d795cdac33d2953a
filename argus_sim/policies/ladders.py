"""What `argus` knows of a ladder, what the cache does to it, and what changing to another one costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from argus_sim.core.affinity import QualityPredictor
from argus_sim.core.catalog import Catalog
from argus_sim.core.solvers import Allocation, Row
from argus_sim.core.view import ClusterView
from argus_sim.domain import CacheHit, VariantId
from argus_sim.policies.base import Route

#: Load is spread in this many parts.
_PARTS = 100
#: Answers that take more than this part of the SLO are slow.
_SLOW = 0.1
#: Hit ratios and retrieval latencies are rounded to these, so that the same problems come up again.
_RATIO_GRAIN, _LATENCY_GRAIN_S = 1.0 / 32.0, 0.25


@dataclass(frozen=True)
class Ladder:
    """Levels, least approximate first, and what is expected of them.

    Attributes:
        variants: One per level.
        quality: Mean relative quality of each level.
        throughput_per_s: Images/s of one worker at each level.
        affinity: Level of each prompt; as a list for routing, as an array for histograms.
        loss: L x L: mean quality that prompts of affinity i lose at level j.
        routes: L x L: the decision for a prompt of affinity i at level j.
        cached: Whether levels need the cache's answer.
        longest_s: How long the batches take that give this throughput.
    """

    variants: tuple[VariantId, ...]
    quality: Row
    throughput_per_s: Row
    affinity: list[int]
    affinities: npt.NDArray[np.int64]
    loss: tuple[Row, ...]
    routes: list[list[Route]]
    cached: bool
    longest_s: Row

    @classmethod
    def of(
        cls,
        catalog: Catalog,
        variants: tuple[VariantId, ...],
        predictor: QualityPredictor,
        tolerance: float,
        limit_s: float,
    ) -> Ladder:
        """``tolerance``: see ``ArgusParams``; ``limit_s``: the longest batch that counts as throughput."""
        affinity = predictor.affinity(variants, tolerance)
        levels = len(variants)
        observed = predictor.observed[:, list(variants)]
        return cls(
            variants=variants,
            quality=tuple(float(catalog.quality[v]) for v in variants),
            throughput_per_s=tuple(catalog.throughput_per_s(v, limit_s=limit_s) for v in variants),
            affinity=affinity.tolist(),
            affinities=affinity,
            loss=_expected_loss(affinity[predictor.train], observed, levels),
            routes=[
                [Route(v, f"affinity {i}, level {j}") for j, v in enumerate(variants)] for i in range(levels)
            ],
            cached=any(catalog.variants[v].skipped_steps for v in variants),
            longest_s=tuple(_longest_s(catalog, v, limit_s) for v in variants),
        )


def _longest_s(catalog: Catalog, variant: VariantId, limit_s: float) -> float:
    """How long the batch takes that gives the throughput which is counted on."""
    most = catalog.throughput_per_s(variant, limit_s=limit_s)
    return next(
        catalog.mean_s[variant][b] for b in catalog.batch_sizes[variant] if b / catalog.mean_s[variant][b] == most
    )


def _expected_loss(
    affinity: npt.NDArray[np.int64], observed: npt.NDArray[np.float64], levels: int
) -> tuple[Row, ...]:
    """L x L: mean quality that training prompts of affinity i lose at level j against their best.

    An affinity that no training prompt has gets the loss of all of them.
    """
    loss = observed.max(axis=1, keepdims=True) - observed
    rows = [
        loss[affinity == i].mean(axis=0) if (affinity == i).any() else loss.mean(axis=0) for i in range(levels)
    ]
    return tuple(tuple(np.round(row, 6).tolist()) for row in rows)


class CacheWatch:
    """How often the cache has a latent that is deep enough for each level, and how long it takes to answer.

    Exponentially weighted means of the answers; until one says otherwise the cache is perfect.

    Args:
        catalog: What the steps and latencies of variants are.
        variants: The cached ladder.
        slo_s: The deadline of a request.
    """

    def __init__(self, catalog: Catalog, variants: Sequence[VariantId], slo_s: float) -> None:
        self._catalog = catalog
        self._variants = tuple(variants)
        self._skipped = [catalog.variants[v].skipped_steps for v in variants]
        self._slo_s = slo_s
        self.hit_ratio = [1.0] * len(self._skipped)
        self.latency_s = -1.0  # until the first answer
        self._is_perfect = True

    def hear(self, hit: CacheHit, weight: float) -> None:
        """Take an answer into the means, with this weight."""
        if self._is_perfect and hit.latency_s == self.latency_s and hit.max_skipped_steps >= self._skipped[-1]:
            return  # nothing new, as for most answers of a healthy cache
        if self.latency_s < 0.0:
            self.latency_s = hit.latency_s
        for level, steps in enumerate(self._skipped):
            enough = 1.0 if hit.max_skipped_steps >= steps else 0.0
            self.hit_ratio[level] += weight * (enough - self.hit_ratio[level])
        self.latency_s += weight * (hit.latency_s - self.latency_s)
        self._is_perfect = min(self.hit_ratio) == 1.0

    @property
    def is_healthy(self) -> bool:
        """Whether misses are no more than chance events, and answers come well before the deadline."""
        return min(self.hit_ratio) >= 1.0 - _RATIO_GRAIN and self.latency_s <= _SLOW * self._slo_s

    def effective(self, ladder: Ladder) -> tuple[Row, Row]:
        """Quality and throughput of each level when the misses are served in full.

        A level whose answer comes too late for its fastest batch yields nothing.
        """
        catalog, base = self._catalog, ladder.variants[0]
        ratios = [round(h / _RATIO_GRAIN) * _RATIO_GRAIN for h in self.hit_ratio]
        latency_s = round(max(self.latency_s, 0.0) / _LATENCY_GRAIN_S) * _LATENCY_GRAIN_S
        if min(ratios) == 1.0 and not latency_s:
            return ladder.quality, ladder.throughput_per_s
        quality, rate_per_s = [ladder.quality[0]], [ladder.throughput_per_s[0]]
        for level in range(1, len(ladder.variants)):
            variant, h = ladder.variants[level], ratios[level]
            limit_s = self._slo_s - latency_s
            if catalog.p99_s[variant][catalog.batch_sizes[variant][0]] > limit_s:
                quality.append(0.0)
                rate_per_s.append(rate_per_s[0])
                continue
            full_s = 1.0 / catalog.throughput_per_s(base, limit_s=limit_s)
            work_s = h / catalog.throughput_per_s(variant, limit_s=limit_s) + (1.0 - h) * full_s
            quality.append(h * ladder.quality[level] + (1.0 - h) * ladder.quality[0])
            rate_per_s.append(1.0 / work_s)
        return tuple(quality), tuple(rate_per_s)


def in_time(
    capacity_per_s: npt.ArrayLike, demand_per_s: npt.ArrayLike, slack_s: npt.ArrayLike, dispersion: float = 1.0
) -> npt.NDArray[np.float64]:
    """The part of the requests that are served before their wait exceeds ``slack_s``; what cannot is dropped.

    The queue as a Brownian motion between 0 and the length that takes the slack to serve, reflected at both
    (Harrison, Brownian Motion and Stochastic Flow Systems, 1985, section 5.6), for equal service times. Far below
    capacity the answer is 1, far above it capacity over demand, and 0 where there is no slack. Arrays broadcast.

    Args:
        dispersion: Variance over mean of the number of arrivals; 1 for Poisson arrivals.
    """
    capacity, demand, slack = (np.asarray(a, dtype=float) for a in (capacity_per_s, demand_per_s, slack_s))
    longest = np.maximum(slack, 1e-12) * capacity
    excess = np.abs(demand - capacity)
    # What is lost to chance, beyond the excess of demand over capacity; it is the same on both sides.
    exponent = np.minimum(2.0 * excess * longest / (demand * dispersion), 700.0)
    at_capacity = exponent < 1e-9
    chance_per_s = np.where(
        at_capacity,
        demand * dispersion / (2.0 * longest),
        excess / np.expm1(np.where(at_capacity, 1.0, exponent)),
    )
    served = np.minimum(demand, capacity)
    # To first order what is left; and some are in time however short the queue, which a diffusion does not know.
    share: npt.NDArray[np.float64] = np.where(slack > 0.0, served / demand / (1.0 + chance_per_s / served), 0.0)
    return share


class Outlook(NamedTuple):
    """What is expected of the levels of a ladder in the time that a plan is made for.

    Attributes:
        quality: Mean relative quality of each level.
        rate_per_s: Images/s of one worker at each level.
        slack_s: How long a request may wait at each level.
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

    def load_per_s(self, counts: Sequence[int]) -> Row:
        """The load on each level, with these workers, that yields most in time: see :func:`carried`."""
        return self._carried(counts)[0]

    def yield_per_s(self, counts: Sequence[int]) -> float:
        """Expected quality per second that is in time, with that load and each prompt where it loses least."""
        load, worth = self._carried(counts)
        return worth + self.demand_per_s * alignment_gain(self.prompts, load, self.loss)

    def _carried(self, counts: Sequence[int]) -> tuple[Row, float]:
        capacity = tuple(n * rate for n, rate in zip(counts, self.rate_per_s, strict=True))
        return carried(self.quality, capacity, self.slack_s, self.demand_per_s, self.dispersion)


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
    by_lot = sum(p * f * row[j] for p, row in zip(prompts, loss, strict=True) for j, f in enumerate(share) if f)
    aligned, level, room = 0.0, 0, share[0]
    for part, row in zip(prompts, loss, strict=True):
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
    capacity, slack, q = (np.array([a[j] for j in levels])[:, None] for a in (capacity_per_s, slack_s, quality))
    y = demand_per_s / _PARTS * np.arange(1, _PARTS + 1)
    worth = q * y * in_time(capacity, y, slack, dispersion)
    adds = np.diff(worth, axis=1, prepend=0.0)
    # The largest additions, where each level's fall: a level is loaded from its first hundredth on.
    first = np.argsort(-np.minimum.accumulate(np.round(adds, 12), axis=1), axis=None, kind="stable")[:_PARTS]
    parts = np.bincount(first // _PARTS, minlength=len(levels))
    load = [0.0] * len(quality)
    for j, n in zip(levels, parts.tolist(), strict=True):
        load[j] = n * demand_per_s / _PARTS
    return tuple(load), float(sum(worth[i, n - 1] for i, n in enumerate(parts.tolist()) if n))


def climb(starts: Sequence[tuple[int, ...]], worth: Callable[[tuple[int, ...]], float]) -> tuple[int, ...]:
    """The best workers per level that moving workers between two levels at a time comes to from the best start.

    Half of the workers at a time first, then ever fewer, down to one. The first of equals stays.
    """
    known: dict[tuple[int, ...], float] = {}

    def rate(counts: tuple[int, ...]) -> float:
        if counts not in known:
            known[counts] = worth(counts)
        return known[counts]

    best = max(starts, key=rate)
    levels = range(len(best))
    step = 1 << max(0, (sum(best) // 2).bit_length() - 1)
    while step:
        moved = [
            tuple(n + step * ((j == to) - (j == of)) for j, n in enumerate(best))
            for of in levels
            for to in levels
            if of != to and best[of] >= step
        ]
        found = max(moved, key=rate, default=best)
        if rate(found) > rate(best):
            best = found
        else:
            step //= 2
    return best


class Move:
    """From the models that workers hold to those that an allocation wants: what it costs, and the next step.

    Args:
        catalog: Models and load times.
        ladder: The levels of the allocation.
        view: Which worker holds what.
    """

    def __init__(self, catalog: Catalog, ladder: Ladder, view: ClusterView) -> None:
        self._load_s = catalog.load_s
        self._model = [catalog.model[v] for v in ladder.variants]
        level_of = {v: j for j, v in enumerate(ladder.variants)}
        levels = len(ladder.variants)
        #: All levels are of the one model that all workers hold or load.
        self._is_free = False
        #: Workers of each level, loading or not.
        self.held = [0] * levels
        #: Workers that hold each model.
        self._ready = dict.fromkeys(self._model, 0)
        self.loading = 0
        for worker in range(view.workers):
            if not view.is_up(worker):
                continue
            self.loading += view.is_loading(worker)
            model = view.holds(worker)
            # What it serves beside its level comes first: see Allocating.placement.
            level = next((level_of[v] for v in reversed(view.serves(worker)) if v in level_of), None)
            if level is None and model in self._model:
                # It comes from another ladder: what it holds can serve the first level of that model.
                level = self._model.index(model)
            if level is not None:
                self.held[level] += 1
            if model in self._ready and not view.is_loading(worker):
                self._ready[model] += 1
        self._is_free = len(self._ready) == 1 and sum(self.held) == view.workers_up

    def loads(self, wanted: Sequence[int]) -> list[int]:
        """How many loads of each level's model these workers per level take, given the models held."""
        models = set(self._model)
        have = {m: sum(n for n, of in zip(self.held, self._model, strict=True) if of == m) for m in models}
        need = []
        for count, model in zip(wanted, self._model, strict=True):
            free = min(count, have[model])
            have[model] -= free
            need.append(count - free)
        return need

    def cost_s(self, wanted: Sequence[int]) -> float:
        """Worker-seconds that the loads take."""
        if self._is_free:
            return 0.0
        return sum(n * self._load_s[m] for n, m in zip(self.loads(wanted), self._model, strict=True))

    def ready_within(self, seconds: float, counts: Sequence[int]) -> list[int]:
        """Workers of each level that can serve it by then, of those that are to."""
        left, ready = dict(self._ready), []
        for count, model in zip(counts, self._model, strict=True):
            able = count if self._load_s[model] <= seconds else min(count, left[model])
            left[model] -= able
            ready.append(able)
        return ready

    def step(self, wanted: Sequence[int], rate_per_s: Row, demand_per_s: float) -> tuple[int, ...]:
        """Workers per level for now: on the way to ``wanted``, with no more loads at once than demand allows.

        At least one worker moves when none is loading; in overload, where every image is short of capacity
        anyway, half of them may.
        """
        workers = sum(wanted)
        ready = self.ready_within(0.0, self.held)
        spare = sum(n * r for n, r in zip(ready, rate_per_s, strict=True)) - demand_per_s
        slowest = min((r for r, n in zip(rate_per_s, self.held, strict=True) if n), default=1.0)
        allowed = int(spare / slowest) if spare > 0 else workers // 2 - self.loading
        allowed = max(allowed, 0 if self.loading else 1)
        counts, empty = list(self.held), workers - sum(self.held)
        # The levels that raise capacity most are the most urgent.
        for level in sorted(range(len(wanted)), key=lambda j: -rate_per_s[j]):
            while counts[level] < wanted[level]:
                donors = [j for j in range(len(wanted)) if counts[j] > wanted[j]]
                free = [j for j in donors if self._model[j] == self._model[level]]
                if free:
                    counts[free[0]] -= 1
                elif empty:
                    empty -= 1
                elif allowed and donors:
                    allowed -= 1
                    counts[min(donors, key=lambda j: rate_per_s[j])] -= 1
                else:
                    break
                counts[level] += 1
        counts[int(np.argmax(wanted))] += empty
        return tuple(counts)


def spread(counts: Sequence[int], ready: Sequence[int], outlook: Outlook) -> Allocation:
    """The allocation of these workers, with load only where workers are ready."""
    # Where everything is loading: queue where there will be most.
    return Allocation(tuple(counts), outlook.load_per_s(ready if any(ready) else counts))
