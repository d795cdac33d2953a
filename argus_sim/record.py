"""What a run leaves in memory: one row per request and the few events that are not requests.

Written by a host (simulated or live), read by metrics, plots and reports. Columns, not objects.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from argus_sim.domain import CacheHit, Outcome

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class LoadRecord:
    """A model put onto a GPU. Seconds; ``finish_s`` is NaN when the worker was lost meanwhile."""

    worker: int
    model: str
    start_s: float
    finish_s: float


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """A placement decision: when, why, and how many workers serve what.

    ``workers`` maps the name of what a group of workers serves (variant names joined by ``+``) to their number.
    """

    at_s: float
    reason: str
    workers: dict[str, int]


@dataclass(frozen=True, slots=True)
class FaultRecord:
    """A worker was ``"lost"`` or has ``"joined"`` again; became ``"slow"`` or is ``"normal"`` again."""

    at_s: float
    worker: int
    kind: str


@dataclass(slots=True)
class CacheRecord:
    """What an approximate cache that fills did, n requests long.

    Attributes:
        asked_s, answered_s: float64[n]; NaN for what was never looked up, and for an answer that never came.
        steps: int16[n], the steps that the answer allowed to skip; 0 for a miss or a time-out, -1 without an
            answer.
        timed_out: bool[n], whether the answer was that none came in time.
        similarity: float64[n], of the nearest cached prompt; NaN where there was none, or no answer in time.
        latent_bytes: Size of a latent.
        started_with: Entries at the start.
        stored, evicted: Entries that came and went.
        held, prompts_held: Entries at the end, and how many prompts they are of.
        link_busy_s: How long the network was busy with latents.
    """

    asked_s: Floats
    answered_s: Floats
    steps: npt.NDArray[np.int16]
    timed_out: npt.NDArray[np.bool_]
    similarity: Floats
    latent_bytes: int
    started_with: int
    stored: int = 0
    evicted: int = 0
    held: int = 0
    prompts_held: int = 0
    link_busy_s: float = 0.0

    @classmethod
    def empty(cls, n: int, latent_bytes: int, started_with: int) -> CacheRecord:
        """Nothing has happened yet."""
        asked_s, answered_s, similarity = (np.full(n, np.nan) for _ in range(3))
        steps, timed_out = np.full(n, -1, dtype=np.int16), np.zeros(n, dtype=np.bool_)
        return cls(asked_s, answered_s, steps, timed_out, similarity, latent_bytes, started_with)

    def answer(self, row: int, at_s: float, hit: CacheHit, *, timed_out: bool) -> None:
        """Note the answer that a request got; of one that asks twice, the last."""
        self.answered_s[row] = at_s
        self.timed_out[row] = timed_out
        self.steps[row] = hit.max_skipped_steps
        self.similarity[row] = hit.similarity


@dataclass(frozen=True)
class Attempts:
    """Runs of requests that did not end them, one entry per request and run, in the order in which they ended.

    Attributes:
        request: int32[m], the request's row.
        start_s, finish_s: float64[m]; a lost one finishes with its worker.
        worker, variant, batch_size, reason: int32[m], as in :class:`RunRecord`; the reason that led there.
        lost: bool[m]: its worker was lost. False: its image was not good enough and it runs once more.
    """

    request: Ints
    start_s: Floats
    finish_s: Floats
    worker: Ints
    variant: Ints
    batch_size: Ints
    reason: Ints
    lost: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.request)

    @classmethod
    def none(cls) -> Attempts:
        number, time_s = np.zeros(0, dtype=np.int32), np.zeros(0)
        return cls(number, time_s, time_s, number, number, number, number, np.zeros(0, dtype=np.bool_))


@dataclass(frozen=True)
class RunRecord:
    """All that happened, n requests long, ordered by arrival.

    Attributes:
        arrival_s, start_s, finish_s, deadline_s: float64[n]; start and finish are NaN for what was not served.
        prompt: int32[n], index into ``prompts``.
        variant: int32[n], index into ``variants``; -1 for what was not served.
        worker: int32[n]; -1 for what was not served.
        batch_size: int32[n]; 0 for what was not served.
        outcome: int8[n], :class:`~argus_sim.domain.Outcome`.
        reason: int32[n], index into ``reasons``: why the request went where it went, or why it was dropped.
        relative_quality: float64[n]: expected quality over the best that any variant gets for the prompt;
            NaN for what was not served.
        quality_relative_to_base: float64[n]: the same over the base variant's; NaN for what was not served.
        duration_s: Length of the trace; rates are per this time.
        workers: Size of the cluster.
        busy_s: Summed time that workers spent running batches (wasted ones included).
        attempts: What requests ran in besides.
        planning_s: Seconds of this machine that each of the policy's plans took; empty unless asked for.
    """

    variants: tuple[str, ...]
    prompts: tuple[str, ...]
    reasons: tuple[str, ...]
    arrival_s: Floats
    start_s: Floats
    finish_s: Floats
    deadline_s: Floats
    prompt: Ints
    variant: Ints
    worker: Ints
    batch_size: Ints
    outcome: npt.NDArray[np.int8]
    reason: Ints
    relative_quality: Floats
    quality_relative_to_base: Floats
    duration_s: float
    workers: int
    busy_s: float
    attempts: Attempts = field(default_factory=Attempts.none)
    loads: list[LoadRecord] = field(default_factory=list)
    plans: list[PlanRecord] = field(default_factory=list)
    faults: list[FaultRecord] = field(default_factory=list)
    planning_s: list[float] = field(default_factory=list)
    #: Of a cache that fills; a warm one leaves nothing.
    cache: CacheRecord | None = None

    def __len__(self) -> int:
        return len(self.arrival_s)

    def frame(self) -> pd.DataFrame:
        """`outcomes.parquet` as a table: one row per request, names instead of indices (categoricals)."""
        return pd.DataFrame(
            {
                "request": np.arange(len(self), dtype=np.int32),
                "arrival_s": self.arrival_s,
                "start_s": self.start_s,
                "finish_s": self.finish_s,
                "deadline_s": self.deadline_s,
                "prompt": _names(self.prompt, self.prompts),
                "variant": _names(self.variant, self.variants),
                "worker": self.worker,
                "batch_size": self.batch_size.astype(np.int16),
                "outcome": _names(self.outcome, tuple(o.name.lower() for o in Outcome)),
                "reason": _names(self.reason, self.reasons),
                "relative_quality": self.relative_quality.astype(np.float32),
                "quality_relative_to_base": self.quality_relative_to_base.astype(np.float32),
            }
        )

    def attempts_frame(self) -> pd.DataFrame:
        """`attempts.parquet` as a table: one row per entry of :attr:`attempts`, named as in :meth:`frame`.

        ``ended`` says how: ``passed on`` or ``lost``.
        """
        attempts = self.attempts
        return pd.DataFrame(
            {
                "request": attempts.request,
                "start_s": attempts.start_s,
                "finish_s": attempts.finish_s,
                "variant": _names(attempts.variant, self.variants),
                "worker": attempts.worker,
                "batch_size": attempts.batch_size.astype(np.int16),
                "ended": _names(attempts.lost.astype(np.int8), ("passed on", "lost")),
                "reason": _names(attempts.reason, self.reasons),
            }
        )

    def events(self) -> dict[str, Any]:
        """`events.json`: what happened that is no request. A load that never ended has a NaN ``finish_s``.

        ``planning_s`` is there only where it was asked for.
        """
        return {
            "workers": self.workers,
            "duration_s": self.duration_s,
            "busy_s": self.busy_s,
            "plans": [asdict(plan) for plan in self.plans],
            "loads": [asdict(load) for load in self.loads],
            "faults": [asdict(fault) for fault in self.faults],
            **({"planning_s": [round(took_s, 7) for took_s in self.planning_s]} if self.planning_s else {}),
        }


def _names(codes: npt.NDArray[np.int32] | npt.NDArray[np.int8], of: tuple[str, ...]) -> pd.Categorical:
    return pd.Categorical.from_codes(codes.astype(np.int32), categories=pd.Index(of, dtype="str"))
