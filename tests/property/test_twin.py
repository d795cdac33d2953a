"""The fast environment against its twin, which uses nothing but what SimPy offers: the very same runs.

Most times lie on a grid, so that arrivals, batch ends, model loads, cache answers, faults, control ticks and
wake-ups often come at the same instant and their order matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argus_sim.core.batching import DropRule
from argus_sim.simulation import faults
from argus_sim.simulation.cluster import SimulatedCluster
from argus_sim.simulation.environment import Environment, StockEnvironment, StreamEnvironment, Tick
from argus_sim.simulation.faults import Crash, RandomCrashes, Slowdown
from argus_sim.simulation.network import CacheConfig, CacheTrouble, SimulatedCache
from tests.make_cluster import columns_of, make_cluster
from tests.make_engine import make_policy, make_requests
from tests.make_profile import make_profile

CELLS = {
    "big": {1: 4.0, 2: 6.0, 4: 10.0},
    "big/ac-10": {1: 3.25, 2: 5.0, 4: 8.5},
    "big/ac-25": {1: 2.0, 2: 3.0, 4: 5.0},
    "mid": {1: 2.0, 2: 3.0},
    "small": {1: 0.5},
}
LOADS_S = {"big": 5.0, "mid": 2.5, "small": 1.0}
PROFILES = {
    distribution: make_profile(
        CELLS,
        distribution=distribution,
        std_s=0.1,
        loads_s=LOADS_S,
        spread=0.05,
        quality=dict.fromkeys(CELLS, 0.8),
    )
    for distribution in ("deterministic", "lognormal")
}
PROFILES["after pauses"] = make_profile(
    CELLS,
    distribution="deterministic",
    loads_s=LOADS_S,
    after_idle_s={"big": {0.5: 4.5, 2.0: 5.0}, "mid": {0.5: 1.75}, "small": {1.0: 0.75}},
    spread=0.05,
    quality=dict.fromkeys(CELLS, 0.8),
)
SLO_S = 12.0
LATE = DropRule("late")
CACHE = CacheConfig(latency_s=0.25)

POLICIES: dict[str, dict[str, Any]] = {
    "static": {},
    "clipper-ha": {},
    "clipper-ht": {},
    "nirvana": {"thresholds": {10: 0.65, 25: 0.8}},
    "proteus": {"period_s": 10.0},
    "pac": {"period_s": 15.0, "monitor_s": 2.5},
    "argus": {"period_s": 10.0},
}


@dataclass(frozen=True)
class Scene:
    """All that a run is made of."""

    policy: str
    workers: int
    arrival_s: tuple[float, ...]
    seed: int
    distribution: str = "deterministic"
    drop: DropRule = LATE
    staleness_s: float = 0.0
    cache: CacheConfig = CACHE
    faults: tuple[Crash | RandomCrashes | Slowdown, ...] = ()
    max_wait_s: float = float("inf")

    def run(self, env: Environment) -> SimulatedCluster:
        profile = PROFILES[self.distribution]
        rng = np.random.default_rng(self.seed)
        prompts = rng.choice(np.flatnonzero(~profile.is_train), len(self.arrival_s))
        similarity = profile.similarity()
        assert similarity is not None
        host = make_cluster(
            profile,
            make_policy(self.policy, profile, self.workers, slo_s=SLO_S, seed=self.seed, **POLICIES[self.policy]),
            make_requests(self.arrival_s, SLO_S, prompts.tolist()),
            drop=self.drop,
            staleness_s=self.staleness_s,
            cache=SimulatedCache(self.cache, similarity, 25, rng),
            env=env,
            max_wait_s=self.max_wait_s,
            seed=self.seed,
        )
        for fault, stream in zip(self.faults, rng.spawn(len(self.faults)), strict=True):
            faults.start(fault, host, self.workers, stream)
        host.run()
        return host


def assert_same(scene: Scene) -> None:
    fast, stock = scene.run(StreamEnvironment()), scene.run(StockEnvironment())
    ours, theirs = columns_of(fast), columns_of(stock)
    for name, column in ours.items():
        # Bits, so that NaN equals NaN.
        assert np.asarray(column).tobytes() == np.asarray(theirs[name]).tobytes(), name  # type: ignore[literal-required]
    assert repr(fast.engine.log.attempts()) == repr(stock.engine.log.attempts())
    assert fast.engine.log.reasons == stock.engine.log.reasons
    assert fast.engine.floor.plans == stock.engine.floor.plans
    assert repr(fast.loads) == repr(stock.loads)
    assert fast.faults == stock.faults
    assert fast.engine.wasted_s == stock.engine.wasted_s
    assert fast.finished
    assert stock.finished


def quarters(most: int) -> st.SearchStrategy[float]:
    return st.integers(0, 4 * most).map(lambda n: n / 4)


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[float, ...]:
    """Up to 120 sorted times: often the same instant, mostly on a grid, sometimes not at all."""
    n = draw(st.integers(0, 120))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    gap_s = draw(st.sampled_from([0.05, 0.25, 1.0]))
    grid = draw(st.sampled_from([0.25, 1.0, None]))
    times = np.cumsum(rng.exponential(gap_s, n))
    return tuple((times if grid is None else np.floor(times / grid) * grid).tolist())


@st.composite
def some_faults(draw: st.DrawFn, workers: int) -> tuple[Crash | RandomCrashes | Slowdown, ...]:
    hit = st.none() | st.lists(st.integers(0, workers - 1), min_size=1, max_size=workers, unique=True).map(tuple)
    length = quarters(20).map(lambda s: s + 0.25)
    crash = st.builds(Crash, kind=st.just("crash"), workers=hit, at_s=quarters(40), for_s=st.none() | length)
    slow = st.builds(
        Slowdown,
        kind=st.just("slow"),
        workers=hit,
        at_s=quarters(40),
        for_s=length,
        factor=st.sampled_from([0.5, 2.0]),
    )
    chaos = st.builds(
        RandomCrashes,
        kind=st.just("random"),
        workers=hit,
        mtbf_s=st.sampled_from([10.0, 60.0]),
        mttr_s=st.sampled_from([2.0, 20.0]),
    )
    return tuple(draw(st.lists(crash | slow | chaos, max_size=3)))


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    workers = draw(st.integers(1, 6))
    trouble = st.builds(
        CacheTrouble, at_s=quarters(30), for_s=st.just(10.0), latency_s=st.sampled_from([None, 0.5, 4.0])
    )
    cache = st.builds(
        CacheConfig,
        latency_s=st.sampled_from([0.0, 0.25, 1.0]),
        latency_cv=st.sampled_from([0.0, 0.0, 0.5]),
        trouble=st.lists(trouble, max_size=1).map(tuple),
    )
    return Scene(
        policy=draw(st.sampled_from(sorted(POLICIES))),
        workers=workers,
        arrival_s=draw(arrivals()),
        seed=draw(st.integers(0, 1000)),
        distribution=draw(st.sampled_from(["deterministic", "deterministic", "lognormal", "after pauses"])),
        drop=draw(st.sampled_from([DropRule("late"), DropRule("never"), DropRule("factor", 2.0)])),
        staleness_s=draw(st.sampled_from([0.0, 1.0])),
        cache=draw(cache),
        faults=draw(some_faults(workers)),
        max_wait_s=draw(st.sampled_from([float("inf"), 1000.0])),
    )


@given(scenes())
@settings(max_examples=200)
def test_same_runs(scene: Scene) -> None:
    assert_same(scene)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_same_runs_of_every_policy(policy: str) -> None:
    """A longer run of each, with everything that can happen."""
    rng = np.random.default_rng(1)
    arrival_s = np.floor(np.cumsum(rng.exponential(0.5, 1500)) * 4) / 4
    trouble = (
        Crash(kind="crash", workers=(0, 1), at_s=100.0, for_s=50.0),
        Slowdown(kind="slow", workers=(2,), at_s=200.0, for_s=100.0, factor=3.0),
        RandomCrashes(kind="random", mtbf_s=300.0, mttr_s=20.0),
        Crash(kind="crash", at_s=500.0, for_s=5.0),
    )
    assert_same(Scene(policy, 6, tuple(arrival_s.tolist()), seed=2, faults=trouble))


# -- the contract of an environment, of which the cluster uses only a part -----------------------------------


@pytest.mark.parametrize("make", [StreamEnvironment, StockEnvironment])
def test_order_at_equal_times(make: type[Any]) -> None:
    """Arrivals, then the lane, then the heap in the order of scheduling; processes stand in the heap too."""
    env, seen = make(), list[str]()

    def note(what: str) -> Any:
        return lambda now, key: [(now, f"{what} {key}")]

    def carry(now: float, commands: Sequence[Any]) -> None:
        for at_s, what in commands:
            assert now == env.now == at_s
            seen.append(f"{now:g}: {what}")

    def process(name: str, delay: float) -> Any:
        yield env.timeout(delay)
        seen.append(f"{env.now:g}: {name}")

    env.stream(np.array([0.0, 1.0, 1.0, 3.0]), note("arrival"), carry)
    later = env.lane(note("answer"))
    env.process(process("process", 1.0))
    env.process(process("process at once", 0.0))
    for key in range(2):
        env.tick_at(1.0, Tick(note("tick"), key))
    later(1.0, 0)
    later(1.0, 1)
    later(4.0, 2)
    forgotten = Tick(note("cancelled"))
    env.tick_at(2.0, forgotten)
    forgotten.cancel()
    env.tick_at(5.0, Tick(note("tick"), 2))
    env.run()
    assert seen == [
        "0: arrival 0",
        "0: process at once",
        "1: arrival 1",
        "1: arrival 2",
        "1: answer 0",
        "1: answer 1",
        "1: tick 0",
        "1: tick 1",
        "1: process",
        "3: arrival 3",
        "4: answer 2",
        "5: tick 2",
    ]


def test_the_fast_environment_says_what_it_cannot_do() -> None:
    env = StreamEnvironment()
    with pytest.raises(ValueError, match="until is not supported"):
        env.run(until=3.0)

    def nothing(now: float, key: int) -> list[Any]:
        return []

    env.stream(np.empty(0), nothing, lambda now, commands: None)
    with pytest.raises(ValueError, match="has a stream already"):
        env.stream(np.empty(0), nothing, lambda now, commands: None)
    env.lane(nothing)
    with pytest.raises(ValueError, match="has a lane already"):
        env.lane(nothing)
