"""What a run leaves in memory: one row per request and the few events that are not requests.

Written by a host (simulated or live), read by metrics, plots and reports. Columns, not objects.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from argus_sim.domain import Outcome

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


@dataclass(frozen=True)
class RunRecord:
    """All that happened, n requests long, ordered by arrival.

    Attributes:
        arrival_s, start_s, finish_s, deadline_s: float64[n]; start and finish are NaN for what never ran.
        prompt: int32[n], index into ``prompts``.
        variant: int32[n], index into ``variants``; -1 for what never ran.
        worker: int32[n]; -1 for what never ran.
        batch_size: int32[n]; 0 for what never ran.
        outcome: int8[n], :class:`~argus_sim.domain.Outcome`.
        reason: int32[n], index into ``reasons``: why the request went where it went, or why it was dropped.
        relative_quality: float64[n]: expected quality over the best that any variant gets for the prompt;
            NaN for what was not served.
        quality_relative_to_base: float64[n]: the same over the base variant's; NaN for what was not served.
        duration_s: Length of the trace; rates are per this time.
        workers: Size of the cluster.
        busy_s: Summed time that workers spent running batches (wasted ones included).
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
    loads: list[LoadRecord] = field(default_factory=list)
    plans: list[PlanRecord] = field(default_factory=list)
    faults: list[FaultRecord] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.arrival_s)

    def frame(self) -> pd.DataFrame:
        """`outcomes.parquet` as a table: one row per request, names instead of indices (categoricals)."""

        def names(codes: npt.NDArray[np.int32] | npt.NDArray[np.int8], of: tuple[str, ...]) -> pd.Categorical:
            return pd.Categorical.from_codes(codes.astype(np.int32), categories=pd.Index(of, dtype="str"))

        return pd.DataFrame(
            {
                "request": np.arange(len(self), dtype=np.int32),
                "arrival_s": self.arrival_s,
                "start_s": self.start_s,
                "finish_s": self.finish_s,
                "deadline_s": self.deadline_s,
                "prompt": names(self.prompt, self.prompts),
                "variant": names(self.variant, self.variants),
                "worker": self.worker,
                "batch_size": self.batch_size.astype(np.int16),
                "outcome": names(self.outcome, tuple(o.name.lower() for o in Outcome)),
                "reason": names(self.reason, self.reasons),
                "relative_quality": self.relative_quality.astype(np.float32),
                "quality_relative_to_base": self.quality_relative_to_base.astype(np.float32),
            }
        )

    def events(self) -> dict[str, Any]:
        """`events.json`: what happened that is no request. A load that never ended has a NaN ``finish_s``."""
        return {
            "workers": self.workers,
            "duration_s": self.duration_s,
            "busy_s": self.busy_s,
            "plans": [asdict(plan) for plan in self.plans],
            "loads": [asdict(load) for load in self.loads],
            "faults": [asdict(fault) for fault in self.faults],
        }
