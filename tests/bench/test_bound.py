"""How long the hindsight bound of the main comparison takes, and what rounding may add. Run by `make bench`.

``extra_info`` has the bound on the quality yield and the part of it that may be rounding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from argus_sim.core.bound import least_work_s, quality_bound
from argus_sim.profile import Profile
from argus_sim.simulation.service import ServiceTimes
from argus_sim.trace import Trace, find_trace
from argus_sim.workload import Workload, stream


@pytest.mark.parametrize("resolution", [256, 1024, 4096])
@pytest.mark.parametrize("name", ["bursty", "diurnal"])
def test_bound(benchmark: Any, name: str, resolution: int) -> None:
    """Eight workers, nine variants, an SLO of three times the base's latency, seed 1."""
    profile = Profile.load("artefact-a100")
    trace = Trace.read(find_trace(Path(name)))
    slo_s = 3 * profile.latency(profile.base, 1).mean_s
    workload = Workload.of(trace, profile, slo_s, stream(1, "prompts"))
    service = ServiceTimes.of(profile, len(trace), stream(1, "service"))
    draw, quality = np.array(service.draw, dtype=np.int64), profile.relative_quality()

    def bound() -> Any:
        return quality_bound(
            workload.arrival_s,
            workload.deadline_s,
            workload.prompt,
            quality,
            least_work_s(service.times_s, slo_s),
            8,
            draw=draw,
            resolution=resolution,
        )

    found = benchmark.pedantic(bound, rounds=3)
    benchmark.extra_info["requests"] = len(trace)
    benchmark.extra_info["quality_yield"] = round(found.quality_yield, 6)
    benchmark.extra_info["rounding"] = found.rounding / len(trace)
