"""What the executor is written against: the work it gives out, its answers, and who carries out or listens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from argus_sim.domain import CacheHit

if TYPE_CHECKING:
    from argus_sim.live.executor import Executor


@dataclass(frozen=True, slots=True)
class Job:
    """One image to make."""

    row: int
    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class Served:
    """An image and how it came about; times in seconds of the host's clock."""

    image: bytes
    variant: str
    worker: int
    batch_size: int
    arrival_s: float
    start_s: float
    finish_s: float
    on_time: bool


class Rejected(Exception):
    """The request will not be served; ``lost`` when that is the cluster's fault.

    ``arrival_s`` is when it had arrived, on the host's clock; None where the engine never heard of it.
    """

    def __init__(self, reason: str, *, lost: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.lost = lost
        self.arrival_s: float | None = None


class Workers(Protocol):
    """Something that runs batches. It answers by the executor's happenings, later, on the loop."""

    async def start(self, host: Executor, models: Sequence[str]) -> None:
        """Bring up one worker for each of these models, each holding its own; returns when all do."""

    def load(self, now: float, worker: int, model: str) -> None: ...

    def run(self, now: float, worker: int, variant: int, jobs: Sequence[Job]) -> None: ...

    async def stop(self) -> None: ...


class Cache(Protocol):
    """The approximate cache. Answers by ``host.cache_answered``, later, on the loop."""

    def look_up(self, host: Executor, now: float, row: int, prompt: int, text: str) -> None: ...

    def release(self, row: int) -> None:
        """The request is answered: what was found for it is no longer needed."""


class EmptyCache:
    """Holds nothing: every look-up is a miss, at once."""

    def look_up(self, host: Executor, now: float, row: int, prompt: int, text: str) -> None:
        host.at(now, lambda at_s: host.cache_answered(at_s, row, CacheHit(float("nan"), 0, 0.0)))

    def release(self, row: int) -> None:
        pass


class Listener:
    """Hears what is worth counting; does nothing by default."""

    def served(self, result: Served) -> None: ...

    def rejected(self, reason: str, lost: bool) -> None: ...

    def batch(self, variant: int, size: int, seconds: float) -> None: ...

    def loaded(self, model: str, seconds: float) -> None: ...

    def worker(self, worker: int, what: str, why: str) -> None: ...

    def cache(self, hit: bool) -> None: ...
