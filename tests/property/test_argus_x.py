"""argus-x stays sane whatever it is given: models, workers, caches, faults and forecasts that are wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from argus_sim import metrics
from argus_sim.experiment import Experiment
from argus_sim.experiment.scene import Scene
from argus_sim.experiment.simulate import simulate
from argus_sim.profile import Profile
from tests.make_profile import ladder, make_profile


def many() -> Profile:
    """Twenty variants of five models."""
    names = ["m0", *(f"m0/ac-{k}" for k in range(2, 34, 2)), "m1", "m2", "m3"]
    return make_profile(
        {n: {1: 4.0 * 0.93**i, 2: 6.0 * 0.93**i, 4: 10.0 * 0.93**i} for i, n in enumerate(names)}, spread=0.05
    )


def single() -> Profile:
    return make_profile({"only": {1: 1.0, 4: 2.5}})


def run(
    folder: Any, profile: Profile, per_min: float, policies: list[Any], **changes: Any
) -> list[dict[str, Any]]:
    """What each policy made of four minutes of Poisson arrivals, on common random numbers."""
    profile.save(folder / "profile")
    data = {
        "name": "small",
        "profile": str(folder / "profile"),
        "traces": [{"name": "t", "generate": {"kind": "poisson", "duration_s": 240, "rate_per_min": per_min}}],
        "policies": policies,
        **changes,
    }
    scene = Scene.of(Experiment.check(data, where="test"))
    trace = scene.trace(scene.experiment.traces[0], 1)
    records = [simulate(scene, policy, trace, 1) for policy in scene.experiment.policies]
    return [metrics.summarise(record) for record in records]


@pytest.mark.parametrize("load", [0.3, 0.9, 3.0])
@pytest.mark.parametrize("workers", [1, 8])
@pytest.mark.parametrize("make", [single, many, ladder])
def test_no_worse_than_the_base_model_alone(tmp_path: Any, make: Any, workers: int, load: float) -> None:
    """Below capacity nearly all are in time, and at any load it yields no less than without a choice."""
    profile = make()
    base_s = profile.latency(profile.base, 1).mean_s
    got, plain = run(
        tmp_path, profile, 60.0 * load * workers / base_s, ["argus-x", "clipper-ha"], cluster={"workers": workers}
    )
    assert got["quality_yield"] >= plain["quality_yield"] - 0.03
    if load < 0.5 and workers > 1:
        assert got["slo_violation_ratio"] < 0.01


def test_many_workers(tmp_path: Any) -> None:
    (got,) = run(tmp_path, ladder(), 8000.0, ["argus-x"], cluster={"workers": 512})
    assert got["slo_violation_ratio"] < 0.01


@pytest.mark.parametrize(
    "changes",
    [
        {"policies": [{"name": "argus-x", "predictor": "perfect"}]},
        {"cluster": {"workers": 4, "faults": [{"kind": "crash", "workers": [0], "at_s": 60, "for_s": 60}]}},
        {"cluster": {"workers": 4, "faults": [{"kind": "random", "mtbf_s": 120, "mttr_s": 20}]}},
        {"cluster": {"workers": 4, "cache": {"latency_s": 0.9}}},
        {"cluster": {"workers": 4, "cache": {"trouble": [{"at_s": 60, "for_s": 60}]}}},
        {"cluster": {"workers": 4, "staleness_s": 2.0}},
        {"policies": [{"name": "argus-x", "params": {"forecast": {"kind": "window-max", "windows": 20}}}]},
        {"policies": [{"name": "argus-x", "params": {"monitor_s": 60, "period_s": 120}}]},
        {"drop": "never"},
        {"slo": {"seconds": 3.0}},
    ],
    ids=[
        "perfect",
        "crash",
        "crashes",
        "slow-cache",
        "cache-out",
        "stale",
        "forecast-high",
        "forecast-late",
        "never-drops",
        "tight",
    ],
)
def test_trouble_does_not_make_it_collapse(tmp_path: Any, changes: dict[str, Any]) -> None:
    settings = {"cluster": {"workers": 4}, "policies": ["argus-x"]} | changes
    (got,) = run(tmp_path, ladder(), 50.0, settings.pop("policies"), **settings)
    assert got["slo_violation_ratio"] < 0.15
    assert got["relative_quality"] > 0.85


def test_the_same_seed_gives_the_same_run(tmp_path: Any) -> None:
    one, two = (run(tmp_path, many(), 90.0, ["argus-x"], cluster={"workers": 3})[0] for _ in range(2))
    assert all(np.array_equal(one[key], two[key], equal_nan=True) for key in ("quality_yield", "latency_p99_s"))
