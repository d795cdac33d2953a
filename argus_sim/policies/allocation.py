"""What `pac`, `argus` and `proteus` share: forecast demand, allocate workers to the levels of one ladder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from argus_sim.core.catalog import Catalog, Timings
from argus_sim.core.forecast import Demand, EwmaForecast, Forecast, PerfectDemand
from argus_sim.core.solvers import Allocation, Row, allocate, allocate_kinds
from argus_sim.core.view import ClusterView
from argus_sim.domain import VariantId
from argus_sim.policies.base import Params, Plan, Policy, Route, Serves, Setup, keep_or_move

#: Demand is rounded up to this part of the cluster's capacity. It costs less than the forecast is uncertain,
#: and makes the same problems come up again, which the solver remembers.
GRAIN = 1.0 / 128.0

#: What the parameter ``forecast`` may be.
FORECAST = (
    "How demand is forecast from what arrived between looks: {kind: ewma, half_life_s: 30} is an exponential "
    "average, {kind: window-max, windows: 6} the highest of the last 6."
)

#: Uniform numbers are drawn this many at a time.
_BLOCK = 1 << 14


class ForecastingParams(Params):
    """Parameters common to the policies that forecast demand."""

    monitor_s: float | None = Field(
        default=5.0, gt=0, description="Seconds between looks at demand; a jump brings the allocation forward."
    )
    headroom: float = Field(
        default=1.1,
        ge=1,
        description="Capacity asked for, as a multiple of the forecast. Not published; ours.",
    )
    forecast: Forecast = Field(default=EwmaForecast(), description=FORECAST)
    max_batch: int | None = Field(default=None, ge=1, description="No larger batches; 1 for no batching.")


class AllocatingParams(ForecastingParams):
    """Parameters common to the policies that allocate by forecast."""

    period_s: float = Field(default=30.0, gt=0, description="Seconds between allocations.")


class Allocating(Policy):
    """Base of the policies that allocate workers to levels so that the forecast demand can be served."""

    Params: ClassVar[type[Params]] = AllocatingParams
    forecasts: ClassVar[bool] = True

    def __init__(self, setup: Setup, params: Any, ladder: tuple[VariantId, ...], limit_s: float) -> None:
        """``ladder``: least approximate first. ``limit_s``: the longest batch that counts as throughput."""
        super().__init__(setup, params)
        catalog = setup.catalog
        self.ladder = ladder
        self._demand = (
            Demand(params.forecast.build())
            if setup.future_s is None
            else PerfectDemand(setup.future_s, self.horizon_s)
        )
        #: Timings of each kind of worker.
        self.kinds = catalog.up_to(params.max_batch).kinds
        self._quality = tuple(float(catalog.quality[v]) for v in ladder)
        #: Images/s of one worker, by kind and level.
        self._kind_rates = rates_by_kind(self.kinds, ladder, limit_s=limit_s, slo_s=setup.slo_s)
        self._draws = Uniforms(setup.rng)
        self._skipped = [v.skipped_steps for v in catalog.variants]
        self._missed = Route(catalog.base, "cache miss: served in full")
        #: The last plan and what it was made from: the same counts need no other placement.
        self._last: tuple[tuple[tuple[tuple[tuple[Serves, int], ...], ...], int], Plan] | None = None

    @property
    def horizon_s(self) -> float:
        """How far a perfect forecast looks ahead: to the next decision."""
        period_s: float = self.params.period_s
        return period_s

    def monitor(self, view: ClusterView) -> bool:
        return self._demand.look(view)

    def plan(self, view: ClusterView) -> Plan:
        self._demand.look(view)
        allocation = self.allocate(view)
        wanted = self.placement(allocation)
        key = (tuple(tuple(of_kind.items()) for of_kind in wanted), view.membership)
        if self._last is None or self._last[0] != key:
            reason = f"forecast {60.0 * self._demand.forecast_per_s():.0f} requests/min"
            self._last = (key, keep_or_move(wanted, view, self.setup.catalog, reason))
        plan = self._last[1]
        self.aim(allocation, plan, view)
        return plan

    def placement(self, allocation: Allocation) -> list[dict[Serves, int]]:
        """The workers of each level, by kind.

        What the cache misses has to be served in full. Where no worker is left for that, those of the least
        approximate level take it along: they hold its model.
        """
        catalog = self.setup.catalog
        first = self.ladder[next(j for j, n in enumerate(allocation.workers) if n)]
        serves: dict[VariantId, Serves] = {v: (v,) for v in self.ladder}
        if catalog.variants[first].skipped_steps:
            serves[first] = (catalog.base, first)
        return [
            {serves[v]: n for v, n in zip(self.ladder, counts, strict=True) if n}
            for counts in allocation.by_kind or (allocation.workers,)
        ]

    def allocate(self, view: ClusterView) -> Allocation:
        """The allocation to make now."""
        return self.solve(view)

    def solve(self, view: ClusterView) -> Allocation:
        """The best allocation for the forecast with headroom."""
        up = view.up_by_kind()
        demand_per_s = self._demanded(sum(n * max(rates) for n, rates in zip(up, self._kind_rates, strict=True)))
        if len(up) == 1:
            return allocate(self._quality, self._kind_rates[0], up[0], demand_per_s)
        return allocate_kinds(self._quality, self._kind_rates, up, demand_per_s)

    def _demanded(self, capacity: float) -> float:
        """The forecast with headroom, in grains of the capacity; all in images/s."""
        demand = self._demand.forecast_per_s() * self.params.headroom
        grains = max(1, math.ceil(demand / capacity / GRAIN))
        grained: float = min(grains, round(2 / GRAIN)) * GRAIN * capacity
        return grained

    def aim(self, allocation: Allocation, plan: Plan, view: ClusterView) -> None:
        """Prepare routing for a new allocation, and the plan that it came to."""
        raise NotImplementedError


def rates_by_kind(
    kinds: Sequence[Timings], ladder: Sequence[VariantId], *, limit_s: float, slo_s: float
) -> tuple[Row, ...]:
    """Images/s of one worker, by kind and level, with batches of up to ``limit_s``.

    Where there are several kinds, a level that one of them cannot serve within the SLO is left to the others.
    """
    found = []
    for timings in kinds:
        rates = tuple(timings.throughput_per_s(v, limit_s=limit_s) for v in ladder)
        if len(kinds) > 1:
            in_time = [timings.p99_s[v][1] <= slo_s for v in ladder]
            if not any(in_time):  # no use, but it has to be somewhere
                in_time = [rate == max(rates) for rate in rates]
            rates = tuple(rate if good else 0.0 for rate, good in zip(rates, in_time, strict=True))
        found.append(rates)
    return tuple(found)


def is_there(worker: int, serves: Serves, view: ClusterView, catalog: Catalog) -> bool:
    """Whether a worker that is up has the model of what it is to serve."""
    return view.holds(worker) == catalog.model[serves[0]] and not view.is_loading(worker)


class Uniforms:
    """A uniform number for each request: the same for the same request, whatever a policy does in between."""

    __slots__ = ("_drawn", "_rng")

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._drawn: list[float] = []

    def __getitem__(self, row: int) -> float:
        try:
            return self._drawn[row]
        except IndexError:
            while row >= len(self._drawn):
                self._drawn += self._rng.random(_BLOCK).tolist()
            return self._drawn[row]
