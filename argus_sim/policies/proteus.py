"""Proteus (Ahmad et al., ASPLOS'24): accuracy scaling by MILP, whatever the prompt.

Every 30 s, and when demand jumps, a MILP chooses which model variant each device holds and which share of the
queries it gets, maximising effective accuracy subject to the demand (sections 4 and 5). A device's throughput
is that of the best batch with a 99th percentile latency within half the SLO (after Nexus' rule), and no larger
one runs. Changing the variant costs a model
load. Batching is not work-conserving (section 5.2): a batch waits for one more request as long as the first one
can still make its deadline in the larger batch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from argus_sim.core.solvers import Allocation
from argus_sim.core.view import ClusterView
from argus_sim.domain import Request, VariantId
from argus_sim.policies.allocation import Allocating, AllocatingParams
from argus_sim.policies.base import Decision, Params, Route, Setup, Wait


class ProteusParams(AllocatingParams):
    """Parameters of :class:`Proteus`."""

    headroom: float = Field(
        default=1.05, ge=1, description="Capacity asked for, as a multiple of the forecast (beta in its code)."
    )
    ladder: str = Field(default="SM", description="The ladder of model variants to scale on.")


class Proteus(Allocating):
    """Accuracy scaling over a ladder of models."""

    name: ClassVar[str] = "proteus"
    Params: ClassVar[type[Params]] = ProteusParams

    def __init__(self, setup: Setup, params: Any) -> None:
        catalog = setup.catalog
        half_s = setup.slo_s / 2.0
        super().__init__(
            setup, params, catalog.ladder(params.ladder, where=f"policy {self.name}: ladder"), half_s
        )
        self._routes = [Route(v, f"level {j} by its share") for j, v in enumerate(self.ladder)]
        self._upto: list[float] = []
        #: By kind of worker and variant: the largest batch, and waiting requests -> the next larger batch, or 0
        #: when it is full.
        self._largest = [
            [kind.largest_batch(v, limit_s=half_s) for v in range(len(catalog.variants))] for kind in self.kinds
        ]
        self._next = [
            [
                [min((b for b in sizes if n < b <= largest), default=0) for n in range(largest + 1)]
                for sizes, largest in zip(kind.batch_sizes, largest_of, strict=True)
            ]
            for kind, largest_of in zip(self.kinds, self._largest, strict=True)
        ]

    def aim(self, allocation: Allocation, view: ClusterView) -> None:
        self._upto = np.cumsum(allocation.share)[:-1].tolist()

    def route(self, request: Request, view: ClusterView) -> Decision:
        route = self._routes[bisect_right(self._upto, self._draws[request.row])]
        hit = request.hit
        if hit is not None and self._skipped[route.variant] > hit.max_skipped_steps:
            return self._missed
        return route

    def batch(self, queue: Sequence[int], variant: VariantId, worker: int, view: ClusterView) -> int | Wait:
        kind = view.kind(worker)
        timings, waiting = self.kinds[kind], min(len(queue), self._largest[kind][variant])
        larger = self._next[kind][variant][waiting]
        if larger:
            # The last moment at which the first request still makes its deadline in the larger batch.
            until_s = view.deadline_s(queue[0]) - timings.p99_s[variant][larger]
            if view.now_s < until_s:
                return Wait(until_s)
        return timings.fit[variant][waiting]
