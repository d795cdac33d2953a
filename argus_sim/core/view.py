"""What a policy may see of the cluster.

Signals that a real router would have: what each worker serves and holds, how many requests wait for each
variant, how many arrived. No service time, no quality, no future. The view reads the engine's state and cannot
change it; where the experiment makes signals stale, ``queued`` is as old as ``age_s`` says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from argus_sim.domain import VariantId

if TYPE_CHECKING:
    from argus_sim.core.engine import Engine


class ClusterView:
    """A read-only window on the engine.

    Attributes:
        now_s: The time of the question.
    """

    __slots__ = ("_engine", "_queued", "_seen_s", "now_s")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen_s = 0.0
        self._queued: tuple[int, ...] | None = None
        self.now_s = 0.0

    # -- placement: always exact, since it is the policy's own decision ------------------------------------

    @property
    def workers(self) -> int:
        """How many workers there are, up or not."""
        return len(self._engine.workers)

    def serves(self, worker: int) -> tuple[VariantId, ...]:
        """The variants a worker is to serve (it may still be finishing a batch or loading)."""
        return self._engine.workers[worker].serves

    def is_up(self, worker: int) -> bool:
        return not self._engine.workers[worker].down

    def is_loading(self, worker: int) -> bool:
        return self._engine.workers[worker].loading

    def holds(self, worker: int) -> int | None:
        """Index of the model on the worker (or being loaded), None when it is empty."""
        return self._engine.workers[worker].model

    @property
    def workers_up(self) -> int:
        return self._engine.floor.workers_up

    def kind(self, worker: int) -> int:
        """The kind of a worker: its position in ``catalog.kinds``."""
        return self._engine.workers[worker].kind

    def up_by_kind(self) -> tuple[int, ...]:
        """How many workers of each kind are up."""
        kinds = len(self._engine.catalog.kinds)
        if kinds == 1:
            return (self.workers_up,)
        counts = [0] * kinds
        for worker in self._engine.workers:
            counts[worker.kind] += not worker.down
        return tuple(counts)

    @property
    def membership(self) -> int:
        """Changes when a worker is lost or joins."""
        return self._engine.floor.membership

    @property
    def changes(self) -> int:
        """Changes when what a worker serves, holds or loads does, or a worker is lost or joins.

        As long as it is the same, so is all that the view says of placement.
        """
        return self._engine.floor.changes

    # -- load ----------------------------------------------------------------------------------------------

    @property
    def age_s(self) -> float:
        """How old ``queued`` is."""
        return self.now_s - self._seen_s if self._queued is not None else 0.0

    def queued(self, variant: VariantId) -> int:
        """How many requests wait for this variant."""
        if self._queued is not None:
            return self._queued[variant]
        queue: deque[int] = self._engine.queues[variant]
        return len(queue)

    def waiting_s(self, work_s: Iterable[tuple[VariantId, float]]) -> float:
        """The work that waits: of these variants, how many requests wait times what each of them takes.

        The same as by :meth:`queued`, in one call for a policy that prices every request by it.
        """
        waiting_s = 0.0
        if self._queued is not None:
            for variant, one_s in work_s:
                waiting_s += self._queued[variant] * one_s
            return waiting_s
        queues = self._engine.queues
        for variant, one_s in work_s:
            waiting_s += len(queues[variant]) * one_s
        return waiting_s

    def idle(self, variant: VariantId) -> int:
        """How many workers that serve this variant are free now."""
        return sum(len(pool.idle) for pool in self._engine.pools_of[variant])

    def in_service(self) -> int:
        """How many requests are running."""
        return sum(len(worker.batch.rows) for worker in self._engine.workers)

    @property
    def arrived(self) -> int:
        """How many requests have arrived since the start."""
        return self._engine.arrived

    def deadline_s(self, row: int) -> float:
        """The deadline of a request that has arrived; of one that has not, nothing may be known."""
        if row >= self._engine.arrived:
            raise IndexError(f"row {row} has not arrived; {self._engine.arrived} have")
        return self._engine.requests.deadline_s[row]

    def recent_prompts(self, count: int) -> npt.NDArray[np.int32]:
        """The prompts (indices) of the last ``count`` arrivals, oldest first; fewer near the start."""
        return self._engine.requests.prompts_between(max(0, self.arrived - count), self.arrived)

    def refresh(self, staleness_s: float) -> None:
        """Take a new picture of the queues if the last one is older than this. Called by the engine only."""
        if self._queued is None or self.now_s - self._seen_s >= staleness_s:
            self._queued = tuple(len(queue) for queue in self._engine.queues)
            self._seen_s = self.now_s
