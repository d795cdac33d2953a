"""DiffServe (Ahmad et al., MLSys'25, arXiv 2411.15381): a light model first, a heavy one where it shows.

Every request runs on the light model. A discriminator looks at the image, and where its confidence is under a
threshold the request runs again on the heavy model. A program (section 4; ``qaware_cascade_ILP.py``) chooses
the workers and the batch size of either model and the highest threshold such that demand is met and the two
executions and queues fit the SLO. It is small enough to be solved exactly by going through all batch sizes.

How well the discriminator judges is not published; see ``cluster.discriminator``. DiffServe does not count the
time of changing models: on its servers one GPU holds both, here it loads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from argus_sim.core.catalog import Catalog
from argus_sim.core.forecast import Demand, EwmaForecast, Forecast
from argus_sim.core.view import ClusterView
from argus_sim.domain import Request, VariantId
from argus_sim.errors import InputError
from argus_sim.policies.base import Decision, Params, Plan, Policy, Route, Serves, Setup, keep_or_move

#: Thresholds are multiples of 1 / this, as in DiffServe's program.
_THRESHOLDS = 200
#: The confidences that the deferred share of a threshold is estimated from, and how many that takes at least.
_REMEMBERED, _ENOUGH = 2000, 50
#: DiffServe's average over looks a second apart, with a centre of mass of 2.1 s.
_QUEUE_HALF_LIFE_S = 1.8


class DiffServeParams(Params):
    """Parameters of :class:`DiffServe`."""

    light: str | None = Field(
        default=None,
        description="The light variant; by default the best one that takes at most a third of the heavy one's "
        "time and needs no cache, or else the fastest.",
    )
    heavy: str | None = Field(default=None, description="The heavy variant; by default the base variant.")
    period_s: float = Field(default=5.0, gt=0, description="Seconds between plans.")
    monitor_s: float = Field(default=1.0, gt=0, description="Seconds between looks at the queues.")
    overprovision: float = Field(default=1.05, ge=1, description="Capacity, as a multiple of the forecast.")
    settle_s: float = Field(
        default=300.0,
        ge=0,
        description="Seconds between changes of models, unless demand cannot be met otherwise. Ours: DiffServe "
        "does not count loads, and noise in the demand would never let them end.",
    )
    forecast: Forecast = Field(
        default=EwmaForecast(),
        description="How demand is forecast. DiffServe's average (half-life 1.8 s) is for tens of requests/s; at "
        "a few per second it follows their noise, so the default is that of the other policies.",
    )


class Cascade(NamedTuple):
    """An answer of the program: workers and batch size of either model, and the share that is deferred."""

    light_workers: int
    light_batch: int
    heavy_batch: int
    deferred: float


def choose_light(catalog: Catalog, heavy: VariantId) -> VariantId:
    """The default light variant; see :class:`DiffServeParams`.

    Raises:
        InputError: The profile has no other variant that runs without a cache.
    """
    others = [
        v
        for v, variant in enumerate(catalog.variants)
        if not variant.skipped_steps and catalog.model[v] != catalog.model[heavy]
    ]
    if not others:
        raise InputError(
            f"profile {catalog.name!r} has one model only; a cascade needs two", where="policy diffserve: light"
        )
    time_s = [catalog.mean_s[v][catalog.batch_sizes[v][0]] for v in range(len(catalog.variants))]
    light = [v for v in others if time_s[v] <= time_s[heavy] / 3.0]
    if light:
        return max(light, key=lambda v: (catalog.quality[v], -time_s[v]))
    return min(others, key=lambda v: time_s[v])


def relieve(
    catalog: Catalog,
    light: VariantId,
    heavy: VariantId,
    workers: int,
    demand_per_s: float,
    waiting: tuple[float, float],
    slo_s: float,
    light_workers: int | None = None,
) -> Cascade:
    """What to do where the program has no answer, which is ours: light images for all, also for those that wait.

    Either model runs batches of the most throughput within half of the SLO, so that a request may wait as long as
    it runs. What waits is to be done within an SLO: the light model gets the fewest workers for that and demand,
    and as much is deferred as the heavy model then has time left for.

    Args:
        waiting: How many wait for the light and the heavy model.
        light_workers: Fixes the number of workers with the light model.
    """
    half_s = slo_s / 2.0
    b1, b2 = (catalog.fit[v][catalog.largest_batch(v, limit_s=half_s)] for v in (light, heavy))
    light_s, heavy_s = catalog.mean_s[light][b1], catalog.mean_s[heavy][b2]
    x1, in_time = workers, light_s + heavy_s <= slo_s
    if light_workers is not None:
        x1 = light_workers
    elif in_time:
        x1 = max(1, min(workers, math.ceil((demand_per_s + waiting[0] / slo_s) * light_s / b1 - 1e-9)))
    spare_per_s = (workers - x1) * b2 / heavy_s - waiting[1] / slo_s
    deferred = min(1.0, max(0.0, spare_per_s) / demand_per_s) if in_time and demand_per_s else 0.0
    return Cascade(x1, b1, b2, deferred)


def solve_cascade(
    catalog: Catalog,
    light: VariantId,
    heavy: VariantId,
    workers: int,
    demand_per_s: float,
    wait_s: float,
    slo_s: float,
    light_workers: int | None = None,
) -> Cascade | None:
    """The placement that defers the largest share of requests, None when demand cannot be met.

    Args:
        workers: How many are up.
        demand_per_s: Requests/s, over-provisioning included.
        wait_s: Time that requests now spend in both queues together.
        light_workers: Fixes the number of workers with the light model.
    """
    best: tuple[tuple[float, float], Cascade] | None = None
    for b1 in catalog.batch_sizes[light]:
        for b2 in catalog.batch_sizes[heavy]:
            time_s = catalog.mean_s[light][b1] + catalog.mean_s[heavy][b2]
            if time_s + wait_s > slo_s:
                continue
            needed = max(1, math.ceil(demand_per_s * catalog.mean_s[light][b1] / b1 - 1e-9))
            x1 = needed if light_workers is None else light_workers
            if not needed <= x1 <= workers:
                continue
            rate_per_s = (workers - x1) * b2 / catalog.mean_s[heavy][b2]
            deferred = min(1.0, rate_per_s / demand_per_s) if demand_per_s else 1.0
            better = (deferred, -time_s)
            if best is None or better > best[0]:
                best = (better, Cascade(x1, b1, b2, deferred))
    return None if best is None else best[1]


def _quantile(values: npt.NDArray[np.float64], share: float) -> float:
    """As ``np.quantile``, which takes seven times as long for as few values."""
    at = share * (len(values) - 1)
    low = int(at)
    high = min(low + 1, len(values) - 1)
    below, above = np.partition(values, (low, high))[[low, high]].tolist()
    part, apart = at - low, above - below
    return float(above - apart * (1.0 - part) if part >= 0.5 else below + apart * part)


class DiffServe(Policy):
    """A query-aware cascade of two models."""

    name: ClassVar[str] = "diffserve"
    mixes: ClassVar[bool] = False
    Params: ClassVar[type[Params]] = DiffServeParams

    def __init__(self, setup: Setup, params: Any) -> None:
        super().__init__(setup, params)
        catalog = setup.catalog
        where = "policy diffserve"
        self.heavy = (
            catalog.base if params.heavy is None else catalog.id_of(params.heavy, where=f"{where}: heavy")
        )
        self.light = (
            choose_light(catalog, self.heavy)
            if params.light is None
            else catalog.id_of(params.light, where=f"{where}: light")
        )
        for field, variant in (("light", self.light), ("heavy", self.heavy)):
            if catalog.variants[variant].skipped_steps:
                name = catalog.variants[variant].name
                raise InputError(
                    f"{name!r} needs a cache; allowed are variants that do not", where=f"{where}: {field}"
                )
        if catalog.model[self.light] == catalog.model[self.heavy]:
            raise InputError(
                f"light and heavy are variants of one model, {catalog.variants[self.heavy].model!r}", where=where
            )
        self._first = Route(self.light, "light model first")
        self._again = Route(self.heavy, "light image not good enough")
        self._demand = Demand(params.forecast.build())
        self._waiting = {self.light: 0.0, self.heavy: 0.0}
        self._heavy_ready = True
        self._confidences = np.zeros(_REMEMBERED)
        self._reviewed = 0
        self._deferred = 0.0
        self._threshold = 0.0
        self._batch = {self.light: 1, self.heavy: 1}
        self._moved_s = -math.inf
        self._membership = self._changes = -1
        self._plan: Plan | None = None
        self._light_workers = 0

    @property
    def constant(self) -> Decision | None:
        return self._first

    def monitor(self, view: ClusterView) -> bool:
        new = 1.0 - 0.5 ** (self.params.monitor_s / _QUEUE_HALF_LIFE_S)
        for variant, average in self._waiting.items():
            self._waiting[variant] = average + (view.queued(variant) - average) * new
        if view.changes != self._changes:
            self._changes = view.changes
            model = self.setup.catalog.model[self.heavy]
            self._heavy_ready = any(
                view.is_up(w)
                and not view.is_loading(w)
                and view.holds(w) == model
                and view.serves(w) == (self.heavy,)
                for w in range(view.workers)
            )
        return False

    def plan(self, view: ClusterView) -> Plan:
        self._demand.look(view)
        demand = self._demand.forecast_per_s() * self.params.overprovision
        settled = view.now_s - self._moved_s >= self.params.settle_s or view.membership != self._membership
        found = self._solve(view, demand, None if self._plan is None or settled else self._light_workers)
        self._batch = {self.light: found.light_batch, self.heavy: found.heavy_batch}
        self._deferred = found.deferred
        self._threshold = self._threshold_for(found.deferred)
        if (
            self._plan is None
            or found.light_workers != self._light_workers
            or view.membership != self._membership
        ):
            heavy = view.workers_up - found.light_workers
            wanted: dict[Serves, int] = {(self.light,): found.light_workers}
            if heavy:
                wanted[(self.heavy,)] = heavy
            reason = f"forecast {60.0 * demand:.0f} requests/min, {found.deferred:.0%} deferred"
            self._plan = keep_or_move(wanted, view, self.setup.catalog, reason)
            self._light_workers, self._membership = found.light_workers, view.membership
            # A plan for nobody, as the first one is, is none to settle on.
            self._moved_s = view.now_s if demand else -math.inf
        return self._plan

    def _solve(self, view: ClusterView, demand_per_s: float, light_workers: int | None) -> Cascade:
        slo_s, waiting = self.setup.slo_s, (self._waiting[self.light], self._waiting[self.heavy])
        known = (self.setup.catalog, self.light, self.heavy, view.workers_up, demand_per_s)
        if solve_cascade(*known, 0.0, slo_s, light_workers) is None:  # nor could it be with empty queues
            light_workers = None
        # Little's law, as DiffServe has it for either queue: what waits on average, over what arrives there.
        arriving = (demand_per_s, demand_per_s * self._deferred)
        wait_s = sum(count / per_s for count, per_s in zip(waiting, arriving, strict=True) if per_s)
        found = solve_cascade(*known, wait_s, slo_s, light_workers)
        return found or relieve(*known, waiting, slo_s, light_workers)

    def _threshold_for(self, deferred: float) -> float:
        """The highest threshold under which at most this share of the recent images lies."""
        if self._reviewed >= _ENOUGH:
            deferred = _quantile(self._confidences[: self._reviewed], deferred)
        return math.floor(deferred * _THRESHOLDS) / _THRESHOLDS

    def route(self, request: Request, view: ClusterView) -> Decision:
        return self._first

    def review(self, request: Request, variant: VariantId, confidence: float, view: ClusterView) -> Route | None:
        if variant != self.light:
            return None
        self._confidences[self._reviewed % _REMEMBERED] = confidence
        self._reviewed += 1
        heavy = self._light_workers < view.workers_up and self._heavy_ready
        return self._again if heavy and confidence < self._threshold else None

    def batch(self, queue: Sequence[int], variant: VariantId, worker: int, view: ClusterView) -> int:
        fit = self.setup.catalog.of_worker(worker).fit[variant]
        return fit[min(len(queue), self._batch[variant], len(fit) - 1)]
