"""What `argus` knows of a ladder, what the cache does to it, and what changing to another one costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from argus_sim.core.affinity import QualityPredictor
from argus_sim.core.catalog import Catalog, Timings
from argus_sim.core.solvers import Row
from argus_sim.core.view import ClusterView
from argus_sim.domain import CacheHit, VariantId
from argus_sim.policies.allocation import rates_by_kind
from argus_sim.policies.base import Route

#: Answers that take more than this part of the SLO are slow.
_SLOW = 0.1
#: How long answers of the cache are remembered, in the mean.
_MEMORY_S = 15.0
#: Hit ratios and retrieval latencies are rounded to these, so that the same problems come up again.
_RATIO_GRAIN, _LATENCY_GRAIN_S = 1.0 / 32.0, 0.25


@dataclass(frozen=True)
class Ladder:
    """Levels, least approximate first, and what is expected of them.

    Attributes:
        variants: One per level.
        quality: Mean relative quality of each level.
        throughput_per_s: Images/s of one worker, by kind and level: those of the first kind by level, then of the
            second, and so on. 0 for a level that the kind cannot serve.
        affinity: Level of each prompt; as a list for routing, as an array for histograms.
        loss: L x L: mean quality that prompts of affinity i lose at level j.
        routes: L x L: the decision for a prompt of affinity i at level j.
        cached: Whether levels need the cache's answer.
        longest_s: By kind and level: how long the batches take that give this throughput.
        largest_batch: The largest batch of any level that is in time.
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
    largest_batch: int

    @classmethod
    def of(
        cls,
        catalog: Catalog,
        variants: tuple[VariantId, ...],
        predictor: QualityPredictor,
        tolerance: float,
        slo_s: float,
    ) -> Ladder:
        """``tolerance``: see ``ArgusParams``; no batch that is longer than the SLO counts as throughput."""
        affinity = predictor.affinity(variants, tolerance)
        levels = len(variants)
        observed = predictor.observed[:, list(variants)]
        return cls(
            variants=variants,
            quality=tuple(float(catalog.quality[v]) for v in variants),
            throughput_per_s=tuple(chain(*rates_by_kind(catalog.kinds, variants, limit_s=slo_s, slo_s=slo_s))),
            affinity=affinity.tolist(),
            affinities=affinity,
            loss=_expected_loss(affinity[predictor.train], observed, levels),
            routes=[
                [Route(v, f"affinity {i}, level {j}") for j, v in enumerate(variants)] for i in range(levels)
            ],
            cached=any(catalog.variants[v].skipped_steps for v in variants),
            longest_s=tuple(_longest_s(kind, v, slo_s) for kind in catalog.kinds for v in variants),
            largest_batch=max(catalog.largest_batch(v, limit_s=slo_s) for v in variants),
        )


def _longest_s(timings: Timings, variant: VariantId, limit_s: float) -> float:
    """How long the batch takes that gives the throughput which is counted on."""
    most, mean_s = timings.throughput_per_s(variant, limit_s=limit_s), timings.mean_s[variant]
    return next(mean_s[b] for b in timings.batch_sizes[variant] if b / mean_s[b] == most)


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
        self._heard_s = 0.0
        self._is_perfect = True

    def hear(self, hit: CacheHit, now_s: float) -> None:
        """Take an answer into the means, with the weight of the time since the last one."""
        since_s, self._heard_s = now_s - self._heard_s, now_s
        if self._is_perfect and hit.latency_s == self.latency_s and hit.max_skipped_steps >= self._skipped[-1]:
            return  # nothing new, as for most answers of a healthy cache
        weight = 1.0 - math.exp(-since_s / _MEMORY_S)
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
        """Quality and throughput of each level when what the cache does not allow is served as deep as it does.

        A level whose answer comes too late for its fastest batch yields nothing.
        """
        variants, kinds, levels = self._catalog.variants, self._catalog.kinds, len(ladder.variants)
        ratios = [round(h / _RATIO_GRAIN) * _RATIO_GRAIN for h in self.hit_ratio]
        latency_s = round(max(self.latency_s, 0.0) / _LATENCY_GRAIN_S) * _LATENCY_GRAIN_S
        if min(ratios) == 1.0 and not latency_s:
            return ladder.quality, ladder.throughput_per_s
        limit_s = self._slo_s - latency_s
        # Levels that wait for the cache; and the part of their requests that each level up to them serves.
        waiting = [j for j in range(1, levels) if variants[ladder.variants[j]].skipped_steps]
        parts = {j: [ratios[i] - (ratios[i + 1] if i < j else 0.0) for i in range(j + 1)] for j in waiting}
        quality, rate_per_s = list(ladder.quality), list(ladder.throughput_per_s)
        for j in waiting:
            quality[j] = sum(p * q for p, q in zip(parts[j], ladder.quality, strict=False))
        late = dict.fromkeys(waiting, 0)
        for k, timings in enumerate(kinds):
            own = slice(k * levels, (k + 1) * levels)
            rates = rate_per_s[own]
            work_s = [1.0 / timings.throughput_per_s(v, limit_s=limit_s) for v in ladder.variants]
            for j in waiting:
                variant = ladder.variants[j]
                if timings.p99_s[variant][timings.batch_sizes[variant][0]] > limit_s:
                    late[j] += 1
                    # Left to the other kinds; where there is no other, nobody wants it for its quality.
                    rates[j] = rates[0] if len(kinds) == 1 else 0.0
                elif rates[j]:
                    rates[j] = 1.0 / sum(p * w for p, w in zip(parts[j], work_s, strict=False))
            if any(rates):  # else it has to be somewhere
                rate_per_s[own] = rates
        return tuple(0.0 if late.get(j) == len(kinds) else q for j, q in enumerate(quality)), tuple(rate_per_s)


