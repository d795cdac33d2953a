"""Sommelier (Guo et al., SIGMOD'22) as Proteus compares with it: a good placement once, then local swaps.

Proteus (section 6): a MILP places the variants at the start; afterwards each device may replace its own variant
by another of the family, by its load, but nothing is ever placed anew. Batching is Proteus'. What "by its load"
means is left unsaid there: here a worker swaps for the next cheaper variant when a request would be late at its
own, and for the next better one when that could carry what comes in.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from argus_sim.core.view import ClusterView
from argus_sim.domain import Request
from argus_sim.policies.allocation import ForecastingParams
from argus_sim.policies.base import Decision, Params, Plan, Setup
from argus_sim.policies.proteus import Proteus
from argus_sim.policies.stepping import Steps


class SommelierParams(ForecastingParams):
    """Parameters of :class:`Sommelier`."""

    ladder: str = Field(default="SM", description="The ladder of model variants to scale on.")
    monitor_s: float = Field(default=1.0, gt=0, description="Seconds between looks at the load.")
    headroom: float = Field(
        default=1.5,
        ge=1,
        description="Capacity of the placement, x the demand seen (beta in Proteus' code).",
    )
    observe_s: float = Field(
        default=60.0, gt=0, description="When the placement is made, from the demand so far."
    )
    hold_s: float = Field(default=30.0, gt=0, description="Seconds between swaps at a level.")
    spare: float = Field(
        default=0.8, gt=0, le=1, description="Swap for a better variant that would be used up to this part."
    )


class Sommelier(Proteus):
    """Places once, then swaps one worker's variant at a time."""

    name: ClassVar[str] = "sommelier"
    Params: ClassVar[type[Params]] = SommelierParams

    def __init__(self, setup: Setup, params: Any) -> None:
        super().__init__(setup, params)
        self._steps = Steps(setup.catalog, self.ladder, setup.slo_s / 2.0, setup.workers)
        self._swapped_s = [float("-inf")] * len(self.ladder)
        self._is_placed = False
        self._reason = "before the first demand is known"

    @property
    def horizon_s(self) -> float:
        hold_s: float = self.params.hold_s
        return hold_s

    def monitor(self, view: ClusterView) -> bool:
        self._demand.look(view)
        self._steps.look(view)
        if not self._is_placed:
            if view.now_s < self.params.observe_s:
                return False
            self._is_placed = True
            self._steps.workers = self.allocate(view).workers
            self._reason = "the placement"
            return True
        return self._swap(view)

    def _swap(self, view: ClusterView) -> bool:
        """Let one worker change its variant, if one should."""
        steps, slo_s = self._steps, self.setup.slo_s
        carried = sum(steps.capacity_per_s)
        used = self._demand.forecast_per_s() / carried if carried else 1.0
        for j in steps.occupied:
            if not steps.ready[j] or view.now_s < self._swapped_s[j] + self.params.hold_s:
                continue
            if steps.expected_s(j, view) > slo_s and j + 1 < len(steps.ladder):
                target = j + 1
            elif j and used * steps.rate_per_s[j] < self.params.spare * steps.rate_per_s[j - 1]:
                target = j - 1
            else:
                continue
            steps.move(j, target)
            self._swapped_s[j] = self._swapped_s[target] = view.now_s
            self._reason = f"a swap from level {j} to {target}"
            return True
        return False

    def plan(self, view: ClusterView) -> Plan:
        return self._steps.plan(view, self._reason)

    def route(self, request: Request, view: ClusterView) -> Decision:
        route = self._routes[self._steps.best(view)]
        hit = request.hit
        if hit is not None and self._skipped[route.variant] > hit.max_skipped_steps:
            return self._missed
        return route
