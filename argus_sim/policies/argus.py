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
from functools import lru_cache, partial
from itertools import chain
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from argus_sim.core.catalog import Catalog
from argus_sim.core.solvers import Allocation, Row, align, align_one_pass
from argus_sim.core.view import ClusterView
from argus_sim.domain import CacheHit, Request, VariantId
from argus_sim.policies.allocation import Allocating, AllocatingParams
from argus_sim.policies.base import AskCache, Decision, Params, Plan, Route, Serves, Setup
from argus_sim.policies.ladders import CacheWatch, Ladder, Move, Regret
from argus_sim.policies.outlook import Outlook, all_at, climb, placed, spread

#: Histograms are rounded to one part in this many, so that alignments recur and the solver remembers them.
_SHARES = 100
#: The part of what a load costs that must have been lost before it is made. A forecast by which it pays for
#: itself is trusted, but not at once (Purohit et al., Improving Online Algorithms via ML Predictions, 2018).
_DOUBT = 0.25
#: By how much the throughput of a level must have changed with the cache for a plan to be made at once.
_NEWS = 0.1
#: Answers to how many workers each level gets that are kept: demand that was there before has the same.
_CLIMBED = 4096


class BlindParams(AllocatingParams):
    """Parameters of :class:`Argus` that are not about prompts."""

    ladder: Literal["auto", "AC", "SM"] = Field(
        default="auto",
        description="AC: approximate caching; SM: smaller models; auto: AC where there is one, and SM while that "
        "yields more.",
    )
    allocation: Literal["in-time", "solver"] = Field(
        default="in-time",
        description="solver: the artefact's, for the forecast with headroom; in-time: from there to what yields "
        "most in time, queueing and loads counted.",
    )
    switch: bool = Field(
        default=True, description="With ladder auto: change to another ladder when it yields more."
    )
    horizon_s: float = Field(default=600.0, gt=0, description="Time in which a model load has to pay for itself.")
    margin: float = Field(
        default=0.02, ge=0, description="Relative quality per request that another ladder must yield more."
    )
    probe_s: float = Field(
        default=5.0, gt=0, description="Seconds between questions to a cache that is not in use."
    )

    @model_validator(mode="after")
    def _horizon_of_loads(self) -> Self:
        if self.allocation == "solver" and "horizon_s" in self.model_fields_set:
            raise ValueError("horizon_s has no effect with allocation: solver, which takes loads as free")
        return self


class ArgusParams(BlindParams):
    """Parameters of :class:`Argus`."""

    tolerance: float = Field(
        default=0.05, ge=0, lt=1, description="Relative quality that may be lost to call a level good enough."
    )
    recent: int = Field(default=2000, ge=1, description="Arrivals that the affinity histogram is made of.")
    aligner: Literal["exact", "one-pass", "none"] = Field(
        default="exact",
        description="one-pass: the artefact's heuristic, flaws included; none: each prompt at its own affinity, "
        "or at the nearest level that has workers.",
    )


