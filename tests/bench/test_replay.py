"""Replay speed and memory, beside a bare heapq loop over the same service times. Run by `make bench`.

The numbers to read are in ``extra_info``: requests/s, the ratio to the bare loop, and the peak memory of a fresh
process. They are figures, never assertions: a machine's speed is not a property of the code.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from argus_sim.core.solvers import align, allocate_kinds
from tests.bench.replay import bare_heapq, make_replay, service_times
from tests.golden.test_solvers import PER_MINUTE, QUALITY

REQUESTS = int(os.environ.get("ARGUS_BENCH_REQUESTS", "1000000"))


@pytest.mark.parametrize("workers", [8, 64, 1000])
@pytest.mark.parametrize("policy", ["static", "argus"])
def test_replay(benchmark: Any, policy: str, workers: int) -> None:
    replays = []

    def fresh() -> tuple[tuple[()], dict[str, Any]]:
        replays[:] = [make_replay(policy, workers, REQUESTS)]
        gc.collect()
        gc.freeze()  # what was made before is not part of the replay
        return (), {}

    benchmark.pedantic(lambda: replays[0].run(), setup=fresh, rounds=3)
    cluster = replays[0]
    arrivals, service = cluster.engine.requests.arrival_s.tolist(), service_times(cluster)
    bare_s = []
    for _ in range(3):
        started = time.perf_counter()
        bare_heapq(arrivals, service, workers)
        bare_s.append(time.perf_counter() - started)
    gc.unfreeze()
    replay_s = benchmark.stats.stats.median
    benchmark.extra_info["requests_per_s"] = round(REQUESTS / replay_s)
    benchmark.extra_info["ratio_to_heapq"] = round(sorted(bare_s)[1] / replay_s, 3)


@pytest.mark.parametrize("policy", ["static", "argus"])
def test_peak_memory(benchmark: Any, policy: str) -> None:
    """Of a process that does nothing but one replay at 64 workers."""
    command = [sys.executable, "-m", "tests.bench.replay", policy, "64", str(REQUESTS)]

    def replay() -> dict[str, Any]:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    result = benchmark.pedantic(replay, rounds=1)
    benchmark.extra_info["peak_memory_mb"] = round(result["peak_memory_mb"])


@pytest.mark.parametrize("workers", [8, 1000])
def test_allocation(benchmark: Any, workers: int) -> None:
    """12 levels, a demand at which they mix; the answer is not remembered from a call before."""
    quality = tuple(q - 0.5 * k for q in QUALITY for k in (0, 1))
    rates = tuple(r * (1 + 0.04 * k) for r in PER_MINUTE for k in (0, 1))
    benchmark(allocate_kinds.__wrapped__, quality, (rates,), (workers,), 0.8 * workers * max(rates))


def test_alignment(benchmark: Any) -> None:
    """12 affinities, 12 levels."""
    rng = np.random.default_rng(0)
    have, want = (tuple(rng.dirichlet(np.ones(12)).tolist()) for _ in range(2))
    benchmark(align.__wrapped__, have, want, tuple(map(tuple, rng.random((12, 12)).tolist())))
