"""No decisions: the placement of the configuration, and the least loaded worker for each request."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from argus_sim.core.view import ClusterView
from argus_sim.domain import Request
from argus_sim.errors import InputError
from argus_sim.policies.base import Decision, Params, Plan, Policy, Refuse, Route, Serves, Setup, keep_or_move


class StaticParams(Params):
    """Parameters of :class:`Static`."""

    placement: dict[str, int] | None = Field(
        default=None,
        description="Workers per variant; they must sum to the cluster. Default: all on the base variant.",
    )
    queue_limit: int | None = Field(
        default=None,
        ge=0,
        description="Refuse a request when this many wait for its variant (M/M/c/K: K = c + limit).",
    )


class Static(Policy):
    """Serves each request at the placed variant that has the fewest requests ahead of it per worker."""

    name: ClassVar[str] = "static"
    Params: ClassVar[type[Params]] = StaticParams

    def __init__(self, setup: Setup, params: Any) -> None:
        super().__init__(setup, params)
        catalog = setup.catalog
        placement = params.placement
        if placement is None:
            placement = {catalog.variants[catalog.base].name: setup.workers}
        self._placement: dict[Serves, int] = {
            (catalog.id_of(name, where="policy static: placement"),): count for name, count in placement.items()
        }
        total = sum(self._placement.values())
        if min(self._placement.values(), default=0) < 1 or total != setup.workers:
            raise InputError(
                f"{placement} places {total} workers; allowed are positive counts that sum to the cluster's "
                f"{setup.workers}",
                where="policy static: placement",
            )
        self._routes = [Route(s[0], "placed") for s in self._placement]
        self._only = self._routes[0] if len(self._routes) == 1 else None
        self._full = Refuse("queue full")
        self._missed: Decision = Refuse("cache miss, and no worker serves in full")
        if (catalog.base,) in self._placement:
            self._missed = Route(catalog.base, "cache miss: served in full")
        self._limit: int | None = params.queue_limit
        self._skipped = [v.skipped_steps for v in catalog.variants]

    @property
    def constant(self) -> Decision | None:
        return self._only if self._limit is None else None

    def plan(self, view: ClusterView) -> Plan:
        wanted = dict(self._placement)
        # Workers that are down are missing where there are most.
        for _ in range(self.setup.workers - view.workers_up):
            largest = max(wanted, key=lambda s: wanted[s])
            wanted[largest] -= 1
        self._up = wanted
        return keep_or_move(wanted, view, self.setup.catalog, "configured")

    def route(self, request: Request, view: ClusterView) -> Decision:
        hit = request.hit
        best, least = None, float("inf")
        for route in self._routes:
            variant = route.variant
            if hit is not None and not 0 < self._skipped[variant] <= hit.max_skipped_steps:
                continue
            workers = self._up[(variant,)]
            queued, idle = view.queued(variant), view.idle(variant)
            if not workers or (self._limit is not None and queued >= self._limit and not idle):
                continue
            ahead = (queued + workers - idle + 1) / workers
            if ahead < least:
                best, least = route, ahead
        return best or (self._full if hit is None else self._missed)
