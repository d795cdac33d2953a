"""What `pac`, `argus` and `proteus` share: forecast demand, allocate workers to the levels of one ladder."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from argus_sim.core.forecast import Demand, EwmaForecast, Forecast
from argus_sim.core.solvers import Allocation, allocate
from argus_sim.core.view import ClusterView
from argus_sim.domain import VariantId
from argus_sim.policies.base import Params, Plan, Policy, Route, Serves, Setup, keep_or_move

#: Demand is rounded up to this part of the cluster's capacity. It costs less than the forecast is uncertain,
#: and makes the same problems come up again, which the solver remembers.
GRAIN = 1.0 / 128.0

_BITS = 14
_MASK = (1 << _BITS) - 1


class AllocatingParams(Params):
    """Parameters common to the policies that allocate by forecast."""

    period_s: float = Field(default=30.0, gt=0, description="Seconds between allocations.")
    monitor_s: float | None = Field(
        default=5.0, gt=0, description="Seconds between looks at demand; a jump brings the allocation forward."
    )
    headroom: float = Field(
        default=1.1,
        ge=1,
        description="Capacity asked for, as a multiple of the forecast. Not published; ours.",
    )
    forecast: Forecast = Field(default=EwmaForecast(), description="How demand is forecast: {kind: ewma, ...}.")


class Allocating(Policy):
    """Base of the policies that allocate workers to levels so that the forecast demand can be served."""

    Params: ClassVar[type[Params]] = AllocatingParams

    def __init__(self, setup: Setup, params: Any, ladder: tuple[VariantId, ...], limit_s: float) -> None:
        """``ladder``: least approximate first. ``limit_s``: the longest batch that counts as throughput."""
        super().__init__(setup, params)
        catalog = setup.catalog
        self.ladder = ladder
        self._demand = Demand(params.forecast.build())
        self._quality = tuple(float(catalog.quality[v]) for v in ladder)
        self._throughput = tuple(catalog.throughput_per_s(v, limit_s=limit_s) for v in ladder)
        self._draws = Uniforms(setup.rng)
        self._missed = Route(catalog.base, "cache miss: served in full")
        #: The last plan and what it was made from: the same counts need no other placement.
        self._last: tuple[tuple[tuple[tuple[Serves, int], ...], int], Plan] | None = None

    @property
    def period_s(self) -> float | None:
        period_s: float = self.params.period_s
        return period_s

    @property
    def monitor_s(self) -> float | None:
        monitor_s: float | None = self.params.monitor_s
        return monitor_s

    def monitor(self, view: ClusterView) -> bool:
        return self._demand.look(view)

    def plan(self, view: ClusterView) -> Plan:
        self._demand.look(view)
        allocation = self.allocate(view)
        self.aim(allocation, view)
        wanted = self.placement(allocation)
        key = (tuple(wanted.items()), view.membership)
        if self._last is None or self._last[0] != key:
            reason = f"forecast {60.0 * self._demand.forecast_per_s():.0f} requests/min"
            self._last = (key, keep_or_move(wanted, view, self.setup.catalog, reason))
        return self._last[1]

    def placement(self, allocation: Allocation) -> dict[Serves, int]:
        """The workers of each level.

        What the cache misses has to be served in full. Where no worker is left for that, those of the least
        approximate level take it along: they hold its model.
        """
        catalog = self.setup.catalog
        levels = [(v, n) for v, n in zip(self.ladder, allocation.workers, strict=True) if n > 0]
        wanted: dict[Serves, int] = {(v,): n for v, n in levels}
        first, workers = levels[0]
        if catalog.variants[first].skipped_steps:
            del wanted[(first,)]
            wanted = {(catalog.base, first): workers} | wanted
        return wanted

    def allocate(self, view: ClusterView) -> Allocation:
        """The allocation to make now."""
        return self.solve(view.workers_up)

    def solve(self, workers: int) -> Allocation:
        """The best allocation for the forecast with headroom."""
        capacity = workers * max(self._throughput)
        demand = self._demand.forecast_per_s() * self.params.headroom
        grains = max(1, math.ceil(demand / capacity / GRAIN))
        return allocate(
            self._quality, self._throughput, workers, min(grains, round(2 / GRAIN)) * GRAIN * capacity
        )

    def aim(self, allocation: Allocation, view: ClusterView) -> None:
        """Prepare routing for a new allocation."""
        raise NotImplementedError


class Uniforms:
    """A uniform number for each request: the same for the same request, whatever a policy does in between."""

    __slots__ = ("_blocks", "_rng")

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._blocks: list[list[float]] = []

    def __getitem__(self, row: int) -> float:
        try:
            return self._blocks[row >> _BITS][row & _MASK]
        except IndexError:
            while row >> _BITS >= len(self._blocks):
                self._blocks.append(self._rng.random(1 << _BITS).tolist())
            return self._blocks[row >> _BITS][row & _MASK]
