"""The engine's record of each worker, and of the workers that serve the same."""

from __future__ import annotations

from collections import deque

from argus_sim.core.batching import BatchFormer
from argus_sim.core.catalog import Timings
from argus_sim.core.commands import RunBatch
from argus_sim.core.policy import Serves
from argus_sim.domain import VariantId, WorkerStatus


class Worker:
    """What the engine knows of one GPU.

    Attributes:
        index: Which one.
        kind: Which kind of GPU it is, by position in the catalog.
        serves: What the policy wants it to serve; it may still be finishing a batch or loading.
        model: The model it holds or is loading, None when empty.
        down, loading: Whether it is lost, or waiting for a model.
        batch: The batch it runs, if ``batch.rows`` is not empty. The command that started it is this very
            object.
        start: ``(batch,)``: the answer that starts a batch, made once.
        started_s: When the batch started.
        pool: The pool it takes work from; None while it is to move to another one.
    """

    __slots__ = ("batch", "down", "index", "kind", "loading", "model", "pool", "serves", "start", "started_s")

    def __init__(self, index: int, kind: int = 0) -> None:
        self.index = index
        self.kind = kind
        self.serves: Serves = ()
        self.model: int | None = None
        self.down = False
        self.loading = False
        self.batch = RunBatch(index)
        self.start = (self.batch,)
        self.started_s = 0.0
        self.pool: Pool | None = None

    @property
    def status(self) -> WorkerStatus:
        if self.down:
            return WorkerStatus.LOST
        if self.loading:
            return WorkerStatus.LOADING
        return WorkerStatus.BUSY if self.batch.rows else WorkerStatus.IDLE


class Pool:
    """The workers of one kind that serve the same variants.

    Attributes:
        variant, queue, fit: The only variant, its queue and its batch sizes by requests waiting, or -1, None and
            nothing when there are several variants.
        timings, former: How long batches take on these workers, and who forms them.
        idle: Those with nothing to do; the last one is the next to work.
        wake_s: When the host was last asked to wake us for a batch that fills up.
    """

    __slots__ = ("fit", "former", "idle", "queue", "serves", "timings", "variant", "wake_s")

    def __init__(self, serves: Serves, queues: list[deque[int]], timings: Timings, former: BatchFormer) -> None:
        self.serves = serves
        self.timings = timings
        self.former = former
        alone = len(serves) == 1
        self.variant: VariantId = serves[0] if alone else -1
        self.queue = queues[serves[0]] if alone else None
        self.fit = timings.fit[serves[0]] if alone else ()
        self.idle: list[Worker] = []
        self.wake_s = -1.0
