"""What the engine tells a host to do."""

from __future__ import annotations

from typing import NamedTuple

from argus_sim.domain import VariantId


class RunBatch:
    """Run these requests together on this worker; answer with ``batch_done``.

    One object per worker, whose ``variant`` and ``rows`` change with its next batch: a host reads it at once,
    and whoever keeps commands keeps :meth:`as_tuple`. (A new object for each of a million batches took a tenth
    of a replay.)
    """

    __slots__ = ("rows", "variant", "worker")

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self.variant: VariantId = -1
        #: The requests, oldest first; empty while the worker runs nothing.
        self.rows: list[int] = []

    def as_tuple(self) -> tuple[int, VariantId, tuple[int, ...]]:
        return (self.worker, self.variant, tuple(self.rows))

    def __repr__(self) -> str:
        return f"RunBatch(worker={self.worker}, variant={self.variant}, rows={self.rows})"


class LoadModel(NamedTuple):
    """Put a model (its index in the catalog) onto a worker; answer with ``model_loaded``."""

    worker: int
    model: int


class LookUpCache(NamedTuple):
    """Find the nearest cached prompt and fetch its latents; answer with ``cache_answered``."""

    row: int


class Reject(NamedTuple):
    """Tell the client that this request will not be served."""

    row: int
    reason: str


class Deliver(NamedTuple):
    """The image that this variant made for the request before is its answer: a cascade had kept it."""

    row: int
    variant: VariantId


class WakeUp(NamedTuple):
    """Call ``woken`` at this time: a batch that was left to fill up must go then, or a plan takes effect."""

    at_s: float


Command = RunBatch | LoadModel | LookUpCache | Reject | Deliver | WakeUp
