"""argus-x: one controller over every variant of the profile, by a price on the workers' time. Ours.

* *One problem.* Which model each worker holds is decided over all ladders together, by a mixed-integer program
  over classes of prompts, for the recent peak of what demand may be. A model load is an investment that has to be
  repaid within a horizon (:mod:`argus_sim.core.placement`).
* *Expected quality by variant* for each prompt, in place of one affinity label.
* *More than one image*, where there is a judge of images (:mod:`argus_sim.core.beliefs`). Another model makes one
  more where that is expected to better the best so far by more than its time costs, and is in time.
* *Prices.* A worker's second has a price that follows from the backlog: the solution of a control problem that
  knows demand, its dispersion and the deadline (:mod:`argus_sim.core.pricing`, :mod:`argus_sim.core.market`). A
  request takes the variant with the most quality left after paying for its time, among those that can still make
  its deadline. If none can, it queues for the fastest, and the experiment's drop rule decides.

A worker serves all variants of the model it holds, so none is idle while another level has a queue.
docs/policies/argus-x.md has the reasoning and what did not work.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from argus_sim.core import placement, pricing, sequences
from argus_sim.core.beliefs import Beliefs, posterior, reservation, second_gains
from argus_sim.core.forecast import Demand, EwmaForecast, Forecast
from argus_sim.core.market import Counts, Market, Terms, markets
from argus_sim.core.view import ClusterView
from argus_sim.domain import Request, VariantId
from argus_sim.policies.allocation import FORECAST, is_there
from argus_sim.policies.base import (
    Again,
    Decision,
    Keep,
    Params,
    Plan,
    Policy,
    Route,
    Serves,
    Setup,
    Verdict,
    keep_or_move,
)

#: Demand and dispersion are rounded to steps of this size (natural logarithm), so that tables recur.
_DEMAND_STEP, _PEAK_STEP, _DISPERSION_STEP = 0.04, 0.1, 0.4
#: Variants that later images may be made by, at most, and the costs of one that gains are tabulated for.
_LATER = 5
_COSTS = np.linspace(0.0, 0.2, 101)
_COST_STEP = float(_COSTS[1])
_NEVER = (len(_COSTS), math.inf)
#: Tables that are kept, each for one demand, dispersion and placement.
_TABLES = 512


class ArgusXParams(Params):
    """Parameters of :class:`ArgusX`."""

    period_s: float = Field(default=30.0, gt=0, description="Seconds between placements.")
    monitor_s: float = Field(default=5.0, gt=0, description="Seconds between looks at demand.")
    forecast: Forecast = Field(default=EwmaForecast(), description=FORECAST)
    slow_half_life_s: float = Field(
        default=300.0,
        gt=0,
        description="Half-life of a second, slower forecast, which jumps too; the higher of the two counts.",
    )
    peak_half_life_s: float = Field(
        default=3600.0, gt=0, description="How fast the peak that workers are placed for is forgotten."
    )
    repay_s: float = Field(default=300.0, gt=0, description="Time in which a model load has to pay for itself.")
    horizon_s: float = Field(default=2000.0, gt=0, description="How far ahead a price counts quality.")
    margin: float = Field(
        default=0.05, ge=0, lt=1, description="The part of the SLO that is kept in reserve against late finishes."
    )
    on_time: float = Field(
        default=2.0, ge=0, description="What an image in time is worth beside its relative quality."
    )
    cascade: Literal["auto", "never"] = Field(
        default="auto",
        description="Whether a judge's word may lead to more than one image, where that pays.",
    )
    classes: int = Field(default=24, ge=1, description="Classes of prompts in the programs.")
    cells: int = Field(default=32, ge=4, description="Points of the grid of waits.")


class ArgusX(Policy):
    """Prices instead of shares."""

    name: ClassVar[str] = "argus-x"
    mixes: ClassVar[bool] = False
    predicts: ClassVar[bool] = True
    Params: ClassVar[type[Params]] = ArgusXParams

    def __init__(self, setup: Setup, params: Any) -> None:
        super().__init__(setup, params)
        catalog, predictor = setup.catalog, setup.predictor
        variants = range(len(catalog.variants))
        self._demand = Demand(params.forecast.build())
        self._slow = Demand(EwmaForecast(half_life_s=params.slow_half_life_s).build())
        self._peak_per_s, self._peak_at_s = 0.0, 0.0
        self._work_s = np.array([1.0 / catalog.throughput_per_s(v, limit_s=setup.slo_s) for v in variants])
        #: Worker-seconds of each model, by variant and then by sequence.
        self._use_s = np.zeros((len(catalog.models), len(variants)))
        self._use_s[list(catalog.model), variants] = self._work_s
        self._quality: list[list[float]] = predictor.predicted.tolist()
        group, self._class_quality = pricing.classes(predictor.predicted, predictor.train, params.classes)
        self._model_of = catalog.model
        self._group: list[int] = group.tolist()
        #: How long one image takes (99th percentile), and the time that a request has.
        self._alone_s = [catalog.p99_s[v][catalog.batch_sizes[v][0]] for v in variants]
        self._within_s = setup.slo_s * (1.0 - params.margin)
        self._beliefs: Beliefs | None = None
        self._sequences: tuple[tuple[VariantId, ...], ...] = ()
        self._gains: list[tuple[tuple[VariantId, list[list[float]]], ...]] = [()] * len(variants)
        if setup.judged is not None and params.cascade != "never":
            self._add_sequences(setup.judged)
        self._class_quality += params.on_time
        # What cannot make the deadline even alone is worth nothing to the programs.
        hopeless = [v for v in variants if self._alone_s[v] > setup.slo_s]
        self._class_quality[:, hopeless] = 0.0
        known = group[predictor.train]
        self._share = np.bincount(known, minlength=len(self._class_quality)) / len(known)
        self._serves: list[Serves] = [
            tuple(v for v in variants if catalog.model[v] == m) for m in range(len(catalog.models))
        ]
        self._routes = [Route(v, "most quality left after its price") for v in variants]
        self._last_resort = [Route(v, "too late already: the fastest there is") for v in variants]
        self._hopeless = self._last_resort[catalog.base]
        self._in_full = [Route(v, "cache miss: served in full") for v in variants]
        self._missed = self._in_full[catalog.base]
        self._skipped = [v.skipped_steps for v in catalog.variants]
        self._anew = [Route(v, "another image: it is worth its price") for v in variants]
        self._before = [Keep(v, "an image made before is the best") for v in variants]

        self._terms = Terms(
            catalog, setup.slo_s, self._within_s, self._work_s, self._alone_s, self._sequences, params.cells,
            params.horizon_s,
        )  # fmt: skip
        self._counts: Counts = ()
        self._plan: Plan | None = None
        self._planned: tuple[int, int] | None = None
        #: The workers that had each model, and by which plan and placement of models that was.
        self._were_ready: Counts = ()
        self._ready_by: tuple[Plan, int] | None = None
        self._markets: tuple[Market, ...] = ()
        self._tables: dict[tuple[int, int, Counts], tuple[Market, ...]] = {}
        self._prices: dict[tuple[int, Counts], tuple[float, ...]] = {}
        self._placements: dict[tuple[int, Counts], Counts] = {}

    @classmethod
    def may_judge(cls, params: Any) -> bool:
        return bool(params.cascade != "never")

    @property
    def judges(self) -> bool:
        return self._beliefs is not None

    def _add_sequences(self, judged: npt.NDArray[np.float64]) -> None:
        """Ways to serve by more than one image, where any is worth while."""
        catalog, predictor = self.setup.catalog, self.setup.predictor
        beliefs = Beliefs(predictor.observed, predictor.predicted[predictor.train], judged)
        in_full = [v for v, variant in enumerate(catalog.variants) if not variant.skipped_steps]
        if not beliefs.worth.any():
            return
        promise = (self._class_quality.mean(axis=0) + beliefs.after(()).spread)[in_full]
        best = [in_full[i] for i in np.argsort(-promise, kind="stable")[:_LATER]]
        found = sequences.worthwhile(
            self._class_quality, beliefs.covariance, self._use_s, self._alone_s, sorted(best), self._within_s
        )
        if not found.variants:
            return
        self._beliefs, self._sequences = beliefs, found.variants
        for first in {way[0] for way in found.variants}:
            seconds = sorted({way[1] for way in found.variants if way[0] == first})
            tables = [second_gains(beliefs, self._class_quality, first, w, _COSTS) for w in seconds]
            self._gains[first] = tuple((w, t.tolist()) for w, t in zip(seconds, tables, strict=True))
        self._class_quality = np.hstack([self._class_quality, found.quality])
        self._use_s = np.hstack([self._use_s, found.work_s])

    def monitor(self, view: ClusterView) -> bool:
        jumped = self._demand.look(view)
        self._slow.look(view)
        self._set_prices(view)
        return jumped

    def plan(self, view: ClusterView) -> Plan:
        self._demand.look(view)
        self._slow.look(view)
        catalog = self.setup.catalog
        peak = round(math.log(max(self._peak(view.now_s), 1e-6)) / _PEAK_STEP)
        key = (peak, view.membership)
        if self._plan is None or key != self._planned:
            self._planned = key
            held = [view.holds(w) for w in range(view.workers) if view.is_up(w)]
            # Who holds nothing is counted with the base model, and pays for a load of anything else.
            base = catalog.model[catalog.base]
            now = tuple(sum(m == (base if h is None else h) for h in held) for m in range(len(catalog.models)))
            self._counts = now
            if self._peak_per_s > 0.0:
                # Peaks come back, and a program takes as long as a thousand requests.
                if (peak, now) not in self._placements:
                    wanted = self._wanted(math.exp(peak * _PEAK_STEP))
                    self._placements[peak, now] = placement.place(
                        wanted, now, catalog.load_s, self.params.repay_s
                    )
                self._counts = self._placements[peak, now]
            reason = f"peak of {60.0 * self._peak_per_s:.0f} requests/min"
            counts: dict[Serves, int] = {self._serves[m]: n for m, n in enumerate(self._counts) if n}
            self._plan = keep_or_move(counts, view, catalog, reason)
        self._set_prices(view)
        return self._plan

    def _expected_per_s(self) -> float:
        """The higher of two forecasts: serving too well costs more than serving a little worse."""
        return max(self._demand.forecast_per_s(), self._slow.forecast_per_s())

    def _peak(self, now_s: float) -> float:
        """The upper end of what demand may be, by two standard deviations of what arrives within an SLO."""
        demand = self._expected_per_s()
        spread = math.sqrt(self._demand.dispersion() / max(demand * self.setup.slo_s, 1.0))
        faded = self._peak_per_s * 0.5 ** ((now_s - self._peak_at_s) / self.params.peak_half_life_s)
        self._peak_per_s, self._peak_at_s = max(demand * (1.0 + 2.0 * spread), faded), now_s
        return self._peak_per_s

    def _wanted(self, per_s: float) -> placement.Demand:
        return placement.Demand(self._class_quality, self._share, self._use_s, per_s)

    def _ready(self, view: ClusterView) -> Counts:
        """The workers that have each model. One that loads has no queue, and would look as if it were idle.

        Where all load: as planned.
        """
        assert self._plan is not None
        if self._ready_by == (self._plan, view.changes):
            return self._were_ready
        self._ready_by = (self._plan, view.changes)
        ready = [0] * len(self._counts)
        for worker, serves in enumerate(self._plan.serves):
            up = view.is_up(worker) and is_there(worker, serves, view, self.setup.catalog)
            ready[self._model_of[serves[0]]] += up
        self._were_ready = tuple(ready) if any(ready) else self._counts
        return self._were_ready

    def _set_prices(self, view: ClusterView) -> None:
        demand = max(self._expected_per_s(), 1e-3)
        counts = self._ready(view)
        key = (
            round(math.log(demand) / _DEMAND_STEP),
            round(math.log(self._demand.dispersion()) / _DISPERSION_STEP),
            counts,
        )
        if key not in self._tables:
            if len(self._tables) >= _TABLES:
                self._tables.clear()
                self._prices.clear()
            wanted = self._wanted(math.exp(key[0] * _DEMAND_STEP))
            dispersion = math.exp(key[1] * _DISPERSION_STEP)
            # The program knows no dispersion; it takes most of the time that a table takes.
            planned = key[0], counts
            if planned not in self._prices:
                self._prices[planned] = placement.worker_prices(wanted, counts)
            self._tables[key] = markets(self._terms, wanted, self._prices[planned], dispersion, counts)
        if self._tables[key] is self._markets:
            return
        self._markets = self._tables[key]
        served = sorted((float(w), v) for market in self._markets for v, w in market.work_s)
        self._hopeless = self._last_resort[served[0][1]]
        self._missed = self._in_full[next(v for _, v in served if not self._skipped[v])]

    def route(self, request: Request, view: ClusterView) -> Decision:
        quality = self._quality[request.prompt]
        hit = request.hit
        best, most = -1, -math.inf
        second = self._second(request, view) if self._beliefs is not None and len(self._markets) > 1 else {}
        for work_s, cell_s, offers, _, workers, _ in self._markets:
            waiting_s = view.waiting_s(work_s)
            cell = int(waiting_s / cell_s + 0.5)
            if cell >= len(offers):
                continue
            for variant, cost in offers[cell]:
                left = quality[variant] - cost
                if second:
                    gain = 0.0
                    left_s = self._within_s - waiting_s / workers - self._alone_s[variant]
                    for later, table in self._gains[variant]:
                        step, takes_s = second.get(later, _NEVER)
                        if step < len(table) and takes_s <= left_s:
                            gain = max(gain, table[step][self._group[request.prompt]])
                    left += gain
                if left > most and (hit is None or self._skipped[variant] <= hit.max_skipped_steps):
                    best, most = variant, left
        return self._routes[best] if best >= 0 else self._hopeless if hit is None else self._missed

    def _later_costs(self, view: ClusterView) -> dict[VariantId, tuple[float, float]]:
        """What one image more costs at each variant, and how long it takes, waiting included."""
        found: dict[VariantId, tuple[float, float]] = {}
        for work_s, cell_s, _, prices, workers, last_s in self._markets:
            if not last_s:
                continue
            waiting_s = view.waiting_s(work_s)
            cell = int(waiting_s / cell_s + 0.5)
            if cell < len(prices):
                for variant, one_s in last_s:
                    found[variant] = (prices[cell] * float(self._work_s[variant]), waiting_s / workers + one_s)
        return found

    def _second(self, request: Request, view: ClusterView) -> dict[VariantId, tuple[int, float]]:
        """The same, with costs as steps of the tables of gains; only what is cheap enough."""
        return {
            variant: (round(cost / _COST_STEP), takes_s)
            for variant, (cost, takes_s) in self._later_costs(view).items()
            if cost < _COSTS[-1]
        }

    def review(self, request: Request, variant: VariantId, confidence: float, view: ClusterView) -> Verdict:
        beliefs = self._beliefs
        assert beliefs is not None
        if len(self._markets) == 1:  # another image is always by another model
            return None
        predicted = self._quality[request.prompt]
        images = (*request.images, (variant, confidence))
        made = tuple(v for v, _ in images)
        if len(set(made)) < len(made):  # its worker was lost, and it began anew
            return None
        words = [beliefs.word(v, c, predicted[v]) for v, c in images]
        after = beliefs.after(made)
        expected = {v: posterior(after, predicted, words, v) for v in made}
        best = max(made, key=expected.__getitem__)
        left_s = request.deadline_s - view.now_s - (self.setup.slo_s - self._within_s)
        models = {self._model_of[v] for v in made}
        following, worth = -1, expected[best]
        for later, (cost, takes_s) in self._later_costs(view).items():
            if takes_s > left_s or self._model_of[later] in models:
                continue
            from_s = reservation(posterior(after, predicted, words, later), after.spread[later], cost)
            if from_s > worth:
                following, worth = later, from_s
        if following >= 0:
            return Again(self._anew[following], best)
        return None if best == variant else self._before[best]
