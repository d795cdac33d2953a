"""How fast each policy of the main comparison replays its traces. Run by `make bench`.

Whole runs, from the workload to the record, as ``argus-sim run`` makes them. ``extra_info`` has the requests per
second of processor time: unlike the time on the clock it says the same on a machine that does other things too.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from argus_sim.experiment.config import Experiment
from argus_sim.experiment.scene import Scene
from argus_sim.experiment.simulate import simulate

FIG7 = Experiment.load("experiments/fig7.yaml")
ROUNDS = 3


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene.of(FIG7)


@pytest.mark.parametrize("trace", FIG7.traces, ids=lambda trace: trace.name)
@pytest.mark.parametrize("policy", FIG7.policies, ids=lambda policy: policy.label)
def test_run(benchmark: Any, scene: Scene, policy: Any, trace: Any) -> None:
    arrivals = scene.trace(trace, FIG7.seed)
    scene.policy(policy, FIG7.seed, arrivals)  # what a predictor learns, it learns once for all runs
    took_s = []

    def run() -> None:
        started = time.process_time()
        simulate(scene, policy, arrivals, FIG7.seed)
        took_s.append(time.process_time() - started)

    # The first round solves what later ones and other policies remember; it counts as the others do.
    benchmark.pedantic(run, rounds=ROUNDS)
    benchmark.extra_info["requests"] = len(arrivals)
    benchmark.extra_info["requests_per_cpu_s"] = [round(len(arrivals) / s) for s in took_s]
