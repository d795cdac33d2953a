"""What `infaas` and `sommelier` share: workers that step along a ladder, one at a time, by their load."""

from __future__ import annotations

from collections.abc import Sequence

from argus_sim.core.catalog import Catalog
from argus_sim.core.view import ClusterView
from argus_sim.domain import VariantId
from argus_sim.policies.base import Plan, Serves, keep_or_move


class Steps:
    """How many workers are at each level of a ladder, and what a request would have to wait there.

    Args:
        ladder: Least approximate first.
        limit_s: The longest batch that counts as throughput.
        workers: How many there are; all start at level 0.
    """

    def __init__(self, catalog: Catalog, ladder: Sequence[VariantId], limit_s: float, workers: int) -> None:
        self._catalog = catalog
        self.ladder = tuple(ladder)
        self.rate_per_s = [catalog.throughput_per_s(v, limit_s=limit_s) for v in ladder]
        self.workers = [workers] + [0] * (len(ladder) - 1)
        self.ready = list(self.workers)
        self._membership = 0

    def look(self, view: ClusterView) -> None:
        """Count the workers that can serve each level now: those still loading cannot."""
        level: dict[Serves, int] = {(v,): j for j, v in enumerate(self.ladder)}
        self.ready = [0] * len(self.ladder)
        for worker in range(view.workers):
            j = level.get(view.serves(worker))
            if j is not None and view.is_up(worker) and not view.is_loading(worker):
                self.ready[j] += 1

    def expected_s(self, j: int, view: ClusterView) -> float:
        """How long a request that comes now would take at level j: queue over throughput, and its own batch."""
        if not self.ready[j]:
            return float("inf")
        variant = self.ladder[j]
        wait_s = view.queued(variant) / (self.ready[j] * self.rate_per_s[j])
        return wait_s + self._catalog.mean_s[variant][self._catalog.batch_sizes[variant][0]]

    def occupied(self) -> list[int]:
        """The levels that have workers, loading or not."""
        return [j for j, n in enumerate(self.workers) if n]

    def move(self, origin: int, target: int) -> None:
        """One worker steps from a level to another."""
        self.workers[origin] -= 1
        self.workers[target] += 1

    def plan(self, view: ClusterView, reason: str) -> Plan:
        """The placement for the present counts. Workers that joined start at level 0."""
        while sum(self.workers) < view.workers_up:
            self.workers[0] += 1
        while sum(self.workers) > view.workers_up:
            self.workers[max(self.occupied(), key=lambda j: self.workers[j])] -= 1
        wanted: dict[Serves, int] = {(self.ladder[j],): self.workers[j] for j in self.occupied()}
        return keep_or_move(wanted, view, self._catalog, reason)
