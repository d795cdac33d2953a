"""How argus weighs ladders: the cache as it answers, the loads as they cost."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from argus_sim.core import affinity
from argus_sim.core.batching import DropRule
from argus_sim.core.catalog import Catalog
from argus_sim.core.commands import LookUpCache
from argus_sim.core.forecast import PerfectDemand
from argus_sim.domain import CacheHit, Outcome
from argus_sim.policies.argus import Argus
from argus_sim.policies.ladders import CacheWatch, Ladder, Move, Regret
from argus_sim.profile import Profile
from argus_sim.simulation.network import CacheConfig, CacheTrouble, SimulatedCache
from tests.make_cluster import columns_of, make_cluster
from tests.make_engine import make_engine, make_policy, make_requests
from tests.make_profile import make_profile

SLO_S = 12.0
DEEP, SHALLOW, MISS = CacheHit(0.9, 25, 0.05), CacheHit(0.6, 10, 0.05), CacheHit(0.2, 0, 0.05)
NOTHING = CacheHit(float("nan"), 0, 1.0)


@pytest.fixture(scope="module")
def profile() -> Profile:
    return make_profile(
        {"big": {1: 4.0}, "big/ac-10": {1: 3.2}, "big/ac-25": {1: 2.0}, "mid": {1: 3.0}, "small": {1: 2.2}},
        quality={"big": 1.0, "big/ac-10": 0.97, "big/ac-25": 0.94, "mid": 0.94, "small": 0.9},
        spread=0.02,
        loads_s={"big": 40.0, "mid": 20.0, "small": 10.0},
    )


def ladder_of(profile: Profile, name: str) -> Ladder:
    catalog = Catalog.of(profile)
    return Ladder.of(catalog, catalog.ladder(name), affinity.perfect(profile), 0.05, SLO_S)


def test_the_cache_counts_as_it_answers(profile: Profile) -> None:
    ladder = ladder_of(profile, "AC")
    watch = CacheWatch(Catalog.of(profile), ladder.variants, SLO_S)
    assert watch.effective(ladder) == (ladder.quality, ladder.throughput_per_s)
    now_s = itertools.count(0.0, 0.25)
    for _ in range(500):
        watch.hear(DEEP, next(now_s))
    assert watch.is_healthy
    assert watch.effective(ladder) == (ladder.quality, ladder.throughput_per_s)
    for turn in range(2000):  # half of the answers are deep enough for every level
        watch.hear(DEEP if turn % 2 else MISS, next(now_s))
    assert not watch.is_healthy
    quality, rate_per_s = watch.effective(ladder)
    assert rate_per_s[2] == pytest.approx(1 / (0.5 * 2.0 + 0.5 * 4.0), rel=0.03)
    assert quality[2] == pytest.approx((ladder.quality[2] + ladder.quality[0]) / 2, rel=0.01)
    assert (quality[0], rate_per_s[0]) == (ladder.quality[0], ladder.throughput_per_s[0])
    for turn in range(3000):  # and a third each deep enough for no level, for the first, and for both
        watch.hear((DEEP, SHALLOW, MISS)[turn % 3], next(now_s))
    quality, rate_per_s = watch.effective(ladder)
    assert rate_per_s[1] == pytest.approx(1 / ((2 * 3.2 + 4.0) / 3), rel=0.03)
    assert rate_per_s[2] == pytest.approx(1 / ((2.0 + 3.2 + 4.0) / 3), rel=0.03)
    assert quality[2] == pytest.approx(sum(ladder.quality) / 3, rel=0.01)
    for _ in range(500):
        watch.hear(NOTHING, next(now_s))
    assert watch.effective(ladder)[1] == pytest.approx((0.25, 0.25, 0.25))
    for _ in range(500):
        watch.hear(DEEP, next(now_s))
    assert watch.is_healthy


def test_rare_answers_count_for_the_time_since_the_last(profile: Profile) -> None:
    """A few probes tell as much of a minute as all answers of it would."""
    ladder = ladder_of(profile, "AC")
    often, rarely = (CacheWatch(Catalog.of(profile), ladder.variants, SLO_S) for _ in range(2))
    for tenth in range(1, 601):
        often.hear(NOTHING, tenth / 10)
    for probe in range(1, 13):
        rarely.hear(NOTHING, 5.0 * probe)
    assert rarely.hit_ratio == pytest.approx(often.hit_ratio)
    assert rarely.latency_s == pytest.approx(often.latency_s)


def test_what_the_cache_does_not_allow_goes_as_deep_as_it_does(profile: Profile) -> None:
    """A load that takes both levels when a third each of the answers are deep, shallow and misses."""
    arrival_s = np.arange(0.0, 400.0, 1.0 / (0.28 * 16))
    policy = make_policy("argus", profile, 16, slo_s=SLO_S, ladder="AC")
    engine = make_engine(policy, make_requests(arrival_s, SLO_S))
    engine.start()
    levels: dict[CacheHit, set[str]] = {DEEP: set(), SHALLOW: set(), MISS: set()}
    for row, now_s in enumerate(arrival_s.tolist()):
        hit = (DEEP, SHALLOW, MISS)[row % 3]
        if LookUpCache(row) in engine.arrive(now_s, row):
            engine.cache_answered(now_s + 0.05, row, hit)
            if now_s > 200.0:
                levels[hit].add(engine.log.reasons[engine.log.reason[row]].rpartition(", ")[2])
        for queue in engine.queues:  # no batch ends here, and a backlog is none of this test's business
            queue.clear()
        engine.tick(now_s)
    assert levels[DEEP] == {"level 1", "level 2"}
    assert levels[SHALLOW] == {"level 1"}
    assert levels[MISS] == {"cache miss: served in full"}


def test_a_backlog_is_served_beside_the_forecast(profile: Profile) -> None:
    """Load that stops for good: a forecast that knows it plans for nothing, were there not those who wait."""
    arrival_s = np.concatenate([np.linspace(0.0, 10.0, 60), [60.0]])
    policy = make_policy("argus", profile, 4, slo_s=SLO_S, ladder="AC")
    policy._demand = PerfectDemand(arrival_s, 30.0)  # type: ignore[attr-defined]
    engine = make_engine(policy, make_requests(arrival_s, SLO_S))
    engine.start()
    for row, now_s in enumerate(arrival_s[:-1].tolist()):
        for command in engine.arrive(now_s, row):
            if isinstance(command, LookUpCache):
                engine.cache_answered(now_s, command.row, DEEP)
    waiting = sum(engine.view.queued(v) for v in range(5))
    assert waiting > 40
    engine.view.now_s = 31.0  # one request is to come in half a minute
    ladder = Catalog.of(profile).ladder("AC")
    assert {serves[-1] for serves in policy.plan(engine.view).serves} == {ladder[2]}
    for queue in engine.queues:
        queue.clear()
    engine.view.now_s = 31.5
    assert set(policy.plan(engine.view).serves) == {(ladder[0],)}


def test_a_batch_that_is_never_in_time_is_no_reason_to_let_wait() -> None:
    """A batch of 32 takes five times the SLO, one of 2 is in time: 16 who wait for 4 workers are a backlog."""
    wide = make_profile({"big": {1: 4.0, 2: 6.0, 32: 60.0}, "small": {1: 2.2}})
    policy = make_policy("argus", wide, 4, slo_s=SLO_S, ladder="SM")
    assert isinstance(policy, Argus)
    engine = make_engine(policy, make_requests(np.zeros(16), SLO_S))
    engine.queues[0].extend(range(16))
    assert policy._backlog(engine.view) == 8


def test_nothing_is_loaded_in_silence(profile: Profile) -> None:
    """Bursts of 20 s with 100 s of nothing between them: models that a burst called for stay for the next one."""
    arrival_s = np.concatenate([start + np.linspace(0.0, 20.0, 60) for start in (40.0, 160.0, 280.0, 400.0)])
    policy = make_policy("argus", profile, 4, slo_s=SLO_S, ladder="SM")
    cluster = make_cluster(profile, policy, make_requests(arrival_s, SLO_S), drop=DropRule("late"))
    cluster.run()
    plans = cluster.engine.floor.plans
    assert {"small": 4} in [plan.workers for plan in plans]
    assert [plan for plan in plans if plan.at_s > 0.0 and (plan.at_s - 40.0) % 120.0 > 30.0] == []


def test_regret_comes_to_what_the_change_costs() -> None:
    regret = Regret()
    assert not regret.look(gain_per_s=1.0, cost=10.0, now_s=0.0)
    assert [regret.is_due(t) for t in (9.0, 10.0)] == [False, True]
    assert not regret.look(gain_per_s=-1.0, cost=10.0, now_s=20.0)  # 20 lost, but now there is nothing to gain
    assert not regret.look(gain_per_s=1.0, cost=10.0, now_s=35.0)  # 15 of them gained by staying
    assert regret.look(gain_per_s=1.0, cost=10.0, now_s=40.0)
    regret.pay(6.0)
    assert not regret.is_due(100.0)  # what a part of the change leaves to be gained is not known yet
    assert regret.look(gain_per_s=1.0, cost=4.0, now_s=100.0)


def test_nothing_is_loaded_back_and_forth() -> None:
    """Demand that turns each minute between two that the models at hand can serve: these stay.

    What they cannot serve is answered at once.
    """
    profile = make_profile(
        {"big": {1: 4.0}, "mid": {1: 3.0}, "small": {1: 2.2}},
        quality={"big": 1.0, "mid": 0.94, "small": 0.9},
        spread=0.02,
        loads_s={"big": 20.0, "mid": 10.0, "small": 5.0},
    )
    turn = np.concatenate(
        [np.linspace(0.0, 60.0, 48, endpoint=False), np.linspace(60.0, 120.0, 80, endpoint=False)]
    )
    turns, burst = (np.arange(30)[:, None] * 120.0 + turn).ravel(), np.arange(3600.0, 3700.0, 0.6)
    policy = make_policy("argus", profile, 4, slo_s=SLO_S, ladder="SM", period_s=10.0)
    requests = make_requests(np.concatenate([turns, burst]), SLO_S)
    cluster = make_cluster(profile, policy, requests, drop=DropRule("late"))
    cluster.run()
    loaded_s = [load.start_s for load in cluster.loads]
    assert len([at_s for at_s in loaded_s if at_s < 3600.0]) <= 12  # it takes some to learn that this goes on
    assert [at_s for at_s in loaded_s if 600.0 < at_s < 3600.0] == []
    assert 3600.0 < min(at_s for at_s in loaded_s if at_s > 3600.0) < 3630.0
    assert (columns_of(cluster)["outcome"] == Outcome.ON_TIME).mean() > 0.99


def test_a_late_answer_is_worth_nothing(profile: Profile) -> None:
    ladder = ladder_of(profile, "AC")
    watch = CacheWatch(Catalog.of(profile), ladder.variants, SLO_S)
    watch.hear(CacheHit(0.9, 25, 9.5), 1.0)
    quality, _ = watch.effective(ladder)
    assert (quality[1], quality[2]) == (0.0, ladder.quality[2])  # 9.5 + 3.2 s is late, 9.5 + 2 s is not


def moving(profile: Profile, workers: int, ladder: str) -> tuple[Move, Ladder]:
    """All workers serve the base model."""
    policy = make_policy("clipper-ha", profile, workers)
    engine = make_cluster(profile, policy, make_requests([0.0])).engine
    engine.start()
    found = ladder_of(profile, ladder)
    return Move(policy.setup.catalog, found, engine.view), found


def test_a_move_costs_its_loads(profile: Profile) -> None:
    move, _ = moving(profile, 8, "SM")
    assert (move.held, move.ready_within(0.0, [8, 8, 8]), move.loading) == ([8, 0, 0], [8, 0, 0], 0)
    assert move.loads((3, 4, 1)) == [0, 4, 1]
    assert move.cost_s((3, 4, 1)) == 4 * 20.0 + 10.0
    move, _ = moving(profile, 8, "AC")
    assert move.cost_s((0, 0, 8)) == 0.0
    assert move.step((0, 3, 5), (0.25, 0.3, 0.5), 100.0, 1.1) == (0, 3, 5)  # no load: at once


def test_workers_move_as_far_as_demand_allows(profile: Profile) -> None:
    move, ladder = moving(profile, 8, "SM")
    rate = ladder.throughput_per_s  # 1/4, 1/3, 1/2.2
    assert move.step((0, 0, 8), rate, 1.0, 1.0) == (4, 0, 4)  # capacity 2, of which 4 workers carry 1
    assert move.step((0, 0, 8), rate, 1.0, 1.2) == (5, 0, 3)  # and 5 carry 1.2
    assert move.step((0, 4, 4), rate, 1.4, 1.0) == (6, 0, 2)  # the fastest level first
    assert move.step((0, 0, 8), rate, 1.9, 1.0) == (7, 0, 1)  # always one
    assert move.step((0, 0, 8), rate, 2.1, 1.1) == (7, 0, 1)  # a forecast may be wrong
    assert move.step((0, 0, 8), rate, 2.5, 1.1) == (4, 0, 4)  # half of them, in overload
    assert move.step((7, 1, 0), rate, 0.5, 1.0) == (7, 1, 0)


def test_what_loads_faster_than_anybody_looks_is_ready(profile: Profile) -> None:
    move, _ = moving(profile, 8, "SM")
    assert move.ready_within(15.0, (2, 3, 3)) == [2, 0, 3]  # small takes 10 s, mid 20
    move, _ = moving(profile, 8, "AC")
    assert move.ready_within(0.0, (2, 3, 3)) == [2, 3, 3]  # of one model


def run_with_trouble(
    profile: Profile, trouble: tuple[CacheTrouble, ...], *, switch: bool = True, timeout_s: float = 1.0
) -> tuple[Argus, list[tuple[float, bool]], dict[str, float]]:
    """40 minutes at 150 % of what 8 workers serve in full; when which ladder was in use, and how it went."""
    rng = np.random.default_rng(5)
    requests = make_requests(np.cumsum(rng.exponential(1 / 3.0, 7200)), SLO_S, rng.integers(0, 20, 7200).tolist())
    policy = make_policy("argus", profile, 8, slo_s=SLO_S, switch=switch)
    assert isinstance(policy, Argus)
    config = CacheConfig(trouble=trouble, timeout_s=timeout_s)
    cache = SimulatedCache(config, np.full(20, 0.9), 25, np.random.default_rng(1))
    cluster = make_cluster(profile, policy, requests, drop=DropRule("late"), cache=cache)
    used: list[tuple[float, bool]] = []
    allocate = policy.allocate

    def watched(view):  # type: ignore[no-untyped-def]
        found = allocate(view)
        used.append((view.now_s, policy._ladder.cached))
        return found

    policy.allocate = watched  # type: ignore[method-assign]
    cluster.run()
    assert cluster.finished
    columns = columns_of(cluster)
    arrival_s = np.array(requests.arrival_s)
    during = (arrival_s > 900) & (arrival_s < 1500)
    after = arrival_s > 2200
    on_time = columns["outcome"] == Outcome.ON_TIME
    return policy, used, {"during": float(on_time[during].mean()), "after": float(on_time[after].mean())}


def test_an_outage_of_the_cache_is_left_and_come_back_from(profile: Profile) -> None:
    outage = (CacheTrouble(at_s=600, for_s=900),)
    _, used, went = run_with_trouble(profile, outage)
    assert all(cached for at_s, cached in used if at_s < 600)
    assert not any(cached for at_s, cached in used if 800 < at_s < 1500)
    assert all(cached for at_s, cached in used if at_s > 2200)
    _, stayed, stuck = run_with_trouble(profile, outage, switch=False)
    assert all(cached for _, cached in stayed)
    assert went["during"] > stuck["during"] + 0.05
    # Without another ladder the cache is asked now and then all the same, and used again when it answers.
    assert stuck["after"] > 0.95
    assert went["after"] > 0.95


def test_a_healthy_cache_is_stayed_with(profile: Profile) -> None:
    _, used, _ = run_with_trouble(profile, ())
    assert all(cached for _, cached in used)


def test_a_cache_that_answers_too_late_is_left(profile: Profile) -> None:
    slow = (CacheTrouble(at_s=600, for_s=900, latency_s=10.5),)
    _, used, _ = run_with_trouble(profile, slow, timeout_s=30.0)
    assert not any(cached for at_s, cached in used if 800 < at_s < 1500)


def test_a_model_that_is_hardly_better_is_not_queued_for() -> None:
    """Rated level, ten times as slow, near its capacity: the solver, which knows no queues, is late."""
    level = make_profile(
        {"slow": {1: 6.0}, "fast": {1: 0.6}},
        quality={"slow": 0.862, "fast": 0.861},
        loads_s={"slow": 20.0, "fast": 20.0},
    )
    rng = np.random.default_rng(8)
    requests = make_requests(np.cumsum(rng.exponential(1 / 1.2, 6000)), 12.0, rng.integers(0, 20, 6000).tolist())
    late = {}
    for allocation in ("in-time", "solver"):
        policy = make_policy("argus", level, 8, slo_s=12.0, allocation=allocation)
        cluster = make_cluster(level, policy, requests, drop=DropRule("late"))
        cluster.run()
        late[allocation] = float((columns_of(cluster)["outcome"] != Outcome.ON_TIME).mean())
    assert late["in-time"] < 0.01
    assert late["solver"] > 5 * late["in-time"]


def test_who_holds_a_model_of_the_other_ladder_serves_until_it_is_his_turn(profile: Profile) -> None:
    """Back from smaller models to a cache that answers again: not all workers load at once."""
    rng = np.random.default_rng(5)
    requests = make_requests(np.cumsum(rng.exponential(1 / 3.0, 7200)), SLO_S, rng.integers(0, 20, 7200).tolist())
    policy = make_policy("argus", profile, 8, slo_s=SLO_S, horizon_s=2400.0)
    cache = SimulatedCache(
        CacheConfig(trouble=(CacheTrouble(at_s=300, for_s=900),)), np.full(20, 0.9), 25, np.random.default_rng(1)
    )
    cluster = make_cluster(profile, policy, requests, drop=DropRule("late"), cache=cache)
    cluster.run()
    back = [load for load in cluster.loads if load.start_s > 1200.0 and load.model == "big"]
    assert len(back) == 8
    assert max(sum(b.start_s <= a.start_s < b.finish_s for b in back) for a in back) <= 2
    on_time = columns_of(cluster)["outcome"] == Outcome.ON_TIME
    assert on_time[np.array(requests.arrival_s) > 1200.0].mean() > 0.98
