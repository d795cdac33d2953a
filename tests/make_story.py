"""Stories of the toy cluster's runs, for tests of the report's charts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from argus_sim.charts.story import TraceStory, tell
from argus_sim.metrics import timeline
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
