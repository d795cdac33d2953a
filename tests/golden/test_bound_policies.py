"""The hindsight bound against a schedule that knows it all, and against the policies."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from argus_sim.core.bound import least_work_s
from argus_sim.core.catalog import Catalog
from argus_sim.domain import Outcome
from argus_sim.experiment import Experiment, PolicyConfig
from argus_sim.experiment.scene import Scene
from argus_sim.experiment.simulate import hindsight, simulate
from argus_sim.profile import Profile
from argus_sim.provenance import Provenance
from argus_sim.trace import Trace
from argus_sim.trace.arrivals import Poisson, generate
from argus_sim.workload import stream
from tests.golden.bound_cases import CLOSE, Case, Floats, Times
from tests.make_profile import make_profile


def test_a_schedule_with_hindsight_comes_close() -> None:
    """At a steady overload and a well chosen price, simple list scheduling in pairs gets 96 % of the bound."""
    rng = np.random.default_rng(0)
    n, workers, slo_s = 3000, 8, 12.6
    arrival_s = np.cumsum(rng.exponential(1.0 / 5.0, n))
    quality = np.sort(rng.uniform(0.5, 1.0, (n, 3)), axis=1)[:, ::-1]
    times_s: Times = [{1: [t] * n, 2: [1.21 * t] * n} for t in (4.2, 3.0, 2.1)]
    case = Case(arrival_s, arrival_s + slo_s, quality, times_s, workers)
    work_s = least_work_s(times_s, slo_s)[:, 0]
    reached = max(in_pairs(case, quality - price * work_s) for price in np.linspace(0.2, 0.6, 41))
    bound = case.bound().total_quality
    assert 0.96 * bound < reached <= bound


def in_pairs(case: Case, net: Floats) -> float:
    """Serve each request that is worth it at its best variant, in pairs, the longest waiting first."""
    chosen = np.where(net.max(axis=1) > 0.0, net.argmax(axis=1), -1).tolist()
    free_s, total = [0.0] * case.workers, 0.0
    waiting: list[deque[int]] = [deque() for _ in case.times_s]
    for row, variant in enumerate(chosen):
        if variant < 0:
            continue
        waiting[variant].append(row)
        if len(waiting[variant]) == 2:
            rows = [waiting[variant].popleft() for _ in range(2)]
            worker = min(range(case.workers), key=free_s.__getitem__)
            start_s = max(free_s[worker], float(case.arrival_s[row]))
            end_s = start_s + case.times_s[variant][2][rows[0]]
            on_time = [k for k in rows if end_s <= case.deadline_s[k]]
            if on_time:
                free_s[worker] = end_s
                total += float(case.quality[on_time, variant].sum())
    return total


@lru_cache(maxsize=1)
def profiles() -> tuple[Profile, ...]:
    cells = {"big": 4.0, "big/ac-10": 3.2, "big/ac-25": 2.0, "small": 1.0}
    latency_s = {name: {1: s, 2: s * 1.25, 4: s * 2.2} for name, s in cells.items()}
    return tuple(
        make_profile(latency_s, spread=0.1, std_s=std_s, distribution=distribution, loads_s={"small": 3.0})
        for distribution, std_s in (("deterministic", 0.0), ("lognormal", 0.2))
    )


POLICIES: Sequence[PolicyConfig] = [
    PolicyConfig.model_validate(policy)
    for policy in (
        {"name": "static", "params": {"placement": {"big/ac-25": 2, "small": 1}}},
        {"name": "clipper-ha"},
        {"name": "clipper-ht"},
        {"name": "nirvana", "params": {"thresholds": {10: 0.7, 25: 0.9}}},
        {"name": "pac"},
        {"name": "argus"},
        {"name": "argus", "predictor": "perfect", "label": "perfect"},
        {"name": "proteus"},
    )
]


def scene(profile: Profile, slo_s: float, **cluster: object) -> Scene:
    experiment = Experiment.model_validate(
        {
            "name": "bound",
            "profile": "given",
            "traces": ["given"],
            "policies": ["argus"],
            "cluster": {"workers": 3, **cluster},
        }
    )
    return Scene(experiment, profile, Catalog.of(profile), slo_s)


@pytest.mark.parametrize("distribution", [0, 1], ids=["deterministic", "lognormal"])
@pytest.mark.parametrize("seed", range(4))
def test_no_policy_beats_it(seed: int, distribution: int) -> None:
    rng = np.random.default_rng(seed)
    profile, slo_s = profiles()[distribution], float(rng.uniform(4.5, 14.0))
    faults = [
        {"kind": "crash", "at_s": 30.0, "for_s": 60.0, "workers": [0]},
        {"kind": "slow", "at_s": 100.0, "for_s": 50.0, "workers": [1], "factor": 0.8},
        {"kind": "slow", "at_s": 120.0, "for_s": 50.0, "workers": [2], "factor": 3.0},
    ]
    troubled = seed % 2 == 1
    here = scene(profile, slo_s, **({"faults": faults, "dispatch_s": 0.2} if troubled else {}))
    arrivals = Poisson(duration_s=300.0, rate_per_min=float(rng.uniform(30.0, 200.0)))
    trace = generate(arrivals, stream(seed, "arrivals"))
    bound = hindsight(here, trace, seed)
    assert bound.rounding < 1e-3 * bound.total_quality
    for policy in POLICIES:
        record = simulate(here, policy, trace, seed)
        reached = float(record.relative_quality[record.outcome == Outcome.ON_TIME].sum())
        assert reached <= bound.total_quality * (1 + CLOSE), policy.label


def test_speed_ups_that_overlap_are_allowed_for() -> None:
    up = {"kind": "slow", "at_s": 0.0, "for_s": 100.0, "factor": 0.5}
    here = scene(profiles()[0], 8.0, faults=[up, up])
    trace = generate(Poisson(duration_s=100.0, rate_per_min=1600.0), stream(1, "arrivals"))
    bound = hindsight(here, trace, 1)
    static = {"name": "static", "params": {"placement": {"small": 3}}}
    record = simulate(here, PolicyConfig.model_validate(static), trace, 1)
    reached = float(record.relative_quality[record.outcome == Outcome.ON_TIME].sum())
    assert 0.8 * bound.total_quality < reached <= bound.total_quality


def test_a_policy_reaches_it_at_low_load() -> None:
    """One prompt at a time, each at its best variant: nothing to lose."""
    profile = make_profile({"big": {1: 1.0}, "big/ac-25": {1: 0.5}})
    steady = (Provenance(kind="synthetic", source="one every two seconds"),)
    trace = Trace("slow", np.arange(0.0, 100.0, 2.0), 100.0, steady)
    here = scene(profile, 3.0)
    record = simulate(here, PolicyConfig(name="clipper-ha", label="x"), trace, 1)
    assert record.relative_quality.sum() / len(trace) == pytest.approx(hindsight(here, trace, 1).quality_yield)


def test_what_is_faster_after_a_pause_is_allowed_for() -> None:
    """Nothing is served in time but by a worker that has rested."""
    steady = (Provenance(kind="synthetic", source="one every four seconds"),)
    trace = Trace("slow", np.arange(2.0, 102.0, 4.0), 102.0, steady)
    reached = []
    for after_idle_s in ({"big": {0.5: 2.0}}, None):
        here = scene(make_profile({"big": {1: 4.0}}, after_idle_s=after_idle_s), 3.0, workers=1)
        patient = here.experiment.model_copy(update={"drop": "never"})  # it counts on 4 s
        here = replace(here, experiment=patient)
        record = simulate(here, PolicyConfig(name="clipper-ha", label="x"), trace, 1)
        total = float(record.relative_quality[record.outcome == Outcome.ON_TIME].sum())
        assert total <= hindsight(here, trace, 1).total_quality * (1 + CLOSE)
        reached.append(total)
    assert reached == [25.0, 0.0]
