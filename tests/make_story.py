"""Stories of the toy cluster's runs and of made-up sweeps, for tests of the report's charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import pandas as pd

from argus_sim.metrics import timeline
from argus_sim.report.charts.axis import SHOWN, AxisStory
from argus_sim.report.charts.story import TraceStory, tell
from tests.make_record import make_record


@lru_cache(maxsize=8)
def make_story(name: str, policies: Sequence[str], seeds: int = 2) -> TraceStory:
    """A trace on which each policy serves one more of the levels."""
    records = {
        policy: [
            make_record(seed, requests=400, duration_s=3600.0, levels=tuple(range(1 + rank % 5)))
            for seed in range(seeds)
        ]
        for rank, policy in enumerate(policies)
    }
    return tell(
        name,
        {policy: [timeline(record) for record in runs] for policy, runs in records.items()},
        {policy: runs[0].frame() for policy, runs in records.items()},
        {policy: runs[0].attempts_frame() for policy, runs in records.items()},
        {policy: runs[0].events() for policy, runs in records.items()},
    )


def make_axis(name: str, values: Mapping[str, float | None], traces: Sequence[str] = ("day",)) -> AxisStory:
    """An axis along which quality yield falls by 0.02 and violations rise by 0.02 from value to value.

    The policies are those of the report's tests; ``<b>x</b>`` does not run at the first value.
    """
    rows = [
        {
            "value": label,
            "trace": trace,
            "policy": policy,
            "quality_yield": 0.9 - 0.02 * i - 0.1 * rank,
            "slo_violation_ratio": 0.1 * rank + 0.02 * i,
            "relative_quality": 0.95,
            **dict.fromkeys((f"{metric}_half_width" for metric in SHOWN), 0.01),
        }
        for trace in traces
        for i, label in enumerate(values)
        for rank, policy in enumerate(("pac", "argus", "<b>x</b>"))
        if rank < 2 or i > 0
    ]
    numbers = tuple(value for value in values.values() if value is not None)
    return AxisStory(name, f"What {name} does.", tuple(values), numbers, pd.DataFrame(rows))