class Argus(Allocating):
    """Forecast, allocate, align, route by affinity; change the ladder when another one yields more."""

    name: ClassVar[str] = "argus"
    predicts: ClassVar[bool] = True
    Params: ClassVar[type[Params]] = ArgusParams

    def __init__(self, setup: Setup, params: Any) -> None:
        catalog = setup.catalog.up_to(params.max_batch)
        auto = "AC" if "AC" in catalog.ladders else "SM"
        wanted = auto if params.ladder == "auto" else params.ladder
        first = catalog.ladder(wanted, where=f"policy {self.name}: ladder")
        super().__init__(setup, params, first, limit_s=setup.slo_s)
        #: The ladder of these variants, read once.
        self._of = ladder = lru_cache(partial(self.read, catalog))
        #: The ladder in use; and with what workers still hold of the other one: see :meth:`_use`.
        self._chosen = self._ladder = ladder(first)
        self._other: Ladder | None = None
        if params.ladder == "auto" and params.switch and self._ladder.cached and "SM" in catalog.ladders:
            self._other = ladder(catalog.ladder("SM"))
        #: What was lost by not being on the other ladder, and by not having the models that were wanted last.
        self._elsewhere, self._unloaded = Regret(), Regret()
        self._watch = CacheWatch(catalog, first, setup.slo_s) if self._ladder.cached else None
        self._ask = AskCache("is the cache back?")
        #: What :func:`climb` found, by all that it depends on.
        self._climbed: dict[tuple[Any, ...], tuple[int, ...]] = {}
        self._served: set[VariantId] = set()
        self._is_probing = False
        self._probe_s = 0.0
        self._loading = 0
        self._use(self._ladder)
        self._believe(self._ladder)

    def read(self, catalog: Catalog, variants: tuple[VariantId, ...]) -> Ladder:
        """What is known of the levels of a ladder, and of prompts at them."""
        return Ladder.of(catalog, variants, self.setup.predictor, self.params.tolerance, self.setup.slo_s)

    def _use(self, ladder: Ladder) -> None:
        self._ladder = ladder
        self._wanted: tuple[int, ...] | None = None
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
        again |= self._unloaded.is_due(view.now_s)
        if self._watch is not None and self._ladder.cached:
            # Does the cache answer as it did when the plan was made?
            _, now = self._expect(self._ladder)
            again |= any(abs(a - b) > _NEWS * b for a, b in zip(now, self._rate_per_s, strict=True))
        return again

    def allocate(self, view: ClusterView) -> Allocation:
        self._view = view
        if self._other is not None:
            self._join(view)
        here = self._best(self._ladder, view)
        if here is None:
            held = Move(self.setup.catalog, self._ladder, view).held
            load_per_s = self._load_per_s(held)
            if sum(held) < view.workers_up or not any(load_per_s):
                return self.solve(view)
            # Nobody comes: no load can gain anything, and bursts often come out of silence.
            return placed(held, load_per_s)
        # A cache that nobody asks, because it failed, would never be seen to work again.
        self._is_probing = self._watch is not None and not (self._ladder.cached and self._watch.is_healthy)
        if self._other is not None:
            here = self._choose(here, view)
        counts, outlook, move = here
        counts = self._toward(counts, outlook, move, view.now_s)
        self._loading = move.loading + sum(move.loads(counts))
        if self.params.allocation == "solver" and not self._loading:
            return self.solve(view)
        # A model that loads faster than demand is looked at counts as there.
        ready = move.ready_within(self.params.monitor_s or self.params.period_s, counts)
        return spread(counts, ready, outlook)

    def _retrieval_s(self, ladder: Ladder) -> float:
        """How long the cache takes to answer; until the first answer nothing is known of that."""
        return max(self._watch.latency_s, 0.0) if ladder.cached and self._watch is not None else 0.0

    def _believe(self, ladder: Ladder) -> None:
        """Count on what is now expected of a ladder."""
        self._quality, self._rate_per_s = self._expect(ladder)
        levels = len(ladder.variants)
        starts = range(0, len(self._rate_per_s), levels)
        self._kind_rates = tuple(self._rate_per_s[at : at + levels] for at in starts)

    def _load_per_s(self, counts: Sequence[int]) -> Row:
        """What workers, by kind and level, can serve of each level."""
        able = [n * rate for n, rate in zip(counts, self._rate_per_s, strict=True)]
        levels = len(self._quality)
        return tuple(sum(able[j::levels]) for j in range(levels))

    def _best(self, ladder: Ladder, view: ClusterView) -> tuple[tuple[int, ...], Outlook, Move] | None:
        """The workers per kind and level that yield most in time, their loads paid for; None without demand.

        The solver knows no queues. Near its capacity it loses more to waiting than the best levels gain, and
        raters may find a model hardly better that takes ten times as long. So its answer is one place to start
        from; the others are the workers as they are, and all of them at one level.
        """
        self._believe(ladder)
        workers, of_kind, levels = view.workers_up, view.up_by_kind(), len(ladder.variants)
        if not self._demand.forecast_per_s():
            return None
        retrieval_s = self._retrieval_s(ladder)
        demand = self._demanded(sum(n * max(r) for n, r in zip(of_kind, self._kind_rates, strict=True)))
        outlook = Outlook(
            self._quality,
            self._rate_per_s,
            tuple(round(self.setup.slo_s - retrieval_s - s, 1) for s in ladder.longest_s),
            demand / self.params.headroom + self._backlog(view) / self.params.period_s,
            self._demand.dispersion(),
            self.histogram(view, ladder),
            ladder.loss,
        )
        move = Move(self.setup.catalog, ladder, view)
        horizon_s: float = self.params.horizon_s

        def worth(counts: tuple[int, ...]) -> float:
            return outlook.yield_per_s(counts) * (horizon_s - move.cost_s(counts) / workers)

        solved = self.solve(view)
        starts = [tuple(chain(*(solved.by_kind or (solved.workers,))))]
        if self.params.allocation == "solver":
            return starts[0], outlook, move
        held = tuple(move.held)
        key = (ladder.variants, outlook, of_kind, held, starts[0])
        if key not in self._climbed:
            starts += [all_at(level, of_kind, outlook) for level in range(levels)]
            if sum(held) == workers and outlook.is_able(held):
                starts.insert(0, held)
            if len(self._climbed) >= _CLIMBED:
                self._climbed.clear()
            self._climbed[key] = climb(starts, worth, levels)
        return self._climbed[key], outlook, move

    def _toward(self, counts: tuple[int, ...], outlook: Outlook, move: Move, now_s: float) -> tuple[int, ...]:
        """Workers per level for now, on the way to ``counts``.

        Where demand can be served without a load, there is none before something was lost by not loading: what a
        moment's forecast asks for, the next one may take back.
        """
        price = 0.0
        # A worker that holds nothing of use has nothing to wait for; nor have the artefact's answers.
        if self.params.allocation == "in-time" and sum(move.held) == sum(counts):
            if any(move.loads(counts)):
                self._wanted = counts
            if self._wanted is None or outlook.of_kinds(self._wanted) != outlook.of_kinds(counts):
                return counts
            here = climb(
                [tuple(move.held)],
                lambda c: -1.0 if any(move.loads(c)) else outlook.yield_per_s(c),
                len(outlook.quality),
            )
            now = outlook.yield_per_s(here)
            gain = outlook.yield_per_s(self._wanted) - now
            price = _DOUBT * now / sum(counts)
            is_due = self._unloaded.look(gain, move.cost_s(self._wanted) * price, now_s)
            able_per_s = sum(n * rate for n, rate in zip(here, outlook.rate_per_s, strict=True))
            if not is_due and (gain <= 0.0 or able_per_s >= outlook.demand_per_s):
                return here
            counts = self._wanted
        if any(move.loads(counts)):
            # Loads take workers away for a while: only as many at once as demand allows, a backlog set aside.
            forecast_per_s = self._demand.forecast_per_s()
            counts = move.step(counts, outlook.rate_per_s, forecast_per_s, self.params.headroom)
            self._unloaded.pay(move.cost_s(counts) * price)
        return counts

    def _backlog(self, view: ClusterView) -> int:
        """Requests that wait beyond a batch for each worker: to be served beside those that the forecast knows.

        In steps, so that the same problems come up again.
        """
        waiting = sum(view.queued(v) for v in range(len(self._skipped)))
        step = view.workers_up * self._ladder.largest_batch
        return max(0, waiting // step - 1) * step if step else 0

    def _choose(
        self, here: tuple[tuple[int, ...], Outlook, Move], view: ClusterView
    ) -> tuple[tuple[int, ...], Outlook, Move]:
        """Change the ladder if the other one is worth it; the best on the one that is chosen."""
        assert self._other is not None
        workers = view.workers_up
        there = self._best(self._other, view)
        assert there is not None
        yields = [outlook.yield_per_s(counts) for counts, outlook, _ in (here, there)]
        loads_s = [move.cost_s(counts) for counts, _, move in (here, there)]
        # Levels of approximate caching change at no cost: that is worth a margin.
        freedom = self.params.margin * here[1].demand_per_s * (1.0 if self._other.cached else -1.0)
        cost = (loads_s[1] - loads_s[0]) * yields[0] / workers
        if self._elsewhere.look(yields[1] - yields[0] + freedom, max(cost, 0.0), view.now_s):
            self._chosen, self._other = self._other, self._chosen
            self._use(self._chosen)
            self._join(view)
            self._elsewhere, self._unloaded = Regret(), Regret()
            # What was lost pays for the loads on this ladder too.
            self._unloaded.owe(loads_s[1] * yields[1] / workers)
            joined = there if self._ladder is self._chosen else self._best(self._ladder, view)
            assert joined is not None
            return joined
        self._believe(self._ladder)
        return here

    def _join(self, view: ClusterView) -> None:
        """Keep what workers still serve of the other ladder as the last levels of this one, as long as they do.

        So they go on serving until it is their turn to load.
        """
        assert self._other is not None
        models = {self.setup.catalog.model[v] for v in self._chosen.variants}
        held = {
            v
            for w in range(view.workers)
            if view.is_up(w) and not view.is_loading(w)
            for v in view.serves(w)
            if view.holds(w) == self.setup.catalog.model[v] and view.holds(w) not in models
        }
        variants = self._chosen.variants + tuple(v for v in self._other.variants if v in held)
        if variants != self._ladder.variants:
            self._use(self._of(variants))

    def _expect(self, ladder: Ladder) -> tuple[Row, Row]:
        """Quality and throughput of each level, with the cache as it now answers."""
        if ladder.cached and self._watch is not None:
            return self._watch.effective(ladder)
        return ladder.quality, ladder.throughput_per_s

    def placement(self, allocation: Allocation) -> list[dict[Serves, int]]:
        wanted = super().placement(allocation)
        if self._ladder.cached and self._watch is not None and not self._watch.is_healthy:
            # Every worker that can takes its part of what is served in full.
            catalog, base = self.setup.catalog, self.setup.catalog.base
            wanted = [
                {
                    serves
                    if base in serves or catalog.model[serves[0]] != catalog.model[base]
                    else (base, *serves): count
                    for serves, count in of_kind.items()
                }
                for of_kind in wanted
            ]
        self._served = {v for of_kind in wanted for serves in of_kind for v in serves}
        return wanted

    def histogram(self, view: ClusterView, ladder: Ladder) -> Row:
        """Share of each affinity among the recent prompts, to a hundredth; no level has a share of exactly 0."""
        levels = len(ladder.variants)
        prompts = view.recent_prompts(self.params.recent)
        if not len(prompts):
            return (1.0 / levels,) * levels
        counts = np.bincount(ladder.affinities[prompts], minlength=levels).tolist()
        rounded = [max(1, round(_SHARES * count / len(prompts))) for count in counts]
        return tuple(share / sum(rounded) for share in rounded)

    def shares(self, allocation: Allocation, view: ClusterView) -> npt.NDArray[np.float64]:
        """L x L: the probability that a prompt of affinity i is served at level j."""
        have = self.histogram(view, self._ladder)
        if self.params.aligner == "exact":
            return align(have, allocation.share, self._ladder.loss)
        one_pass = self.params.aligner == "one-pass"
        shares = align_one_pass(have, allocation.share) if one_pass else np.eye(len(self.ladder))
        # Either may leave prompts at a level that has no workers: they go to the nearest that has.
        return _restrict(shares, np.asarray(allocation.workers) > 0)

    def aim(self, allocation: Allocation, plan: Plan, view: ClusterView) -> None:
        shares = self.shares(allocation, view)
        if shares is self._shares:
            return
        self._shares = shares
        self._upto = np.cumsum(shares, axis=1)[:, :-1].tolist()
        for i in range(len(self.ladder)):
            certain = np.flatnonzero(shares[i] >= 1.0 - 1e-12)
            self._sure[i] = self._routes[i][int(certain[0])] if len(certain) else None

    # -- requests ------------------------------------------------------------------------------------------

    def route(self, request: Request, view: ClusterView) -> Decision:
        hit = request.hit
        if hit is None and self._is_probing and view.now_s >= self._probe_s:
            self._probe_s = view.now_s + self.params.probe_s
            return self._ask
        affinity = self._affinity[request.prompt]
        route = self._sure[affinity]
        if route is None:
            level = bisect_right(self._upto[affinity], self._draws[request.row])
            route = self._routes[affinity][level]
        if hit is not None and self._skipped[route.variant] > hit.max_skipped_steps:
            return self._instead(affinity, hit)
        return route

    def _instead(self, affinity: int, hit: CacheHit) -> Route:
        """The most approximate level that the cache's answer allows and a worker serves."""
        for level in range(len(self.ladder) - 1, 0, -1):
            variant = self.ladder[level]
            if 0 < self._skipped[variant] <= hit.max_skipped_steps and variant in self._served:
                return self._routes[affinity][level]
        return self._missed

    def observe_cache(self, hit: CacheHit) -> None:
        assert self._watch is not None
        self._watch.hear(hit, self._view.now_s)


def _restrict(shares: npt.NDArray[np.float64], served: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    restricted, levels = np.zeros_like(shares), np.flatnonzero(served)
    for j in range(shares.shape[1]):
        restricted[:, levels[np.argmin(np.abs(levels - j))]] += shares[:, j]
    return restricted
