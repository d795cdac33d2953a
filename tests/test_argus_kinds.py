"""How argus weighs ladders, loads and the cache where GPUs are of several kinds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from argus_sim.core import affinity
from argus_sim.core.catalog import Catalog, Kind
from argus_sim.core.engine import Engine
from argus_sim.domain import CacheHit, Outcome
from argus_sim.experiment import Experiment, PolicyConfig
from argus_sim.experiment.scene import Scene
from argus_sim.experiment.simulate import simulate
from argus_sim.policies.ladders import CacheWatch, Ladder, Move
from argus_sim.profile import Profile
from argus_sim.record import RunRecord
from argus_sim.trace import Trace
from argus_sim.trace.arrivals import Poisson, generate
from argus_sim.workload import stream
from tests.make_engine import make_policy, make_requests
from tests.make_experiment import content
from tests.make_profile import at_speed, make_profile

SLO_S = 12.0
BIG, AC10, AC25, MID, SMALL = range(5)


@pytest.fixture(scope="module")
def profile() -> Profile:
    """Smaller models are better for their time than approximate caching."""
    return make_profile(
        {"big": {1: 4.0}, "big/ac-10": {1: 3.2}, "big/ac-25": {1: 2.0}, "mid": {1: 2.2}, "small": {1: 1.2}},
        quality={"big": 1.0, "big/ac-10": 0.95, "big/ac-25": 0.85, "mid": 0.97, "small": 0.9},
        spread=0.02,
        loads_s={"big": 12.0, "mid": 10.0, "small": 5.0},
    )


def kinds_of(profile: Profile, *, fast: int = 2, slow: int = 4) -> tuple[Kind, ...]:
    return Kind("fast", fast, profile), Kind("slow", slow, at_speed(profile, 0.5))


def ladder_of(catalog: Catalog, profile: Profile, name: str) -> Ladder:
    return Ladder.of(catalog, catalog.ladder(name), affinity.perfect(profile), 0.05, SLO_S)


def moving(profile: Profile, name: str) -> tuple[Move, Ladder]:
    """Two fast and four slow workers, all serving the base model."""
    catalog = Catalog.of(profile, kinds_of(profile))
    engine = Engine(catalog, make_policy("clipper-ha", profile, 6), make_requests([0.0], SLO_S), 6)
    engine.start()
    ladder = ladder_of(catalog, profile, name)
    return Move(catalog, ladder, engine.view), ladder


def test_a_ladder_has_the_rates_of_each_kind(profile: Profile) -> None:
    ladder = ladder_of(Catalog.of(profile, kinds_of(profile)), profile, "AC")
    assert ladder.throughput_per_s == pytest.approx((1 / 4.0, 1 / 3.2, 1 / 2.0, 1 / 8.0, 1 / 6.4, 1 / 4.0))
    assert ladder.longest_s == pytest.approx((4.0, 3.2, 2.0, 8.0, 6.4, 4.0))
    crawling = (Kind("fast", 2, profile), Kind("slow", 4, at_speed(profile, 0.3)))
    ladder = ladder_of(Catalog.of(profile, crawling), profile, "AC")
    assert ladder.throughput_per_s[3] == 0.0  # 4 / 0.3 is more than 12 s
    assert ladder.throughput_per_s[4] == pytest.approx(0.3 / 3.2)


def test_a_move_costs_what_the_workers_are_worth(profile: Profile) -> None:
    """Of 2 x 1 + 4 x 1/2 a fast worker is 1 of a mean of 2/3."""
    move, _ = moving(profile, "SM")
    assert move.held == [2, 0, 0, 4, 0, 0]
    assert move.loads((1, 1, 0, 2, 1, 1)) == [0, 1, 0, 0, 1, 1]
    assert move.cost_s((2, 0, 0, 4, 0, 0)) == 0.0
    assert move.cost_s((1, 1, 0, 4, 0, 0)) == pytest.approx(10.0 * 1.5)
    assert move.cost_s((2, 0, 0, 3, 1, 0)) == pytest.approx(10.0 * 0.75)
    assert move.ready_within(0.0, (1, 1, 0, 3, 1, 0)) == [1, 0, 0, 3, 0, 0]
    assert move.ready_within(10.0, (1, 1, 0, 3, 1, 0)) == [1, 1, 0, 3, 1, 0]
    move, _ = moving(profile, "AC")
    assert move.cost_s((0, 0, 2, 0, 4, 0)) == 0.0


def test_workers_move_within_their_kind(profile: Profile) -> None:
    move, ladder = moving(profile, "SM")
    rate = ladder.throughput_per_s  # 1/4, 1/2.2, 1/1.2, and half of that
    # 2/4 + 4/8 is 1 image/s; 0.6 leave 0.4, three of the slow ones at 1/8: the most urgent are the fast.
    step = move.step((0, 0, 2, 0, 0, 4), rate, 0.6, 1.0)
    assert step == (0, 0, 2, 3, 0, 1)
    assert move.step((2, 0, 0, 0, 4, 0), rate, 0.9, 1.0) == (2, 0, 0, 3, 1, 0)  # always one
    move, _ = moving(profile, "AC")
    assert move.step((0, 1, 1, 0, 0, 4), rate, 100.0, 1.1) == (0, 1, 1, 0, 0, 4)  # no load: at once


def test_what_the_cache_misses_costs_each_kind_its_own_time(profile: Profile) -> None:
    catalog = Catalog.of(profile, kinds_of(profile))
    ladder = ladder_of(catalog, profile, "AC")
    watch = CacheWatch(catalog, ladder.variants, SLO_S)
    assert watch.effective(ladder) == (ladder.quality, ladder.throughput_per_s)
    for second in range(600):  # half of the answers are of no use
        watch.hear(CacheHit(0.9, 25 * (second % 2), 0.0), second / 4)
    quality, rate = watch.effective(ladder)
    assert rate[2] == pytest.approx(1 / (0.5 * 2.0 + 0.5 * 4.0), rel=0.05)
    assert rate[5] == pytest.approx(1 / (0.5 * 4.0 + 0.5 * 8.0), rel=0.05)
    assert quality[2] == pytest.approx(np.mean([ladder.quality[2], ladder.quality[0]]), rel=0.02)
    late = CacheWatch(catalog, ladder.variants, SLO_S)
    late.hear(CacheHit(0.9, 25, 7.0), 1.0)
    quality, rate = late.effective(ladder)
    assert quality == ladder.quality  # 7 + 3.2 s is in time, on the fast kind
    assert (rate[1] > 0.0, rate[4], rate[5] > 0.0) == (True, 0.0, True)  # 7 + 6.4 s is not, 7 + 4 s is
    late.hear(CacheHit(0.9, 25, 11.0), 1000.0)
    quality, rate = late.effective(ladder)
    assert quality[1:] == (0.0, 0.0)
    assert rate[3:] == (ladder.throughput_per_s[3], 0.0, 0.0)


# -- whole runs --------------------------------------------------------------------------------------------


def scene(profile: Profile, **cluster: Any) -> Scene:
    data = content() | {"profile": "given", "cluster": {"workers": 6} | cluster, "drop": "late"}
    kinds = kinds_of(profile)
    return Scene(Experiment.model_validate(data), profile, Catalog.of(profile, kinds), SLO_S, kinds)


def load(per_s: float, *, seed: int = 3) -> Trace:
    return generate(Poisson(duration_s=3000.0, rate_per_min=60.0 * per_s), stream(seed, "arrivals"))


def go(here: Scene, trace: Trace, policy: str = "argus", **params: Any) -> RunRecord:
    return simulate(here, PolicyConfig.model_validate({"name": policy, "params": params}), trace, 3)


def quality_yield(record: RunRecord, since_s: float = 0.0) -> float:
    asked = record.arrival_s >= since_s
    gained = np.where(record.outcome == Outcome.ON_TIME, record.relative_quality, 0.0)
    return float(gained[asked].mean())


@pytest.mark.parametrize("policy", ["argus", "pac"])
def test_it_changes_to_the_ladder_that_yields_more(profile: Profile, policy: str) -> None:
    here, trace = scene(profile), load(1.5)  # 1 image/s in full, 2 with the deepest cache, 1.8 and 3.3 smaller
    stays, changes = go(here, trace, policy, switch=False), go(here, trace, policy)
    assert set(np.unique(stays.variant)) <= {-1, BIG, AC10, AC25}
    late = changes.variant[changes.arrival_s > 600.0]
    assert set(np.unique(late)) <= {-1, BIG, MID, SMALL}
    assert {load.worker for load in changes.loads} >= {0, 1}
    assert quality_yield(changes, 600.0) > quality_yield(stays, 600.0) + 0.05


def test_it_stays_where_caching_is_as_good(profile: Profile) -> None:
    trace = load(0.5)
    record = go(scene(profile), trace)
    assert set(np.unique(record.variant)) <= {BIG, AC10, AC25}
    assert quality_yield(record) > 0.98


def test_it_comes_back_from_a_cache_that_was_out() -> None:
    """Caching is better here; while the cache is out, smaller models are, and afterwards it is asked again."""
    cells = {"big": {1: 4.0}, "big/ac-10": {1: 3.2}, "big/ac-25": {1: 2.0}, "small": {1: 2.0}}
    quality = {"big": 1.0, "big/ac-10": 0.98, "big/ac-25": 0.95, "small": 0.85}
    profile = make_profile(cells, quality=quality, spread=0.02, loads_s={"big": 8.0, "small": 4.0})
    outage = {"at_s": 600.0, "for_s": 900.0}
    record = go(scene(profile, cache={"trouble": [outage]}), load(1.5))
    used = [
        set(np.unique(record.variant[(record.arrival_s >= since) & (record.arrival_s < to)])) - {-1}
        for since, to in ((0.0, 590.0), (900.0, 1490.0), (2400.0, 3000.0))
    ]
    small = 3
    assert small not in used[0] | used[2]
    assert small in used[1]
    assert AC25 in used[2]
    assert (record.outcome == Outcome.ON_TIME).mean() > 0.9
