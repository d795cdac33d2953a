"""What `infaas` and `sommelier` share: workers that step along a ladder, one at a time, by their load."""

from __future__ import annotations

from collections.abc import Sequence

from argus_sim.core.catalog import Catalog
from argus_sim.core.view import ClusterView
from argus_sim.domain import VariantId
from argus_sim.policies.base import Plan, Serves, keep_or_move


class Steps:
    """How many workers are at each level of a ladder, and what a request would have to wait there.

    Attributes:
        occupied: The levels that have workers, loading or not.
        ready: How many of them can serve now.
        rate_per_s: Images/s of one worker at each level: the mean over the kinds of the cluster.
        capacity_per_s: Images/s of the workers that can serve each level now.

    Args:
        ladder: Least approximate first.
        limit_s: The longest batch that counts as throughput.
        workers: How many there are; all start at level 0.
    """

    def __init__(self, catalog: Catalog, ladder: Sequence[VariantId], limit_s: float, workers: int) -> None:
        self._catalog = catalog
        self.ladder = tuple(ladder)
        self._rates = [[kind.throughput_per_s(v, limit_s=limit_s) for v in ladder] for kind in catalog.kinds]
        shares = [catalog.workers_of(k, workers) / workers for k in range(len(catalog.kinds))]
        self.rate_per_s = [
            sum(share * rates[j] for share, rates in zip(shares, self._rates, strict=True))
            for j in range(len(ladder))
        ]
        self._level: dict[Serves, int] = {(v,): j for j, v in enumerate(self.ladder)}
        self.workers = [workers] + [0] * (len(ladder) - 1)
        self._count([[catalog.workers_of(k, workers)] + [0] * (len(ladder) - 1) for k in range(len(shares))])
        #: The placement that was counted last.
        self._seen = -1
        #: The workers that ``workers`` counts.
        self._up = [True] * workers

    def look(self, view: ClusterView, plan: Plan | None = None) -> None:
        """Count the workers that can serve each level now, or as soon as this plan is in force.

        A worker whose model still loads cannot, nor can one that has a batch to finish before it may load.
        """
        if plan is None and view.changes == self._seen:
            return
        self._seen = view.changes if plan is None else -1
        ready = [[0] * len(self.ladder) for _ in self._rates]
        for worker in range(view.workers):
            j = self._level.get(view.serves(worker) if plan is None else plan.serves[worker])
            if (
                j is not None
                and view.is_up(worker)
                and not view.is_loading(worker)
                and view.holds(worker) == self._catalog.model[self.ladder[j]]
            ):
                ready[view.kind(worker)][j] += 1
        self._count(ready)

    def _count(self, ready: list[list[int]]) -> None:
        """``ready``: workers that can serve, by kind and level."""
        levels, kinds = range(len(self.ladder)), self._catalog.kinds
        self.ready = [sum(of_kind[j] for of_kind in ready) for j in levels]
        self.capacity_per_s = [
            sum(of_kind[j] * rates[j] for of_kind, rates in zip(ready, self._rates, strict=True)) for j in levels
        ]
        self._own_s = [
            max((k.mean_s[v][1] for k, of_kind in zip(kinds, ready, strict=True) if of_kind[j]), default=0.0)
            for j, v in enumerate(self.ladder)
        ]

    def expected_s(self, j: int, view: ClusterView) -> float:
        """How long a request that comes now would take at level j: queue over throughput, and its own batch.

        That batch may run on the slowest of the workers there.
        """
        if not self.ready[j]:
            return float("inf")
        return view.queued(self.ladder[j]) / self.capacity_per_s[j] + self._own_s[j]

    def best(self, view: ClusterView) -> int:
        """The level where a request that comes now would take least; of equals the least approximate."""
        best, least = self.occupied[0], float("inf")
        if len(self.occupied) > 1:
            for j in self.occupied:
                expected_s = self.expected_s(j, view)
                if expected_s < least:
                    best, least = j, expected_s
        return best

    @property
    def workers(self) -> list[int]:
        """How many are meant to be at each level; set anew to change it."""
        return list(self._workers)

    @workers.setter
    def workers(self, counts: Sequence[int]) -> None:
        self._workers = tuple(counts)
        self.occupied = [j for j, n in enumerate(counts) if n]

    def move(self, origin: int, target: int) -> None:
        """One worker steps from a level to another."""
        self.workers = [n - (j == origin) + (j == target) for j, n in enumerate(self._workers)]

    def plan(self, view: ClusterView, reason: str) -> Plan:
        """The placement for the present counts. A worker that was lost comes back at the level it had."""
        counts = self.workers
        for worker, counted in enumerate(self._up):
            up = self._up[worker] = view.is_up(worker)
            if up != counted:
                counts[self._level[view.serves(worker)]] += 1 if up else -1
        self.workers = counts
        wanted: dict[Serves, int] = {(self.ladder[j],): counts[j] for j in self.occupied}
        plan = keep_or_move(wanted, view, self._catalog, reason, each_its_own=True)
        if view.serves(0):  # the first plan of all finds its models in place
            self.look(view, plan)
        return plan
