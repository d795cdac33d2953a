"""The words of the field as plain objects. SI units; times are seconds."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

#: A variant is referred to by its position in the profile's variant table, everywhere in the hot path.
VariantId = int


@dataclass(frozen=True, slots=True)
class Variant:
    """One operating point: a model with an approximation, having a latency and a quality.

    Attributes:
        name: ``model`` or ``model/approximation``, e.g. ``sdxl``, ``sdxl/ac-20``, ``tiny-sd``.
        model: The weights a GPU must hold to run it.
        strategy: The ladder it belongs to (``AC``, ``SM``, ``STEPS``, ...); ``BASE`` is level 0 of every ladder.
        level: Position in its ladder; 0 = least approximate.
        steps: Denoising steps of the full schedule.
        skipped_steps: Steps that an approximate cache spares (the K of AC-K); such a variant cannot run before
            the cache has answered.
        memory_bytes: Device memory it needs, or None where unknown.
    """

    name: str
    model: str
    strategy: str
    level: int
    steps: int
    skipped_steps: int
    memory_bytes: int | None = None


class Outcome(enum.IntEnum):
    """How a request ended. Everything but ``ON_TIME`` is an SLO violation."""

    ON_TIME = 0
    LATE = 1
    REJECTED = 2
    LOST = 3
    #: Still in the system when the run was cut off; a finished run has none.
    UNFINISHED = 4


class WorkerStatus(enum.IntEnum):
    IDLE = 0
    BUSY = 1
    LOADING = 2
    LOST = 3


@dataclass(frozen=True, slots=True)
class CacheHit:
    """What the approximate cache answered.

    Attributes:
        similarity: Cosine similarity of the nearest cached prompt, in [-1, 1]; NaN when the cache did not answer.
        max_skipped_steps: The deepest stored latent that was retrieved; 0 is a miss.
        latency_s: How long the answer took.
    """

    similarity: float
    max_skipped_steps: int
    latency_s: float


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a policy hears when a batch ends.

    Attributes:
        worker: Index of the worker that ran it.
        variant: What it ran.
        size: How many requests were in it.
        service_s: How long it ran.
        late: How many of its requests missed their deadline.
    """

    worker: int
    variant: VariantId
    size: int
    service_s: float
    late: int


class Request:
    """A cursor over the rows of a workload: valid during the call it is handed to.

    A request is a row of columns; this object only knows which. Keep ``row``, not the object.
    """

    __slots__ = ("_arrival_s", "_deadline_s", "_prompt", "hit", "images", "row")

    def __init__(self, arrival_s: Sequence[float], deadline_s: Sequence[float], prompt: Sequence[int]) -> None:
        self._arrival_s = arrival_s
        self._deadline_s = deadline_s
        self._prompt = prompt
        self.row = -1
        #: The cache's answer, or None while it has not been asked.
        self.hit: CacheHit | None = None
        #: Of a cascade that keeps images: the variant of each one kept so far, and the judge's confidence in it.
        self.images: tuple[tuple[VariantId, float], ...] = ()

    @property
    def arrival_s(self) -> float:
        return self._arrival_s[self.row]

    @property
    def deadline_s(self) -> float:
        return self._deadline_s[self.row]

    @property
    def prompt(self) -> int:
        """Index of the prompt in the profile's prompt table."""
        return self._prompt[self.row]
