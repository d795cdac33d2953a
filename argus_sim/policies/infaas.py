"""INFaaS (Romero et al., ATC'21) in its accuracy-first form, as Proteus and HADIS compare with it.

Each request takes the most accurate variant that is loaded and would finish it in time now. When none would, a
worker steps down to the next cheaper variant; when all would be done in less than 0.89 x SLO, a worker steps up
(HADIS, ``infaas.py``). Greedy, without a forecast; one step at a time, so that what was just decided is seen
before the next decision.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from argus_sim.core.view import ClusterView
from argus_sim.domain import Request
from argus_sim.policies.base import Decision, Params, Plan, Policy, Route, Setup
from argus_sim.policies.stepping import Steps


class InfaasParams(Params):
    """Parameters of :class:`Infaas`."""

    ladder: str = Field(default="SM", description="The ladder of model variants to step on.")
    monitor_s: float = Field(default=1.0, gt=0, description="Seconds between decisions to step.")
    down: float = Field(default=1.0, gt=0, description="Step down when a request would take longer, x SLO.")
    up: float = Field(default=0.89, gt=0, description="Step up when every request would take less, x SLO.")


class Infaas(Policy):
    """The most accurate variant that makes the deadline; workers step when there is none, or a better one."""

    name: ClassVar[str] = "infaas"
    Params: ClassVar[type[Params]] = InfaasParams

    def __init__(self, setup: Setup, params: Any) -> None:
        super().__init__(setup, params)
        ladder = setup.catalog.ladder(params.ladder, where="policy infaas: ladder")
        self._steps = Steps(setup.catalog, ladder, setup.slo_s, setup.workers)
        self._routes = [Route(v, f"level {j}: best in time") for j, v in enumerate(ladder)]
        self._late = [Route(v, f"level {j}: least late") for j, v in enumerate(ladder)]
        self._reason = "all on the best"
        self._slo_s = setup.slo_s

    def monitor(self, view: ClusterView) -> bool:
        steps, slo_s = self._steps, self.setup.slo_s
        steps.look(view)
        if sum(steps.ready) < view.workers_up:  # a step is still under way
            return False
        occupied = steps.occupied
        if min(steps.expected_s(j, view) for j in occupied) > self.params.down * slo_s:
            origin = next((j for j in occupied if j + 1 < len(steps.ladder)), None)
            if origin is None:
                return False
            steps.move(origin, origin + 1)
            self._reason = "a step down: no variant would be in time"
            return True
        worst = occupied[-1]
        if worst and all(steps.expected_s(j, view) < self.params.up * slo_s for j in occupied):
            steps.move(worst, worst - 1)
            self._reason = "a step up: there is time"
            return True
        return False

    def plan(self, view: ClusterView) -> Plan:
        return self._steps.plan(view, self._reason)

    def route(self, request: Request, view: ClusterView) -> Decision:
        steps = self._steps
        for j in steps.occupied:
            if steps.expected_s(j, view) <= self._slo_s:
                return self._routes[j]
        return self._late[steps.best(view)]