class Regret:
    """What has been lost up to now by not changing, in quality times requests.

    To change when this reaches what the change costs loses at most twice what it would to know the future
    (Karlin et al., Competitive Snoopy Caching, 1988). And nothing is changed for a moment's forecast.
    """

    def __init__(self) -> None:
        self._lost = 0.0
        #: When it was looked at last, what the change promised per second, and what it cost.
        self._at_s, self._gain, self._cost = 0.0, 0.0, 0.0

    def look(self, gain_per_s: float, cost: float, now_s: float) -> bool:
        """Whether it is time to change.

        Args:
            gain_per_s: What would be yielded more with the change; without any, there is no reason to change.
            cost: What would be lost by changing.
        """
        self._lost = max(0.0, self._lost_by(now_s))
        self._at_s, self._gain, self._cost = now_s, gain_per_s, cost
        return self.is_due(now_s)

    def is_due(self, now_s: float) -> bool:
        """Whether it is time, if nothing is new since it was looked at last."""
        return self._gain > 0.0 and self._lost_by(now_s) >= self._cost

    def owe(self, cost: float) -> None:
        """That much was lost before."""
        self._lost += cost

    def pay(self, cost: float) -> None:
        """A part of the change is made; whether the rest is due, the next look tells."""
        self._lost, self._gain = max(0.0, self._lost - cost), 0.0

    def _lost_by(self, now_s: float) -> float:
        return self._lost + self._gain * (now_s - self._at_s)


