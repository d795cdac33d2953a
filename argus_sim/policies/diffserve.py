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
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
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
    monitor_s: float = Field(default=1.0, gt=0, description="Seconds between looks at demand.")
    overprovision: float = Field(default=1.05, ge=1, description="Capacity, as a multiple of the forecast.")
    settle_s: float = Field(
        default=300.0,
        ge=0,
        description="Seconds between changes of models. Ours: DiffServe does not count loads, and noise in the "
        "demand would never let them end.",
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
        self._queued = 0.0
        self._confidences: deque[float] = deque(maxlen=_REMEMBERED)
        self._threshold = 0.0
        self._batch = {self.light: 1, self.heavy: 1}
        self._moved_s = -math.inf
        self._membership = -1
        self._plan: Plan | None = None
        self._light_workers = 0

    @property
    def constant(self) -> Decision | None:
        return self._first

    def monitor(self, view: ClusterView) -> bool:
        self._demand.look(view)
        queued = view.queued(self.light) + view.queued(self.heavy)
        self._queued += (queued - self._queued) * (1.0 - 0.5 ** (self.params.monitor_s / _QUEUE_HALF_LIFE_S))
        return False

    def plan(self, view: ClusterView) -> Plan:
        demand = self._demand.forecast_per_s() * self.params.overprovision
        settled = view.now_s - self._moved_s >= self.params.settle_s or view.membership != self._membership
        fixed = None if self._plan is None or settled else self._light_workers
        found = self._solve(view, demand, fixed)
        self._batch = {self.light: found.light_batch, self.heavy: found.heavy_batch}
        self._threshold = self._threshold_for(found.deferred)
        if self._plan is not None and not settled:
            return self._plan
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
        catalog, workers = self.setup.catalog, view.workers_up
        # Little's law, as DiffServe has it: what waits on average, over what arrives.
        wait_s = self._queued / demand_per_s if demand_per_s else 0.0
        solve = (catalog, self.light, self.heavy, workers, demand_per_s)
        found = solve_cascade(*solve, wait_s, self.setup.slo_s, light_workers)
        if found is None:
            # The queues are too long, or demand is: as many light images as possible, the queues set aside.
            found = solve_cascade(*solve, 0.0, math.inf, light_workers)
        if found is not None:
            return found
        x1 = workers if light_workers is None else light_workers
        return Cascade(x1, catalog.fit[self.light][-1], catalog.fit[self.heavy][-1], 0.0)

    def _threshold_for(self, deferred: float) -> float:
        """The highest threshold under which at most this share of the recent images lies."""
        if len(self._confidences) >= _ENOUGH:
            deferred = float(np.quantile(np.array(self._confidences), deferred))
        return math.floor(deferred * _THRESHOLDS) / _THRESHOLDS

    def route(self, request: Request, view: ClusterView) -> Decision:
        return self._first

    def review(self, request: Request, variant: VariantId, confidence: float, view: ClusterView) -> Route | None:
        if variant != self.light:
            return None
        self._confidences.append(confidence)
        return self._again if confidence < self._threshold and self._light_workers < view.workers_up else None

    def batch(self, queue: Sequence[int], variant: VariantId, worker: int, view: ClusterView) -> int:
        fit = self.setup.catalog.of_worker(worker).fit[variant]
        return fit[min(len(queue), self._batch[variant], len(fit) - 1)]
