"""PAC: Argus' allocation without prompt awareness, a baseline of the authors' artefact (2024).

The artefact names it only in its plots; that it has the same levels and the same allocation, and sends any
prompt to any level, is inferred from its quality at the peak, which is that of the solver's prompt-agnostic
answer.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from argus_sim.core.solvers import Allocation
from argus_sim.core.view import ClusterView
from argus_sim.domain import Request
from argus_sim.policies.allocation import Allocating, AllocatingParams
from argus_sim.policies.argus import choose_ladder
from argus_sim.policies.base import Decision, Params, Route, Setup


class PacParams(AllocatingParams):
    """Parameters of :class:`Pac`."""

    ladder: Literal["auto", "AC", "SM"] = Field(
        default="auto", description="AC: approximate caching; SM: smaller models; auto: AC where there is one."
    )


class Pac(Allocating):
    """Forecast, allocate, and draw a level for each request by the levels' shares."""

    name: ClassVar[str] = "pac"
    Params: ClassVar[type[Params]] = PacParams

    def __init__(self, setup: Setup, params: Any) -> None:
        ladder = choose_ladder(setup.catalog, params.ladder, "policy pac: ladder")
        super().__init__(setup, params, ladder, limit_s=setup.slo_s)
        self._routes = [Route(v, f"level {j} by its share") for j, v in enumerate(ladder)]
        self._upto: list[float] = []

    def aim(self, allocation: Allocation, view: ClusterView) -> None:
        self._upto = np.cumsum(allocation.share)[:-1].tolist()

    def route(self, request: Request, view: ClusterView) -> Decision:
        route = self._routes[bisect_right(self._upto, self._draws[request.row])]
        hit = request.hit
        if hit is not None and self._skipped[route.variant] > hit.max_skipped_steps:
            return self._missed
        return route