class Move:
    """From the models that workers hold to those that an allocation wants: what it costs, and the next step.

    Workers are counted by kind and level, as in :class:`argus_sim.policies.outlook.Outlook`.

    Args:
        catalog: Models and load times.
        ladder: The levels of the allocation.
        view: Which worker holds what.
    """

    def __init__(self, catalog: Catalog, ladder: Ladder, view: ClusterView) -> None:
        kinds, levels = range(len(catalog.kinds)), len(ladder.variants)
        level_of = {v: j for j, v in enumerate(ladder.variants)}
        models = [catalog.model[v] for v in ladder.variants]
        #: By kind and level: a number for the model on a worker of that kind, the time it takes to load, and what
        #: that worker's time is worth.
        self._model = [k * len(catalog.models) + m for k in kinds for m in models]
        self._load_s = [catalog.kinds[k].load_s[m] for k in kinds for m in models]
        self._weight = _weights(ladder, view.up_by_kind())
        self._kind = [k for k in kinds for _ in models]
        #: Workers of each level, loading or not.
        self.held = [0] * len(self._model)
        #: Workers that hold each model.
        self._ready = dict.fromkeys(self._model, 0)
        self.loading = 0
        for worker in range(view.workers):
            if not view.is_up(worker):
                continue
            kind = view.kind(worker)
            self.loading += view.is_loading(worker)
            model = view.holds(worker)
            # What it serves beside its level comes first: see Allocating.placement.
            level = next((level_of[v] for v in reversed(view.serves(worker)) if v in level_of), None)
            if level is None and model in models:
                # It comes from another ladder: what it holds can serve the first level of that model.
                level = models.index(model)
            if level is not None:
                self.held[kind * levels + level] += 1
            if model in models and not view.is_loading(worker):
                self._ready[kind * len(catalog.models) + model] += 1
        #: Workers that are of a level of each model.
        self._of = dict.fromkeys(self._model, 0)
        for count, of in zip(self.held, self._model, strict=True):
            self._of[of] += count
        #: All levels are of the one model that all workers hold or load.
        self._is_free = len(set(models)) == 1 and sum(self.held) == view.workers_up

    def loads(self, wanted: Sequence[int]) -> list[int]:
        """How many loads of each level's model these workers per level take, given the models held."""
        have, need = dict(self._of), []
        for count, model in zip(wanted, self._model, strict=True):
            free = min(count, have[model])
            have[model] -= free
            need.append(count - free)
        return need

    def cost_s(self, wanted: Sequence[int]) -> float:
        """Worker-seconds that the loads take; those of a kind as many as its speed makes of the mean worker's."""
        if self._is_free:
            return 0.0
        return sum(
            n * load_s * weight
            for n, load_s, weight in zip(self.loads(wanted), self._load_s, self._weight, strict=True)
        )

    def ready_within(self, seconds: float, counts: Sequence[int]) -> list[int]:
        """Workers of each level that can serve it by then, of those that are to."""
        left, ready = dict(self._ready), []
        for count, model, load_s in zip(counts, self._model, self._load_s, strict=True):
            able = count if load_s <= seconds else min(count, left[model])
            left[model] -= able
            ready.append(able)
        return ready

    def step(
        self, wanted: Sequence[int], rate_per_s: Row, demand_per_s: float, headroom: float
    ) -> tuple[int, ...]:
        """Workers per level for now: on the way to ``wanted``, with no more loads at once than demand allows.

        What goes on serving is to be able to serve ``headroom`` times the demand. At least one worker moves when
        none is loading; where demand is as much above what can be served, and every image short of capacity
        anyway, half of them may.
        """
        workers = sum(wanted)
        ready = self.ready_within(0.0, self.held)
        able_per_s = sum(n * r for n, r in zip(ready, rate_per_s, strict=True))
        slowest = min((r for r, n in zip(rate_per_s, self.held, strict=True) if n and r), default=1.0)
        spare = int((able_per_s - headroom * demand_per_s) / slowest)
        allowed = workers // 2 - self.loading if demand_per_s > headroom * able_per_s else spare
        allowed = max(allowed, 0 if self.loading else 1)
        counts, empty = list(self.held), [0] * (self._kind[-1] + 1)
        for kind, has, wants in zip(self._kind, self.held, wanted, strict=True):
            empty[kind] += wants - has
        # The levels that raise capacity most are the most urgent.
        for level in sorted(range(len(wanted)), key=lambda j: -rate_per_s[j]):
            kind = self._kind[level]
            while counts[level] < wanted[level]:
                donors = [j for j in range(len(wanted)) if counts[j] > wanted[j] and self._kind[j] == kind]
                free = [j for j in donors if self._model[j] == self._model[level]]
                if free:
                    counts[free[0]] -= 1
                elif empty[kind]:
                    empty[kind] -= 1
                elif allowed and donors:
                    allowed -= 1
                    counts[min(donors, key=lambda j: rate_per_s[j])] -= 1
                else:
                    break
                counts[level] += 1
        for kind, workers in enumerate(empty):
            own = [j for j in range(len(wanted)) if self._kind[j] == kind]
            counts[max(own, key=lambda j: wanted[j])] += workers
        return tuple(counts)


def _weights(ladder: Ladder, up: Sequence[int]) -> list[float]:
    """What a second of a worker of each kind is worth, by kind and level: its fastest level against the mean."""
    levels = len(ladder.variants)
    if len(up) == 1:
        return [1.0] * levels
    firsts = range(0, len(ladder.throughput_per_s), levels)
    fastest = [max(ladder.throughput_per_s[first : first + levels]) for first in firsts]
    mean = sum(n * rate for n, rate in zip(up, fastest, strict=True)) / max(sum(up), 1)
    return [rate / mean if mean else 1.0 for rate in fastest for _ in range(levels)]
