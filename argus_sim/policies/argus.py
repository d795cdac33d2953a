"""Argus (Agarwal, Mitra, Iqbal; Middleware '25): each prompt at the cheapest level that keeps its quality.

From the authors' artefact (2024, then named AccuScale; ``solver_milp_oda.py``): a solver gives each GPU a level
of approximate caching, such that the forecast demand is served at the highest mean quality. Prompts have an
*affinity*, the most approximate level that still serves them well. A second step aligns the two distributions:
it says with which probability a prompt of affinity i is served at level j. Solver period, SLO and the affinity
predictor of the published system are not known; they are parameters here.

The paper's abstract adds that it switches between strategies. How is not known; here the ladder is the one
whose expected quality per second, at the forecast demand and with the cache as it now answers, is higher by
more than the model loads cost.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from argus_sim.core.catalog import Catalog
from argus_sim.core.solvers import Allocation, Row, align, align_one_pass
from argus_sim.core.view import ClusterView
from argus_sim.domain import CacheHit, Request, VariantId
from argus_sim.policies.allocation import Allocating, AllocatingParams
from argus_sim.policies.base import AskCache, Decision, Params, Route, Serves, Setup
from argus_sim.policies.ladders import CacheWatch, Ladder, Move, in_time_yield, spread

#: Histograms are rounded to one part in this many, so that alignments recur and the solver remembers them.
_SHARES = 100
#: Weight of one answer in the means of the cache: all are heard on its ladder, on another one a few probes.
_HEARD, _PROBED = 0.02, 0.25
#: By how much the throughput of a level must have changed with the cache for a plan to be made at once.
_NEWS = 0.1


class ArgusParams(AllocatingParams):
    """Parameters of :class:`Argus`."""

    ladder: Literal["auto", "AC", "SM"] = Field(
        default="auto",
        description="AC: approximate caching; SM: smaller models; auto: AC where there is one, and SM while that "
        "yields more.",
    )
    tolerance: float = Field(
        default=0.05, ge=0, lt=1, description="Relative quality that may be lost to call a level good enough."
    )
    recent: int = Field(default=2000, ge=1, description="Arrivals that the affinity histogram is made of.")
    aligner: Literal["exact", "one-pass", "none"] = Field(
        default="exact",
        description="one-pass: the artefact's heuristic, flaws included; none: each prompt at its own affinity, "
        "or at the nearest level that has workers.",
    )
    switch: bool = Field(
        default=True, description="With ladder auto: change to another ladder when it yields more."
    )
    horizon_s: float = Field(
        default=600.0, gt=0, description="Time in which a model load within a ladder has to pay for itself."
    )
    switch_horizon_s: float = Field(
        default=1800.0, gt=0, description="Time in which the loads of a change of ladder have to."
    )
    margin: float = Field(
        default=0.02, ge=0, description="Relative quality per request that another ladder must yield more."
    )
    probe_s: float = Field(
        default=5.0, gt=0, description="Seconds between questions to a cache that is not in use."
    )


def choose_ladder(catalog: Catalog, wanted: str, where: str) -> tuple[VariantId, ...]:
    """The ladder of a name; ``auto`` prefers approximate caching."""
    name = wanted if wanted != "auto" else "AC" if "AC" in catalog.ladders else "SM"
    return catalog.ladder(name, where=where)


class Argus(Allocating):
    """Forecast, allocate, align, route by affinity; change the ladder when another one yields more."""

    name: ClassVar[str] = "argus"
    Params: ClassVar[type[Params]] = ArgusParams

    def __init__(self, setup: Setup, params: Any) -> None:
        catalog = setup.catalog.up_to(params.max_batch)
        first = choose_ladder(catalog, params.ladder, "policy argus: ladder")
        super().__init__(setup, params, first, limit_s=setup.slo_s)

        def ladder(variants: tuple[VariantId, ...]) -> Ladder:
            return Ladder.of(catalog, variants, setup.predictor, params.tolerance, setup.slo_s)

        self._ladder = ladder(first)
        self._other: Ladder | None = None
        if params.ladder == "auto" and params.switch and self._ladder.cached and "SM" in catalog.ladders:
            self._other = ladder(catalog.ladder("SM"))
        self._watch = CacheWatch(catalog, first, setup.slo_s) if self._ladder.cached else None
        self._ask = AskCache("is the cache back?")
        self._is_probing = False
        self._probe_s = 0.0
        self._loading = 0
        self._use(self._ladder)

    def _use(self, ladder: Ladder) -> None:
        self._ladder = ladder
        self.ladder, self._affinity, self._routes = ladder.variants, ladder.affinity, ladder.routes
        #: What the last alignment came to: shares, their running sums, and where there is nothing to draw.
        self._shares: npt.NDArray[np.float64] | None = None
        self._sure: list[Route | None] = [None] * len(ladder.variants)
        self._upto: list[list[float]] = []

    # -- allocation ----------------------------------------------------------------------------------------

    def monitor(self, view: ClusterView) -> bool:
        again = self._demand.look(view)
        if self._loading:
            # A model has arrived: its worker can take load, and the next one may go.
            again |= self._loading > sum(view.is_loading(w) for w in range(view.workers))
        if self._watch is not None and self._ladder.cached and len(self.kinds) == 1:
            # Does the cache answer as it did when the plan was made?
            _, now = self._expect(self._ladder)
            again |= any(abs(a - b) > _NEWS * b for a, b in zip(now, self._throughput, strict=True))
        return again

    def allocate(self, view: ClusterView) -> Allocation:
        if len(self.kinds) > 1:
            # On several kinds of GPUs it stays on its ladder and takes loads as free: what they are worth is only
            # worked out for workers that are all alike.
            return super().allocate(view)
        workers, demand = view.workers_up, self._demand.forecast_per_s()
        catalog = self.setup.catalog
        self._quality, self._throughput = self._expect(self._ladder)
        wanted = self.solve(workers)
        # A cache that nobody asks, because it failed, would never be seen to work again.
        self._is_probing = self._watch is not None and not (self._ladder.cached and self._watch.is_healthy)
        self._loading = 0
        if self._other is not None and demand:
            wanted = self._choose(wanted, view, demand)
        move = Move(catalog, self._ladder, view)
        if not demand:
            return wanted
        if sum(move.held) == workers and not self._ladder.cached:
            wanted = self._worth_its_loads(wanted, move, demand)
        elif not any(move.loads(wanted.workers)):
            return wanted
        counts = move.step(wanted.workers, self._throughput, demand * self.params.headroom)
        self._loading = move.loading + sum(move.loads(counts))
        # A model that loads faster than demand is looked at counts as there.
        ready = move.ready_within(self.params.monitor_s or self.params.period_s, counts)
        slack_s = self._slack_s(self._ladder)
        return spread(counts, ready, self._quality, self._throughput, slack_s, demand)

    def _worth_its_loads(self, wanted: Allocation, move: Move, demand: float) -> Allocation:
        """On a ladder of models: the solver's workers, all workers at one level, or everything as it is.

        Whichever yields most, its loads paid for. The solver knows no queues: raters may find a model hardly
        better that takes ten times as long, and near its capacity it loses more to waiting than it gains.
        """
        workers, levels = sum(wanted.workers), range(len(wanted.workers))
        stay = self._of(self._ladder, move.held, demand)
        here = self._yield(self._ladder, stay)
        alike = [[workers if j == level else 0 for j in levels] for level in levels]

        def worth(option: Allocation) -> float:
            gain = self._yield(self._ladder, option) - here
            cost = move.cost_s(option.workers) * here / workers
            return float(gain * self.params.horizon_s - cost)

        others = [self._of(self._ladder, counts, demand) for counts in (wanted.workers, *alike)]
        return max([stay, *others], key=worth)  # the first of equals: to move has to be better

    def _slack_s(self, ladder: Ladder) -> Row:
        """How long a request may wait at each level."""
        retrieval_s = self._watch.latency_s if ladder.cached and self._watch is not None else 0.0
        return tuple(self.setup.slo_s - retrieval_s - s for s in ladder.longest_s)

    def _of(self, ladder: Ladder, counts: Sequence[int], demand: float) -> Allocation:
        """These workers per level, and the best load on them."""
        return spread(counts, counts, self._quality, self._throughput, self._slack_s(ladder), demand)

    def _yield(self, ladder: Ladder, allocation: Allocation) -> float:
        """Expected quality per second that is in time, at the quality and throughput that were last expected."""
        capacity = [n * r for n, r in zip(allocation.workers, self._throughput, strict=True)]
        return in_time_yield(self._quality, capacity, self._slack_s(ladder), allocation.load_per_s)

    def _expect(self, ladder: Ladder) -> tuple[Row, Row]:
        """Quality and throughput of each level, with the cache as it now answers."""
        if ladder.cached and self._watch is not None:
            return self._watch.effective(ladder)
        return ladder.quality, ladder.throughput_per_s

    def _choose(self, wanted: Allocation, view: ClusterView, demand: float) -> Allocation:
        """Change the ladder if the other one is worth it; the allocation on the one that is chosen."""
        assert self._other is not None
        catalog, workers = self.setup.catalog, view.workers_up
        here_quality, here_rate = self._quality, self._throughput
        move = Move(catalog, self._ladder, view)
        if sum(move.held) == workers and not self._ladder.cached:
            wanted = self._worth_its_loads(wanted, move, demand)
        here = self._yield(self._ladder, self._of(self._ladder, wanted.workers, demand))
        self._quality, self._throughput = self._expect(self._other)
        other = self.solve(workers)
        there = self._yield(self._other, self._of(self._other, other.workers, demand))
        # Either way models have to be loaded.
        loads_s = Move(catalog, self._other, view).cost_s(other.workers) - move.cost_s(wanted.workers)
        gain = there - here
        if gain * self.params.switch_horizon_s > loads_s * here / workers and gain > self.params.margin * demand:
            left = self._ladder
            self._use(self._other)
            self._other = left
            return other
        self._quality, self._throughput = here_quality, here_rate
        return wanted

    def placement(self, allocation: Allocation) -> list[dict[Serves, int]]:
        wanted = super().placement(allocation)
        if self._ladder.cached and self._watch is not None and not self._watch.is_healthy:
            # Every worker takes its part of what is served in full.
            base = self.setup.catalog.base
            every: list[dict[Serves, int]] = [{} for _ in wanted]
            for of_kind, all_of_kind in zip(wanted, every, strict=True):
                for serves, count in of_kind.items():
                    both = serves if base in serves else (base, *serves)
                    all_of_kind[both] = all_of_kind.get(both, 0) + count
            return every
        return wanted

    def histogram(self, view: ClusterView) -> Row:
        """Share of each affinity among the recent prompts, to a hundredth; no level has a share of exactly 0."""
        levels = len(self.ladder)
        prompts = view.recent_prompts(self.params.recent)
        if not len(prompts):
            return (1.0 / levels,) * levels
        counts = np.bincount(self._ladder.affinities[prompts], minlength=levels).tolist()
        rounded = [max(1, round(_SHARES * count / len(prompts))) for count in counts]
        return tuple(share / sum(rounded) for share in rounded)

    def aim(self, allocation: Allocation, view: ClusterView) -> None:
        have = self.histogram(view)
        if self.params.aligner == "exact":
            shares = align(have, allocation.share, self._ladder.loss)
        else:
            one_pass = self.params.aligner == "one-pass"
            shares = align_one_pass(have, allocation.share) if one_pass else np.eye(len(self.ladder))
            # Either may leave prompts at a level that has no workers: they go to the nearest that has.
            shares = _restrict(shares, np.asarray(allocation.workers) > 0)
        if shares is self._shares:
            return
        self._shares = shares
        self._upto = np.cumsum(shares, axis=1)[:, :-1].tolist()
        for i in range(len(self.ladder)):
            certain = np.flatnonzero(shares[i] >= 1.0 - 1e-12)
            self._sure[i] = self._routes[i][int(certain[0])] if len(certain) else None

    # -- requests ------------------------------------------------------------------------------------------

    def route(self, request: Request, view: ClusterView) -> Decision:
        if request.hit is not None:
            if self._ladder.cached:
                return self._missed
        elif self._is_probing and view.now_s >= self._probe_s:
            self._probe_s = view.now_s + self.params.probe_s
            return self._ask
        affinity = self._affinity[request.prompt]
        sure = self._sure[affinity]
        if sure is not None:
            return sure
        return self._routes[affinity][bisect_right(self._upto[affinity], self._draws[request.row])]

    def observe_cache(self, hit: CacheHit) -> None:
        assert self._watch is not None
        self._watch.hear(hit, _PROBED if self._is_probing else _HEARD)


def _restrict(shares: npt.NDArray[np.float64], served: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    restricted = np.zeros_like(shares)
    for j in range(shares.shape[1]):
        levels = np.flatnonzero(served)
        restricted[:, levels[np.argmin(np.abs(levels - j))]] += shares[:, j]
    return restricted
