"""Proteus (Ahmad et al., ASPLOS'24): accuracy scaling by MILP, whatever the prompt.

Every 30 s, and when demand jumps, a MILP chooses which model variant each device holds and which share of the
queries it gets, maximising effective accuracy subject to the demand (sections 4 and 5). A device's throughput
is that of the best batch with a 99th percentile latency within half the SLO (after Nexus' rule), and no larger
one runs. Changing the variant costs a model
load; all of a plan's loads start at once, and meanwhile requests go to the workers that can serve them in time.
Batching is not work-conserving (section 5.2): a batch waits for one more request as long as the first one can
still make its deadline in the larger batch.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from argus_sim.core.solvers import Allocation, Row
from argus_sim.core.view import ClusterView
from argus_sim.domain import Request, VariantId
from argus_sim.policies.allocation import Allocating, AllocatingParams, is_there
from argus_sim.policies.base import Decision, Params, Plan, Route, Serves, Setup, Wait


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
        #: The load of each level by the last allocation, and what its plan has each worker serve.
        self._load_per_s: Row = ()
        self._serves: tuple[Serves, ...] = ()
        #: Workers that wait for a model: which one, and when it should be there.
        self._due: dict[int, tuple[int, float]] = {}
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

    def monitor(self, view: ClusterView) -> bool:
        again = super().monitor(view)
        if not again and self._due and self._last is not None:
            self._spread(view)
        return again

    def aim(self, allocation: Allocation, plan: Plan, view: ClusterView) -> None:
        self._load_per_s, self._serves = allocation.load_per_s, plan.serves
        self._spread(view)

    def _spread(self, view: ClusterView) -> None:
        """Give each worker that can serve in time the part of its level's load that was meant for it."""
        levels = len(self.ladder)
        able, planned = np.zeros(levels), np.zeros(levels)
        for worker, serves in enumerate(self._serves):
            # What it serves beside its level comes first: see Allocating.placement.
            level = self.ladder.index(serves[-1])
            rate_per_s = self._kind_rates[view.kind(worker)][level] * view.is_up(worker)
            planned[level] += rate_per_s
            able[level] += rate_per_s * self._is_in_time(worker, serves, view)
        meant = np.asarray(self._load_per_s)
        load = meant * np.divide(able, planned, out=np.zeros(levels), where=planned > 0.0)
        if not load.any():
            # Those that can serve were meant for no load: they get what there is. Or nobody can.
            load = able if able.any() else meant
        self._upto = (np.cumsum(load)[:-1] / load.sum()).tolist()

    def _is_in_time(self, worker: int, serves: Serves, view: ClusterView) -> bool:
        """Whether a worker has its model, or will have it in time for a request that comes now."""
        catalog = self.setup.catalog
        if not view.is_up(worker) or is_there(worker, serves, view, catalog):
            self._due.pop(worker, None)
            return view.is_up(worker)
        timings, model = catalog.of_worker(worker), catalog.model[serves[0]]
        wanted, due_s = self._due.get(worker, (-1, 0.0))
        if wanted != model:
            due_s = view.now_s + timings.load_s[model]
            self._due[worker] = (model, due_s)
        return due_s + timings.p99_s[serves[-1]][1] <= view.now_s + self.setup.slo_s

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
